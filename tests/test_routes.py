"""Every route to the Jacobian's spectrum against a slow twin, on models that are not ours; and what is refused."""

import math
from collections.abc import Callable

import pytest
import torch
from any_module import Of
from torch import nn
from torch.testing import assert_close

from flowstudy import HighwayNet, PlainNet, ResidualNet, initialize, jacobian_spectrum, layer_jacobian_spectra
from flowstudy.measure.models import dense_jacobian, graph, layer_rules
from flowstudy.measure.models.chain import groups_of, jacobians_of
from flowstudy.measure.models.context import RandomState
from flowstudy.measure.models.dense_jacobian import jacobian
from flowstudy.measure.models.graph import reachable
from flowstudy.measure.models.inputs import Inputs
from flowstudy.measure.numerics import matrix_free
from flowstudy.measure.spectra import checks, routes
from flowstudy.measure.spectra.choice import choose
from flowstudy.measure.spectra.one_model import pass_and_chain
from flowstudy.measure.spectra.probe import Probe
from flowstudy.nets import HighwayBlock, ResidualBlock


class Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        self.one = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.two = nn.Conv2d(out, out, 3, padding=1)
        self.down = nn.Conv2d(channels, out, 1, stride)

    def forward(self, x):
        y = self.two(self.relu(self.norm(self.one(x))))
        y += self.down(x)
        return self.relu(y)


class Skip(nn.Module):
    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


class LastHidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 7, 2, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0][:, -1]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        return {"logits": self.head(self.encoder(self.embedding(tokens)).mean(1)), "tokens": tokens}


def residual_mlp() -> nn.Module:
    branches = [Skip(nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))) for _ in range(4)]
    return nn.Sequential(nn.Linear(9, 12), nn.Tanh(), *branches, nn.Dropout(), nn.Linear(12, 6))


def resnet() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), Residual(4, 4, 1), Residual(4, 6, 2),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


MODELS = {
    "sequential": (lambda: nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 7), nn.GELU()), (9,), "product"),
    "residual": (residual_mlp, (9,), "product"),
    "resnet": (resnet, (3, 8, 8), "product"),
    "transformer": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1), (3, 8),
                    "product"),
    "lstm": (LastHidden, (4, 5), "dense"),
}


def slow_logs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Sample by sample and row by row: autograd in a Python loop, then LAPACK."""
    model = model.double().eval()
    logs = []
    for sample in x.double():
        leaf = sample.clone().requires_grad_()
        y = model(leaf.unsqueeze(0)).flatten()
        rows = [torch.autograd.grad(v, leaf, retain_graph=True)[0].flatten() for v in y]
        logs.append(torch.linalg.svdvals(torch.stack(rows)).log())
    return torch.stack(logs)


@pytest.mark.parametrize("name", MODELS)
def test_every_value_above_rounding_equals_the_slow_twins(name):
    """Of values above 1e-9 of the largest, LAPACK's own error is below 1e-16 / 1e-9; the route is the expected one."""
    build, shape, route = MODELS[name]
    torch.manual_seed(0)
    model, x = build(), torch.randn(3, *shape)
    spectrum = jacobian_spectrum(model, x)
    assert spectrum.method == route
    expected = slow_logs(model, x)
    clear = expected > expected[:, :1] + math.log(1e-9)
    assert (spectrum.log_singular_values - expected)[clear].abs().max() < 1e-6


@pytest.mark.parametrize("name", ["sequential", "resnet", "transformer"])
def test_matrix_free_values_equal_dense_ones(name):
    """The same model by two routes; the mean square lies in its interval widened to certainty by these seeds."""
    build, shape, _ = MODELS[name]
    torch.manual_seed(0)
    model, x = build(), torch.randn(2, *shape)
    dense = jacobian_spectrum(model, x, method="dense")
    k = min(10, dense.log_singular_values.shape[1])
    free = jacobian_spectrum(model, x, method="matrix_free", k=k)
    assert (free.log_singular_values - dense.log_singular_values[:, :k]).abs().max() < 1e-6
    for (square, _density), true in zip(free.estimates, dense.mean_squared, strict=True):
        assert square.low * (1 - 1e-9) <= true <= square.high * (1 + 1e-9)


