"""Whether Triton's steps can be had: on this GPU, and for these nets."""

import functools

import torch
from torch import Tensor

from flowstudy.refusal import RefusalError
from flowstudy.train.stacks.choice import CHOICE, wanted

OLDEST = (8, 0)  # Ampere: the first whose matrix units take float32 numbers, as three of 10 bits
LARGEST = 128    # units and classes: larger tiles do not fit into a program's registers


def gpu_backend(state: dict[str, Tensor]) -> str:
    """Of the library's fully connected nets in float32 on a GPU: "triton", or torch's calls as a "cuda graph".

    Args:
        state: parameters by name, (net, ...) each.

    Raises:
        RefusalError: FLOWSTUDY_BACKEND asks for Triton, which cannot be had.
    """
    if wanted() == "torch":
        return "cuda graph"
    readout = state["readout.weight"]
    reason = why_not(readout.device)
    if max(readout.shape[1:]) > LARGEST:
        reason = reason or f"the nets have {max(readout.shape[1:])} units or classes, more than {LARGEST}"
    if wanted() == "triton" and reason:
        raise RefusalError(f"train: `{CHOICE}` must be torch where Triton's steps cannot be had, got 'triton': "
                           f"{reason}. Unset it: torch's calls do the work.")
    return "cuda graph" if reason else "triton"


@functools.cache
def why_not(device: torch.device) -> str:
    """Why Triton cannot be had on this device; empty where it can."""
    try:
        from triton.runtime import driver  # on Linux CUDA builds of torch bring it; elsewhere there is none

        driver.active.get_current_target()
    except ImportError:
        return "the package triton is not installed"
    except (RuntimeError, AssertionError, OSError) as error:  # it finds no GPU, or no library of CUDA's
        return f"Triton says: {str(error).splitlines()[0]}"
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        return f"the GPU has compute capability {'.'.join(map(str, capability))}, and {OLDEST[0]}.{OLDEST[1]} is needed"
    return ""
