"""The tables: each a function (device, sizes, record) -> rows."""

import itertools
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import nn

import flowstudy
from flowstudy import ACTIVATIONS, HighwayNet, PlainNet, ResidualNet, grid, jacobian_spectrum, run
from flowstudy.torch_settings import so_many_threads

from .. import monitor, spectrum, training
from ..timing import machine, product_rate, seconds_of
from .record import SHARE, Record, Rows

ROOT = Path(__file__).resolve().parents[2]
NETS = {"plain": PlainNet, "highway": HighwayNet, "residual": ResidualNet}
WIDTHS = {"plain": 71, "highway": 50}  # the paper's
VERSIONS = ("numpy", "scipy", "pandas", "pyarrow", "triton")


@dataclass(frozen=True)
class Sizes:
    """How large each part is.

    Attributes:
        tests: what pytest is given beside `-m gpu` and the files that have such tests; () for all of these.
        dataset: of the nets that are trained on both devices.
        samples: how many of its samples, for one epoch.
        depths: of the stacks whose steps are timed, with `nets` nets of the paper's widths.
        nets: nets in a stack.
        stacks: other sizes of stacks.
        loop_depth: of the loop over nets, and of the stack beside it.
        widths: of the spectra.
        spectrum_depth: of the spectra.
        rounds: the best of so many.
        copy_mb: of the copy that measures the memory's rate.
        conv_batches: of an epoch of a convolutional net.
        monitored: of `benchmarks.monitor`: which nets train, with which optimizers.
    """

    tests: tuple[str, ...] = ()
    dataset: str = "mnist"
    samples: int = 2_000
    depths: tuple[int, ...] = (10, 20, 50, 100)
    nets: int = 100
    stacks: tuple[int, ...] = (1, 264)
    loop_depth: int = 50
    widths: tuple[int, ...] = (64, 256)
    spectrum_depth: int = 100
    rounds: int = 3
    copy_mb: int = 1_000
    conv_batches: int = 200
    monitored: tuple[monitor.Monitored, ...] = monitor.MONITORED


FULL = Sizes()
TINY = Sizes(("tests/test_gpu.py", "-k", "tf32"), "digits", 40, (2,), 2, (2,), 2, (3,), 3, 1, 1, 1,
             (("MLP, 1 layer", partial(monitor.mlp, 1), torch.optim.SGD, 10),))


@dataclass(frozen=True)
class Steps:
    """A stack whose steps are timed: its nets, and the samples of a batch."""

    net: str
    depth: int
    width: int
    nets: int
    batch: int = 20
    backend: str | None = None

    def make(self, depth: int) -> nn.Module:
        return NETS[self.net](training.FEATURES, self.width, depth, training.CLASSES, "tanh")

    def weight_bytes(self) -> int:
        return self.nets * sum(p.nbytes for p in self.make(self.depth).parameters())


def about(device: torch.device, sizes: Sizes, record: Record) -> Rows:
    facts = {"flowstudy": flowstudy.__version__, "python": platform.python_version(), "CUDA": torch.version.cuda,
             "memory [GB]": torch.cuda.mem_get_info(device)[1] / 1e9,
             "copies, read and written [GB/s]": copy_rate(device, sizes.copy_mb) / 1e9}
    facts |= {name: metadata.version(name) for name in VERSIONS if find_spec(name)}
    return [{"what": key, "value": value} for key, value in (machine(device) | facts).items()]


def device_tests(device: torch.device, sizes: Sizes, record: Record) -> Rows:
    """Those marked `gpu`, in a process of their own, for at most its share of the time."""
    wanted = sizes.tests or files_with_gpu_tests()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "tests.xml")
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow", "-p", "no:cacheprovider",
                               "--continue-on-collection-errors", f"--junitxml={report}", *wanted],
                              cwd=ROOT, capture_output=True, text=True, timeout=SHARE * record.left())
        if not report.exists():
            raise RuntimeError(f"pytest ended with status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    rows = [{"tests": len(cases)} | {kind: sum(case.find(kind) is not None for case in cases)
                                     for kind in ("failure", "error", "skipped")}]
    for case in cases:
        for trouble in (*case.findall("failure"), *case.findall("error")):
            words = trouble.get("message") or trouble.text or ""
            rows.append({"name": f"{case.get('classname')}.{case.get('name')}", "message": words[:300],
                         "end of the report": (trouble.text or "")[-1500:]})
    return rows


def files_with_gpu_tests() -> list[str]:
    """Others may import what a machine that was not installed lacks.  A test is of a GPU by its mark or its fixture."""
    return sorted(str(path) for path in ROOT.glob("tests/test_*.py")
                  if re.search(r"mark\.gpu\b|def test_\w+\([^)]*\bdevice\b", path.read_text(encoding="utf-8")))


