"""On what: data sets as tensors on the device, read from files that are checked."""

from .datasets import Dataset, load_dataset, read_mnist

__all__ = ["Dataset", "load_dataset", "read_mnist"]
