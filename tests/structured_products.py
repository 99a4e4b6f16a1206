"""Random products of matrices with the structures of networks, and harder ones: one per seed, the kinds in turn."""

import random
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor


class Draws:
    """One product's sizes and entries, all from one seed."""

    def __init__(self, seed: int):
        self.chance, self.generator = random.Random(seed), torch.Generator().manual_seed(seed)
        large = seed % 7 == 0
        self.width = self.chance.randint(8, 12) if large else self.chance.randint(2, 8)
        self.depth = self.chance.randint(1, 40 if large else 16)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def square(self) -> Tensor:
        return self.normal(self.width, self.width)

    def gaussian(self) -> Tensor:
        return self.square() / self.width**0.5

    def orthogonal(self) -> Tensor:
        return torch.linalg.qr(self.square()).Q

    def conditioned(self, low: float, high: float) -> Tensor:
        """Condition number from 10**low to 10**high."""
        sizes = 10.0 ** (-self.chance.uniform(low, high) * torch.linspace(0, 1, self.width, dtype=torch.float64))
        return self.orthogonal() * sizes @ self.orthogonal()

    def graded(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers from 1 down to 10**-low or even 10**-high."""
        return 10.0 ** (-self.chance.uniform(low, high) * self.uniform(*shape))

    def some(self, most: int) -> range:
        return range(self.chance.randint(1, most))


def and_back(factors: list[Tensor]) -> list[Tensor]:
    return factors + [torch.linalg.inv(a) for a in factors[::-1]]


def eye(draws: Draws) -> Tensor:
    return torch.eye(draws.width, dtype=torch.float64)


def jordan_block(draws: Draws) -> Tensor:
    return eye(draws) + torch.diag(torch.ones(draws.width - 1, dtype=torch.float64), 1)


def highway(draws: Draws) -> list[Tensor]:
    gates = torch.sigmoid(draws.normal(draws.depth, draws.width, 1) - draws.chance.uniform(0, 4))
    return [torch.diag(1 - gate.squeeze(1)) + gate * draws.gaussian() for gate in gates]


def cancelling_late(draws: Draws) -> list[Tensor]:
    near = [eye(draws) + 0.05 * draws.gaussian() for _ in range(12)]
    return near[:8] + and_back([draws.conditioned(1, 9)]) + near[8:]


def one_ill_conditioned(draws: Draws) -> list[Tensor]:
    half = draws.depth // 2
    return ([draws.gaussian() for _ in range(half)] + [draws.conditioned(8, 15)]
            + [draws.gaussian() for _ in range(half)])


def chain(draws: Draws) -> list[Tensor]:
    widths = [draws.chance.randint(1, 9) for _ in range(draws.chance.randint(2, 9))]
    return [draws.normal(wide, narrow) for narrow, wide in pairwise(widths)]


def subnormal(draws: Draws) -> list[Tensor]:
    n = draws.width
    tiny = [1e-300 * 10.0 ** -draws.chance.uniform(5, 12) * (draws.uniform(n, 1) < 0.5) for _ in draws.some(4)]
    return [draws.square() * torch.where(size > 0, size, 1.0) for size in tiny]


def repeated(draws: Draws) -> list[Tensor]:
    sizes = torch.tensor([draws.chance.choice([1.0, 1.0, 1e-3, 1e-7]) for _ in range(draws.width)]).double()
    return [draws.orthogonal() * sizes @ draws.orthogonal(), *[draws.orthogonal() for _ in range(draws.depth)]]


def equal_rows(draws: Draws) -> list[Tensor]:
    factors = [draws.square() for _ in range(draws.depth)]
    spoiled = factors[draws.chance.randrange(draws.depth)]
    spoiled[0] = spoiled[1]
    return factors


KINDS: dict[str, Callable[[Draws], list[Tensor]]] = {
    "gaussian": lambda d: [d.gaussian() for _ in range(d.depth)],
    "there and back": lambda d: and_back([d.gaussian() for _ in d.some(max(1, d.depth // 2))]),
    "ill-conditioned and back": lambda d: and_back([d.conditioned(0, 8) for _ in d.some(3)]),
    "cancelling late": cancelling_late,
    "condition to 1e14": lambda d: [d.conditioned(0, 14) for _ in d.some(6)],
    "one ill-conditioned": one_ill_conditioned,
    "graded rows": lambda d: [d.graded(5, 20, d.width, 1) * d.square() for _ in range(d.depth)],
    "graded columns": lambda d: [d.graded(2, 20, 1, d.width) * d.square() for _ in d.some(8)],
    "graded both": lambda d: [d.graded(5, 30, d.width, 1) * d.square() * d.graded(0, 10, 1, d.width)
                              for _ in d.some(8)],
    "nearly diagonal": lambda d: [d.graded(5, 30, d.width, 1) * (eye(d) + d.chance.choice([0, 1e-9, 1e-3]) * d.square())
                                  for _ in range(d.depth)],
    "relu": lambda d: [(d.uniform(d.width, 1) < 0.75) * d.gaussian() for _ in range(d.depth)],
    "masks": lambda d: [(d.uniform(d.width, 1) < 0.9) * d.chance.choice([eye(d), d.square()]) for _ in range(d.depth)],
    "masked inputs": lambda d: [d.square() * (d.uniform(1, d.width) < 0.85) for _ in range(d.depth)],
    "highway": highway,
    "jordan": lambda d: [jordan_block(d)] * d.depth,
    "jordan and back": lambda d: [jordan_block(d)] * d.depth + [torch.linalg.inv(jordan_block(d))] * d.depth,
    "orthogonal": lambda d: [d.orthogonal() for _ in range(d.depth)],
    "chain of widths": chain,
    "wild sizes": lambda d: [d.square() * 10.0 ** d.chance.uniform(-300, 300) for _ in range(d.depth)],
    "wild rows": lambda d: [d.square() * 10.0 ** (d.chance.choice([100, 200, 305]) * (2 * d.uniform(d.width, 1) - 1))
                            for _ in d.some(5)],
    "wild columns": lambda d: [d.square() * 10.0 ** (d.chance.choice([30, 100, 305]) * (2 * d.uniform(1, d.width) - 1))
                               for _ in d.some(3)],
    "subnormal rows": subnormal,
    "repeated values": repeated,
    "tanh": lambda d: [d.uniform(d.width, 1) ** 2 * d.gaussian() for _ in range(d.depth)],
    "equal rows": equal_rows,
    "layer norm": lambda d: [(eye(d) - 1 / d.width) @ d.square() for _ in d.some(6)],
    "ascending": lambda d: [torch.diag(torch.logspace(-3, 0, d.width, dtype=torch.float64)) + 1e-9 * d.square()
                            for _ in range(d.depth)],
    "triangular": lambda d: [d.square().triu(1) + torch.diag(d.graded(0, 3, d.width)) for _ in range(d.depth)],
}


def structured_product(seed: int) -> tuple[str, list[Tensor]]:
    kind = list(KINDS)[seed % len(KINDS)]
    return kind, KINDS[kind](Draws(seed))


def powers(draws: Draws, span: int) -> Tensor:
    """Whole powers of two, from 2**-span to 2**span."""
    return torch.tensor([2.0 ** draws.chance.randint(-span, span) for _ in range(draws.width)], dtype=torch.float64)


def ones_with_a_small_end(draws: Draws, span: int) -> Tensor:
    a = draws.square()
    a[draws.chance.randrange(draws.width)] = 1.0
    a[-1, -1] = 2.0 ** -draws.chance.randint(0, span + 1)
    return a


WILD: list[Callable[[Draws, int], Tensor]] = [
    lambda draws, span: draws.square(),
    lambda draws, span: powers(draws, span)[:, None] * draws.square(),
    lambda draws, span: draws.square() * powers(draws, span),
    lambda draws, span: powers(draws, span)[:, None] * draws.square() * powers(draws, span),
    lambda draws, span: torch.diag(powers(draws, span)),
    lambda draws, span: eye(draws) + draws.square().triu(1) * 2.0 ** draws.chance.randint(-span, span),
    ones_with_a_small_end,
    lambda draws, span: draws.normal(draws.width, draws.width - 1) @ draws.normal(draws.width - 1, draws.width),
    lambda draws, span: draws.square() * (draws.uniform(draws.width, draws.width) < 0.6),
    lambda draws, span: eye(draws)[draws.chance.sample(range(draws.width), draws.width)],
    lambda draws, span: eye(draws) + 2.0 ** -draws.chance.randint(0, 60) * draws.square(),
]


def wild_product(seed: int) -> list[Tensor]:
    """A few small factors of any kind, whose sizes lie up to 2**500 apart: what no network is, and errors must tell."""
    draws = Draws(seed)
    draws.width, span = draws.chance.randint(2, 6), draws.chance.choice([0, 5, 30, 100, 250])
    factors = [draws.chance.choice(WILD)(draws, span) for _ in range(draws.chance.randint(1, 6))]
    if draws.chance.random() < 0.2:
        inverse = torch.linalg.inv_ex(factors[-1]).inverse
        factors.append(inverse if inverse.isfinite().all() else draws.normal(1, draws.width))
    return factors
