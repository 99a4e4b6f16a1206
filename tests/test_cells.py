"""Plans: what a cell accepts, equal cells have equal keys, and random search draws the paper's distribution."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flowstudy.kinds import KINDS
from flowstudy.nets import HighwayNet, PlainNet, ResidualNet
from flowstudy.sweep import Cell, cells, grid, random_search
from flowstudy.sweep.cells import DECAY_LAWS

# --- grid ------------------------------------------------------------------------------------------------------------


def test_grid_is_the_product_in_order():
    """Every combination once, the last axis fastest; single values, ranges, arrays and generators are axes alike."""
    plan = grid(net=["plain", "highway"], init="he_normal", depth=range(10, 30, 10), seed=(s for s in (0, 1, 2)),
                learning_rate=np.array([0.5, 0.25]))
    rows = list(itertools.product(["plain", "highway"], ["he_normal"], [10, 20], [0, 1, 2], [0.5, 0.25]))
    assert [(c.net, c.init, c.depth, c.seed, c.learning_rate) for c in plan] == rows
    assert len({cell.key for cell in plan}) == len(plan) == 24
    assert grid() == [Cell()]


@pytest.mark.parametrize("name, field, kind", [("plain", None, PlainNet), ("highway", -2.0, HighwayNet),
                                               ("residual", None, ResidualNet)])
def test_defaults_are_the_papers_nets(name, field, kind):
    """Width and gate bias that are left out are those of the paper's net of that name."""
    cell = Cell(net=name)
    assert cell.width == kind(depth=1).width
    assert cell.gate_bias == field


# --- keys ------------------------------------------------------------------------------------------------------------

OLD_KEY = "ad67edc3408e2215"  # of Cell(), from the version before `bias_var`

OTHER = {"net": "highway", "depth": 11, "width": 70, "activation": "relu", "init": "orthogonal", "gain": 1.5,
         "gate_bias": -3.0, "dataset": "mnist", "train_samples": 100, "seed": 1, "learning_rate": 0.2, "momentum": 0.8,
         "decay": 0.9, "epochs": 3, "batch_size": 50, "order_seed": 1, "bias_var": 0.05}


def test_a_field_that_came_later_leaves_the_keys_of_older_stores():
    """The default cell's key is the one that stores written before `bias_var` hold."""
    assert Cell().key == OLD_KEY and Cell(bias_var=0.0).key == OLD_KEY


OF_EACH_NET = ("activation", "init", "gain", "gate_bias", "seed", "learning_rate", "momentum", "decay", "bias_var")


@pytest.mark.parametrize("name", OTHER)
def test_cells_of_one_structure_share_all_that_a_stack_has_but_once(name):
    """Shape, data, epochs and the order of batches; every other field may differ from net to net of a stack."""
    cell = Cell(net="highway")
    other = dataclasses.replace(cell, **{name: OTHER[name] if name != "net" else "plain"} | (
        {"gate_bias": None} if name == "net" else {}))
    assert (other.structure == cell.structure) == (name in OF_EACH_NET)


def test_key_differs_with_every_field():
    """A cell that differs in any one field has another key, and so other rows in the store."""
    assert OTHER.keys() == {field.name for field in dataclasses.fields(Cell)}
    changed = [Cell(**{"net": "highway" if name == "gate_bias" else "plain"} | {name: value})
               for name, value in OTHER.items()]
    assert len({cell.key for cell in [Cell(), *changed]}) == 1 + len(OTHER)


@pytest.mark.usefixtures("annotations_unchecked")
def test_key_does_not_depend_on_how_a_cell_is_written():
    """numpy numbers, integers for floats, defaults spelt out, another order: equal cells, equal keys, plain fields."""
    cell = Cell(net="highway", depth=20, width=50, gate_bias=-2.0, learning_rate=0.5, momentum=0.0, seed=3)
    twins = [Cell(seed=np.int64(3), momentum=np.float32(0), learning_rate=np.float64(0.5), gate_bias=-2,
                  depth=np.int8(20), net="highway"),
             Cell(net="highway", depth=20, learning_rate=np.float32(0.5), momentum=-0.0, seed=np.uint16(3), gain=None),
             grid(net="highway", depth=np.array([20]), learning_rate=0.5, momentum=0, seed=range(3, 4))[0]]
    for twin in twins:
        assert twin == cell and twin.key == cell.key
        assert {type(value) for value in dataclasses.astuple(twin)} <= {str, int, float, type(None)}


