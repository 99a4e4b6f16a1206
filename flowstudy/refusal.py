"""Errors of one line for wrong calls.

They name the argument and suggest what was probably meant.  Text from files is escaped before it is shown.
"""

import difflib
from collections.abc import Callable, Iterable


class RefusalError(ValueError):
    """A wrong call, refused before anything is computed, in one line that says what to do."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))  # a value in it may have several


class RefusalTypeError(RefusalError, TypeError):
    """An argument of a wrong kind."""


def did_you_mean(word: object, known: Iterable[str], most: int = 1, quoted: Callable[[str], str] = repr) -> str:
    """A sentence to end a message with, a space before it; empty where nothing is near.

    >>> did_you_mean("highwy", ["plain", "highway"])
    " Did you mean 'highway'?"
    """
    near = difflib.get_close_matches(str(word), list(known), most)
    return f" Did you mean {' or '.join(map(quoted, near))}?" if near else ""


def printable(text: object) -> str:
    """Text from a file made safe for a terminal: characters that would move the cursor or change colours are escaped.

    >>> printable(chr(27) + "[2J")
    '\\\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
