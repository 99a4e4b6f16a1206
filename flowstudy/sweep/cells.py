"""A cell is one net with its training settings; a plan is a list of cells, plain data."""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from flowstudy.arguments import MAPPING, check_kind, check_one_of, check_real, check_whole
from flowstudy.data.datasets import DATASETS, TRAIN_SAMPLES
from flowstudy.kinds import KINDS
from flowstudy.names import ActivationName, DatasetName, NetName, SchemeName
from flowstudy.nets import ACTIVATIONS, SCHEMES
from flowstudy.refusal import did_you_mean

from .plan_error import PlanError

# Of the authors' search tables; the paper's text (Srivastava et al. 2015, section 3.1) gives the gate bias alone.
PAPER_RANGES: dict[str, tuple] = {
    "learning_rate": (1e-3, 1.0),     # log-uniform, in the authors' convention (see Settings)
    "momentum": (0.0, 0.99),          # 1 - momentum log-uniform
    "decay": (0.90, 0.99),            # per epoch; see DECAY_LAWS
    "activation": ("relu", "tanh"),   # one of
    "gate_bias": (-10, -1),           # uniform integer, highway nets only
}
DECAY_LAWS = {  # functions of a uniform number u in [0, 1) that give the decay, between `low` and `high`
    "log-uniform": lambda low, high, u: 1 - (1 - low) * ((1 - high) / (1 - low)) ** u,  # of 1 - decay
    "uniform": lambda low, high, u: low + (high - low) * u,                             # of the decay itself
}


MOST_CELLS = 10**6  # the most cells of a plan; more take minutes to list and gigabytes to hold
LATER = {"bias_var": 0.0}  # fields added later; at these values they are left out of the keys, so older keys stay valid


@dataclass(frozen=True)
class Cell:
    """One net: what it is, how it starts, how it learns.

    Attributes:
        net: "plain", "highway" or "residual", or another of `flowstudy.kinds`.
        depth: hidden layers, the plain input layer included.
        width: units a layer; None is the kind's own (71 plain, 50 highway, as in the paper; 71 residual).
        activation: see `flowstudy.ACTIVATIONS`.
        init: see `flowstudy.initialize`; `gain` and `bias_var` likewise, None is the scheme's own gain.
        gate_bias: b_T of every highway block; None for nets without gates, -2 where a highway cell gives none.
        dataset: see `flowstudy.load_dataset`; `train_samples` of its training set, None is all.
        seed: of the weights.
        learning_rate, momentum, decay, epochs, batch_size, order_seed: see `flowstudy.train.loop.Settings`.
    """

    net: NetName = "plain"
    depth: int = 10
    width: int | None = None
    activation: ActivationName = "tanh"
    init: SchemeName = "he_normal"
    gain: float | None = None
    gate_bias: float | int | None = None
    dataset: DatasetName = "digits"
    train_samples: int | None = None
    seed: int = 0
    learning_rate: float = 0.1
    momentum: float = 0.9
    decay: float = 1.0
    epochs: int = 0
    batch_size: int = 100
    order_seed: int = 0
    bias_var: float = 0.0

    def __post_init__(self) -> None:
        one_of(net=(self.net, KINDS), activation=(self.activation, ACTIVATIONS), init=(self.init, SCHEMES),
               dataset=(self.dataset, DATASETS))
        kind = KINDS[self.net]
        fill = object.__setattr__  # the dataclass is frozen: defaults that depend on the net are filled in here
        if self.width is None:
            fill(self, "width", kind.width)
        if self.gate_bias is None:
            fill(self, "gate_bias", kind.gate_bias)
        for name in ("depth", "width", "seed", "epochs", "batch_size", "order_seed", "train_samples"):
            value = getattr(self, name)
            least = 0 if name in ("seed", "epochs", "order_seed") else 1
            if value is not None or name != "train_samples":  # a numpy integer would not survive the trip to JSON
                fill(self, name, check_whole("Cell", name, value, least))
        for name in ("gain", "gate_bias", "learning_rate", "momentum", "decay", "bias_var"):
            value = getattr(self, name)
            if value is not None or name not in ("gain", "gate_bias"):
                fill(self, name, check_real("Cell", name, value, "a number") + 0.0)  # no -0.0: equal cells, equal keys
        require(kind.gate_bias is not None or self.gate_bias is None, "gate_bias", f"left out of {self.net} nets",
                self.gate_bias)
        require(self.gain is None or 0 < self.gain < np.inf, "gain", "positive and finite", self.gain)
        require(0 <= self.bias_var < np.inf, "bias_var", "at least 0 and finite", self.bias_var)
        require(0 < self.learning_rate < np.inf, "learning_rate", "positive and finite", self.learning_rate)
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        require(0 < self.decay <= 1, "decay", "in (0, 1]", self.decay)

    @functools.cached_property
    def key(self) -> str:
        """The cell's name in the store: a hash of its fields, those that came later left out at their defaults."""
        fields = {name: getattr(self, name) for name in CELL_FIELDS}
        return digest({name: value for name, value in fields.items() if name not in LATER or value != LATER[name]})

    @property
    def structure(self) -> tuple[object, ...]:
        """Cells that agree in this can be stacked and trained on the same batches, whatever their activations."""
        return (self.net, self.depth, self.width, self.dataset, self.train_samples, self.epochs, self.batch_size,
                self.order_seed)


