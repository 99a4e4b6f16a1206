"""Recurrent nets: time steps as rows, equal to a loop over the cell; verdicts and spectra along time; gates."""

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from any_module import Of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.checkpoint import checkpoint

import flowstudy as fs
from flowstudy.measure.gradients.statistics import STATISTICS

ABSOLUTE = 1e-10   # of log10 norms, shares and cosines of order one; measured 1e-13
STEPS, FEATURES, WIDTH = 4, 3, 4
CELLS = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN_TANH": nn.RNNCell, "RNN_RELU": nn.RNNCell}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# --- rows ------------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """A recurrent module, and a read-out of all its outputs."""

    def __init__(self, rnn: nn.RNNBase, classes: int = 5):
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear((rnn.proj_size or rnn.hidden_size) * (1 + rnn.bidirectional), classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


class CellByCell(nn.Module):
    """The same with torch's cells in a Python loop; the cells' weights are the module's."""

    def __init__(self, like: Reader):
        super().__init__()
        rnn, self.head, self.cells = like.rnn, like.head, nn.ModuleList()
        self.directions, self.batch_first = 1 + rnn.bidirectional, rnn.batch_first
        for names in rnn._all_weights:
            into = getattr(rnn, names[0]).shape[1]
            options = {"nonlinearity": rnn.nonlinearity} if rnn.mode.startswith("RNN") else {}
            cell = CELLS[rnn.mode](into, rnn.hidden_size, rnn.bias, **options)
            for name in names:
                setattr(cell, name.partition("_l")[0], getattr(rnn, name))
            self.cells.append(cell)

    def forward(self, x: Tensor) -> Tensor:
        steps = list(x.unbind(1 if self.batch_first else 0))
        for layer in range(0, len(self.cells), self.directions):
            outputs = []
            for direction, cell in enumerate(self.cells[layer:layer + self.directions]):
                state, found = None, []
                for h in reversed(steps) if direction else steps:
                    state = cell(h, state)
                    found.append(state[0] if isinstance(state, tuple) else state)
                outputs.append(found[::-1] if direction else found)
            steps = [torch.cat(both, -1) for both in zip(*outputs, strict=True)]
        return self.head(torch.stack(steps, 1 if self.batch_first else 0))


def square(output: Tensor, _y: None = None) -> Tensor:
    """Of any output; not the mean, so that no symmetry hides a mistake."""
    weights = torch.linspace(-1, 2, output[0].numel(), dtype=torch.float64).view(output[0].shape)
    return (output * weights).square().mean()


MODULES = {
    "lstm": lambda: nn.LSTM(FEATURES, WIDTH, batch_first=True),
    "gru, no bias": lambda: nn.GRU(FEATURES, WIDTH, bias=False, batch_first=True),
    "tanh": lambda: nn.RNN(FEATURES, WIDTH, batch_first=True),
    "relu, time first": lambda: nn.RNN(FEATURES, WIDTH, nonlinearity="relu"),
    "lstm, two layers, both directions": lambda: nn.LSTM(FEATURES, WIDTH, 2, batch_first=True, bidirectional=True),
    "gru, two layers": lambda: nn.GRU(FEATURES, WIDTH, 2, batch_first=True),
}


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=pytest.mark.slow if "gru" in name or "relu" in name else ()) for name in MODULES])
def test_rows_are_those_of_the_same_cell_in_a_loop(name):
    """Every statistic of every time step, in order of execution, and of the layers behind."""
    model, x = Reader(MODULES[name]()), torch.randn(5, STEPS, FEATURES)
    flow, loop = (fs.gradient_flow(m, x, loss=square) for m in (model, CellByCell(model)))
    for column in (*STATISTICS, "parameters", "positions", "trainable", "gradient", "main_path"):
        if flow.frame[column].dtype.kind == "f":
            np.testing.assert_allclose(flow.frame[column], loop.frame[column], rtol=0, atol=ABSOLUTE, err_msg=column)
        else:
            assert (flow.frame[column] == loop.frame[column]).all(), column
    assert flow.loss == pytest.approx(loop.loss, rel=1e-12)
    assert flow.log10_input_gradient_norm == pytest.approx(loop.log10_input_gradient_norm, abs=ABSOLUTE)
    np.testing.assert_allclose(flow.path["log10_signal"], loop.path["log10_signal"], rtol=0, atol=ABSOLUTE)
    assert flow.frame["layer"].tolist() == list(range(1, len(flow.frame) + 1))


def test_rows_say_where_in_the_sequence_they_are():
    """Backward cells run from the last input to the first; other layers have no time; other nets no such columns."""
    model = nn.Sequential(nn.Linear(FEATURES, FEATURES), Reader(MODULES["lstm, two layers, both directions"]()))
    frame = fs.gradient_flow(model, torch.randn(2, 3, FEATURES), loss=square).frame
    assert frame["time"].tolist() == [pd.NA, *[1, 2, 3, 3, 2, 1] * 2, pd.NA]
    assert frame["direction"].tolist() == ["", *(["forward"] * 3 + ["backward"] * 3) * 2, ""]
    assert frame["stack_layer"].tolist() == [pd.NA, *[1] * 6, *[2] * 6, pd.NA]
    assert not {"time", "direction", "stack_layer"} & {*fs.gradient_flow(model[0], torch.ones(2, 3), loss=square).frame}


def of_module(module: nn.RNNBase, i: int) -> list[Tensor]:
    return [getattr(module, name) for name in module._all_weights[i]]


