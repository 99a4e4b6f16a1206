"""With this folder first on PYTHONPATH, every Python that starts, workers included, has the emulated devices."""

import sys

try:
    import emulated_cuda  # noqa: F401
except BaseException as error:  # Python would print this and go on, and tests would skip for want of a device
    sys.stderr.write(f"emulated_cuda could not be loaded: {type(error).__name__}: {error}\n")
    sys.stderr.flush()
    import os

    os._exit(70)
