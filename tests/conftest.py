"""What every test file shares: the device axis, threads that leave room for others, and calls as users make them."""

import hypothesis
import jaxtyping
import pytest
import torch

torch.set_num_threads(1)  # small nets: on busy cores a second thread makes them 10 times slower

# How long an example takes says more about the machine than about the law.
hypothesis.settings.register_profile("any machine", deadline=None,
                                     suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")

HAVE_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=HAVE_CUDA)])
def device(request) -> str:
    return request.param


@pytest.fixture
def annotations_unchecked():
    """As outside the tests, where nothing checks annotations: a wrong kind then meets the library's own message."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
