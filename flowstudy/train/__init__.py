"""How many nets learn at once: data sets on the device, stacks of nets, the loop."""

from .checkpoint import Checkpoint
from .conv_runs import CONV_NETS, ConvRun, conv_grid, load_images, train_conv_nets, train_conv_study
from .convnets import CIFAR_RECIPE, MNIST_RECIPE, ConvHistory, Recipe, train_conv
from .datasets import Dataset, load_dataset, read_mnist
from .ensemble import Stack, stack, stack_states
from .loop import History, Moment, RecordAt, Settings, train

__all__ = [
    # stacks of nets
    "Checkpoint", "History", "Moment", "RecordAt", "Settings", "Stack", "stack", "stack_states", "train",
    # the paper's convolutional nets
    "CIFAR_RECIPE", "CONV_NETS", "MNIST_RECIPE", "ConvHistory", "ConvRun", "Recipe", "conv_grid", "load_images",
    "train_conv", "train_conv_nets", "train_conv_study",
    # data
    "Dataset", "load_dataset", "read_mnist",
]