def by_hand(module: nn.RNNBase, sequences: list[Tensor], states: tuple[Tensor, ...]) -> tuple[list, list]:
    """One sample after the other, torch's own cell functions: outputs by sample, and rows by cell, step and sample."""
    rows: dict[tuple[int, int], list[Tensor]] = {}
    outputs = []
    for n, sequence in enumerate(sequences):
        h = list(sequence)
        for layer in range(module.num_layers):
            directions = []
            for d in range(1 + module.bidirectional):
                i = layer * (1 + module.bidirectional) + d
                w, state, found = of_module(module, i), [part[i, n:n + 1] for part in states], {}
                for t in range(len(h))[::-1] if d else range(len(h)):
                    gates = h[t].unsqueeze(0) @ w[0].T + w[2] + state[0] @ w[1].T + w[3]
                    a, f, g, o = gates.chunk(4, -1)
                    c = f.sigmoid() * state[1] + a.sigmoid() * g.tanh()
                    state = [(o.sigmoid() * c.tanh()) @ w[4].T, c]
                    found[t] = state[0]
                    rows.setdefault((i, t), []).append(state[0])
                directions.append([found[t][0] for t in range(len(h))])
            h = [torch.cat(both) for both in zip(*directions, strict=True)]
        outputs.append(torch.stack(h))
    return outputs, rows


class Packed(nn.Module):
    """Sequences of several lengths, longest not first, projected, from initial states that are learnt."""

    def __init__(self, lengths: tuple[int, ...], layers: int = 2, bidirectional: bool = True):
        super().__init__()
        self.lengths = lengths
        self.lstm = nn.LSTM(FEATURES, WIDTH, layers, bidirectional=bidirectional, proj_size=2)
        shape = layers * (1 + bidirectional), len(lengths)
        self.h, self.c = (nn.Parameter(torch.randn(*shape, width)) for width in (2, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        sequences = [part[:length] for part, length in zip(x, self.lengths, strict=True)]
        packed = self.lstm(pack_sequence(sequences, enforce_sorted=False), (self.h, self.c))[0]
        assert isinstance(packed, PackedSequence)
        outputs, lengths = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
        assert lengths.tolist() == list(self.lengths)
        return outputs


def test_packed_sequences_are_run_sample_by_sample():
    """Each row holds the samples that still run, whose joint error norm is that of the samples taken one by one."""
    model, x = Packed((2, 4, 1)), torch.randn(3, 4, FEATURES)
    flow = fs.gradient_flow(model, x, loss=square)
    model = model.double()
    outputs, rows = by_hand(model.lstm, [part[:n] for part, n in zip(x.double(), model.lengths, strict=True)],
                            (model.h, model.c))
    loss = square(nn.utils.rnn.pad_sequence(outputs, batch_first=True))
    steps = flow.frame[flow.frame["time"].notna()]
    for row in steps.itertuples():
        i = 2 * (row.stack_layer - 1) + (row.direction == "backward")
        parts = rows[i, row.time - 1]
        errors = torch.cat(torch.autograd.grad(loss, parts, retain_graph=True))
        assert row.log10_error_signal_norm == pytest.approx(errors.norm().log10().item(), abs=ABSOLUTE)
        assert row.activation_mean_square == pytest.approx(torch.cat(parts).square().mean().item(), abs=ABSOLUTE)
        names = [name for name in model.lstm._all_weights[i] if name.startswith("weight")]
        weights = [getattr(model.lstm, name) for name in names]
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, retain_graph=True)])
        assert row.log10_weight_gradient_norm == pytest.approx(gradient.norm().log10().item(), abs=ABSOLUTE)
        assert row.parameters == sum(w.numel() for w in of_module(model.lstm, i))


@pytest.mark.parametrize("wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_parametrized_weights_are_those_of_their_cell(wrap):
    """Of two layers, one with a parametrized weight: its rows have the gradient of the parts of that weight."""
    model, x = Reader(nn.GRU(FEATURES, WIDTH, 2, batch_first=True)), torch.randn(5, STEPS, FEATURES)
    wrap(model.rnn, "weight_hh_l1")
    model.eval()
    flow = fs.gradient_flow(model, x, loss=square)
    model = model.double()
    square(model(x.double())).backward()
    for layer in (1, 2):
        own = [p for name, p in model.rnn.named_parameters() if f"_l{layer - 1}" in name and "weight" in name]
        norm = torch.cat([p.grad.flatten() for p in own]).norm().log10().item()
        rows = flow.frame[flow.frame["stack_layer"] == layer]
        np.testing.assert_allclose(rows["log10_weight_gradient_norm"], norm, rtol=0, atol=ABSOLUTE)


def test_dropout_between_layers_draws_what_the_module_draws():
    """In train mode, from the same random state: the loss is that of torch's own forward pass."""
    model, x = Reader(nn.LSTM(FEATURES, WIDTH, 3, batch_first=True, dropout=0.5)), torch.randn(5, STEPS, FEATURES)
    torch.manual_seed(3)
    flow = fs.gradient_flow(model, x, loss=square)
    torch.manual_seed(3)
    assert flow.loss == pytest.approx(square(model.double()(x.double())).item(), rel=1e-12)
    assert flow.repeatable


class Translator(nn.Module):
    """The encoder's last states are the decoder's first; both read one embedding, tied to the read-out."""

    def __init__(self):
        super().__init__()
        self.embedding, self.readout = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 9)
        self.encoder, self.decoder = (nn.LSTM(WIDTH, WIDTH, 2, batch_first=True, dropout=0.3) for _ in range(2))
        self.readout.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        state = self.encoder(self.embedding(tokens))[1]
        return self.readout(self.decoder(self.embedding(tokens.flip(1)), state)[0])


class Attentive(nn.Module):
    """A checkpointed GRU in both directions, from initial states that are learnt, and attention over its outputs."""

    def __init__(self):
        super().__init__()
        self.gru, self.score = nn.GRU(FEATURES, WIDTH, bidirectional=True), nn.Linear(2 * WIDTH, 1)
        self.bias = nn.Parameter(torch.randn(2, 1, WIDTH))   # not called a weight: h_0 is no layer

    def forward(self, x: Tensor) -> Tensor:
        initial = self.bias.expand(-1, len(x), -1).contiguous()
        h = checkpoint(lambda x: self.gru(x, initial)[0], x.transpose(0, 1), use_reentrant=False)
        return (self.score(h).softmax(0) * h).sum(0)


