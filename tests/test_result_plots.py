"""Pictures of one result: every layer has its mark, parts of the model their names, and no text lies on other text."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from drawn import texts_that_overlap
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import flowstudy as fs
from flowstudy.plots.results.flow import of_several
from flowstudy.plots.results.layer_axis import parts_of, shortened

NAMES = st.lists(st.sampled_from(["a", "b", "blocks"]), min_size=1, max_size=3).map(".".join)


@given(st.lists(st.tuples(NAMES, st.integers(0, 40)).map(lambda pair: f"{pair[0]}.{pair[1]}"), min_size=1, max_size=90),
       st.integers(2, 12))
def test_parts_lie_side_by_side_and_cover_all_layers(modules, most):
    parts = parts_of(modules, most)
    assert len(parts) <= most
    assert [place for part in parts for place in range(part.first, part.last + 1)] == list(range(len(modules)))
    assert all(modules[part.first].startswith(part.name) for part in parts)


def test_what_all_names_begin_with_is_left_out_and_blocks_keep_their_numbers():
    assert shortened(["model.h.0", "model.h.1", "model.head"]) == ["h.0", "h.1", "head"]
    assert shortened(["layer"]) == ["layer"]
    assert [part.name for part in parts_of([f"h.{i}.{name}" for i in range(12) for name in "abc"])] == [
        f"h.{i}" for i in range(12)]
    many = parts_of(["input", *(f"blocks.{i}" for i in range(60))])   # not "input" and "blocks"
    assert len(many) > 12 and {part.name.partition(".")[0] for part in many} == {"input", "blocks"}


class Branches(nn.Module):
    def __init__(self, blocks: int):
        super().__init__()
        self.input, self.readout = nn.Linear(6, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.input(x)
        for block in self.blocks:
            h = h + block(h)
        return self.readout(h)


@pytest.mark.parametrize("blocks", [2, 12, 70])
def test_marks_tell_branches_from_the_main_path_and_words_keep_apart(blocks):
    model, x, y = Branches(blocks), torch.randn(16, 6), torch.arange(16) % 3
    flow = fs.gradient_flow(model, x, y)
    figure = flow.plot()
    error = figure.axes[0]
    marks = {bool(line.get_markerfacecolor() == "white"): 0 for line in error.lines}
    for line in error.lines:
        if line.get_marker() not in ("None", "x"):
            marks[line.get_markerfacecolor() == "white"] += sum(map(math.isfinite, line.get_ydata()))
    assert marks == {False: flow.frame.main_path.sum(), True: (~flow.frame.main_path).sum()}
    assert list(error.lines[0].get_ydata()) == flow.path.log10_error_signal_norm.tolist()
    assert texts_that_overlap(figure) == []


def test_all_pictures_of_results_keep_their_words_apart():
    torch.manual_seed(0)
    model, x, y = Branches(5), torch.randn(16, 6), torch.arange(16) % 3
    deep = fs.initialize(fs.PlainNet(6, 8, 50, 3), "glorot_normal", seed=0)
    for result in (fs.trainability(model, x, y, samples=8, trial=8), fs.trainability(deep, x, y, samples=4),
                   fs.compare({"branches": model, "deep": deep}, x, y), fs.jacobian_spectrum(model, x)):
        assert texts_that_overlap(result.plot()) == []


def test_a_layers_share_is_that_of_the_parameters_inside_it():
    """flowstudy's own blocks are layers whose weights lie in modules inside; the read-out is none of its layers."""
    torch.manual_seed(0)
    net = fs.initialize(fs.HighwayNet(6, 8, 3, 3), "he_normal", seed=0)
    found = fs.trainability(net, torch.randn(16, 6), torch.arange(16) % 3, samples=8)
    shares = found.frame.set_index("module").share_of_learning
    for block in shares.index:
        own = found.by_layer[[name for name in found.by_layer.index if f"{name}.".startswith(f"{block}.")]].sum()
        assert shares[block] == pytest.approx(own, rel=1e-12) and own > 0
    assert shares.sum() == pytest.approx(1 - found.by_layer["readout"], rel=1e-9)


def test_a_line_of_each_model_goes_through_its_own_numbers():
    """Layers to the right, what was measured upwards, in the colour of the model's name; two decades at least."""
    flows = {name: fs.gradient_flow(Branches(blocks), torch.randn(16, 6), torch.arange(16) % 3).frame
             for name, blocks in (("small", 2), ("large", 4))}
    figure = of_several(pd.concat([frame.assign(model=name) for name, frame in flows.items()]), "two")
    columns = ("log10_error_signal_norm", "log10_weight_gradient_norm", "activation_mean_square",
               "activation_correlation")
    for ax, column in zip(figure.axes, columns, strict=True):
        for line, frame in zip(ax.lines, flows.values(), strict=False):
            known = frame[np.isfinite(frame[column])]
            assert line.get_xdata().tolist() == known["layer"].tolist()
            assert line.get_ydata().tolist() == known[column].tolist()
    low, high = figure.axes[2].get_ylim()
    assert high / low >= 99


def test_what_float32_loses_is_grey_from_the_least_normal_number_down():
    """As far as the axis goes, which still runs upwards and holds every norm."""
    frame = fs.gradient_flow(Branches(2), torch.randn(16, 6), torch.arange(16) % 3).frame.assign(model="a")
    frame["log10_error_signal_norm"] = np.linspace(-50, -1, len(frame))
    ax = of_several(frame, "deep").axes[0]
    low, high = ax.get_ylim()
    [grey] = [patch.get_extents().transformed(ax.transData.inverted()) for patch in ax.patches]
    assert grey.y0 == pytest.approx(low) and grey.y1 == pytest.approx(math.log10(2.0**-126))
    assert low < -50 and high > -1
