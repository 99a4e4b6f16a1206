"""REPLICATION.md says what was measured, where, and what was not."""

import json
from pathlib import Path

import pandas as pd
import pytest

from flowstudy.figures.replication import HOURS, ITEMS, keep_record, write_report
from flowstudy.sweep import grid, run
from flowstudy.sweep.workers import tasks


def stamp(profile: str, seconds: float = 12.0) -> dict:
    return {"study": "lesions", "profile": profile,
            "parameters": {"depth": 50, "seeds": 3, "epochs": 7, "results": "/somewhere"},
            "seconds": seconds, "finished": "2026-01-01 00:00 UTC", "device": "CPU, 2 cores",
            "versions": {"torch": "2.13.0"}, "files": {}}


@pytest.fixture
def folder(tmp_path) -> Path:
    rows = pd.DataFrame({"item": ["figure 4", "figure 4"], "quantity": ["idle layers, share", "shape"],
                         "paper": [0.6, None], "ours": [0.55, 0.1], "note": ["", "no number published"]})
    (tmp_path / "study").mkdir()
    rows.to_parquet(tmp_path / "study" / "replication.parquet")
    return tmp_path / "study"


def test_every_item_is_there_with_what_is_known(folder, tmp_path):
    """What is nearest to the paper first; ours beside theirs, but for digits; what was not run at its scale says so."""
    for profile in ("quick", "laptop"):
        keep_record(tmp_path, stamp(profile), folder)
    write_report(tmp_path)
    report = (tmp_path / "REPLICATION.md").read_text()
    had = "3 seeds, 7 epochs, 12 s, CPU, 2 cores"
    assert report.count(f"| idle layers, share | 0.6 | 0.55 | {had} |  |") == 1
    assert report.count(f"| idle layers, share | 0.55 | {had} |  |") == 1
    assert f"| shape | - | 0.1 | {had} | no number published |" in report
    assert report.index("At the paper's scale") < report.index("Figure 4, laptop") < report.index("Figure 4, quick")
    assert "depth 50" in report and "/somewhere" not in report
    assert all(f"\n- {item} (`{study}`): {HOURS[item]}.\n" in report for item, (study, *_) in ITEMS.items())
    keep_record(tmp_path, stamp("paper"), folder)
    write_report(tmp_path)
    report = (tmp_path / "REPLICATION.md").read_text()
    assert "\n- figure 4" not in report and report.index("Figure 4, paper") < report.index("Figure 4, laptop")


def test_a_later_run_takes_the_place_of_an_earlier_one_and_trials_leave_nothing(folder, tmp_path):
    keep_record(tmp_path, stamp("quick", 12.0), folder)
    keep_record(tmp_path, stamp("quick", 99.0), folder)
    keep_record(tmp_path, stamp("smoke"), folder)
    assert [path.parent.name for path in (tmp_path / "replication").glob("*/*")] == ["quick"]
    write_report(tmp_path)
    report = (tmp_path / "REPLICATION.md").read_text()
    assert "99 s" in report and "12 s" not in report


def test_a_run_from_the_store_keeps_when_and_how_fast_its_results_came(folder, tmp_path):
    """Unless the parameters are others: those results are not the earlier ones."""
    keep_record(tmp_path, stamp("quick", 99.0), folder)
    keep_record(tmp_path, stamp("quick", 1.0), folder, computed=False)
    write_report(tmp_path)
    assert "99 s" in (tmp_path / "REPLICATION.md").read_text()
    keep_record(tmp_path, stamp("quick", 1.0) | {"parameters": {"depth": 20}}, folder, computed=False)
    write_report(tmp_path)
    assert "1 s, CPU, 2 cores" in (tmp_path / "REPLICATION.md").read_text()


@pytest.mark.parametrize("name, same", [("device", True), ("results", True), ("figures", True), ("epochs", False)])
def test_where_a_study_ran_is_none_of_its_parameters(folder, tmp_path, name, same):
    """The same results read on another device or from another folder keep their record's time; with other epochs they
    are other results."""
    for value, seconds, computed in (("one", 99.0, True), ("other", 1.0, False)):
        told = stamp("quick", seconds)
        keep_record(tmp_path, told | {"parameters": told["parameters"] | {name: value}}, folder, computed=computed)
    record = json.loads((tmp_path / "replication" / "quick" / "lesions.json").read_text())
    assert record["seconds"] == (99.0 if same else 1.0)
    assert (name in record["parameters"]) == (not same)


def test_results_that_another_machine_computed_are_that_machines(folder, tmp_path, monkeypatch):
    """Device, seconds to a tenth, and date are what the store says of the cells and tables in the study's frames: cells
    of other studies, and other measurements of the same cells, do not count."""
    asked = []

    def elsewhere(device, seconds, backend):
        asked.append(seconds)
        return {"worker": f"far:{len(asked)}", "device": "NVIDIA H100", "seconds": 100.06,
                "finished": "2026-02-03T04:05:06.789+00:00"}

    store, sizes = tmp_path / "results", {"width": 5, "depth": 3, "train_samples": 40}
    monkeypatch.setattr(tasks, "provenance", elsewhere)
    frame = run(grid(seed=range(2), epochs=1, **sizes), store=store, nets_at_once=1, device="cpu", progress=False)
    run(grid(seed=range(2), epochs=1, **sizes), measure="accuracy", store=store, device="cpu", progress=False)
    run(grid(seed=range(9, 10), epochs=1, **sizes), store=store, device="cpu", progress=False)
    frame.to_parquet(folder / "training_loss.parquet")
    here = stamp("quick", 3.0)
    here["parameters"]["results"] = str(store)
    for computed in (False, True):
        keep_record(tmp_path, here, folder, computed=computed)
        record = json.loads((tmp_path / "replication" / "quick" / "lesions.json").read_text())
        assert (record["device"], record["seconds"]) == ("NVIDIA H100", 200.1)
        assert record["finished"] == "2026-02-03 04:05 UTC"
