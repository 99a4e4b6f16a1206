"""Cases as data: small nets by name, a batch, and what must not change when a model is only looked at."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from flowstudy.nets import HighwayNet, PlainNet, ResidualNet, initialize

FEATURES, CLASSES, SAMPLES = 12, 5, 9

NETS: dict[str, Callable[[], nn.Module]] = {
    f"{kind.__name__}-{activation}-L{depth}": lambda kind=kind, activation=activation, depth=depth: kind(
        FEATURES, 11, depth, CLASSES, activation)
    for kind in (PlainNet, HighwayNet, ResidualNet) for activation in ("relu", "tanh", "sigmoid") for depth in (1, 2, 9)
}


def build(name: str, seed: int = 0, scheme: str = "he_normal") -> nn.Module:
    return initialize(NETS[name](), scheme, seed=seed)


def batch(samples: int = SAMPLES, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(samples, FEATURES, generator=generator),
            torch.randint(CLASSES, (samples,), generator=generator))


class Awkward(nn.Module):
    """What a measurement could disturb: running statistics, dropout, an in-place ReLU, a frozen layer, a gradient."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3),
                                  nn.Linear(8, 8), nn.Tanh())
        self.readout = nn.Linear(8, CLASSES)
        self.body[4].requires_grad_(False)
        self.body[5].register_forward_hook(lambda _module, _args, output: output)
        self.readout.weight.grad = torch.ones_like(self.readout.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.body(x))


def fingerprint(model: nn.Module) -> dict[str, object]:
    """All that a measurement must leave as it was, the global random states among it."""
    return {
        "tensors": {name: (value.clone(), value.dtype) for name, value in model.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "frozen": {name: not p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: [list(hooks) for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)]
                  for name, m in model.named_modules()},
        "torch random state": torch.get_rng_state(),
        "numpy random state": copy.deepcopy(np.random.get_state()),  # noqa: NPY002  the global state is what is watched
    }


def assert_same(before: object, after: object) -> None:
    if isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, tuple | list):
        assert len(before) == len(after)
        for one, other in zip(before, after, strict=True):
            assert_same(one, other)
    elif isinstance(before, Tensor):
        assert torch.equal(before, after)
    elif isinstance(before, np.ndarray):
        assert np.array_equal(before, after)
    else:
        assert before == after