@given(st.lists(st.fixed_dictionaries({}, optional={
    "net": st.sampled_from(["plain", "highway"]), "depth": st.integers(1, 900), "width": st.none() | st.integers(1, 90),
    "gain": st.none() | st.floats(1e-300, 1e300), "seed": st.integers(0, 2**40), "decay": st.floats(1e-9, 1),
    "learning_rate": st.floats(1e-300, 1e300), "momentum": st.floats(-0.0, 1, exclude_max=True),
    "train_samples": st.none() | st.integers(1, 10**9)}), min_size=2, max_size=2))
def test_keys_are_equal_where_cells_are(pair):
    """Two cells have one key exactly where they are equal."""
    one, other = (Cell(**fields) for fields in pair)
    assert (one == other) == (one.key == other.key)
    assert dataclasses.replace(one).key == one.key


# --- errors ----------------------------------------------------------------------------------------------------------

WRONG_CELLS = [
    ({"net": "highwy"}, rf"`net` must be one of {', '.join(KINDS)}, got 'highwy'\. Did you mean 'highway'\?"),
    ({"net": ["plain"]}, rf"`net` must be one of {', '.join(KINDS)}, got \['plain'\]"),
    ({"init": "he"}, r"`init` must be one of glorot_normal"),
    ({"activation": "rleu"}, r"`activation` must be one of relu.*Did you mean 'relu'\?"),
    ({"dataset": "cifar"}, r"`dataset` must be one of digits.*Did you mean 'cifar10"),
    ({"depth": 0}, r"`depth` must be an integer of at least 1, got 0"),
    ({"depth": 2.0}, r"`depth` must be an integer of at least 1, got 2\.0"),
    ({"depth": True}, r"`depth` must be an integer of at least 1, got True"),
    ({"depth": "10"}, r"`depth` must be an integer of at least 1, got '10'"),
    ({"seed": -1}, r"`seed` must be an integer of at least 0, got -1"),
    ({"epochs": None}, r"`epochs` must be an integer of at least 0, got None"),
    ({"train_samples": 0}, r"`train_samples` must be an integer of at least 1, got 0"),
    ({"gate_bias": -1.0}, r"`gate_bias` must be left out of plain nets, got -1\.0"),
    ({"net": "residual", "gate_bias": -1.0}, r"`gate_bias` must be left out of residual nets, got -1\.0"),
    ({"net": "highway", "gate_bias": math.nan}, r"`gate_bias` must be a number, got nan"),
    ({"gain": 0.0}, r"`gain` must be positive and finite, got 0\.0"),
    ({"learning_rate": math.inf}, r"`learning_rate` must be positive and finite, got inf"),
    ({"learning_rate": "0.1"}, r"`learning_rate` must be a number, got '0\.1'"),
    ({"learning_rate": None}, r"`learning_rate` must be a number, got None"),
    ({"momentum": 1.0}, r"`momentum` must be in \[0, 1\), got 1\.0"),
    ({"decay": 0.0}, r"`decay` must be in \(0, 1\], got 0\.0"),
    ({"decay": True}, r"`decay` must be a number, got True"),
    ({"learning_rate": 0.1j}, r"`learning_rate` must be a number, got 0\.1j"),
    ({"bias_var": np.complex64(1)}, r"`bias_var` must be a number, got "),
    ({"gain": np.timedelta64(2, "s")}, r"`gain` must be a number, got "),
    ({"depth": np.timedelta64(2, "s")}, r"`depth` must be an integer of at least 1, got "),
    ({"train_samples": np.timedelta64(2)}, r"`train_samples` must be an integer of at least 1, got "),
    ({"seed": 1j}, r"`seed` must be an integer of at least 0, got 1j"),
]


@pytest.mark.parametrize("fields, message", WRONG_CELLS)
@pytest.mark.usefixtures("annotations_unchecked")
def test_wrong_values_are_named(fields, message):
    """A value that no net can have is refused in one line: field, rule and value; grid shows its row."""
    with pytest.raises(ValueError, match=f"^Cell: {message}") as caught:
        Cell(**fields)
    assert "\n" not in str(caught.value)
    axes = {name: [value] for name, value in fields.items()}
    with pytest.raises(ValueError, match=rf"^grid: \{{.*\}}: Cell: {message}"):
        grid(**axes)


