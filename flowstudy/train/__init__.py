"""How many nets learn at once: data sets on the device, stacks of nets, the loop."""

from .checkpoint import Checkpoint
from .datasets import Dataset, load_dataset, read_mnist
from .ensemble import Stack, stack, stack_states
from .loop import History, Moment, RecordAt, Settings, train

__all__ = ["Checkpoint", "Dataset", "History", "Moment", "RecordAt", "Settings", "Stack", "load_dataset", "read_mnist",
           "stack", "stack_states", "train"]
