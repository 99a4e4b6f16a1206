"""Kinds of net, a file each: its blocks, its layer in a stack of nets, its Jacobian and its theory."""

from .highway import HIGHWAY
from .kind import KINDS, Kind, register, unregister
from .plain import PLAIN
from .residual import RESIDUAL

for kind in (PLAIN, HIGHWAY, RESIDUAL):  # random searches draw an index into this order, so a new kind must come last
    register(kind)

__all__ = ["KINDS", "Kind", "register", "unregister"]
