"""Jacobian spectra by flowstudy and by other libraries, accuracy and time side by side in one run.

    python -m benchmarks.spectrum [--device cuda] [--json FILE] [--quick]

The sizes beyond width 256, depth 100 are measured once, at two samples.  A value is wrong where it is off by more than
1 % from the reference.  The reference is the product route, which the tests hold against 50 digits beyond the spread;
its own check here is the exact sum rule sum ln s = sum ln |det A_l|.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from flowstudy import HighwayNet, PlainNet, initialize, jacobian_spectrum
from flowstudy.measure.models.layer_rules import layer_rule

from .timing import machine, report, seconds_of

SAMPLES = 16
SIZES = [(width, depth) for width in (64, 256, 512) for depth in (20, 100, 1000)]
NETS = {"plain tanh": PlainNet, "highway tanh": HighwayNet}


def main(device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
         json: Annotated[Path | None, typer.Option(help="keep the table here")] = None,
         quick: Annotated[bool, typer.Option(help="width 64 and 256, depth 20 and 100 only")] = False) -> None:
    place = torch.device(device)
    about = machine(place)
    sizes = [(width, depth) for width, depth in SIZES if width <= 256 and depth <= 100] if quick else SIZES
    rows = [row for width, depth in sizes for name, net in NETS.items()
            for row in compare(name, net, width, depth, place, about)]
    report(f"Jacobian spectra, {SAMPLES} samples, body of the net", rows, about, json)


def compare(name: str, kind: type, width: int, depth: int, device: torch.device, about: dict,
            rounds: int | None = None, without: str = "") -> list[dict]:
    """A row for every route but `without`; the best of `rounds`, None for as many as the size bears."""
    samples = SAMPLES if width * depth <= 256 * 100 else 2  # all 16 would take an hour, and more than the memory
    net, x = net_and_samples(kind, width, depth, device, samples)
    body, single = net.blocks, kind(width, width, depth, 10, "tanh").to(device)
    single.load_state_dict({key: value.float() for key, value in net.state_dict().items()})
    results: dict[str, torch.Tensor] = {}

    def keep(route: str, log_s: torch.Tensor) -> None:
        results[route] = log_s.double().cpu()

    def ours(method: str) -> None:
        keep(f"ours {method}", jacobian_spectrum(body, x, samples=samples, method=method).log_singular_values)

    def jacrev(f: torch.nn.Module, at: torch.Tensor, route: str) -> None:
        keep(route, torch.linalg.svdvals(torch.func.vmap(torch.func.jacrev(f))(at)).log())

    def functional() -> None:
        rows = [torch.autograd.functional.jacobian(body, sample, vectorize=True) for sample in x]
        keep("autograd.functional.jacobian", torch.linalg.svdvals(torch.stack(rows)).log())

    contenders = {
        "vmap(jacrev) + svdvals": lambda: jacrev(body, x, "vmap(jacrev) + svdvals"),
        "the same, float32": lambda: jacrev(single.blocks, x.float(), "the same, float32"),
        "autograd.functional.jacobian": functional,
        "ours dense": lambda: ours("dense"),
        "ours product": lambda: ours("product"),
    }
    contenders.pop(without, None)
    large = samples < SAMPLES
    rounds = rounds or (1 if large else 3 if width > 64 else 9)
    seconds = seconds_of(contenders, device, rounds, warm_up=not large)
    reference = results["ours product"]
    operations = 2 * samples * width**3 * (depth - 1) * (2 if kind is HighwayNet else 1)
    volume, h = 0.0, x
    for block in body:
        volume, h = volume + log_volume(layer_rule(block, h).cpu()), block(h)
    rows = []
    for route, spent in seconds.items():
        rate = about[f"{'float32' if 'float32' in route else 'float64'} product [GFLOP/s]"] * 1e9
        wrong = ~((results[route] - reference).abs() < 0.01)  # ln: 1 %; nan, which ours dense says, is not right either
        rows.append({"net": name, "width": width, "depth": depth, "samples": samples, "route": route,
                     "seconds": spent, "ratio": spent / seconds["vmap(jacrev) + svdvals"],
                     "share of product rate": operations / spent / rate,
                     "wrong values": wrong.sum(-1).double().mean().item(),
                     "sum rule error": (results[route].sum(-1) - volume).abs().max().item()})
    return rows


def net_and_samples(kind: type, width: int, depth: int, device: torch.device,
                    samples: int) -> tuple[torch.nn.Module, torch.Tensor]:
    """A net in float64, and what its body gets; the same on every device, to rounding."""
    net = initialize(kind(width, width, depth, 10, "tanh"), "glorot_normal", seed=0).double().to(device)
    net.requires_grad_(False)
    inputs = torch.randn(samples, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return net, net.input(inputs.to(device))


def log_volume(a: torch.Tensor) -> torch.Tensor:
    """ln |det|, by QR of the rows brought to one size: exact for saturated rows too."""
    size = torch.linalg.vector_norm(a, dim=-1)
    r = torch.linalg.qr(a / size.unsqueeze(-1), mode="r").R
    return size.log().sum(-1) + r.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


if __name__ == "__main__":
    typer.run(main)
