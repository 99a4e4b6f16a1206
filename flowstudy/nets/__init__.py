"""The nets that are studied, whose depth is one number, and the schemes that draw their weights."""

from .blocks import ACTIVATIONS, HighwayBlock, PlainBlock
from .convolutional import ConvNet, cifar_conv_net, fitnet, initialize_as_authors, mnist_conv_net
from .fully_connected import HighwayNet, PlainNet
from .initialize import SCHEMES, initialize
from .residual import ResidualBlock, ResidualNet

__all__ = ["ACTIVATIONS", "SCHEMES", "ConvNet", "HighwayBlock", "HighwayNet", "PlainBlock", "PlainNet", "ResidualBlock",
           "ResidualNet", "cifar_conv_net", "fitnet", "initialize", "initialize_as_authors", "mnist_conv_net"]
