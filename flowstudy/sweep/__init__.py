"""Which nets: plans as plain data, results in a store, and the engines between them."""

from .cells import Cell, grid, random_search
from .engine import run
from .failures import SweepError
from .files import StoreError
from .search import best, top
from .store import Store

__all__ = ["Cell", "Store", "StoreError", "SweepError", "best", "grid", "random_search", "run", "top"]