def test_layers_of_a_chain_have_as_many_values_as_the_matrices_from_which_they_come():
    """Widths 5, 8, 3, 6: a layer's own values are those of its part, its product's those of the part up to it; where
    one has fewer, the rest of its rows are nan."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 6)), torch.randn(2, 5)
    frame = layer_jacobian_spectra(model, x)
    for layer, ranks in ((1, (5, 5)), (2, (3, 3)), (3, (3, 5))):
        rows = frame[frame["layer"] == layer]
        for column, start, rank in zip(("log_singular_value", "log_singular_value_from_input"), (layer - 1, 0), ranks,
                                       strict=True):
            table = torch.tensor(rows.pivot(index="sample", columns="rank", values=column).to_numpy(copy=True))
            expected = jacobian_spectrum(model, x, part=(start, layer)).log_singular_values
            assert expected.shape[1] == rank and table.shape[1] == max(ranks)
            assert torch.equal(table[:, :rank].isfinite(), expected.isfinite())
            alive = expected.isfinite()
            assert (table[:, :rank] - expected)[alive].abs().max() < 1e-10
            assert table[:, rank:].isnan().all()


def test_matrix_free_errors_hold_the_true_values(monkeypatch):
    """Given up after few products: every value is off by less than is stated, as a share of itself and not of the
    largest, beside which the others are small."""
    monkeypatch.setattr(matrix_free, "PRODUCT_BLOCKS", 6)
    s = torch.cat([torch.ones(1), torch.linspace(0.1, 0.05, 29)]).double()
    torch.manual_seed(0)
    model = nn.Linear(60, 30, bias=False).double()
    u, _, v = torch.linalg.svd(model.weight.detach(), full_matrices=False)
    model.weight.data = u * s @ v
    found = jacobian_spectrum(model, torch.randn(2, 60).double(), method="matrix_free", k=6)
    off = (found.log_singular_values - s[:6].log()).abs()
    assert (off <= found.log_error).all() and (found.log_error < 1).all()
    assert (off[:, 1:] > found.log_error[:, 1:] / 30).all()  # of the order that is stated


def test_closed_gates_are_exactly_an_isometry_at_any_depth():
    """b_T = -inf copies the input: every singular value of the body is 1, its log exactly 0."""
    net = initialize(HighwayNet(8, 8, 200, gate_bias=-math.inf), "orthogonal", seed=0)
    assert (jacobian_spectrum(net, part="body").log_singular_values == 0).all()


def test_parts_of_a_chain_multiply_to_the_whole():
    """ln |det| adds over the parts of a square chain; `layer_jacobian_spectra` ends in the whole spectrum."""
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(5, 5), nn.Tanh())))
    x = torch.randn(3, 5)
    parts = ((0, 6), (0, 2), (2, 6))
    whole, first, last = (jacobian_spectrum(model, x, part=part).log_singular_values for part in parts)
    assert (whole.sum(1) - first.sum(1) - last.sum(1)).abs().max() < 1e-10
    layers = layer_jacobian_spectra(model, x)
    end = layers[layers["layer"] == 6].pivot(index="sample", columns="rank", values="log_singular_value_from_input")
    assert (torch.tensor(end.to_numpy(copy=True)) - whole).abs().max() < 1e-10


@pytest.mark.parametrize("net", [PlainNet, HighwayNet, ResidualNet])
def test_blocks_have_their_jacobians_in_closed_form(net):
    """The layer inside of a block is called too, at the same input: the block's own rule is the one that counts."""
    model = net(4, 5, 6, 3, "tanh").double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    _, chain, _ = pass_and_chain("test", Probe("test", model), Inputs.of(x), RandomState(x.device))
    assert [type(factor.rule[0]) for factor in chain[1:-1]] == [type(model.blocks[0])] * 5
    for factor, block in zip(chain[1:-1], model.blocks, strict=True):
        assert torch.allclose(jacobians_of([factor])[0], jacobian(block, factor.rule[1]), rtol=1e-13, atol=1e-14)


