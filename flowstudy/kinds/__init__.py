"""Kinds of net, a file each: what it is made of, how it is stacked, its Jacobian, its theory."""

from .highway import HIGHWAY
from .kind import KINDS, Kind, register, unregister
from .plain import PLAIN
from .residual import RESIDUAL

for kind in (PLAIN, HIGHWAY, RESIDUAL):  # random searches draw by place in this order: new kinds come last
    register(kind)

__all__ = ["KINDS", "Kind", "register", "unregister"]
