"""Progress bars in terminals and notebooks.

They are text in terminals and in notebooks that run unattended, and a widget in a notebook that somebody has open.
"""

import sys
from importlib.util import find_spec

from tqdm import tqdm


def progress_bar(**options: object) -> tqdm:
    """A tqdm bar of the kind that can be shown here, with tqdm's options."""
    if is_watched():
        from tqdm.notebook import tqdm as widget

        return widget(**options)
    return tqdm(**options)


def is_watched() -> bool:
    """Whether this runs in a notebook that somebody has open and that can show widgets.

    papermill and nbconvert run cells with the setting that nobody can answer a prompt.  They pass text on to the
    terminal, but not widgets.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel") or find_spec("ipywidgets") is None:
        return False
    return bool(shell.get_parent().get("content", {}).get("allow_stdin", False))


class NetBar:
    """A progress bar that counts nets, weighted by their cost, since deep nets take longer."""

    def __init__(self, name: str, nets: int, cost: float | int, shown: bool = True):
        self.nets, self.done = nets, 0.0
        self.bar = progress_bar(total=cost, desc=name, disable=not shown, smoothing=0.1,
                                postfix=f"0 of {nets} nets", bar_format=(
            "{desc}: {percentage:3.0f}%|{bar}| {elapsed} so far, {remaining} left{postfix}"))

    def advance(self, nets: float | int, cost: float | int) -> None:
        """Add a number of nets that are done, fractions included, and their cost."""
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
