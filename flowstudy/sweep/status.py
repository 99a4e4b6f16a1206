"""How far a store's plans have come, and how long the rest will take."""

import os
from collections.abc import Sequence
from datetime import datetime

import pandas as pd

from flowstudy.sweep.store.failures import failed_keys
from flowstudy.sweep.store.plans import remembered_plans
from flowstudy.sweep.store.store import Store

from .cells import Cell
from .plan import cost

LATEST = 100  # the latest files, from which the pace is computed, so that earlier machines do not count


def status(store: str | os.PathLike[str]) -> pd.DataFrame:
    """Every plan that `run` was asked for with this store, in the order of their first run; nothing is changed.

    Returns:
        A row per plan: `plan`, `measure`, `options`, `cells`, `done`, `failed` (a later run tries these again),
        `missing` (the rest), `seconds_left` at the pace of the latest files (0 when all are done, nan before the
        first), `codes` (how many versions of the measuring code the rows come from, as far as their files say: told,
        and nothing is computed again for it), `asked`, and `table`, whose rows are in the folder <store>/<table>.
    """
    results, rows = Store(store, moves_damaged=False), []
    for name, plan in remembered_plans(results.root).items():
        stored = results.stored(plan.table)
        failed = failed_keys(results.root, plan.table) - stored.keys()
        left = [cell for cell in plan.cells if cell.key not in stored]
        done = [cell for cell in plan.cells if cell.key in stored]
        broken = sum(cell.key in failed for cell in left)
        rows.append({"plan": name, "measure": plan.measure,
                     "options": ", ".join(f"{name}={value}" for name, value in plan.options.items()),
                     "cells": len(plan.cells), "done": len(done), "failed": broken, "missing": len(left) - broken,
                     "seconds_left": seconds_left(results, plan.table, done, left),
                     "codes": codes_of(results, plan.table, done), "asked": plan.asked, "table": plan.table})
    return pd.DataFrame(rows, columns=["plan", "measure", "options", "cells", "done", "failed", "missing",
                                       "seconds_left", "codes", "asked", "table"])


def codes_of(store: Store, table: str, done: Sequence[Cell]) -> int:
    """Number of versions of the measuring code among the files of these cells; older files do not record it."""
    keys = {cell.key for cell in done}
    records = [footer["provenance"] for footer in store.footers(table) if not keys.isdisjoint(footer["cells"])]
    return len({record["code"] for record in records if isinstance(record.get("code"), str)})


def seconds_left(store: Store, table: str, done: Sequence[Cell], left: Sequence[Cell]) -> float:
    """Remaining cost divided by the pace, which is the cost done per second in which at least one worker was busy."""
    if not left:
        return 0.0
    costs = {cell.key: cost(cell) for cell in done}
    files = [(*when, sum(costs.get(key, 0) for key in footer["cells"])) for footer in store.footers(table)
             if (when := end_and_seconds(footer.get("provenance"))) is not None]
    files = [file for file in sorted(files)[-LATEST:] if file[2]]
    paid = sum(paid for *_, paid in files)
    busy = busy_seconds([(end - seconds, end) for end, seconds, _ in files])
    return busy / paid * sum(map(cost, left)) if paid else float("nan")


def end_and_seconds(provenance: object) -> tuple[float, float] | None:
    """When a file's rows were done and how long they took; None where what it says of that cannot be read."""
    try:
        return datetime.fromisoformat(provenance["finished"]).timestamp(), float(provenance["seconds"])
    except (KeyError, TypeError, ValueError):
        return None


def busy_seconds(spans: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals: workers side by side count once, nights between two runs not at all."""
    busy, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy
