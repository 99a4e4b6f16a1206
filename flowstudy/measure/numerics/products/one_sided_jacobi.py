"""LAPACK's one-sided Jacobi, dgesvj, for the rows of a graded matrix diag(2**e) U, however far apart the exponents lie.

Plane rotations of the rows, each of them right relative to its own two rows, find every singular value of a diagonal
times a well-conditioned matrix to about eps times that matrix's condition, the small ones as well as the large ones.
LAPACK computes with plain float64, whose range a long product leaves.  So the rows are taken in windows of a limited
range of sizes, each window scaled to the middle of that range, and windows overlap: rows whose sizes lie far apart have
nothing to do with each other once a QR step has taken the larger rows' part out of the smaller ones.

Source: Drmac & Veselic 2008, SIAM J. Matrix Anal. Appl. 29 (the algorithm of dgesvj); Demmel & Veselic 1992 (why it is
relatively accurate).
"""

import ctypes
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.linalg import cython_lapack
from torch import Tensor

LN2 = math.log(2.0)
DEAD = -2.0**50   # exponent of a row that is exactly zero: below anything a product can reach, still an exact integer
SPAN = 900.0      # [bits] range of the sizes in a window: squares of them stay within float64
MARGIN = 200.0    # [bits] a window's rows nearer than that to the rows that it leaves out are left to another window
WORTH_A_THREAD = 10**6   # rows cubed, of all matrices: about a millisecond


def log_singular_values(exponents: Float[Tensor, "batch rows"], u: Float[Tensor, "batch rows columns"],
                        ) -> Float[Tensor, "batch rows"]:
    """Natural logs of the singular values of diag(2**exponents) U, member by member, on the CPU.

    Args:
        exponents: whole numbers, in decreasing order to a few bits; `DEAD` marks a row that is zero.
        u: rows <= columns, of order one; rows whose sizes differ by more than `MARGIN` bits must be orthogonal.

    Returns:
        Descending; -inf once for each zero row.  nan in a member with nan or infinities, or that has not converged.
    """
    e, rows = exponents.numpy(), u.numpy()
    if not e.size:
        return torch.empty_like(exponents)
    logs = np.full(e.shape, -np.inf)
    finite, alive = np.isfinite(rows).all((1, 2)), (e > DEAD / 2).sum(1)
    logs[~finite] = np.nan
    at_once = finite & (np.ptp(e, axis=1) <= SPAN)   # the commonest case; with a zero row the range is far larger
    logs[at_once] = logs_of_window(e[at_once], rows[at_once])
    for member in np.flatnonzero(finite & ~at_once):
        for window, kept in row_windows(e[member, :alive[member]]):
            found = logs_of_window(e[member:member + 1, window], rows[member:member + 1, window])[0]
            logs[member, kept] = found[kept.start - window.start:kept.stop - window.start]
    return torch.from_numpy(np.sort(logs)[:, ::-1].copy())


def row_windows(exponents: NDArray[np.float64]) -> Iterator[tuple[slice, slice]]:
    """Ranges of rows whose sizes lie within `SPAN` of each other, and of which of their values are kept."""
    begin = kept = 0
    while kept < len(exponents):
        end = begin + int((exponents[begin:] >= exponents[begin] - SPAN).sum())
        near = exponents[begin:end] >= exponents[begin] - (SPAN - MARGIN)
        until = end if end == len(exponents) else begin + int(near.sum())
        yield slice(begin, end), slice(kept, until)
        kept = until
        if kept < len(exponents):
            begin = int((exponents[:kept] > exponents[kept] + MARGIN).sum())


def logs_of_window(exponents: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logs of the singular values of rows that float64 can hold side by side, (batch, rows), descending."""
    middle = np.round((exponents[:, :1] + exponents[:, -1:]) / 2)
    values, scales = row_values(np.ldexp(u, (exponents - middle).astype(np.int32)[..., np.newaxis]))
    # The large terms are whole powers of two, added before any logarithm is rounded.
    (mantissas, powers), (scale_mantissas, scale_powers) = np.frexp(values), np.frexp(scales[:, np.newaxis])
    with np.errstate(divide="ignore"):   # ln 0 is -inf
        return np.log(mantissas * scale_mantissas) + (powers + scale_powers + middle) * LN2


def row_values(a: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The singular values of each matrix of a stack, rows <= columns, by rotations of its rows, which it overwrites.

    Returns:
        Values (batch, rows) to be multiplied by scales (batch,); nan where LAPACK's 30 sweeps were too few.
    """
    batch, rows, columns = a.shape
    a, values, scales = np.ascontiguousarray(a), np.empty((batch, rows)), np.empty(batch)

    def rotate(members: range) -> None:
        # LAPACK counts along columns first: it sees the transpose, and rotates its columns.
        work, length = np.empty(max(6, rows + columns)), max(6, rows + columns)
        flags = [ctypes.byref(ctypes.c_char(flag)) for flag in (b"G", b"N", b"N")]
        m, n, none, one, size, info = (ctypes.c_int(number) for number in (columns, rows, 0, 1, length, 0))
        m_at, n_at, none_at, one_at, size_at, info_at = map(ctypes.byref, (m, n, none, one, size, info))
        routine, work_at = dgesvj(), work.ctypes.data
        for i in members:
            routine(*flags, m_at, n_at, a.ctypes.data + i * rows * columns * 8, m_at,
                    values.ctypes.data + i * rows * 8, none_at, work_at, one_at, work_at, size_at, info_at)
            scales[i] = work[0] if info.value == 0 else np.nan

    threads = min(torch.get_num_threads(), batch) if batch * rows**3 > WORTH_A_THREAD else 1
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:   # LAPACK runs outside of Python's lock
            list(pool.map(rotate, [range(first, batch, threads) for first in range(threads)]))
    else:
        rotate(range(batch))
    return values, scales


@cache
def dgesvj() -> Callable[..., None]:
    """LAPACK's routine, from the table of functions that SciPy keeps for compiled code; all arguments are pointers."""
    capsule = cython_lapack.__pyx_capi__["dgesvj"]
    name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
    address_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 14)(address_in(capsule, name_of(capsule)))
