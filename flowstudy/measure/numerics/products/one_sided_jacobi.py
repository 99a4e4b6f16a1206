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
SPAN = 900.0      # [bits] range of the sizes in a window: squares of them stay within float64
MARGIN = 200.0    # [bits] a window's rows nearer than that to a neighbouring window's are left to the neighbour


def log_singular_values(exponents: Float[Tensor, "batch rows"], u: Float[Tensor, "batch rows columns"],
                        ) -> Float[Tensor, "batch rows"]:
    """Natural logs of the singular values of diag(2**exponents) U, member by member, on the CPU.

    Args:
        exponents: whole numbers, in decreasing order to a few bits; -2**50 or less marks a row that is zero.
        u: rows <= columns, of order one; rows whose sizes differ by more than `MARGIN` bits must be orthogonal.

    Returns:
        Descending; -inf once for each zero row.  nan in a member with nan or infinities, or that has not converged.
    """
    members = list(zip(exponents.numpy(), u.numpy(), strict=True))
    threads = min(torch.get_num_threads(), len(members))
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:   # LAPACK runs outside of Python's lock
            logs = list(pool.map(lambda member: logs_of_member(*member), members))
    else:
        logs = [logs_of_member(*member) for member in members]
    return torch.from_numpy(np.stack(logs)) if logs else torch.empty_like(exponents)


def logs_of_member(exponents: NDArray[np.float64], u: NDArray[np.float64]) -> NDArray[np.float64]:
    alive = int((exponents > -2.0**49).sum())
    if not np.isfinite(u).all():
        return np.full(len(u), np.nan)
    logs = np.full(len(u), -np.inf)
    for rows, kept in row_windows(exponents[:alive]):
        middle = np.round((exponents[rows][0] + exponents[rows][-1]) / 2)
        found = log_row_values(np.ldexp(u[rows], (exponents[rows] - middle).astype(np.int32)[:, np.newaxis]))
        logs[kept] = found[kept.start - rows.start:kept.stop - rows.start] + middle * LN2
    return np.sort(logs)[::-1]


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


def log_row_values(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logs of the singular values of one matrix, rows <= columns, by rotations of its rows; overwrites it.

    nan if they have not converged in LAPACK's 30 sweeps.
    """
    rows, columns = a.shape   # LAPACK counts along columns first: it sees the transpose, and rotates its columns
    a = np.ascontiguousarray(a)
    values, work, vectors = np.empty(rows), np.empty(max(6, rows + columns)), np.empty(1)
    general, no_u, no_v = (ctypes.c_char(flag) for flag in (b"G", b"N", b"N"))
    m, n, none, one, length, info = (ctypes.c_int(number) for number in (columns, rows, 0, 1, len(work), 0))
    dgesvj()(*map(ctypes.byref, (general, no_u, no_v, m, n)), a.ctypes.data_as(ctypes.c_void_p), ctypes.byref(m),
             values.ctypes.data_as(ctypes.c_void_p), ctypes.byref(none), vectors.ctypes.data_as(ctypes.c_void_p),
             ctypes.byref(one), work.ctypes.data_as(ctypes.c_void_p), ctypes.byref(length), ctypes.byref(info))
    if info.value != 0:
        return np.full(rows, np.nan)
    with np.errstate(divide="ignore"):   # ln 0 is -inf
        return np.log(values) + math.log(work[0])   # work[0] is the scale that LAPACK has divided by


@cache
def dgesvj() -> Callable[..., None]:
    """LAPACK's routine, from the table of functions that SciPy keeps for compiled code; all arguments are pointers."""
    capsule = cython_lapack.__pyx_capi__["dgesvj"]
    name_of = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
    address_in = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 14)(address_in(capsule, name_of(capsule)))
