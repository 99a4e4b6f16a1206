"""Plain autograd's numbers for any module, without tracing, batching or code of the library, and the tolerances.

One forward pass of a float64 copy and one backward pass through hooks give every gradient; the Jacobian is built row by
row, one `torch.autograd.grad` call each, and numpy finds its singular values.
"""

import copy
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from flowstudy import GradientFlow, JacobianSpectrum, jacobian_spectrum

PRODUCTS = (F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)
ROUNDINGS = 2.0**12  # of a few dozen operations on a few dozen numbers each, forwards and backwards


@dataclass
class Row:
    """One use of one layer: its name, the norm of d loss / d output, and its weights' gradients, None without."""

    module: str
    weights: list[nn.Parameter]
    error: float = math.nan

    @property
    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.weights if p.grad is not None]

    @property
    def kind(self) -> str:
        if not self.gradients:
            return "none"
        return "value" if any(g.any() for g in self.gradients) else "zero"

    @property
    def weight_gradient(self) -> float:
        return math.hypot(*(abs(entry) for g in self.gradients for entry in g.flatten().tolist()))


@dataclass
class Flow:
    loss: float = math.nan
    input_gradient: float = math.nan
    rows: list[Row] = field(default_factory=list)

    def note(self, module: str, weights: list[nn.Parameter], h: Tensor) -> None:
        row = Row(module, weights)
        self.rows.append(row)
        if h.requires_grad:
            h.register_hook(lambda g: setattr(row, "error", g.norm().item()))


class Uses(TorchFunctionMode):
    """Notes each product with a weight that its module uses without a layer of torch.nn's."""

    def __init__(self, flow: Flow, weights: dict[int, tuple[str, nn.Parameter]]):
        super().__init__()
        self.flow, self.weights = flow, weights

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        used = self.weights.get(id(args[1])) if function in PRODUCTS else None
        if used is not None:
            self.flow.note(used[0], [used[1]], output)
        return output


def flow_of(model: nn.Module, x: Tensor, y: Tensor | None, loss) -> Flow:
    """Every layer's use in order of execution, layers being modules with weights of their own.

    A list of weights is not a layer, nor a module of the tests' own with more than one: each product is a row.
    """
    model, x, flow = copy.deepcopy(model).double(), x.detach().double().requires_grad_(), Flow()
    model.zero_grad(set_to_none=True)
    handles, functional = [], {}
    for at, module in model.named_modules():
        own = [(name, p) for name, p in module.named_parameters(at, recurse=False)
               if p.ndim > 1 or name.rpartition(".")[2] == "weight"]
        lists = isinstance(module, nn.ParameterList | nn.ParameterDict)
        if lists or (len(own) > 1 and not type(module).__module__.startswith("torch.nn.modules")):
            functional |= {id(p): (name, p) for name, p in own}
        elif own or any(True for _ in module.parameters(recurse=False)):
            if isinstance(module, nn.MultiheadAttention):
                own.append(("out_proj.weight", module.out_proj.weight))
            weights = [p for _, p in own]
            handles.append(module.register_forward_hook(
                lambda _module, _args, h, at=at, weights=weights:
                flow.note(at, weights, h[0] if isinstance(h, tuple) else h)))
    with Uses(flow, functional):
        value = loss(model(x.clone()), y)  # a clone: a model may begin in place
    for handle in handles:
        handle.remove()  # what a checkpoint runs again on the way back is no second use
    value.backward()
    flow.loss, flow.input_gradient = value.item(), math.nan if x.grad is None else x.grad.norm().item()
    return flow


