"""Data sets as tensors on the device, read from files whose checksums are compared."""

from .datasets import Dataset, load_dataset, read_mnist

__all__ = ["Dataset", "load_dataset", "read_mnist"]