@pytest.mark.parametrize("build", [Translator, Attentive])
def test_gradients_are_those_of_the_module_as_it_is(build):
    """Of every layer's weights, and of the input, by autograd through torch's own kernels; dropout has one mask."""
    model, x = build(), torch.randn(5, STEPS, FEATURES) if build is Attentive else torch.randint(9, (5, STEPS))
    torch.manual_seed(1)
    flow = fs.gradient_flow(model, x, loss=square)
    model, x = model.double(), x.double().requires_grad_() if build is Attentive else x
    torch.manual_seed(1)
    loss = square(model(x))
    loss.backward()
    assert flow.loss == pytest.approx(loss.item(), rel=1e-12) and flow.repeatable
    if build is Attentive:
        assert flow.log10_input_gradient_norm == pytest.approx(x.grad.norm().log10().item(), abs=ABSOLUTE)
    for row in flow.frame[flow.frame["type"] != "Parameter"].itertuples():
        own = dict(model.get_submodule(row.module).named_parameters())
        if row.direction:
            end = f"_l{row.stack_layer - 1}" + "_reverse" * (row.direction == "backward")
            own = {name: p for name, p in own.items() if name.endswith(end)}
        gradients = [p.grad.flatten() for name, p in own.items() if name.startswith("weight")]
        assert row.log10_weight_gradient_norm == pytest.approx(torch.cat(gradients).norm().log10().item(), abs=ABSOLUTE)


def test_a_module_that_its_cells_do_not_agree_with_is_refused():
    """A subclass that changes what torch's forward calls: the way out that is named was followed, and works."""
    class Scaled(nn.GRU):
        def permute_hidden(self, hx: Tensor, permutation: Tensor | None) -> Tensor:
            return super().permute_hidden(2 * hx + 1, permutation)

    class Itself(Scaled):
        def forward(self, *args: object) -> tuple:
            return super().forward(*args)

    x, h = torch.randn(2, STEPS, FEATURES), torch.zeros(1, STEPS, WIDTH)
    given = lambda kind: Given(kind(FEATURES, WIDTH), h)   # noqa: E731
    with pytest.raises(ValueError, match=r"^gradient_flow: `model` must run 'gru' as Scaled does, .* of its own"):
        fs.gradient_flow(given(Scaled), x, loss=square)
    assert fs.gradient_flow(given(Itself), x, loss=square).unread == ("gru",)


class Given(nn.Module):
    def __init__(self, gru: nn.GRU, h: Tensor):
        super().__init__()
        self.gru = gru
        self.register_buffer("h", h)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x, self.h)[0]


# --- the verdict along time ------------------------------------------------------------------------------------------


class Last(nn.Module):
    """A read-out of the last output, or of all; the recurrence is a ReLU times `gain`, of positive values alone."""

    def __init__(self, kind: str, gain: float, every: bool = False):
        super().__init__()
        self.head, self.kind, self.every = nn.Linear(WIDTH, 5), kind, every
        if kind == "linear":
            self.into, self.back = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
            weights = self.into.weight, self.back.weight
        else:
            self.rnn = (nn.RNN if kind == "module" else nn.RNNCell)(WIDTH, WIDTH, nonlinearity="relu", bias=False)
            weights = self.rnn.parameters()
        for weight, value in zip(weights, (1.0, gain), strict=True):
            weight.data = value * torch.eye(WIDTH, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "module":
            states = self.rnn(x.transpose(0, 1))[0]
        else:
            states, h = [], x.new_zeros(len(x), WIDTH)
            for part in x.unbind(1):
                h = self.rnn(part, h) if self.kind == "cell" else F.relu(self.into(part) + self.back(h))
                states.append(h)
        return self.head(torch.stack(list(states)) if self.every else states[-1])


def squares(output: Tensor, _y: None) -> Tensor:
    return output.square().mean()


def flow_of(kind: str, gain: float, steps: int = 50, **options: bool) -> fs.GradientFlow:
    return fs.gradient_flow(Last(kind, gain, **options).double(), torch.rand(3, steps, WIDTH), loss=squares)


@pytest.mark.parametrize("gain, verdict", [(0.8, "vanishing"), (1.0, "stable"), (1.25, "exploding")])
@pytest.mark.parametrize("kind", [
    "module", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("cell", "linear"))])
def test_the_signal_along_time_changes_by_the_recurrent_gain(kind, gain, verdict):
    """Of gain * identity every step's Jacobian is that, whether a module, a cell or a layer is run in a loop.

    The factor is the gain, without error, and the verdict turns where gain^(steps - 1) leaves [1/20, 20].
    """
    flow = flow_of(kind, gain)
    assert flow.verdict.kind == verdict
    assert flow.verdict.factor == pytest.approx(gain, rel=1e-9) and flow.verdict.factor_error < 1e-9
    assert flow.verdict.decades == pytest.approx(49 * math.log10(gain), abs=1e-9)
    assert "per time step" in flow.verdict.sentence and "50 time steps of" in flow.verdict.sentence
    assert ("orthogonal" in flow.verdict.advice) == (verdict != "stable")


@pytest.mark.parametrize("kind", ["module", pytest.param("cell", marks=pytest.mark.slow)])
def test_no_step_is_lost_beyond_the_range_of_float64(kind):
    """1e-4 per step over 100 steps is 1e-396, neither 0 nor dead."""
    flow = flow_of(kind, 1e-4, 100)
    assert flow.verdict.kind == "vanishing" and len(flow.path) == 100
    assert flow.verdict.decades == pytest.approx(-396, rel=1e-9)


def test_a_loss_at_every_step_is_no_growth():
    """Of a recurrence that keeps what it has, the signals of all later steps come together: that is no explosion.

    Of one that forgets, every state has a signal of its own; the sentence says how fast the last one's fades.
    """
    keeps, forgets, grows = (flow_of("module", gain, steps, every=True)
                             for gain, steps in ((1.0, 50), (0.5, 20), (1.25, 20)))
    total = keeps.path["log10_error_signal_norm"]
    assert total[0] - total[49] > math.log10(20) and keeps.verdict.kind == "stable"   # 50 signals, of one sign
    assert forgets.verdict.kind == "stable" and "fades by a factor of 0.5 per time step" in forgets.verdict.sentence
    assert "fades" not in keeps.verdict.sentence and grows.verdict.kind == "exploding"
    assert grows.verdict.decades == pytest.approx(19 * math.log10(1.25), abs=1e-9)


