"""What every test file shares: the device axis, the same random numbers in every run, threads that leave room for
others, and calls as users make them."""

import random
import sys
from importlib.util import find_spec

import jaxtyping
import numpy as np
import pytest
import torch

torch.set_num_threads(1)  # small nets: on busy cores a second thread makes them 10 times slower

if find_spec("hypothesis"):  # compiled: a machine that has a GPU and little else runs the tests that need none of it
    import hypothesis

    # How long an example takes says more about the machine than about the law.
    hypothesis.settings.register_profile("any machine", deadline=None,
                                         suppress_health_check=[hypothesis.HealthCheck.too_slow])
    hypothesis.settings.load_profile("any machine")

# By what a test for a GPU is marked, the first always: `gpu` asks for one, `gpu` and `two_gpus` for a second one, `gpu`
# and `emulated` for devices that count.
MISSING = {
    "gpu": lambda: not torch.cuda.is_available() and "no CUDA device",
    "two_gpus": lambda: torch.cuda.device_count() < 2 and "no second CUDA device",
    "emulated": lambda: "emulated_cuda" not in sys.modules and "not on emulated devices",
}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test draws the same numbers whatever ran before it, whichever generator its model draws from."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002  the global state is what models draw from
    for mark, missing in MISSING.items():
        if item.get_closest_marker(mark) and (reason := missing()):
            pytest.skip(reason)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    return request.param


@pytest.fixture
def annotations_unchecked():
    """As outside the tests, where nothing checks annotations: a wrong kind then meets the library's own message."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