CELL_FIELDS = tuple(field.name for field in fields(Cell))


def samples_of(cell: Cell) -> int:
    """Number of training samples: `train_samples`, or all that the data set has."""
    there = TRAIN_SAMPLES[cell.dataset]
    return min(cell.train_samples or there, there)


def grid(**axes: object) -> list[Cell]:
    """Every combination of the given values, the last axis fastest; a single value is a constant.

    Returns:
        A list of cells, one for each combination.

    >>> [cell.depth for cell in grid(depth=[10, 50], seed=range(2))]
    [10, 10, 50, 50]
    """
    check_axes("grid", axes)
    columns = [values(axis) for axis in axes.values()]
    for name, column in zip(axes, columns, strict=True):
        if not column:
            raise PlanError(f"grid: axis `{name}` must have at least one value, got none.")
    check_size("grid", math.prod(map(len, columns)))
    return [make_cell("grid", dict(zip(axes, row, strict=True))) for row in itertools.product(*columns)]


def random_search(n: int, *, net: NetName | Sequence[NetName] = "plain", depth: int | Sequence[int] = 10, seed: int = 0,
                  ranges: Mapping[str, Sequence[Any]] | None = None, decay_law: str = "log-uniform",
                  init: SchemeName | Mapping[str, SchemeName] = "he_normal", **fixed: object) -> list[Cell]:
    """`n` random settings for each net and depth, from the distribution of the authors' search.

    Learning rate log-uniform in [1e-3, 1] (the authors' convention), 1 - momentum log-uniform in [0.01, 1], 1 - decay
    per epoch log-uniform in [0.01, 0.1], ReLU or tanh, gate bias a uniform integer in -10..-1 (highway only).  A
    setting depends on (seed, net, depth, its number) alone: a larger `n` keeps those of a smaller one.

    Args:
        n: settings for each net and depth.
        seed: of the draws; setting i also has weight seed i.
        ranges: narrower (low, high) for learning_rate, momentum, decay, gate_bias; the choices for activation.
        decay_law: "log-uniform", of 1 - decay, or "uniform", of the decay, which earlier plans took for the authors'
            law: it draws these again, cell by cell, with the same keys in the store.
        init: a scheme of `initialize` for all, or a scheme for each activation that is drawn.
            {"relu": "he_uniform", "tanh": "lecun_uniform"} is how the authors' framework draws fully connected weights,
            as its code has it; that the study of section 3.1 used it is inferred.
        fixed: further fields of `Cell`, the same for all.

    Returns:
        A list of `n` cells for each net and depth.

    Source: Srivastava et al. 2015, section 3.1.  Ranges and laws are those of the authors' search tables: over their
        800 runs a uniform decay has p < 1e-22, the log-uniform law p = .13 and .23 (Kolmogorov & Smirnov).
    """
    check_whole("random_search", "n", n, least=1)
    check_whole("random_search", "seed", seed)
    for name, axis in (("net", net), ("depth", depth)):
        if not values(axis):
            raise PlanError(f"random_search: `{name}` must have at least one value, got none.")
    check_one_of("random_search", "decay_law", decay_law, DECAY_LAWS)
    if ranges is not None:
        MAPPING("random_search", "ranges", ranges)
    ranges = PAPER_RANGES | check_ranges(ranges or {})
    check_axes("random_search", fixed)
    check_schemes(init, values(fixed.get("activation", ranges["activation"])))
    check_size("random_search", n * len(values(net)) * len(values(depth)))
    cells = []
    for kind, layers in itertools.product(values(net), values(depth)):
        make_cell("random_search", {"net": kind, "depth": layers} | fixed)  # an error must not reach the generator
    for kind, layers, i in itertools.product(values(net), values(depth), range(n)):
        rng = np.random.default_rng((seed, list(KINDS).index(kind), layers, i))
        drawn = {"net": kind, "depth": layers, "seed": i} | draw_settings(rng, ranges, decay_law) | fixed
        if KINDS[kind].gate_bias is None and "gate_bias" not in fixed:
            del drawn["gate_bias"]
        scheme = init if isinstance(init, str) else init[drawn["activation"]]
        cells.append(make_cell("random_search", drawn | {"init": scheme}))
    return cells