@pytest.mark.parametrize("call, message", [
    (lambda: grid(dept=[10]), r"grid: unknown axis `dept`; a Cell has net, depth, .*\. Did you mean `depth`\?"),
    (lambda: grid(zzz=1), r"grid: unknown axis `zzz`; a Cell has net, depth, .*bias_var\.$"),
    (lambda: grid(depth=[]), r"grid: axis `depth` must have at least one value, got none"),
    (lambda: random_search(0), r"random_search: `n` must be an integer of at least 1, got 0"),
    (lambda: random_search(2, seed=-1), r"random_search: `seed` must be an integer of at least 0, got -1"),
    (lambda: random_search(2, depth=-1), r"random_search: .*`depth` must be an integer of at least 1, got -1"),
    (lambda: random_search(2, net="plane"), r"random_search: .*`net` must be one of plain, .*Did you mean 'plain'\?"),
    (lambda: random_search(2, dpeth=3), r"random_search: unknown axis `dpeth`.*Did you mean `depth`\?"),
    (lambda: random_search(2, decay_law="log"), r"random_search: `decay_law` must be one of log-uniform, uniform, got"),
    (lambda: random_search(2, init={"relu": "he_uniform"}), r"`init` must be a scheme, or hold.*without tanh\."),
    (lambda: random_search(2, init="he"), r"`init` must be one of glorot_normal"),
    (lambda: random_search(2, ranges={"rate": (0, 1)}), r"random_search: `ranges` may hold learning_rate, .*'rate'"),
    (lambda: random_search(2, ranges={"decay": (1.0, 0.9)}), r"`ranges\['decay'\]` must be \(low, high\)"),
    (lambda: random_search(2, ranges={"decay": [0.9]}), r"`ranges\['decay'\]` must be \(low, high\) with low <= high"),
    (lambda: random_search(2, ranges={"learning_rate": (0.0, 1.0)}), r"`learning_rate` must be positive and finite"),
    (lambda: random_search(2, ranges={"momentum": (0.0, 1.0)}), r"`momentum` must be in \[0, 1\), got 1\.0"),
    (lambda: random_search(np.timedelta64(2)), r"random_search: `n` must be an integer of at least 1, got "),
    (lambda: random_search(2, net=[]), r"random_search: `net` must have at least one value, got none"),
    (lambda: random_search(2, depth=[]), r"random_search: `depth` must have at least one value, got none"),
    (lambda: random_search(2, ranges={"activation": []}), r"`ranges\['activation'\]` must have at least one value"),
    (lambda: random_search(2, ranges={"decay": (0.9j, 0.9)}), r"`decay` must be a number, got 0\.9j"),
    (lambda: random_search(2, ranges={"gate_bias": (-2.5, -1)}), r"must have whole numbers as ends, .*\(-2\.5, -1\)"),
    (lambda: random_search(2, ranges={"gate_bias": (-math.inf, -1)}), r"must have whole numbers as ends"),
    (lambda: random_search(2, ranges={"gate_bias": (None, -1)}), r"must have whole numbers as ends"),
    (lambda: random_search(2, ranges={"activation": ["rleu"]}), r"`activation` must be one of relu.*mean 'relu'\?"),
])
@pytest.mark.usefixtures("annotations_unchecked")
def test_wrong_plans_are_refused(call, message):
    """Misspelt axes get the nearest name, empty axes and impossible ranges the rule, before anything is drawn."""
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@given(low=st.integers(-30, 5), size=st.integers(0, 4))
def test_gate_biases_are_drawn_inside_their_range(low, size):
    """Whole numbers from one end to the other, also where both are floats or the same."""
    for ends in ((low, low + size), (float(low), float(low + size))):
        drawn = {cell.gate_bias for cell in random_search(5, net="highway", ranges={"gate_bias": ends})}
        assert drawn <= {float(low + i) for i in range(size + 1)}


# --- random search ---------------------------------------------------------------------------------------------------

DRAWN = ("learning_rate", "momentum", "decay", "activation", "gate_bias")


@pytest.mark.slow
@pytest.mark.parametrize("decay_law", ["log-uniform", "uniform"])
def test_random_search_draws_the_authors_distribution(decay_law):
    """Log-uniform rate, 1 - momentum and 1 - decay (or uniform decay), fair activation, uniform gate bias, all
    independent.

    Five goodness-of-fit tests at p > 1e-4 and ten correlations at 4.5 standard errors: a reseeding fails once in 1,700.
    10,000 draws tell the two laws of the decay apart beyond doubt: at p < 1e-100.
    """
    plan = random_search(10_000, net="highway", depth=50, decay_law=decay_law)
    column = {name: np.array([getattr(cell, name) for cell in plan]) for name in DRAWN}
    relu = column["activation"] == "relu"
    assert stats.kstest(column["learning_rate"], stats.loguniform(1e-3, 1).cdf).pvalue > 1e-4
    assert stats.kstest(1 - column["momentum"], stats.loguniform(0.01, 1).cdf).pvalue > 1e-4
    laws = {"uniform": stats.kstest(column["decay"], stats.uniform(0.9, 0.09).cdf).pvalue,
            "log-uniform": stats.kstest(1 - column["decay"], stats.loguniform(0.01, 0.1).cdf).pvalue}
    assert laws.pop(decay_law) > 1e-4 and laws.popitem()[1] < 1e-100
    assert set(column["activation"]) == {"relu", "tanh"}
    assert stats.binomtest(int(relu.sum()), len(plan)).pvalue > 1e-4
    biases, counts = np.unique(column["gate_bias"], return_counts=True)
    assert biases.tolist() == list(range(-10, 0))
    assert stats.chisquare(counts).pvalue > 1e-4
    numbers = [np.log(column["learning_rate"]), np.log1p(-column["momentum"]), column["decay"], relu,
               column["gate_bias"]]
    correlation = np.corrcoef(numbers)[np.triu_indices(5, 1)]
    assert np.abs(correlation).max() * math.sqrt(len(plan)) < 4.5


