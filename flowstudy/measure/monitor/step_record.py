"""The record of one optimizer step: norms gathered on the device while it runs, made into a table on the host."""

from array import array
from collections import Counter

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from .hooks import ModelHooks, measure_gradients
from .norms import NOWHERE, SMALL, Layout, Norms, norms_of_rows
from .watched import Groups, Watched


class StepRecord:
    """Gathers "gradient", "clipped", "weight" and "update" by weight, "error" and "activation" by layer."""

    def __init__(self, step: int, watched: Watched):
        self.step, self.watched = step, watched
        self.norms = Norms()
        self.entries: Counter[int] = Counter()
        self.came: list[Groups] = []                        # the weights of the optimizers so far
        self.before: list[tuple[list[int], Tensor]] = []    # copies of the weights, alike ones stacked
        self.postponed: tuple | None = None
        self.scaled = self.taken = False

    @torch.no_grad()
    def before_step(self, held: Groups, hooks: ModelHooks, optimizer: Optimizer | None,
                    scaler: torch.amp.GradScaler | None, closure: bool = False) -> None:
        if self.came:
            seen = {i for groups in self.came for group in groups for i in group}
            held = [some for group in held if (some := [i for i in group if i not in seen])]
        self.came.append(held)
        if closure:  # the backward passes come within the step
            self.postponed = held, hooks, optimizer, scaler
        else:
            self.measure_gradients(held, hooks, optimizer, scaler)
        if "update_to_weight" in self.watched.quantities:
            for group in held:
                stacked = torch.stack([self.watched.weights[i] for i in group])
                self.norms.put("weight", group, norms_of_rows(stacked))
                self.before.append((group, stacked))

    @torch.no_grad()
    def after_step(self) -> None:
        self.taken = True
        if self.postponed is not None:
            self.measure_gradients(*self.postponed)
            self.postponed = None
        for group, stacked in self.before:
            self.norms.put("update", group, norms_of_rows(self.change(group, stacked)))
        self.before = []

    def change(self, group: list[int], before: Tensor) -> Tensor:
        """The weights' change since `before`, up to its sign, stacked as `before` is."""
        now = [self.watched.weights[i] for i in group]
        if before[0].numel() <= SMALL:
            return before.sub_(torch.stack(now))  # one call for all; large ones are not copied for that
        torch._foreach_sub_(before.unbind(), now)
        return before

    def measure_gradients(self, held: Groups, hooks: ModelHooks, optimizer: Optimizer | None,
                          scaler: torch.amp.GradScaler | None) -> None:
        self.norms.include(hooks.gradient, only=None if held is hooks.groups else {i for g in held for i in g})
        passes, entries = hooks.take()
        self.norms.include(passes)
        self.entries.update(entries)
        # A fused optimizer is given the scaled gradient and the scale, and leaves the step out by itself.
        scale = getattr(optimizer, "grad_scale", None)
        if "log10_clipped_gradient_norm" in self.watched.quantities:
            measure_gradients(self.norms, "clipped", self.watched.weights, held)
            if scale is not None:
                for group in held:
                    self.norms.put("clipped_scale", group, scale.double().expand(len(group)))
        if (found_inf := getattr(optimizer, "found_inf", None)) is not None:
            self.norms.put("left_out", [0], found_inf.double().reshape(1))
        if scaler is not None:
            scale = scaler.scale(torch.ones((), device=self.watched.weights[0].device))  # get_scale() would wait
        if scale is not None and not self.scaled:
            self.norms.put("scale", [0], scale.double().reshape(1))
            self.scaled = True


# --- on the host -----------------------------------------------------------------------------------------------------


def was_left_out(layout: Layout, values: array) -> bool:
    at = 0
    for kind, positions in layout:
        if kind == "left_out":
            return bool(values[at] > 0)
        at += len(positions)
    return False


def tables(watched: Watched, layout: Layout, entries: Counter[int], values: np.ndarray) -> np.ndarray:
    """(record, layer, quantity) of records with the same layout; `values` (record, number)."""
    layers = len(watched.names)
    squares = by_kind(layout, np.square(values))
    unit = np.empty(0, dtype=int), np.empty((len(values), 0))

    def of_layers(kind: str) -> np.ndarray:
        return summed(*squares.get(kind, unit), layers)

    def of_weights(kind: str, divisor: str = "") -> np.ndarray:
        at, parts = squares.get(kind, unit)
        if divisor in squares:
            scaled, scales = squares[divisor]
            parts = parts / summed(scaled, scales, len(watched.weights))[:, at]
        weights = summed(at, parts, len(watched.weights))
        measured = np.isin(watched.owned, at)
        return summed(watched.owners[measured], weights[:, watched.owned[measured]], layers)

    scale = squares["scale"][1] if "scale" in squares else 1.0
    count = np.array([entries[layer] for layer in range(layers)])
    columns = {
        "log10_weight_gradient_norm": lambda: 0.5 * np.log10(of_weights("gradient") / scale),
        "log10_clipped_gradient_norm": lambda: 0.5 * np.log10(of_weights("clipped", "clipped_scale")),
        "update_to_weight": lambda: np.sqrt(of_weights("update") / of_weights("weight")),
        "log10_error_signal_norm": lambda: 0.5 * np.log10(of_layers("error") / scale),
        "activation_mean_square": lambda: of_layers("activation") / count,
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack([columns[name]() for name in watched.quantities], axis=-1)


def by_kind(layout: Layout, values: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The positions (number,) and values (record, number) of each kind."""
    kinds = np.concatenate([np.full(len(positions), kind, dtype=object) for kind, positions in layout] or [[]])
    at = np.concatenate([np.asarray(positions, dtype=int) for _, positions in layout] or [np.empty(0, dtype=int)])
    return {kind: (at[chosen], values[:, chosen])
            for kind in dict(layout) for chosen in [(kinds == kind) & (at != NOWHERE)]}


def summed(positions: np.ndarray, values: np.ndarray, length: int) -> np.ndarray:
    """Values (record, number) at the same position added up, (record, length); nan where there is none."""
    sums = np.zeros((len(values), length))
    np.add.at(sums, (slice(None), positions), values)
    return np.where(np.bincount(positions, minlength=length) > 0, sums, np.nan)
