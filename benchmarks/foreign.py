"""flowstudy on other people's architectures: is every number equal to autograd's, or the refusal one line with advice?

    pip install -r benchmarks/foreign.txt
    python -m benchmarks.foreign [NAME ...] [--out TABLE.md]

Of each model: the norms of all weights' gradients and of the input's by `gradient_flow`, and the singular values of its
input-output Jacobian by `jacobian_spectrum`, held against plain autograd on a copy whose every tensor is float64; two
steps of training under `GradientMonitor`, which must end in the weights of the same steps without it, bit for bit; and
`flowstudy check`.  "right" is a relative difference of at most 1e-9 (1e-4 where the model computes in float32 inside).
"""

import contextlib
import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

import flowstudy as fs
from flowstudy.cli import app

from .foreign_nets import FOREIGN, Foreign

CLOSE = {"float64": 1e-9, "float32": 1e-4}
MEASURED = 2   # samples whose Jacobian is taken


def main(names: Annotated[list[str] | None, typer.Argument(help="all, without")] = None,
         out: Annotated[Path | None, typer.Option(help="write the table here, as Markdown")] = None) -> None:
    rows = []
    for name in names or FOREIGN:
        torch.manual_seed(0)
        started = time.perf_counter()
        rows.append({"model": name, "from": FOREIGN[name].source, **verdicts_on(name, FOREIGN[name]),
                     "seconds": round(time.perf_counter() - started, 1)})
        print(" | ".join(map(str, rows[-1].values())), flush=True)
    table = pd.DataFrame(rows)
    wrong = table.astype(str).apply(lambda column: column.str.startswith("wrong")).any(axis=1).sum()
    print(f"{len(table)} models, {wrong} with a wrong number.")
    if out is not None:
        out.write_text(table.to_markdown(index=False) + "\n")
    raise typer.Exit(int(wrong > 0))


def verdicts_on(name: str, case: Foreign) -> dict[str, str]:
    model = case.build()
    return {"gradient_flow": said(lambda: flow_difference(case, model)),
            "jacobian_spectrum": "not asked" if case.of_spectrum is None
            else said(lambda: spectrum_difference(case, model)),
            "monitor": said(lambda: monitor_difference(case, model)), "check": check_of(name, case)}


def said(compare: Callable[[], tuple[float, str, int]]) -> str:
    """In words: how far a number is off, or what was refused."""
    try:
        difference, dtype, compared = compare()
    except (ValueError, TypeError) as error:
        refused = str(error).startswith(("gradient_flow:", "jacobian_spectrum:"))
        return f"{'refused' if refused else 'wrong'}: {error}"
    except Exception as error:   # whatever a model raises: the table tells it
        return f"wrong: {type(error).__name__}: {str(error).splitlines()[0][:90]}"
    return f"{'right' if difference <= CLOSE[dtype] else 'wrong'}: {difference:.0e}, {compared} compared, {dtype}"


# --- the reference ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def all_float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def widened(value: object) -> object:
    if isinstance(value, Tensor):
        return (value.to(torch.complex128) if value.is_complex() else value.double()
                if value.is_floating_point() else value).clone()
    if isinstance(value, dict):
        return {key: widened(part) for key, part in value.items()}
    return type(value)(map(widened, value)) if isinstance(value, tuple | list) else value


def wide_copy(model: nn.Module) -> nn.Module:
    """Weights, buffers, complex weights and tensors in attributes."""
    twin = copy.deepcopy(model).double()
    for module in twin.modules():
        for parameters in (module._parameters, module._buffers):
            for key, t in parameters.items():
                if t is not None and t.is_complex():
                    wide = t.detach().to(torch.complex128)
                    parameters[key] = nn.Parameter(wide) if isinstance(t, nn.Parameter) else wide
        for key, value in vars(module).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(module, key, value.double())
    return twin


def run(model: nn.Module, x: object) -> object:
    return model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x)


def loss_of(case: Foreign, output: object, y: object) -> Tensor:
    loss, entry = case.of_flow.get("loss", "cross_entropy"), case.of_flow.get("output")
    if callable(loss):
        return loss(output, y)
    if loss == "output":
        return output["loss"]
    taken = output[entry] if entry is not None else output if isinstance(output, Tensor) else output["logits"]
    if loss == "mse":
        return F.mse_loss(taken, y)
    return F.cross_entropy(taken.movedim(-1, 1) if y.ndim == 2 else taken, y)


def real_leaves(x: object) -> list[Tensor]:
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, tuple) else [x]
    return [t.requires_grad_() for t in parts if isinstance(t, Tensor) and t.is_floating_point()]


# --- comparisons ------------------------------------------------------------------------------------------------------