def test_the_laws_of_the_decay_by_their_quantiles():
    """From .9 to .99: the middle of the uniform law is .945; of the log-uniform one 1 - sqrt(.1 x .01)."""
    for name, middle in (("uniform", 0.945), ("log-uniform", 1 - math.sqrt(0.1 * 0.01))):
        values = [DECAY_LAWS[name](0.9, 0.99, u) for u in (0.0, 0.5, 1.0)]
        assert values == pytest.approx([0.9, middle, 0.99], abs=1e-15), name


OLD_SEARCH = ["f4c70eaa547c8fa2", "0f044e91a61139d6", "d32e8eb5160c49c1"]  # from when the decay was uniform


def test_old_plans_keep_their_keys():
    """The uniform decay draws the very cells of plans made before the log-uniform law."""
    plan = random_search(3, net="highway", depth=50, seed=7, decay_law="uniform")
    assert [cell.key for cell in plan] == OLD_SEARCH


def test_initial_weights_go_by_activation():
    """A scheme for each activation; all else of the cells is as with one scheme; a fixed activation needs no other."""
    by_activation = {"relu": "he_uniform", "tanh": "lecun_uniform"}
    plan = random_search(20, net="highway", depth=20, init=by_activation)
    assert {(cell.activation, cell.init) for cell in plan} == set(by_activation.items())
    one_scheme = random_search(20, net="highway", depth=20)
    assert [dataclasses.replace(cell, init="he_normal") for cell in plan] == one_scheme
    tanh = random_search(2, activation="tanh", init={"tanh": "lecun_uniform"})
    assert {cell.init for cell in tanh} == {"lecun_uniform"}


@pytest.mark.parametrize("net", ["plain", "highway"])
def test_more_settings_keep_the_first_ones(net):
    """The n settings are the first of any larger n's; setting i has weight seed i; no seed or depth repeats another."""
    few, many = (random_search(n, net=net, depth=20, seed=4) for n in (5, 10))
    assert few == many[:5]
    assert [cell.seed for cell in many] == list(range(10))
    everything = [*many, *random_search(10, net=net, depth=20, seed=5), *random_search(10, net=net, depth=21, seed=4)]
    assert len({cell.learning_rate for cell in everything}) == 30


def test_kinds_and_depths_are_searched_one_by_one():
    """Several nets and depths are the searches of each, one after the other; plain nets have no gate bias."""
    plan = random_search(3, net=["plain", "highway"], depth=[10, 20], seed=1)
    assert plan == [cell for net in ("plain", "highway") for depth in (10, 20)
                    for cell in random_search(3, net=net, depth=depth, seed=1)]
    assert all((cell.gate_bias is None) == (cell.net == "plain") for cell in plan)


@pytest.mark.usefixtures("annotations_unchecked")  # integers for floats
def test_ranges_narrow_and_fixed_fields_hold():
    """Given ranges bound the draws of theirs alone; fixed fields are every cell's, also in place of a drawn one."""
    ranges = {"learning_rate": (0.1, 0.2), "gate_bias": (-4, -3), "activation": "tanh"}
    plan = random_search(50, net="highway", seed=2, ranges=ranges, momentum=0.5, epochs=7)
    free = random_search(50, net="highway", seed=2)
    assert all(0.1 <= cell.learning_rate <= 0.2 and cell.activation == "tanh" for cell in plan)
    assert {cell.gate_bias for cell in plan} == {-4.0, -3.0}
    assert {(cell.momentum, cell.epochs) for cell in plan} == {(0.5, 7)}
    assert [cell.decay for cell in plan] == [cell.decay for cell in free]


def test_paper_ranges_are_the_papers():
    """The library's ranges are those of the authors' search tables."""
    assert cells.PAPER_RANGES == {"learning_rate": (1e-3, 1.0), "momentum": (0.0, 0.99), "decay": (0.90, 0.99),
                                  "activation": ("relu", "tanh"), "gate_bias": (-10, -1)}
