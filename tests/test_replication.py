"""REPLICATION.md says what was measured, where, and what was not."""

from pathlib import Path

import pandas as pd
import pytest

from flowstudy.figures.replication import ITEMS, keep_record, write_report


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
    missing = next(line for line in report.splitlines() if line.startswith("Not run at the paper's scale"))
    assert all(item in missing for item in ITEMS)
    keep_record(tmp_path, stamp("paper"), folder)
    write_report(tmp_path)
    report = (tmp_path / "REPLICATION.md").read_text()
    missing = next(line for line in report.splitlines() if line.startswith("Not run at the paper's scale"))
    assert "figure 4" not in missing and report.index("Figure 4, paper") < report.index("Figure 4, laptop")


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