BEFORE_THE_FIRST_LAYER = {
    "a flattened image": (nn.Flatten(), (2, 2)), "a clone": (Of(torch.clone), (4,)),
    "two operations": (nn.Sequential(nn.Flatten(), Of(torch.sin)), (2, 2)), "pooling": (nn.AvgPool1d(2), (8,)),
}


@pytest.mark.parametrize("name", BEFORE_THE_FIRST_LAYER)
def test_what_comes_before_the_first_layer_is_part_of_it(name):
    """The body begins behind the first layer, whatever is done to the input before, and layer 1 is that layer."""
    torch.manual_seed(2)
    first, shape = BEFORE_THE_FIRST_LAYER[name]
    layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(2, *shape, dtype=torch.float64)
    whole, bare = nn.Sequential(first, layers), first(x).detach()
    one, other = jacobian_spectrum(whole, x, part="body"), jacobian_spectrum(layers, bare, part="body")
    assert one.factors == other.factors == 1 and one.inputs == other.inputs == 5
    assert_close(one.log_singular_values, other.log_singular_values, rtol=0, atol=1e-12)
    table = layer_jacobian_spectra(whole, x)
    assert table["module"].unique().tolist() == ["1.0", "1.2", "1.4"]
    dense, product = (jacobian_spectrum(whole, x, method=method).log_singular_values for method in ("dense", "product"))
    assert_close(product, dense, rtol=0, atol=1e-12)


MIXED = [lambda: nn.Linear(4, 6), *[lambda: nn.Sequential(nn.Linear(6, 6), nn.Tanh())] * 3,
         *[lambda slope=slope: nn.Sequential(nn.Linear(6, 6), nn.LeakyReLU(slope)) for slope in (0.1, 0.1, 0.2)],
         *[lambda: Skip(nn.Linear(6, 6))] * 2, *[lambda: HighwayBlock(nn.Linear(6, 12), "tanh", -1.0)] * 3,
         lambda: nn.Linear(6, 3)]


def mixed() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*[make() for make in MIXED]).double()


@pytest.mark.gpu
def test_layers_that_are_alike_are_computed_together_on_a_gpu():
    """Neighbours of one sort, or of one shape where they have none; the values are the CPU's."""
    model, x = mixed(), torch.randn(5, 4, dtype=torch.float64)
    there = model.cuda()
    _, chain, _ = pass_and_chain("test", Probe("test", there), Inputs.of(x.cuda()), RandomState(torch.device("cuda:0")))
    assert [group.stop - group.start for group in groups_of(chain)] == [1, 3, 2, 1, 2, 3, 1]
    for group in groups_of(chain):
        single = torch.cat([jacobians_of([factor]) for factor in chain[group]])
        assert torch.equal(jacobians_of(chain[group]), single)
    on_gpu = jacobian_spectrum(there, x.cuda(), method="product")
    on_cpu = jacobian_spectrum(mixed(), x, method="product")
    assert (on_gpu.log_singular_values - on_cpu.log_singular_values).abs().max() < 1e-11


@pytest.mark.gpu
@pytest.mark.parametrize("gain", [1.0, 1e-25, 1e25])
def test_a_layer_in_a_group_whose_rule_is_wrong_is_told_by_name(gain, monkeypatch):
    """Also where the gradients of the check leave the range in which they can be held against each other."""
    model, x = PlainNet(4, 5, 40, 3, "linear").double().cuda(), torch.randn(3, 4, dtype=torch.float64).cuda()
    with torch.no_grad():
        for block in model.blocks:
            block.affine.weight.mul_(gain)
    known = layer_rules.BLOCK_RULES[type(model.blocks[0])]
    right = jacobian_spectrum(model, x, method="product").log_singular_values
    assert right.isfinite().all()
    wrong = model.blocks[20].affine.weight[0, 0].item()

    def rule(activation: str, x: torch.Tensor, pre: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return known(activation, x, pre, torch.where(weight == wrong, 1.001 * weight, weight))

    monkeypatch.setitem(layer_rules.BLOCK_RULES, type(model.blocks[0]), rule)
    with pytest.raises(ValueError, match=r"blocks\.20 is not one"):
        jacobian_spectrum(model, x, method="product")
    assert jacobian_spectrum(model, x).method == "dense"


@pytest.mark.parametrize("part", ["all", "body"])
def test_a_proof_with_a_row_of_its_own_is_as_good_as_with_the_checks_row(part, monkeypatch):
    """The one is taken where the row of the checks was not kept at all cuts, or went through more than the part."""
    model, x = HighwayNet(4, 5, 6, 3, "tanh").double(), torch.randn(3, 4, dtype=torch.float64)
    passes, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda out, inputs, *a, **named: passes.append(
        len(inputs) if isinstance(inputs, list) else 0) or grad(out, inputs, *a, **named))
    found = []
    for fits in (True, False):
        passes.clear()
        monkeypatch.setattr("flowstudy.measure.spectra.one_model.cotangents_fit", lambda _, fits=fits: fits)
        found.append(jacobian_spectrum(model, x, part=part, method="product"))
        to_cuts = [7] if part == "all" else [7, 5]   # 5 blocks between two layers
        assert [count for count in passes if count] == (to_cuts if fits else [1, to_cuts[-1]])
        layer_jacobian_spectra(model, x)
    assert torch.equal(found[0].log_singular_values, found[1].log_singular_values)


