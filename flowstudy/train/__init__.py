"""How many nets learn at once: data sets on the device, stacks of nets, the loop."""

from .datasets import Dataset, load_dataset, read_mnist
from .ensemble import Stack, stack
from .loop import History, Settings, train

__all__ = ["Dataset", "History", "Settings", "Stack", "load_dataset", "read_mnist", "stack", "train"]
