"""The command line: `flowstudy check`, `spectrum`, `sweep`, `status`, `study` and `figures`."""

from .commands import app

__all__ = ["app"]
