"""All singular values of a matrix product from exact integers: slow and obvious, sharing no code with flowstudy."""

import mpmath
import torch
from torch import Tensor

PRIME = 2**127 - 1
Matrix = list[list[int]]


def log_singular_values(factors: list[Tensor]) -> Tensor:
    """Natural logs, descending, of all singular values of factors[-1] @ ... @ factors[0]; -inf where exactly 0.

    The product is multiplied out exactly and its rank is found exactly; the digits of its singular values are doubled
    until as many of them as the rank stand clear of rounding.
    """
    product, shift = [[1 if i == j else 0 for j in range(factors[0].shape[1])] for i in range(factors[0].shape[1])], 0
    for a in factors:
        whole, own_shift = integers(a)
        columns = list(zip(*product, strict=True))
        product = [[sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in whole]
        shift += own_shift
    count, rank = min(len(product), len(product[0])), rank_of(product)
    if len(product) < len(product[0]):
        product = [list(column) for column in zip(*product, strict=True)]
    digits = 60
    while rank:
        with mpmath.workdps(digits):
            values = sorted(mpmath.svd_r(mpmath.matrix(product) * mpmath.ldexp(1, -shift), compute_uv=False))[::-1]
            if values[rank - 1] > values[0] * mpmath.mpf(10) ** (30 - digits):
                logs = [float(mpmath.log(value)) for value in values[:rank]]
                return torch.tensor(logs + [-float("inf")] * (count - rank), dtype=torch.float64)
        digits *= 2
    return torch.full((count,), -float("inf"), dtype=torch.float64)


def integers(a: Tensor) -> tuple[Matrix, int]:
    """Whole numbers and k with a = whole / 2**k."""
    ratios = [[value.as_integer_ratio() for value in row] for row in a.double().tolist()]
    shift = max(bottom.bit_length() - 1 for row in ratios for _, bottom in row)
    return [[top << (shift - bottom.bit_length() + 1) for top, bottom in row] for row in ratios], shift


def rank_of(matrix: Matrix) -> int:
    """By elimination modulo a prime: too small with a probability of about 1e-37."""
    rows, rank = [[value % PRIME for value in row] for row in matrix], 0
    for column in range(len(rows[0])):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        inverse = pow(rows[rank][column], -1, PRIME)
        for i in range(rank + 1, len(rows)):
            ratio = rows[i][column] * inverse % PRIME
            rows[i] = [(x - ratio * y) % PRIME for x, y in zip(rows[i], rows[rank], strict=True)]
        rank += 1
        if rank == len(rows):
            break
    return rank
