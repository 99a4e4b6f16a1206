"""Sweeps over many nets: plans as plain data, results in a store, and the engines that compute them."""

from .cells import Cell, grid, random_search
from .engine import run
from .ranking import best, top
from .store.failures import SweepError
from .store.files import StoreError
from .store.store import Store

__all__ = ["Cell", "Store", "StoreError", "SweepError", "best", "grid", "random_search", "run", "top"]
