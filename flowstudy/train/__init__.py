"""How many nets learn at once: stacks of nets, the loop, and the paper's convolutional nets."""

from .checkpoint import Checkpoint
from .convolutional.recipe import CIFAR_RECIPE, MNIST_RECIPE, ConvHistory, Recipe, train_conv
from .convolutional.runs import CONV_NETS, ConvRun, conv_grid, load_images, train_conv_nets, train_conv_study
from .loop import History, Settings, train
from .observing import Moment, RecordAt
from .stacks.ensemble import Stack, stack, stack_states

__all__ = [
    # stacks of nets
    "Checkpoint", "History", "Moment", "RecordAt", "Settings", "Stack", "stack", "stack_states", "train",
    # the paper's convolutional nets
    "CIFAR_RECIPE", "CONV_NETS", "MNIST_RECIPE", "ConvHistory", "ConvRun", "Recipe", "conv_grid", "load_images",
    "train_conv", "train_conv_nets", "train_conv_study",
]