@pytest.mark.parametrize("kind", ["module", "cell"])
def test_a_short_sequence_does_not_hide_that_the_signal_of_long_ones_vanishes(kind):
    """Of gain * identity the factor is the gain, though one sample's own last state is the second."""
    def at_ends(output: Tensor, _y: None) -> Tensor:
        return output[torch.tensor([49, 1, 49]), torch.arange(3)].square().mean()

    flow = fs.gradient_flow(Last(kind, 0.8, every=True).double(), torch.rand(3, 50, WIDTH), loss=at_ends)
    assert flow.verdict.kind == "vanishing" and flow.verdict.factor == pytest.approx(0.8, rel=1e-9)
    assert flow.verdict.decades == pytest.approx(49 * math.log10(0.8), abs=1e-9)


@pytest.mark.parametrize("bias, verdict", [(1.0, "vanishing"), (9.0, "stable")])
def test_an_lstm_is_read_along_its_cell_state(bias, verdict):
    """Without recurrent weights what is left of c is the forget gate alone: d c_t / d c_(t - 1) = sigmoid(bias)."""
    model = Reader(nn.LSTM(FEATURES, WIDTH))
    with torch.no_grad():
        model.rnn.weight_hh_l0.zero_()
        model.rnn.bias_hh_l0.zero_()
        for weight, value in ((model.rnn.weight_ih_l0, 0.0), (model.rnn.bias_ih_l0, bias)):
            weight[WIDTH:2 * WIDTH] = value
    flow = fs.gradient_flow(model, torch.randn(20, 2, FEATURES), loss=lambda output, _y: output[-1].square().mean())
    assert flow.verdict.kind == verdict
    steps = flow.path["log10_signal"].diff().iloc[1:-1]   # the last state's h has a signal of its own
    np.testing.assert_allclose(steps, -math.log10(torch.tensor(bias).double().sigmoid().item()), rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_advice_for_a_vanishing_signal_was_followed(kind):
    """As torch draws it a gate forgets half at every step; with a bias of ln(time steps) the first step is reached."""
    model, x = Reader(kind(FEATURES, 32, batch_first=True)), torch.randn(4, 50, FEATURES)
    assert fs.gradient_flow(model, x, loss=last_square).verdict.kind == "vanishing"
    model.rnn.bias_hh_l0.data[32:64] += math.log(50)   # the second gate of both: forget, update
    assert fs.gradient_flow(model, x, loss=last_square).verdict.kind == "stable"


def last_square(output: Tensor, _y: None) -> Tensor:
    return output[:, -1].square().mean()


def test_what_is_cut_off_is_named_once():
    """Not once for every time step."""
    model = nn.Sequential(Reader(nn.GRU(FEATURES, WIDTH, batch_first=True)), Detached(), nn.Linear(5, 5))
    verdict = fs.gradient_flow(model, torch.randn(4, 9, FEATURES), loss=last_square).verdict
    assert verdict.kind == "cut off" and "to 0.rnn (layer 1), 0.head (layer 10)." in verdict.sentence


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Doubled(nn.LSTM):
    def forward(self, x: Tensor) -> tuple:
        return super().forward(2 * x)


def test_a_recurrence_that_is_not_seen_is_not_called_stable():
    """A subclass with a forward of its own is one layer, as before, and nothing is known of its time steps."""
    model = Reader(Doubled(FEATURES, WIDTH, batch_first=True))
    flow = fs.gradient_flow(model, torch.randn(5, STEPS, FEATURES), loss=square)
    assert len(flow.frame) == 2 and "time" not in flow.frame and flow.unread == ("rnn",)
    assert flow.verdict.kind == "cannot tell" and "'rnn'" in flow.verdict.sentence


class ByElement(nn.Module):
    """A layer for the input of every step; the state goes on by a vector."""

    def __init__(self, kept: float):
        super().__init__()
        self.into, self.head, self.kept = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, 3), kept * torch.ones(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), WIDTH)
        for part in x.unbind(1):
            h = self.kept * h + self.into(part)
        return self.head(h)


class Hoisted(nn.Module):
    """The layer is called once, on the whole sequence, which the loop then reads part by part."""

    def __init__(self, kept: float, backward: bool, parts: Callable[[Tensor], Sequence[Tensor]]):
        super().__init__()
        self.into, self.head, self.kept = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, 3), kept * torch.ones(WIDTH)
        self.backward, self.parts = backward, parts

    def forward(self, x: Tensor) -> Tensor:
        h, parts = torch.zeros(len(x), WIDTH), self.parts(self.into(x))
        for part in reversed(parts) if self.backward else parts:
            h = self.kept * h + part
        return self.head(h)


PARTS = {
    "select": lambda u: [u[:, t] for t in range(u.shape[1])],
    "from the end": lambda u: [u[:, t - u.shape[1]] for t in range(u.shape[1])],
    "slice": lambda u: [u[:, t:t + 1].squeeze(1) for t in range(u.shape[1])],
    "unbind": lambda u: u.unbind(1),
    "split": lambda u: [part.squeeze(1) for part in u.split(1, 1)],
    "time first": lambda u: [*u.transpose(0, 1)],
}
LOOPS = {"in the loop": ByElement} | {
    f"{name}{', backward' * backward}": partial(Hoisted, backward=backward, parts=parts)
    for name, parts in PARTS.items() for backward in (False, True)}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_whose_state_no_layer_carries_on_is_read_along_time(name):
    """The state of step t of 20 reaches the loss times kept^(20 - t): the factor is `kept`, without error."""
    vanishes, keeps = (fs.gradient_flow(LOOPS[name](kept).double(), torch.randn(5, 20, FEATURES), loss=square)
                       for kept in (0.5, 1.0))
    assert vanishes.verdict.kind == "vanishing" and len(vanishes.path) == 20
    assert vanishes.verdict.factor == pytest.approx(0.5, rel=1e-9) and vanishes.verdict.factor_error < 1e-9
    assert "into" in vanishes.verdict.sentence and "per step (1 at criticality)" in vanishes.verdict.sentence
    assert keeps.verdict.kind == "stable"