def flow_difference(case: Foreign, model: nn.Module) -> tuple[float, str, int]:
    """The largest relative difference of a gradient's norm: of each parameter's module, and of the input."""
    flow = fs.gradient_flow(model, case.x, case.y, **case.of_flow)
    with all_float64():
        twin, x, y = wide_copy(model), widened(case.x), widened(case.y)
        leaves = real_leaves(x)
        loss_of(case, run(twin, x), y).backward()
    at_input = [leaf.grad for leaf in leaves if leaf.grad is not None]
    pairs = [(flow.log10_input_gradient_norm, norm(at_input))] if at_input else []
    names = flow.frame["module"].drop_duplicates().tolist()
    gradients = {n: p.grad for n, p in twin.named_parameters() if is_weight(n, p)}
    for name in names:
        rows = flow.frame[(flow.frame["module"] == name) & (flow.frame["gradient"] == "value")]
        cells = [column for column in ("stack_layer", "direction") if column in rows]   # each with its own weights
        logs = (rows.drop_duplicates(cells) if cells else rows[:1])["log10_weight_gradient_norm"]
        own = [g for n, g in gradients.items() if owner(n, names) == name and g is not None]
        if len(logs) and own:
            pairs.append((math.log10(math.hypot(*(10.0**logs))), norm(own)))
    worst = max(abs(math.expm1((one - math.log10(other)) * math.log(10))) for one, other in pairs)
    return worst, flow.dtype, len(pairs)


def norm(parts: list[Tensor]) -> float:
    return math.sqrt(sum(part.abs().square().sum().item() for part in parts))


def is_weight(name: str, p: Tensor) -> bool:
    return p.ndim >= 2 or name.split(".")[-1] == "weight" or ".weight." in name


def owner(parameter: str, names: list[str]) -> str | None:
    """The row that the parameter belongs to: its own, or that of the innermost module around it."""
    around = [name for name in names if parameter == name or parameter.startswith(f"{name}.") or not name]
    return max(around, key=len, default=None)


def spectrum_difference(case: Foreign, model: nn.Module) -> tuple[float, str, int]:
    """The largest difference of a singular value, relative to the sample's largest one."""
    model = model.eval()
    options = case.of_spectrum
    found = fs.jacobian_spectrum(model, case.x, samples=MEASURED, **options)
    worst, compared = 0.0, 0
    for sample in range(MEASURED):
        with all_float64():
            true = torch.linalg.svdvals(jacobian(case, wide_copy(model), sample))
        own = found.singular_values[sample]
        own = own[own.isfinite()] if isinstance(own, Tensor) else torch.as_tensor(own)[torch.as_tensor(own).isfinite()]
        true = true[:len(own)]
        worst, compared = max(worst, float((own.cpu() - true).abs().max() / true[0])), compared + len(own)
    return worst, found.dtype, compared


def jacobian(case: Foreign, twin: nn.Module, sample: int) -> Tensor:
    """(output, input) of one sample, row by row."""
    options, x = case.of_spectrum, widened(case.x)
    x = {key: t[sample:sample + 1] for key, t in x.items()} if isinstance(x, dict) else x[sample:sample + 1]
    leaves, seen = real_leaves(x), []
    at = x[options["wrt"]] if "wrt" in options else leaves[0] if leaves else None
    if "start" in options:
        twin.get_submodule(options["start"]).register_forward_hook(lambda _m, _a, out: seen.append(out))
    output = run(twin, x)
    output = output[options["output"]] if "output" in options else output
    at = seen[0] if seen else at
    rows = [torch.autograd.grad(value, at, retain_graph=True)[0].flatten() for value in output.flatten()]
    return torch.stack(rows)


def monitor_difference(case: Foreign, model: nn.Module) -> tuple[float, str, int]:
    """The largest difference of a weight after two steps with and without the monitor, which is 0, and rows seen."""
    ends, seen = [], 0
    for watched in (False, True):
        net = copy.deepcopy(model)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
        with fs.GradientMonitor(net) if watched else contextlib.nullcontext() as monitor:
            for _ in range(2):
                optimizer.zero_grad()
                loss_of(case, run(net, case.x), case.y).backward()
                optimizer.step()
        ends.append([p.detach() for p in net.parameters()])
        seen = len(monitor.frame) if watched else 0
    if not seen:
        raise RuntimeError("the monitor saw nothing")
    return max(float((a - b).abs().max()) for a, b in zip(*ends, strict=True)), "float64", seen


def check_of(name: str, case: Foreign) -> str:
    """Exit status of `flowstudy check`, and its last word where that is a mistake of the call or of ours."""
    if callable(case.of_flow.get("loss")):
        return "not asked"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "batch.pt"
        options = [part for key, value in case.of_flow.items() for part in (f"--{key}", str(value))]
        if case.y is None:
            torch.save(case.x, file)
            options += ["--inputs", str(file)]
        else:
            torch.save((case.x, case.y), file)
            options += ["--data", str(file), "--samples", "4"]
        found = CliRunner().invoke(app, ["check", f"benchmarks.foreign_nets:{name}", *options,
                                         "--picture", str(Path(folder) / "check.png")])
    words = found.output.strip().splitlines()[-1][:110] if found.exit_code in (2, 70) and found.output.strip() else ""
    return f"{'wrong: ' if found.exit_code == 70 else ''}exit {found.exit_code} {words}".strip()


if __name__ == "__main__":
    typer.run(main)