def check_size(call: str, cells: int) -> None:
    if cells > MOST_CELLS:
        raise PlanError(f"{call}: a plan must have at most {MOST_CELLS:,} cells, got {cells:,}. Make several plans of "
                        "it.")


def check_schemes(init: str | Mapping[str, str], activations: Sequence[str]) -> None:
    check_kind("random_search", "init", init, (str, Mapping), "a scheme, or a mapping of activations to schemes")
    missing = [] if isinstance(init, str) else [name for name in activations if name not in init]
    if missing:
        raise PlanError("random_search: `init` must be a scheme, or hold one for each activation that is drawn, got "
                        f"{dict(init)!r} without {', '.join(map(str, missing))}.")


def draw_settings(rng: np.random.Generator, ranges: Mapping[str, Sequence], decay_law: str) -> dict[str, object]:
    """Draw all five settings in this order, even those a net has no use for, so that all kinds of net share draws."""
    low, high = np.log(ranges["learning_rate"])
    slow, fast = np.log([1 - ranges["momentum"][1], 1 - ranges["momentum"][0]])
    return {
        "learning_rate": float(np.exp(rng.uniform(low, high))),
        "momentum": max(0.0, float(1 - np.exp(rng.uniform(slow, fast)))),
        "decay": float(DECAY_LAWS[decay_law](*ranges["decay"], rng.random())),
        "activation": str(rng.choice(list(ranges["activation"]))),
        "gate_bias": float(rng.integers(ranges["gate_bias"][0], ranges["gate_bias"][1], endpoint=True)),
    }


def check_ranges(ranges: Mapping[str, Sequence]) -> dict[str, Sequence]:
    for name, span in ranges.items():
        if name not in PAPER_RANGES:
            raise PlanError(f"random_search: `ranges` may hold {', '.join(PAPER_RANGES)}, got {name!r}.")
        ends = values(span)
        if not ends:
            raise PlanError(f"random_search: `ranges[{name!r}]` must have at least one value, got none.")
        for end in ends:
            make_cell("random_search", {"net": "highway", name: end})
            if name == "gate_bias" and (end is None or not float(end).is_integer()):
                raise PlanError("random_search: `ranges['gate_bias']` must have whole numbers as ends, of which and "
                                f"between which they are drawn, got {span!r}.")
        if name != "activation" and not (len(ends) == 2 and ends[0] <= ends[1]):
            raise PlanError(f"random_search: `ranges[{name!r}]` must be (low, high) with low <= high, got {span!r}.")
    return {name: values(span) for name, span in ranges.items()}


def check_axes(call: str, axes: Iterable[str]) -> None:
    for name in axes:
        if name not in CELL_FIELDS:
            raise PlanError(f"{call}: unknown axis `{name}`; a Cell has {', '.join(CELL_FIELDS)}."
                            + did_you_mean(name, CELL_FIELDS, quoted="`{}`".format))


def make_cell(call: str, settings: dict) -> Cell:
    try:
        return Cell(**settings)
    except ValueError as error:
        raise PlanError(f"{call}: {settings}: {error}") from None


def values(axis: object) -> list:
    if isinstance(axis, str) or not isinstance(axis, Iterable):
        return [axis]
    found = list(itertools.islice(axis, MOST_CELLS + 1))
    check_size("grid", len(found))
    return found


def one_of(**choices: tuple[object, Iterable]) -> None:
    for name, (value, known) in choices.items():
        check_one_of("Cell", name, value, known)


def require(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise PlanError(f"Cell: `{name}` must be {rule}, got {value!r}.")


def digest(value: object) -> str:
    """64 bits of SHA-256 over canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