def test_a_loop_too_short_to_be_told_from_features_is_not_called_stable_where_it_fades():
    """Of four steps the first one's input reaches the loss times kept^3: nothing is read along so few."""
    verdict = fs.gradient_flow(ByElement(0.01), torch.randn(5, 4, FEATURES), loss=square).verdict
    assert verdict.kind == "cannot tell" and "of into to the first, 4 in all" in verdict.sentence
    assert "falls by 6 decades" in verdict.sentence


class Leaky(nn.Module):
    """A loop over the input itself, and a read-out of every state."""

    def __init__(self, kept: float):
        super().__init__()
        self.head, self.kept = nn.Linear(FEATURES, 3), kept

    def forward(self, x: Tensor) -> Tensor:
        h, seen = torch.zeros(len(x), FEATURES), []
        for part in x.unbind(1):
            h = self.kept * h + part
            seen.append(self.head(h))
        return torch.stack(seen, 1)[:, -1]


def test_a_loop_over_the_input_has_no_layer_in_front():
    """And a read-out of every step is no part of the loop, though a layer."""
    flow = fs.gradient_flow(Leaky(0.25).double(), torch.randn(5, 12, FEATURES), loss=square)
    assert flow.verdict.kind == "vanishing" and flow.verdict.factor == pytest.approx(0.25, rel=1e-9)
    assert flow.verdict.layer is None and "over 12 steps of a loop over the input" in flow.verdict.sentence


class SliceBackward(torch.autograd.Function):
    """Its node is called as that of a slice."""

    @staticmethod
    def forward(_ctx: object, u: Tensor) -> Tensor:
        return 2 * u

    @staticmethod
    def backward(_ctx: object, error: Tensor) -> Tensor:
        return 2 * error


BODIES = {   # of a loop over u (sample, time, unit) from h: the state after it, which keeps half of itself at each step
    "what is read is worked on": lambda h, u: [h := 0.5 * h + torch.tanh(part) for part in u.unbind(1)][-1],
    "a running mean": lambda h, u: [h := h + 0.5 * (part - h) for part in u.unbind(1)][-1],
    "begun with the first part": lambda h, u: reduce(lambda h, part: 0.5 * h + part, u.unbind(1)),
    "the last part is read before": lambda h, u: u[:, -1].sigmoid() * [h := 0.5 * h + u[:, t]
                                                                       for t in range(u.shape[1])][-1],
    "two values are read": lambda h, u: [h := torch.full_like(a, 0.5) * h + a + b for a, b in
                                         zip(u.unbind(1), u.exp().unbind(1), strict=True)][-1],
}


@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize("name", BODIES)
def test_the_state_of_a_bare_loop_is_told_from_what_is_read(name, steps):
    """Of 20 steps the signal falls by 19 times log10(2); of 7 by 1.8, too."""
    model = Of(lambda into, head, x: head(BODIES[name](torch.zeros(len(x), WIDTH), into(x))),
               nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, 3))
    flow = fs.gradient_flow(model.double(), torch.randn(5, steps, FEATURES), loss=square)
    assert flow.verdict.kind == "vanishing" and flow.verdict.factor == pytest.approx(0.5, rel=1e-9)
    assert len(flow.path) == steps - (name == "begun with the first part")


def test_a_side_statistic_does_not_decide_where_the_parts_have_another_way():
    """A fading mean beside a plain one: every part gets its signal directly, of nearly the same size."""
    def forward(into: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
        u, h = into(x), torch.zeros(len(x), WIDTH)
        for part in u.unbind(1):
            h = 0.5 * h + part
        return head(u.mean(1) + 0.01 * h)

    model = Of(forward, nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, 3))
    assert "step" not in fs.gradient_flow(model.double(), torch.randn(5, 20, FEATURES), loss=square).path


@torch.jit.script
def scripted(u: Tensor) -> Tensor:
    return torch.sigmoid(u[:, 1:3]) + u[:, :2]


@pytest.mark.parametrize("take_apart", [
    lambda u: torch.ops.aten.slice(u, 1, None, 3), lambda u: torch.cat([u, u[:, :0][:, -2:]], 1), scripted,
    SliceBackward.apply], ids=["no start", "no length", "scripted", "a Function called so"])
def test_parts_of_all_kinds_are_looked_at(take_apart):
    net = Of(lambda into, x: take_apart(into(x)), nn.Linear(FEATURES, WIDTH))
    assert fs.gradient_flow(net, torch.randn(5, 12, FEATURES), loss=square).loss > 0


class Truncated(nn.Module):
    """A loop that detaches its state before every `chunk`-th step, as it is or in a way that makes a new tensor."""

    def __init__(self, kind: str, chunk: int, cut: Callable[[Tensor], Tensor]):
        super().__init__()
        self.rnn = nn.GRU(FEATURES, WIDTH, batch_first=True) if kind == "module" else nn.GRUCell(FEATURES, WIDTH)
        self.head, self.chunk, self.cut = nn.Linear(WIDTH, 3), chunk, cut

    def forward(self, x: Tensor) -> Tensor:
        h = None
        for n, part in enumerate(x.split(self.chunk, 1)):
            if n:
                h = self.cut(h)
            if isinstance(self.rnn, nn.GRU):
                h = self.rnn(part, h)[1]
            else:
                for step in part.unbind(1):
                    h = self.rnn(step, h)
        return self.head(h if h.ndim == 2 else h[0])


def without_gradient(h: Tensor) -> Tensor:
    with torch.no_grad():
        return 1.0 * h


@pytest.mark.parametrize("kind, chunk, cut, calls", [
    ("cell", 1, torch.detach, 11), ("cell", 4, torch.detach, 2), ("cell", 1, lambda h: h.data.clone(), 11),
    ("cell", 4, without_gradient, 2), ("cell", 4, lambda h: h.detach().requires_grad_(), 2),
    ("module", 4, torch.detach, 2), ("cell", 4, lambda h: h, 0),
    ("module", 12, torch.detach, 0)])