def test_a_model_is_cut_where_one_value_carries_everything_on():
    """Nested, a layer used twice, an in-place one, one without weights; each factor is the next layers' function."""
    torch.manual_seed(0)
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Sequential(shared, nn.Tanh(), nn.Dropout()),
                          shared, Skip(nn.Linear(6, 6)), nn.Flatten(), nn.Linear(6, 3)).double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    _, chain, _ = pass_and_chain("test", Probe("test", model), Inputs.of(x), RandomState(x.device))
    assert [factor.name for factor in chain] == ["0", "2.0", "2.0", "4.branch", "6"]
    assert [factor.rule is not None for factor in chain] == [True, True, True, False, True]
    pieces = [model[:2], model[2], model[3], model[4:6], model[6]]
    for factor, piece in zip(chain, pieces, strict=True):
        assert torch.allclose(jacobians_of([factor])[0], jacobian(piece, x), rtol=1e-13, atol=1e-14)
        x = piece(x).detach()


class DoublesGradients(nn.Module):
    """By a hook on a value, through `.data`, which no version counter tells."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.layers[0](x)) * 1.0
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient.data.mul_(2.0) is None or None)
        return self.layers[2](torch.tanh(self.layers[1](h)))


def test_a_chain_is_not_cut_where_a_hook_writes_into_the_gradient():
    torch.manual_seed(0)
    model, x = DoublesGradients(), torch.randn(4, 6)
    spectrum = jacobian_spectrum(model, x, method="product")
    inner, weights = model.layers[0].double()(x.double()).tanh(), [layer.double().weight for layer in model.layers]
    outer = model.layers[1](inner).tanh()
    true = weights[2] @ ((1 - outer**2).unsqueeze(-1) * weights[1]) @ ((1 - inner**2).unsqueeze(-1) * weights[0])
    assert torch.allclose(spectrum.singular_values, 2 * torch.linalg.svdvals(true), rtol=1e-9)


def adds_up() -> Callable[[torch.Tensor], None]:
    total: list[torch.Tensor] = []

    def hook(gradient: torch.Tensor) -> None:
        if total:
            total[0].add_(gradient)
        else:
            total.append(gradient)

    return hook


def detaches(gradient: torch.Tensor) -> None:
    gradient.detach_()


@pytest.mark.parametrize("make", [adds_up, lambda: detaches], ids=["adds up", "detaches"])
def test_a_hook_that_changes_no_gradient_costs_no_cut(make):
    """One hook on several values, which keeps the first gradient and adds the others to it; one that views cannot."""
    torch.manual_seed(0)
    layers, x, hook = nn.ModuleList(nn.Linear(5, 5) for _ in range(6)), torch.randn(3, 5), make()

    class Watched(nn.Module):
        def __init__(self, watch: bool):
            super().__init__()
            self.layers, self.watch = layers, watch

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                h = layer(h)
                if self.watch and h.requires_grad and layer is not self.layers[-1]:
                    h.register_hook(hook)
            return h

    watched, alone = (jacobian_spectrum(Watched(watch), x, method="product") for watch in (True, False))
    assert watched.factors == alone.factors == 6
    assert torch.equal(watched.log_singular_values, alone.log_singular_values)


@pytest.mark.parametrize(("block", "rows"), [(HighwayBlock, 2), (ResidualBlock, 1)])
def test_a_block_that_broadcasts_its_layer_is_pulled_back_row_by_row(block, rows):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 5), block(nn.Linear(5, rows), "tanh")), torch.randn(3, 5)
    product, dense = (jacobian_spectrum(model, x, method=method) for method in ("product", "dense"))
    assert product.factors == 2
    assert (product.log_singular_values - dense.log_singular_values).abs().max() < 1e-10


def test_a_hook_on_a_nested_sequential_is_not_passed_by():
    """It changes the output, and so the spectrum."""
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3, bias=False)), nn.Linear(3, 3, bias=False))
    x = torch.randn(2, 3)
    before = jacobian_spectrum(model, x).log_singular_values
    model[0].register_forward_hook(lambda _module, _args, output: 2 * output)
    assert (jacobian_spectrum(model, x).log_singular_values - before - math.log(2)).abs().max() < 1e-12


def test_tokens_start_at_the_embedding():
    """From the embedding on, a token model is the rest of the model applied to the embedded tokens."""
    torch.manual_seed(0)
    model, tokens = Tokens(), torch.randint(0, 11, (3, 4))
    measured = jacobian_spectrum(model, tokens, start="embedding", output="logits").log_singular_values

    class Rest(nn.Module):
        def forward(self, h):
            return model.head(model.encoder(h).mean(1))

    rest = Rest()
    model.double().eval()
    assert (measured - slow_logs(rest, model.embedding(tokens).detach())).abs().max() < 1e-9


class Constant(nn.Module):
    def forward(self, x):
        return torch.ones(len(x), 2, dtype=x.dtype)


class Integer(nn.Module):
    def forward(self, x):
        return x.argmax(-1, keepdim=True)


LINEAR, X = nn.Linear(4, 3), torch.ones(2, 4)
REFUSED = {
    "not finite": ((LINEAR, X * math.nan), {}, ValueError, "`x` must be finite"),
    "wrong width": ((LINEAR, torch.ones(2, 5)), {}, ValueError, "`x` must have 4 features"),
    "another device": ((LINEAR, X.to("meta")), {}, ValueError, "`x` must be on the model's device cpu, got meta"),
    "no sample axis": ((LINEAR, torch.ones(4)), {}, ValueError, "x.unsqueeze(0)"),
    "empty batch": ((LINEAR, torch.ones(0, 4)), {}, ValueError, "at least one sample"),
    "integers": ((nn.Embedding(4, 3), torch.ones(2, 4, dtype=torch.int64)), {}, TypeError, "`start=`"),
    "no input shape": ((nn.Conv2d(3, 4, 3),), {}, ValueError, "`x` must be given"),
    "k beyond the rank": ((LINEAR, X), {"k": 4}, ValueError, "from 1 to 3"),
    "part": ((LINEAR, X), {"part": "head"}, ValueError, "`part` must be 'all', 'body' or (start, stop)"),
    "part order": ((LINEAR, X), {"part": (1, 0)}, ValueError, "0 <= start < stop <= 1"),
    "method": ((LINEAR, X), {"method": "svd"}, ValueError, "`method` must be one of"),
    "mode": ((LINEAR, X), {"mode": "test"}, ValueError, "`mode` must be one of eval, train"),
    "samples": ((LINEAR, X), {"samples": 0}, ValueError, "`samples` must be"),
    "constant output": ((Constant(), X), {}, ValueError, "depends on x"),
    "integer output": ((Integer(), X), {}, TypeError, "real output"),
    "tuple output": ((nn.LSTM(4, 3, batch_first=True), torch.ones(2, 3, 4)), {}, TypeError, "`output=`"),
    "no such output": ((nn.LSTM(4, 3, batch_first=True), torch.ones(2, 3, 4)), {"output": 5}, ValueError, "keys: 0"),
    "samples mixed": ((nn.LSTM(4, 3), torch.ones(2, 3, 4)), {"output": 0}, ValueError, "batch_first=True"),
    "batch norm": ((nn.BatchNorm1d(4), X), {"mode": "train"}, ValueError, "mixes the samples"),
    "start": ((Tokens(), torch.ones(2, 4, dtype=torch.int64)), {"start": "embeding", "output": "logits"}, ValueError,
              "Did you mean 'embedding'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_line_with_the_way_out(case):
    """The message names the call, the rule and what was got."""
    arguments, options, kind, words = REFUSED[case]
    with pytest.raises(kind) as caught:
        jacobian_spectrum(*arguments, **options)
    message = str(caught.value)
    assert message.startswith("jacobian_spectrum: ") and words in message and "\n" not in message


def chosen(model: nn.Module, shape: tuple[int, ...]) -> str:
    model = model.double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    whole, chain, _ = pass_and_chain("test", Probe("test", model), Inputs.of(x), RandomState(x.device))
    return choose("auto", chain, whole)


def convolutions(channels: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(count)))


SHAPES = {  # what was measured to be cheaper on two cores, by a factor of 3 at least
    "narrow and deep": (lambda: nn.Sequential(*(nn.Linear(50, 50) for _ in range(100))), (16, 50), "product"),
    "narrow and shallow": (lambda: nn.Sequential(nn.Linear(50, 50), nn.Linear(50, 50)), (16, 50), "product"),
    "one layer": (lambda: nn.Linear(300, 300), (2, 300), "dense"),
    "ten small convolutions": (lambda: convolutions(8, 10), (2, 8, 8, 8), "dense first"),
    "six layers of 300": (lambda: nn.Sequential(*(nn.Linear(300, 300) for _ in range(6))), (16, 300), "dense first"),
    "images": (lambda: convolutions(3, 2), (1, 3, 32, 32), "dense"),
    "large images": (lambda: convolutions(3, 2), (1, 3, 64, 64), "matrix_free"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_cheaper_right_route_is_taken(name):
    """The cost model's choice for these shapes; dense spectra that leave values open are followed by the product's."""
    build, shape, route = SHAPES[name]
    assert chosen(build(), shape) == route


def test_a_dense_spectrum_with_values_left_open_is_not_kept(monkeypatch):
    """Tried first whatever it costs: orthogonal layers are kept as dense; what spans 40 decades goes to its factors."""
    monkeypatch.setattr("flowstudy.measure.spectra.choice.WORTH_CHOOSING", 0.0)
    monkeypatch.setattr("flowstudy.measure.spectra.choice.DENSE_FIRST", 0.0)
    torch.manual_seed(0)
    flat = initialize(nn.Sequential(*(nn.Linear(8, 8) for _ in range(4))).double(), "orthogonal")
    steep = nn.Sequential(*(nn.Linear(8, 8) for _ in range(60))).double()
    x = torch.randn(2, 8, dtype=torch.float64)
    assert jacobian_spectrum(flat, x).method == "dense" and jacobian_spectrum(steep, x).method == "product"
    assert not jacobian_spectrum(steep, x).below_floor.any()


def test_samples_that_do_not_fit_in_memory_together_are_measured_in_turn(monkeypatch):
    """A budget that holds one sample's product at a time gives the numbers of all at once."""
    torch.manual_seed(0)
    model, x = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(9, 9), nn.Tanh()))), torch.randn(4, 9)
    for method in ("product", "dense"):
        together = jacobian_spectrum(model, x, method=method)
        monkeypatch.setattr("flowstudy.measure.spectra.choice.MEMORY_BUDGET", 8 * 12 * 81)
        apart = jacobian_spectrum(model, x, method=method)
        monkeypatch.undo()
        assert apart.method == method and apart.log_singular_values.shape == (4, 9)
        assert (apart.log_singular_values - together.log_singular_values).abs().max() < 1e-10


def test_the_graph_of_a_whole_model_is_walked_once(monkeypatch):
    """All that is asked of it, where it can be cut and what it computes in, comes from one list of its nodes."""
    walks = []
    for module in (graph, checks, routes, dense_jacobian):
        monkeypatch.setattr(module, "reachable", lambda edge: walks.append(edge) or reachable(edge))
    layer_jacobian_spectra(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), torch.randn(2, 4))
    assert len(walks) == 1
