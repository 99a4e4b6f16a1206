"""Successive halving of learning rates within a time limit: all rates go on in step, and the worst are dropped twice.

Plain successive halving may drop good rates while nothing has been learnt yet: on a plateau the losses of all rates
differ by noise only, and the small rates, which move least, look best.  So rates whose loss is close to the best one's
go on too.
"""

import math
import sys
import time
from collections.abc import Collection, Sequence

import pandas as pd
from tqdm import tqdm

from flowstudy.progress import progress_bar

from .learners import Alone, Stacked

PARTS = 4, 2, 1  # all rates make a quarter of the steps, the better half of them half, the best quarter all
LEVEL = 0.05     # rates whose loss exceeds the lowest by no more than this share of it go on in any case


class Clock:
    """A clock of the wall time since it was made, with a limit of `limit` seconds; None is no limit."""

    def __init__(self, limit: float | None):
        self.started, self.limit = time.monotonic(), math.inf if limit is None else limit

    def taken(self) -> float:
        return time.monotonic() - self.started


class Race:
    """The learning rates on their way.

    Args:
        learners: they hold a row of the grid each, or one of them all rows.
        rates: the grid.
        at_start: loss and accuracy before the first step.
        seconds_to_look: what evaluating one net takes.
    """

    def __init__(self, learners: Sequence[Alone | Stacked], rates: Sequence[float], at_start: tuple[float, float],
                 seconds_to_look: float, clock: Clock):
        self.learners, self.rates, self.clock = list(learners), list(rates), clock
        self.at_start, self.seconds_to_look = at_start, seconds_to_look
        self.stacked = isinstance(self.learners[0], Stacked)
        self.looked_at = self.learners[0].task.looked_at.flatten()
        count = len(self.rates)
        self.steps = [0] * count
        self.loss, self.accuracy = ([value] * count for value in at_start)
        self.diverged, self.left_out = [False] * count, [False] * count

    def run(self, steps: int, progress: bool) -> None:
        """Make all steps, or as many as the time limit allows."""
        ends = [math.ceil(steps / part) for part in PARTS]
        kept = [math.ceil(len(self.rates) / (PARTS[0] // part)) for part in PARTS]
        with progress_bar(total=steps, desc="trial", unit="step", disable=not progress) as bar:
            for first, last, count in zip([0, *ends], ends, kept, strict=False):
                self.keep(self.leaders(count))
                for step in range(first + 1, last + 1):
                    before = self.clock.taken()
                    if not self.step(step):
                        self.look()
                        for row in self.running():
                            self.left_out[row] = self.steps[row] < steps
                        return
                    if step == 1 and progress:
                        self.announce(ends, kept, self.clock.taken() - before)
                    bar.update()
                if last > first:
                    self.look()

    def step(self, step: int) -> bool:
        """Every rate makes this step, from 1; False where the time was over before the last of them had."""
        for learner in list(self.learners):
            if self.clock.taken() + len(self.running()) * self.seconds_to_look >= self.clock.limit:
                return False
            losses = dict(zip(learner.rows, learner.step(step), strict=True))
            for row, loss in losses.items():
                if math.isfinite(loss):
                    self.steps[row] = step
            self.drop_diverged(losses)
        return True

    def look(self) -> None:
        """Evaluate loss and accuracy of the nets that have made at least one step, and drop those that diverged."""
        for learner in list(self.learners):
            if not self.steps[learner.rows[0]]:
                continue
            losses, shares = learner.evaluate()
            for row, loss, share in zip(learner.rows, losses, shares, strict=True):
                self.loss[row], self.accuracy[row] = loss, share
            self.drop_diverged(dict(zip(learner.rows, losses, strict=True)))

    # --- who is running ----------------------------------------------------------------------------------------------

    def running(self) -> list[int]:
        return [row for learner in self.learners for row in learner.rows]

    def leaders(self, count: int) -> list[int]:
        """The rows of lowest loss, and those that are level with the first of them."""
        order = sorted(self.running(), key=lambda row: self.loss[row])
        if not order:
            return []
        lowest = self.loss[order[0]]
        level = lowest + LEVEL * abs(lowest)
        return [row for place, row in enumerate(order) if place < count or self.loss[row] <= level]

    def drop_diverged(self, losses: dict[int, float]) -> None:
        diverged = [row for row, loss in losses.items() if not math.isfinite(loss)]
        for row in diverged:
            self.diverged[row], self.loss[row], self.accuracy[row] = True, math.nan, math.nan
        if diverged:
            self.keep(set(self.running()) - set(diverged))

    def keep(self, rows: Collection[int]) -> None:
        for learner in self.learners:
            if not set(learner.rows) <= set(rows):
                learner.keep(rows)
        self.learners = [learner for learner in self.learners if learner.rows]

    # --- what is told ------------------------------------------------------------------------------------------------

    def announce(self, ends: Sequence[int], kept: Sequence[int], seconds: float) -> None:
        """What the trial is expected to take in all, from what the first step of each rate took."""
        count = len(self.rates)
        steps = sum((last - first) * rates for first, last, rates in zip([0, *ends], ends, kept, strict=False))
        so_far, a_step = self.clock.taken(), seconds / count
        least = so_far + (steps - count) * a_step + sum(kept) * self.seconds_to_look
        most = so_far + (ends[-1] - 1) * count * a_step + len(kept) * count * self.seconds_to_look
        limit = "" if self.clock.limit == math.inf else f", of at most {self.clock.limit:g} s"
        tqdm.write(f"trial: about {least:.1f} s expected for {ends[-1]} steps at {count} learning rates "
                   f"({most:.1f} s if none gets ahead){limit}", file=sys.stderr)

    def frame(self) -> pd.DataFrame:
        return pd.DataFrame({
            "learning_rate": self.rates, "steps": self.steps, "loss": self.loss, "accuracy": self.accuracy,
            "diverged": self.diverged, "left_out": self.left_out})