def test_a_state_that_is_detached_on_the_way_is_named(kind, chunk, cut, calls):
    flow = fs.gradient_flow(Truncated(kind, chunk, cut), torch.randn(5, 12, FEATURES), loss=square)
    assert flow.detached == ({"rnn": calls} if calls else {})
    assert (f"what came from its own earlier output in {calls} call" in flow.verdict.sentence) == bool(calls)


def test_a_detached_state_is_named_in_what_it_is_joined_with():
    cell = Of(lambda layer, head, x: head(reduce(
        lambda h, part: torch.tanh(layer(torch.cat([part, h.detach()], 1))), x.unbind(1), torch.zeros(len(x), WIDTH))),
        nn.Linear(FEATURES + WIDTH, WIDTH), nn.Linear(WIDTH, 3))
    assert list(fs.gradient_flow(cell, torch.randn(5, 12, FEATURES), loss=square).detached.values()) == [11]


@pytest.mark.parametrize("start", [torch.zeros_like, lambda h: h.new_ones(h.shape), torch.randn_like])
def test_of_a_state_whose_shape_alone_is_taken_nothing_is_detached(start):
    cell = Of(lambda layer, head, x: head(sum(reduce(
        lambda h, part: layer(part, start(h)), x.unbind(1), torch.zeros(len(x), WIDTH)) for _ in range(2))),
        nn.GRUCell(FEATURES, WIDTH), nn.Linear(WIDTH, 3))
    assert fs.gradient_flow(cell, torch.randn(5, 12, FEATURES), loss=square).detached == {}


def test_a_long_way_without_gradients_takes_no_longer_than_its_operations():
    """Sums of what has none, 60 times: what they come from is kept once."""
    def forward(layer: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
        h = layer(layer(layer(x)))
        with torch.no_grad():
            z = h
            for _ in range(60):
                z = z + torch.tanh(z)
        return head(h + layer(z))

    model = Of(forward, nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3))
    flow = fs.gradient_flow(model, torch.randn(5, WIDTH), loss=square)
    assert sum(flow.detached.values()) <= 1


