"""The command line: `flowstudy check`, `spectrum`, `sweep` and `status`."""

from .commands import app

__all__ = ["app"]
