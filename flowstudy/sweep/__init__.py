"""Which nets: plans as plain data, results in a store, and the engine between them."""

from .cells import Cell, grid, random_search
from .engine import run
from .store import Store

__all__ = ["Cell", "Store", "grid", "random_search", "run"]
