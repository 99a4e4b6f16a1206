"""Progress bars: of text in terminals and in notebooks that run by themselves, a widget where somebody watches."""

import sys
from importlib.util import find_spec

from tqdm import tqdm


def progress_bar(**options: object) -> tqdm:
    """tqdm's, of the kind that can be seen; its options."""
    if is_watched():
        from tqdm.notebook import tqdm as widget

        return widget(**options)
    return tqdm(**options)


def is_watched() -> bool:
    """Whether this is a cell of a notebook that somebody has open, and that can show widgets.

    papermill and nbconvert say of the cells that they run that nobody can answer a question; they pass text on to the
    terminal, and widgets would be lost.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel") or find_spec("ipywidgets") is None:
        return False
    return bool(shell.get_parent().get("content", {}).get("allow_stdin", False))


class NetBar:
    """A bar of nets, whose length and time left go by what the nets cost: the deep ones take longer."""

    def __init__(self, name: str, nets: int, cost: float | int, shown: bool = True):
        self.nets, self.done = nets, 0.0
        self.bar = progress_bar(total=cost, desc=name, disable=not shown, smoothing=0.1,
                                postfix=f"0 of {nets} nets", bar_format=(
            "{desc}: {percentage:3.0f}%|{bar}| {elapsed} so far, {remaining} left{postfix}"))

    def advance(self, nets: float | int, cost: float | int) -> None:
        """So many more nets are done, parts of nets being counted too."""
        self.done += nets
        self.bar.set_postfix_str(f"{int(self.done + 1e-6)} of {self.nets} nets", refresh=False)
        self.bar.update(min(cost, self.bar.total - self.bar.n))  # parts of nets may add up to a rounding error more

    def say(self, words: str) -> None:
        """A line above the bar, where bars are shown."""
        if not self.bar.disable:
            tqdm.write(words, file=sys.stderr)

    def __enter__(self) -> "NetBar":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.bar.close()
