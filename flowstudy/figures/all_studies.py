"""Every figure: each study of a profile is run where anything has changed, then one page shows them all.

Results are kept in the store, so a run that was killed goes on where it stopped.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from flowstudy.refusal import RefusalError, printable
from flowstudy.sweep import StoreError

from .beside import beside, cores
from .gallery import keep_gallery, write_page
from .one_study import run_study
from .plan import Studies, check_study, gallery_order
from .replication import write_report
from .stamp import read_stamp


def regenerate(studies: Studies, profile: str, only: str | None, device: str, out: Path, results: Path,
               records: Path | None = None, gallery: Path | None = None) -> list[str]:
    """Run the studies and write out/index.html; the names of those that failed.

    Args:
        only: one study instead of all.
        out, results: folders of the figures and of the store.
        records: folder of REPLICATION.md and of the records that it is written from; None: neither is touched.  Then
            studies run one after the other, as a record says whether its study computed anything.
        gallery: folder of what git keeps of the figures; None: not touched.
    """
    plan = studies.parameters("figures", profile)
    if only is not None:
        check_study("figures", "`--only`", only, plan)
        if gallery is not None:
            raise RefusalError(f"figures: `--gallery` must show every study, got `--only` {only}. Leave one of them "
                               "out.")
    common = {"device": device, "results": str(results)}
    wanted = [study for study in plan if only in (None, study)]
    at_once = 1 if records is not None or on_gpu(device) else min(cores(), len(wanted))

    def run(study: str) -> bool:
        return run_study(studies.notebook(study), profile, plan[study] | common, out / study, records)

    failed = []
    with tqdm(total=len(wanted), desc=f"{profile} profile, {at_once} at once", unit="study") as bar:
        for study, is_done in beside(wanted, run, at_once):
            failed += [] if is_done else [study]
            bar.update()
    made = [study for study in gallery_order(plan) if is_made(out / study)]
    with told("--out", out):
        write_page(out, made)
    if gallery is not None and not failed:
        with told("--gallery", gallery):
            keep_gallery(out, gallery, made)
    if records is not None:
        with told("--records", records):
            write_report(records)
    return failed


def on_gpu(device: str) -> bool:
    """Whether studies run on a GPU, where several at once would compete for its memory."""
    from flowstudy.sweep.workers.tasks import found_device  # imports torch, which takes a second

    return found_device(device).startswith("cuda")


def is_made(folder: Path) -> bool:
    """Whether the study of this folder was run to its end; a stamp that cannot be read is reported and counts as no."""
    try:
        read_stamp(folder)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        tqdm.write(f"{folder.name}: left out of the page: {folder / 'stamp.json'} cannot be used ({printable(error)}). "
                   "Run the study again.", file=sys.stderr)
        return False
    return True


@contextmanager
def told(option: str, folder: Path) -> Iterator[None]:
    """Turn an error of the disk, such as a full one, into a message that names the option and the folder."""
    try:
        yield
    except OSError as error:
        raise StoreError(error.errno, f"figures: `{option}` must be a folder that takes the figures, got {folder} "
                                      f"({error.strerror}). Those that were there before are kept: make room, and run "
                                      "again.") from error
