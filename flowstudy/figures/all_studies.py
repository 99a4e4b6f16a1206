"""Every figure: each study of a profile is run where anything has changed, then the gallery shows them all.

Results are kept in the store, so a run that was killed goes on where it stopped.
"""

from pathlib import Path

from tqdm import tqdm

from .gallery import write_gallery
from .one_study import run_study
from .plan import Studies, check_study, gallery_order
from .replication import write_report


def regenerate(studies: Studies, profile: str, only: str | None, device: str, out: Path, results: Path,
               records: Path | None) -> list[str]:
    """Run the studies and write out/index.html; the names of those that failed.

    Args:
        only: one study instead of all.
        out, results: folders of the figures and of the store.
        records: folder of REPLICATION.md and of the records that it is written from; None: neither is touched.
    """
    plan = studies.parameters("figures", profile)
    if only is not None:
        check_study("figures", "`--only`", only, plan)
    common = {"device": device, "results": str(results)}
    bar = tqdm([study for study in plan if only in (None, study)], desc=f"{profile} profile", unit="study")
    failed = []
    for study in bar:
        bar.set_postfix_str(study)
        if not run_study(studies.notebook(study), profile, plan[study] | common, out / study, records):
            failed.append(study)
    write_gallery(out, [study for study in gallery_order(plan) if (out / study / "stamp.json").exists()])
    if records is not None:
        write_report(records)
    return failed