def beside_cpu(device: torch.device, sizes: Sizes, record: Record) -> Rows:
    """Losses of an epoch of every kind of net and activation, the GPU's beside the CPU's."""
    cells = grid(net=list(NETS), activation=sorted(ACTIVATIONS), depth=6, width=20, seed=range(2), epochs=1,
                 dataset=sizes.dataset, train_samples=sizes.samples, batch_size=20, learning_rate=0.01)
    frames = {}
    for place in ("cpu", str(device)):
        with tempfile.TemporaryDirectory() as store:
            frames[place] = run(cells, measure="training_loss", store=store, device=place, progress=False)
    here, there = frames.values()
    there = there.assign(gap=(there["loss"] / here["loss"] - 1).abs(), same=there["diverged"] == here["diverged"])
    rows = there.groupby(["net", "activation"], sort=False).agg({"gap": "max", "same": "all"})
    return [{"net": net, "activation": activation, "largest relative gap": row["gap"],
             "same nets diverged": bool(row["same"])} for (net, activation), row in rows.iterrows()]


def steps(device: torch.device, sizes: Sizes, record: Record) -> Iterator[dict]:
    """ms a step of a stack; `share of the limit` is the time in which the memory can read the weights twice and the
    velocities once, and write both, over the time measured."""
    rate = copy_rate(device, sizes.copy_mb)
    for depth, (net, width), backend in itertools.product(sizes.depths, WIDTHS.items(), training.backends(device)):
        setup = Steps(net, depth, width, sizes.nets, backend=backend)
        row = ms_a_step(setup, device, sizes.rounds, kernels=True)
        limit = 1e3 * 5 * setup.weight_bytes() / rate
        yield {"net": net, "depth": depth, "width": width, "nets": sizes.nets, "batch": setup.batch,
               "backend": backend} | row | {"limit [ms]": limit, "share of the limit": limit / row["ms a step"]}


def stack_sizes(device: torch.device, sizes: Sizes, record: Record) -> Iterator[dict]:
    """ms a step by the nets of a stack."""
    for (net, width), nets, backend in itertools.product(WIDTHS.items(), sizes.stacks, training.backends(device)):
        row = ms_a_step(Steps(net, sizes.loop_depth, width, nets, backend=backend), device, sizes.rounds)
        yield {"net": net, "depth": sizes.loop_depth, "width": width, "nets": nets, "backend": backend} | row


def ms_a_step(setup: Steps, device: torch.device, rounds: int = 3, kernels: bool = False) -> dict:
    x = torch.randn(training.SAMPLES, training.FEATURES, device=device)
    y = torch.randint(training.CLASSES, (training.SAMPLES,), device=device)
    go, count, _ = training.ours(setup.nets, setup.depth, x, y, setup.batch, setup.make, setup.backend)
    row = {"ms a step": 1e3 * seconds_of({"ours": go}, device, rounds)["ours"] / count}
    if kernels:
        go, count, _ = training.ours(setup.nets, setup.depth, x, y, setup.batch, setup.make, setup.backend, most=2)
        row["kernels a step"] = kernels_of(go) / count or None
    return row


def kernels_of(call: Callable[[], object]) -> int:
    """What the profiler sees run on the device in a second call; 0 where it sees nothing."""
    call()
    with torch.profiler.profile() as profile:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith("Mem")
               for event in profile.events())


def beside_the_loop(device: torch.device, sizes: Sizes, record: Record) -> Rows:
    rate = product_rate(device, torch.float32)
    return training.compare(device, sizes.loop_depth, 20, [sizes.nets], False, sizes.rounds, rate)


def spectra(device: torch.device, sizes: Sizes, record: Record) -> Iterator[dict]:
    """The table of `benchmarks.spectrum`, where the reference is the product route on the GPU; and that one's own
    wrong values beside the CPU's.

    The last step of that route is LAPACK's, on as many of the CPU's cores as torch may use: here on all that the
    process may use, whatever OMP_NUM_THREADS says, which many clusters set to 1.
    """
    threads = len(os.sched_getaffinity(0))
    with so_many_threads(threads):
        facts = machine(device)
        for width, (name, kind) in itertools.product(sizes.widths, spectrum.NETS.items()):
            yield from ({**row, "threads": threads} for row in spectrum.compare(
                name, kind, width, sizes.spectrum_depth, device, facts, sizes.rounds,
                without="autograd.functional.jacobian"))  # 20 times as long as the others
            found = []
            for place in (torch.device("cpu"), device):
                net, x = spectrum.net_and_samples(kind, width, sizes.spectrum_depth, place, 2)
                found.append(jacobian_spectrum(net.blocks, x, samples=2, method="product").log_singular_values.cpu())
            wrong = ~((found[1] - found[0]).abs() < 0.01)
            yield {"net": name, "width": width, "depth": sizes.spectrum_depth, "samples": 2,
                   "route": "ours product beside the CPU's", "wrong values": wrong.sum(-1).double().mean().item()}


def monitors(device: torch.device, sizes: Sizes, record: Record) -> Iterator[dict]:
    return monitor.table(device, 5 * sizes.rounds, sizes.monitored)  # a step takes milliseconds


def copy_rate(device: torch.device, mb: int) -> float:
    """Bytes a second, read and written."""
    source = torch.empty(mb * 10**6, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of({"copy": lambda: target.copy_(source)}, device)["copy"]
