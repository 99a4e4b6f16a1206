"""What is studied: nets whose depth is one number, and the schemes that draw their weights."""

from .blocks import ACTIVATIONS, HighwayBlock, PlainBlock
from .fully_connected import HighwayNet, PlainNet
from .initialize import SCHEMES, initialize
from .residual import ResidualBlock, ResidualNet

__all__ = ["ACTIVATIONS", "SCHEMES", "HighwayBlock", "HighwayNet", "PlainBlock", "PlainNet", "ResidualBlock",
           "ResidualNet", "initialize"]