def jacobians_of(model: nn.Module, x: Tensor) -> np.ndarray:
    """(sample, outputs, inputs), each sample's own block of the whole batch's Jacobian; the other blocks are 0."""
    model, x = copy.deepcopy(model).double(), x.detach().double().requires_grad_()
    y = model(x.clone())
    blocks = np.zeros((len(x), y[0].numel(), x[0].numel()))
    for sample, outputs in enumerate(y.flatten(1) if y.ndim > 1 else y[:, None]):
        for i, output in enumerate(outputs):
            (row,) = torch.autograd.grad(output, x, retain_graph=True)
            blocks[sample, i] = row[sample].flatten().numpy()
            assert not row[:sample].any() and not row[sample + 1:].any()
    return blocks


def assert_flow_right(found: GradientFlow, true: Flow, dtype: str = "float64", cancelled: bool = False) -> None:
    """The same rows in the same order, every norm to its own rounding, or to that of terms that `cancelled`."""
    eps = torch.finfo(getattr(torch, dtype)).eps * ROUNDINGS
    frame = found.frame
    assert found.dtype == dtype
    assert frame["module"].tolist() == [row.module for row in true.rows]
    assert np.isclose(found.loss, true.loss, rtol=eps, atol=eps)
    errors, weights = np.array([(row.error, row.weight_gradient) for row in true.rows]).T
    for column, expected in {"log10_error_signal_norm": errors, "log10_weight_gradient_norm": weights}.items():
        norms = 10.0 ** frame[column].fillna(-math.inf)
        noise = cancelled * eps * np.nanmax([*expected, 0.0])
        np.testing.assert_allclose(norms, np.nan_to_num(expected), rtol=eps, atol=noise, err_msg=column)
    seen = frame["log10_error_signal_norm"].notna().to_numpy()
    assert (seen | np.isnan(errors)).all(), "an error signal that exists is missing"
    assert (~seen | ~np.isnan(errors)).all(), "an error signal where the loss sees no layer"
    noise = cancelled * eps * weights.max()
    for kind, norm, row in zip(frame["gradient"], frame["log10_weight_gradient_norm"], true.rows, strict=True):
        rounding = row.kind != "none" and row.weight_gradient <= noise  # then 0 and 1e-20 are one answer
        assert kind == row.kind or (rounding and kind in ("zero", "value")), (row.module, kind, row.kind)
        assert (kind == "none") == math.isnan(norm) and (kind == "zero") == (norm == -math.inf)
    np.testing.assert_allclose(10.0**found.log10_input_gradient_norm, true.input_gradient, rtol=eps,
                               atol=cancelled * eps * np.nanmax([*errors, 0.0]))


def assert_spectrum_right(found: JacobianSpectrum, jacobians: np.ndarray, dtype: str = "float64") -> None:
    """Within the stated error and the rounding of the twin; nan only below that rounding, -inf only for zeros."""
    eps = torch.finfo(getattr(torch, dtype)).eps
    assert found.dtype == dtype
    true = np.linalg.svd(jacobians, compute_uv=False)
    logs, stated = found.log_singular_values.numpy(), found.log_error.numpy()
    assert logs.shape == true.shape
    noise = ROUNDINGS * eps * true[:, :1]
    if dtype != "float64":   # a norm of one live feature cancels terms of order one down to their rounding in float32
        noise = np.full_like(noise, max(noise.max(), 16 * eps))
    known = np.isfinite(logs)
    values = np.exp(np.where(known, logs, -np.inf))
    allowed = noise + np.where(known, values * np.expm1(np.where(known, stated, 0.0)), 0.0)
    assert (np.abs(values - true) <= allowed).all(), f"found {values}, true {true}, allowed {allowed}"
    assert (found.below_floor.numpy() == np.isnan(logs).sum(1)).all()
    assert (stated[known] < 1.0).all(), f"known with an error of {stated[known].max()}"


def by_product(model: nn.Module, x: Tensor) -> JacobianSpectrum | None:
    """The product route's spectrum, which "auto" takes for some chains only; None of a model that is no chain."""
    try:
        return jacobian_spectrum(model, x, method="product")
    except ValueError as refused:
        assert str(refused).startswith("jacobian_spectrum: method='product'"), refused
        return None
