"""The words of a figure: a message above it, one sentence computed from its data, and a caption below it.

Both are part of the picture, and are its alternative text for those who cannot see it.
"""

import math
import re
import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .style import keep_apart

MESSAGE, CAPTION = 11.0, 8.5  # font sizes, in points
PER_INCH = {MESSAGE: 10.8, CAPTION: 15.2}  # letters per inch, of the bold message and of the plain caption
DATASETS = {"digits": "scikit-learn's digits", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST",
            "cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
MINUS, TIMES, NO_BREAK = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{NO-BREAK SPACE}"
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def speak(figure: Figure, message: str, caption: str) -> Figure:
    """The figure, with its message above and its caption below it, higher by their lines; labels are kept apart.

    Args:
        message: one sentence, what was found, with the numbers that the data give it.
        caption: data set, nets and number of seeds; what bars, bands, dashes, hollow marks and thin lines are.
    """
    above, below = (textwrap.fill(words.replace(" %", NO_BREAK + "%"), int(figure.get_figwidth() * PER_INCH[size]))
                    for words, size in ((message, MESSAGE), (caption, CAPTION)))
    lines = MESSAGE * (1 + above.count("\n")) + CAPTION * (1 + below.count("\n"))
    figure.set_figheight(figure.get_figheight() + 1.25 * lines / 72)
    figure.suptitle(above, x=0.01, ha="left", fontsize=MESSAGE, fontweight="bold")
    figure.supxlabel(below, x=0.01, ha="left", fontsize=CAPTION, color="0.25")
    keep_apart(figure)
    return figure


def message_of(figure: Figure) -> str:
    return plain_words(figure.get_suptitle())


def caption_of(figure: Figure) -> str:
    return plain_words(figure.get_supxlabel())


def number(x: float | np.number, digits: int = 2) -> str:
    """A number as people write it: 0.046, 210, with a true minus sign, and powers of ten where it is far from 1."""
    words = f"{x:.{digits}g}"
    if 10**digits <= abs(x) < 1e5:
        words = f"{float(words):,.0f}"
    head, _, power = words.partition("e")
    if power:
        return f"{head} {TIMES} 10{str(int(power)).translate(RAISED)}".replace("-", MINUS).removeprefix(f"1 {TIMES} ")
    return words.replace("-", MINUS)


def power_of_ten(log10: float) -> str:
    """10^log10 as text, also where it is too small or too large for a float."""
    if not math.isfinite(log10):
        return "0" if log10 < 0 else "infinity"
    return number(10**log10) if abs(log10) < 2 else f"10{str(round(log10)).translate(RAISED)}"


def count(n: int | np.integer, one: str) -> str:
    return f"{n:,} {one}{'' if n == 1 else 's'}"


def listed(values: object, last: str = "and") -> str:
    """10, 20 and 50."""
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def data_of(frame: pd.DataFrame) -> str:
    return listed(DATASETS.get(name, name) for name in frame["dataset"].unique())


def nets_of(frame: pd.DataFrame) -> str:
    """Data set, width, and how many seeds a kind of net has: "scikit-learn's digits, width 50, 20 seeds"."""
    widths = listed(sorted(frame["width"].unique()))
    return f"{data_of(frame)}, width {widths}, {count(frame['seed'].nunique(), 'seed')}"


def plain_words(text: str) -> str:
    """The text without mathematical markup, as a screen reader can speak it."""
    words = re.sub(r"[$\\{}]", "", " ".join(text.split())).replace("b_T =", "gate bias")
    return re.sub(r"-(?=\d)", MINUS, words)


def kinds_of(frame: pd.DataFrame) -> str:
    """"plain tanh and relu nets": of the nets and activations that a frame has."""
    return f"{listed(frame['net'].unique())} {listed(frame['activation'].unique())} nets"


def capital(words: str) -> str:
    return words[0].upper() + words[1:]