def test_what_is_detached_for_another_layer_is_no_state():
    """A mask made of the layer's own output, and a constant that every call is given."""
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.other, self.head = nn.GRUCell(FEATURES, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            h, start = x.new_zeros(len(x), WIDTH), x.new_ones(len(x), WIDTH)
            for part in x.unbind(1):
                h = self.cell(part, h * (h > -2)) + 0.1 * self.other(start)
            return self.head(h) + self.head(h.detach())

    assert fs.gradient_flow(Masked(), torch.randn(5, 12, FEATURES), loss=square).detached == {}


class Pair(nn.Module):
    """One recurrent module, run on two halves of the input apart; or the second from where the first has ended."""

    def __init__(self, carried: bool):
        super().__init__()
        self.gru, self.carried = nn.GRU(WIDTH, WIDTH, batch_first=True), carried

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        one, state = self.gru(first)
        return (self.gru(second, state)[0] if self.carried else one + self.gru(second)[0])[:, -1]


@pytest.mark.parametrize("carried, steps", [(False, 5), (True, 10)])
def test_a_module_that_runs_twice_is_one_recurrence_where_its_state_goes_on(carried, steps):
    flow = fs.gradient_flow(Pair(carried), torch.randn(3, 10, WIDTH), loss=square)
    assert flow.path["step"].tolist() == list(range(1, steps + 1)) and len(flow.frame) == 10


class OwnGru(nn.Module):
    """Three layers in the body of a loop; at the first step the reset gate multiplies a state of exact zeros."""

    def __init__(self):
        super().__init__()
        self.reset, self.update, self.new = (nn.Linear(2 * WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), WIDTH)
        for part in x.unbind(1):
            both = torch.cat([part, h], -1)
            r, z = self.reset(both).sigmoid(), self.update(both).sigmoid()
            h = z * h + (1 - z) * self.new(torch.cat([part, r * h], -1)).tanh()
        return h


def test_layers_of_one_loop_are_read_together():
    """Not the one that gets exactly 0 at the first step by itself, which would look dead."""
    flow = fs.gradient_flow(OwnGru(), torch.randn(3, 20, WIDTH), loss=square)
    assert flow.path["step"].tolist() == list(range(1, 21)) and flow.path["layer"].tolist() == list(range(3, 61, 3))
    assert flow.verdict.kind == "vanishing" and "per time step" in flow.verdict.sentence
    together = flow.frame["log10_error_signal_norm"].to_numpy().reshape(20, 3)
    expected = np.log10(np.sqrt((100.0 ** together).sum(1)))
    np.testing.assert_allclose(flow.path["log10_error_signal_norm"], expected, rtol=0, atol=ABSOLUTE)


def test_a_tied_net_without_inputs_on_the_way_is_read_by_layers():
    """The main path leads through every use of the layer: the verdict is that of layers, as of any plain net."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(5):
                x = torch.tanh(self.layer(x))
            return x

    flow = fs.gradient_flow(Tied(), torch.randn(3, WIDTH), loss=square)
    assert "step" not in flow.path and flow.path["layer"].tolist() == [1, 2, 3, 4, 5]


def test_the_backward_direction_starts_at_the_last_input():
    """Of the last output the backward cell has run one step: the reading is the forward cell's; of the first, its."""
    model, x = nn.LSTM(FEATURES, WIDTH, batch_first=True, bidirectional=True), torch.randn(3, 6, FEATURES)
    for at, direction in ((-1, "forward"), (0, "backward")):
        flow = fs.gradient_flow(model, x, loss=lambda output, _y, at=at: output[0][:, at].square().mean())
        rows = flow.frame.set_index("layer").loc[flow.path["layer"]]
        assert set(rows["direction"]) == {direction} and len(rows) == 6


# --- the Jacobian along time -----------------------------------------------------------------------------------------

TIME_MODULES = {
    "lstm": nn.LSTM(FEATURES, WIDTH, batch_first=True),
    "lstm, two layers, projected": nn.LSTM(FEATURES, WIDTH, 2, proj_size=2),
    "gru, both directions": nn.GRU(FEATURES, WIDTH, bidirectional=True),
    "tanh, three layers": nn.RNN(FEATURES, WIDTH, 3, batch_first=True),
}


def dense_over_time(module: nn.RNNBase, x: Tensor) -> Tensor:
    """Singular values of d last state / d initial state of one sequence, by torch's own forward pass."""
    cells = module.num_layers * (1 + module.bidirectional)
    widths = [module.proj_size or WIDTH, WIDTH][:1 + (module.mode == "LSTM")]

    def last(flat: Tensor) -> Tensor:
        parts = [part.view(cells, width) for part, width in zip(flat.split([cells * w for w in widths]), widths,
                                                                strict=True)]
        state = module(x, tuple(parts) if len(parts) == 2 else parts[0])[1]
        return torch.cat([part.flatten() for part in (state if isinstance(state, tuple) else (state,))])

    return torch.linalg.svdvals(torch.autograd.functional.jacobian(last, torch.zeros(cells * sum(widths)).double()))


@pytest.mark.parametrize("name", TIME_MODULES)
def test_the_jacobian_along_time_is_that_of_the_last_state(name):
    """Torch's own last state, differentiated densely: of all stacked layers, h and c, both directions.

    Values above 1e-6 of the largest: their rounding in the dense matrix is 1e-10 of them.
    """
    module, x = TIME_MODULES[name], torch.randn(3, 3, FEATURES)
    found = fs.jacobian_spectrum(module, x, part="time", samples=2)
    assert found.factors == 3 and found.method == "product"
    module = module.double()
    for n in range(2):
        expected = dense_over_time(module, (x[n] if module.batch_first else x[:, n]).double())
        clear = expected > 1e-6 * expected[0]
        assert clear.sum() > 2
        np.testing.assert_allclose(found.log_singular_values[n][clear], expected[clear].log(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("steps", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_every_singular_value_along_time_is_right_at_any_length(steps):
    """Of a ReLU that is never cut the Jacobian is W^steps: by mpmath, down to 1e-600."""
    model = Reader(nn.RNN(3, 3, nonlinearity="relu", bias=False, batch_first=True)).double()
    weight = torch.tensor([[0.9, 0.2, 0.1], [0.3, 0.4, 0.0], [0.1, 0.2, 0.05]]).double()
    model.rnn.weight_ih_l0.data, model.rnn.weight_hh_l0.data = torch.eye(3).double(), weight
    found = fs.jacobian_spectrum(model, torch.rand(2, steps, 3) + 0.1, part="time")
    with mpmath.workdps(60 + 3 * steps):
        power = mpmath.matrix(weight.tolist()) ** steps
        squares = mpmath.eigsy(power.T * power, eigvals_only=True)
        expected = sorted((float(mpmath.log(s)) / 2 for s in squares), reverse=True)
    gap = (found.log_singular_values - torch.tensor(expected, dtype=torch.float64)).abs()
    assert (gap <= found.log_error + 1e-12).all()
    assert (found.log_error < 1e-8).all() and found.factors == steps


REFUSED = {
    "no recurrent module": (lambda: (nn.Linear(3, 3), torch.ones(2, 3)), r"one nn\.LSTM, .* got none"),
    "a forward of its own": (lambda: (Doubled(3, 4), torch.ones(5, 2, 3)), "that runs as torch's does, got ''"),
    "both directions, stacked": (lambda: (nn.GRU(3, 4, 2, bidirectional=True), torch.ones(5, 2, 3)), "one layer as"),
    "called twice": (lambda: (Pair(True), torch.ones(2, 6, WIDTH)), "'gru', called 2 times"),
    "packed": (lambda: (Packed((2, 4, 1), layers=1, bidirectional=False), torch.randn(3, 4, 3)), "a packed sequence"),
}


def test_along_time_each_sample_has_its_own_matrix_free_spectrum():
    """The largest values of the product route, to the residuals, for a batch of several samples."""
    torch.manual_seed(0)
    module, x = nn.LSTM(4, 3, batch_first=True).double(), torch.randn(5, 6, 4, dtype=torch.float64)
    found, true = (fs.jacobian_spectrum(module, x, part="time", method=method, k=2)
                   for method in ("matrix_free", "product"))
    assert found.method == "matrix_free" and len(found.estimates) == 5
    gap = (found.log_singular_values - true.log_singular_values).abs()
    assert (gap <= found.log_error + true.log_error + 1e-13).all()   # 1e-13: float64's rounding of six steps' products



@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_jacobian_along_time_is_refused(name):
    build, words = REFUSED[name]
    with pytest.raises(ValueError, match=rf"^jacobian_spectrum: part='time' needs .*{words}"):
        fs.jacobian_spectrum(*build(), part="time")


@pytest.mark.parametrize("option", ["output", "wrt"])
def test_the_jacobian_along_time_is_of_states_and_of_no_named_tensor(option):
    with pytest.raises(ValueError, match=rf"`{option}` must be left out with part='time'"):
        fs.jacobian_spectrum(Reader(nn.GRU(FEATURES, WIDTH)), torch.randn(5, 2, FEATURES), part="time", **{option: 0})


# --- gates -----------------------------------------------------------------------------------------------------------


def gate_of(frame: pd.DataFrame, gate: str, **where: object) -> list[float]:
    rows = frame[frame["gate"] == gate]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows["activity"].tolist()


def test_gates_of_lstm_and_gru_are_those_of_their_formulas():
    """By time step, direction and stacked layer; a cell in a loop has the same ones as the module."""
    x = torch.randn(5, STEPS, FEATURES)
    for kind, gates, chosen in ((nn.LSTM, ("input", "forget", "output"), (0, 1, 3)),
                                (nn.GRU, ("reset", "update"), (0, 1))):
        model = Reader(kind(FEATURES, WIDTH, batch_first=True))
        loop = CellByCell(model)
        ours = fs.gate_activity(model, x, gates={"own": model.rnn}).frame
        theirs = fs.gate_activity(loop, x, gates={"own": "cells.0"}).frame
        states = F.pad(model.double().rnn(x.double())[0], (0, 0, 1, 0))   # zeros before the first step
        for t in range(STEPS):
            before = states[:, t]
            added = F.linear(x[:, t].double(), model.rnn.weight_ih_l0, model.rnn.bias_ih_l0) + F.linear(
                before, model.rnn.weight_hh_l0, model.rnn.bias_hh_l0)
            for gate, i in zip(gates, chosen, strict=True):
                expected = added.chunk(len(added[0]) // WIDTH, 1)[i].sigmoid().mean(0).tolist()
                for frame in (ours, theirs):
                    assert gate_of(frame, f"own.{gate}", time=t + 1) == pytest.approx(expected, abs=1e-14)
        assert ours["layer"].tolist() == theirs["layer"].tolist()


def test_gates_are_told_apart_by_layer_and_direction():
    """They go by the numbers of `gradient_flow`'s rows; their means over a class are those of its inputs alone."""
    model = nn.Sequential(nn.Linear(FEATURES, FEATURES), Reader(MODULES["lstm, two layers, both directions"]()))
    x, labels = torch.randn(4, 3, FEATURES), torch.tensor([0, 1, 0, 1])
    found = fs.gate_activity(model, x, labels, gates={"rnn": "1.rnn"})
    rows = fs.gradient_flow(model, x, loss=square).frame
    forget = found.frame[(found.frame["gate"] == "rnn.forget") & (found.frame["unit"] == 0)]
    columns = ["layer", "time", "direction", "stack_layer"]
    assert forget[columns].to_numpy().tolist() == rows.loc[1:12, columns].to_numpy().tolist()
    alone = fs.gate_activity(model, x[labels == 1], gates={"rnn": "1.rnn"}).frame
    np.testing.assert_allclose(found.by_class[found.by_class["class"] == 1]["activity"], alone["activity"], rtol=0,
                               atol=1e-14)


class OwnHighway(nn.Module):
    """A highway layer as its user writes it; the carry gate is a module of its own."""

    def __init__(self, width: int):
        super().__init__()
        self.h, self.t = nn.Linear(width, width), nn.Linear(width, width)
        self.carry = nn.Sequential(nn.Linear(width, width), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.t(x)) * torch.tanh(self.h(x)) + self.carry(x) * x


def test_a_gate_of_ones_own_is_a_module_or_a_function_of_its_output():
    model, x = nn.Sequential(nn.Linear(FEATURES, WIDTH), OwnHighway(WIDTH)), torch.randn(6, FEATURES)
    frame = fs.gate_activity(model, x, gates={"1.t": torch.sigmoid, "carry": model[1].carry}).frame
    model = model.double()
    h = model[0](x.double())
    assert gate_of(frame, "1.t") == pytest.approx(model[1].t(h).sigmoid().mean(0).tolist(), abs=1e-14)
    assert gate_of(frame, "carry", module="1.carry") == pytest.approx(model[1].carry(h).mean(0).tolist(), abs=1e-14)
    flow = fs.gradient_flow(model, x, loss=square).frame.set_index("module")["layer"]
    layers = frame.groupby("gate")["layer"].unique()
    assert layers["1.t"] == [flow["1.t"]] and layers["carry"] == [flow["1.carry.0"]]


WRONG_GATES = {
    "no module": ({"2.gate": torch.sigmoid}, r"name modules of the model, got '2\.gate'"),
    "not an activity": ({"t": "1.t"}, r"be activities in \[0, 1\], got -.*\{'1\.t': torch\.sigmoid\}"),
    "no mapping": (["1.t"], "be a mapping of names to modules or functions, got list"),
    "a number": ({"1.t": 3}, "have modules, their names or functions, got 3"),
}


@pytest.mark.parametrize("name", WRONG_GATES)
@pytest.mark.usefixtures("annotations_unchecked")
def test_gates_that_are_none_are_refused(name):
    gates, words = WRONG_GATES[name]
    model = nn.Sequential(nn.Linear(FEATURES, WIDTH), OwnHighway(WIDTH))
    with pytest.raises(ValueError, match=rf"^gate_activity: `gates` must {words}"):
        fs.gate_activity(model, torch.randn(6, FEATURES), gates=gates)


def test_recurrent_modules_without_such_gates_and_without_samples_first_are_refused():
    for rnn, words in ((nn.RNN(3, 4), "with the gates of nn.LSTM or nn.GRU, got 'rnn', a RNN"),
                       (nn.GRU(3, 4), r"for the 5 samples, got shape \(2, 4\) .*batch_first=True")):
        model = Reader(rnn)
        with pytest.raises(ValueError, match=words):
            fs.gate_activity(model, torch.randn(5, 2, 3), gates={"g": rnn})


# --- in a loop of the user's own -------------------------------------------------------------------------------------


def test_a_monitor_sees_a_recurrent_module_as_one_layer():
    """Training goes on as without it, bit for bit; the norm is that of all of the module's weights."""
    x, y = torch.randn(6, STEPS, FEATURES), torch.arange(6) % 5
    nets = [Reader(nn.LSTM(FEATURES, WIDTH, batch_first=True)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    norms = []

    def train(net: nn.Module) -> None:
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(net(x)[:, -1], y).backward()
            norms.append(torch.cat([p.grad.flatten() for name, p in net.rnn.named_parameters() if "weight" in name]))
            optimizer.step()

    train(nets[0])
    with fs.GradientMonitor(nets[1], every=1) as monitor:
        train(nets[1])
    assert all(torch.equal(one, other) for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    rows = monitor.frame[monitor.frame["module"] == "rnn"]
    expected = [gradient.double().norm().log10().item() for gradient in norms[:3]]
    np.testing.assert_allclose(rows["log10_weight_gradient_norm"], expected, rtol=0, atol=1e-6)
