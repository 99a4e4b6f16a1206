"""The usual grid of learning rates, by optimizer: half-decades over the range in which a rate that works is looked for.

Rates are in PyTorch's convention: momentum m lengthens a step of a constant gradient by 1 / (1 - m).
"""

DESCENT = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
ADAPTIVE = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

USUAL_RATES: dict[str, tuple[float, ...]] = {
    "sgd": DESCENT, "momentum": DESCENT, "adam": ADAPTIVE, "adamw": ADAPTIVE,
}
