"""The gallery: which pictures and tables of the studies git keeps, and which it ignores."""

import errno
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from flowstudy.figures import all_studies, one_study
from flowstudy.figures.gallery import LONG, keep_gallery, small_table
from flowstudy.figures.plan import own_studies
from flowstudy.figures.stamp import read_stamp
from flowstudy.seal import sealed_json
from flowstudy.sweep import StoreError
from flowstudy.whole_file import write_whole

ROOT = Path(__file__).resolve().parents[1]


def test_a_small_table_has_medians_over_seeds_and_no_constant_columns():
    """Worked by hand; of a search, in which no setting is repeated, every row stays."""
    frame = pd.DataFrame({"cell": list("abcdef"), "net": "plain", "depth": [2, 2, 2, 4, 4, 4], "seed": [0, 1, 2] * 2,
                          "gain": None, "slope": [1.0, 5.0, 2.0, 7.0, 9.0, 8.0], "valid": True})
    assert small_table(frame).to_dict("list") == {"depth": [2, 4], "slope": [2.0, 8.0]}
    searched = small_table(frame.assign(learning_rate=range(6)))
    assert searched["slope"].tolist() == frame["slope"].tolist() and "seed" in searched and "net" not in searched


def test_long_training_curves_keep_their_ends():
    """Where a run diverged, its last row; short tables stay whole."""
    runs, epochs = 60, LONG // 50
    frame = pd.DataFrame([{"cell": run, "learning_rate": run / 7, "epoch": epoch, "loss": run + epoch / 100}
                          for run in range(runs) for epoch in range(epochs - (run == 3))])
    ends = small_table(frame)
    assert len(ends) == runs and ends["loss"].tolist() == [run + (epochs - 1 - (run == 3)) / 100 for run in range(runs)]
    assert len(small_table(frame[frame["cell"] < 2])) == 2 * epochs


@pytest.fixture
def run(tmp_path) -> Path:
    """A run of one study that drew two pictures, with a page's worth of text."""
    folder = tmp_path / "figures" / "quick" / "lesions"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "studies" / "lesions.ipynb", folder)
    for name in ("lesions.pdf", "lesions.png"):
        (folder / name).write_bytes(name.encode())
    for name in ("lesions", "more"):
        (folder / f"{name}.svg").write_text(f"<svg><title>Found in {name} &amp; said.</title></svg>")
    pd.DataFrame({"layer": range(3), "error": np.arange(3) / 7}).to_parquet(folder / "lesions.parquet")
    stamp = {"profile": "quick", "parameters": {"depth": "<50>", "results": "/home/somebody"}, "seconds": 1.0,
             "device": "CPU", "finished": "today", "commit": "abc", "versions": {"torch": "2.13"},
             "files": dict.fromkeys(["lesions.svg", "more.svg", "lesions.pdf", "lesions.parquet"], "")}
    (folder / "stamp.json").write_text(json.dumps(stamp))
    return folder.parent


def test_the_gallery_holds_pictures_and_one_table_and_links_to_nothing_else(run, tmp_path):
    """The same run gives the same bytes; a picture that is no longer drawn goes."""
    gallery = tmp_path / "figures" / "gallery"
    (gallery / "lesions").mkdir(parents=True)
    (gallery / "lesions" / "old.svg").touch()
    written = []
    for _ in range(2):
        keep_gallery(run, gallery, ["lesions"])
        written.append({str(path.relative_to(gallery)): path.read_bytes() for path in gallery.rglob("*.*")})
    assert written[0] == written[1]
    assert written[0].keys() == {"index.html", "lesions/lesions.svg", "lesions/more.svg", "lesions/lesions.csv"}
    assert written[0]["lesions/lesions.csv"].decode().split() == ["layer,error", "0,0", "1,0.1429", "2,0.2857"]
    page = written[0]["index.html"].decode()
    links = set(re.findall(r'(?:href|src)="([^"]+)"', page))
    assert links == (written[0].keys() - {"index.html"}) | {"#lesions-lesions", "#lesions-more",
                                                            "../../studies/lesions.ipynb"}
    assert page.count("What do the gates of a trained net do?") == 1 and "Other studies" not in page
    assert 'alt="Found in more &amp; said."' in page and page.count("Found in more &amp; said.") == 3
    assert "&lt;50&gt;" in page and "/home/somebody" not in page


def test_a_full_disk_keeps_the_pictures_that_were_there(run, tmp_path, monkeypatch):
    """Whichever file it is that the disk does not take: each is the old one or the new one, and none is gone."""
    gallery = tmp_path / "figures" / "gallery"
    keep_gallery(run, gallery, ["lesions"])
    old = {path.name: path.read_bytes() for path in gallery.rglob("*.*")}
    new = b"<svg><title>New.</title></svg>"
    (run / "lesions" / "lesions.svg").write_bytes(new)
    (run / "lesions" / "more.svg").write_bytes(new)
    for room in range(3):
        taken = itertools.count()

        def full(path, content, taken=taken, room=room):
            if next(taken) >= room:
                raise OSError(errno.ENOSPC, "No space left on device")
            write_whole(path, content)

        monkeypatch.setattr("flowstudy.figures.gallery.write_whole", full)
        with pytest.raises(OSError, match="No space left"):
            keep_gallery(run, gallery, ["lesions"])
        now = {path.name: path.read_bytes() for path in gallery.rglob("*.*")}
        assert now.keys() == old.keys() and all(now[name] in (old[name], new) for name in old)


def no_space(*_arguments: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_is_full_is_one_line(run, tmp_path, monkeypatch):
    """Of the page, the gallery and the report alike: which folder, and that nothing is gone."""
    studies, there = own_studies(), {path: path.read_bytes() for path in run.rglob("*.*")}
    monkeypatch.setattr(type(studies), "parameters", lambda *_: {"lesions": {}})
    monkeypatch.setattr(all_studies, "run_study", lambda *_: True)
    folders = {"--out": run, "--records": tmp_path / "records", "--gallery": tmp_path / "gallery"}
    for part, option in (("write_page", "--out"), ("keep_gallery", "--gallery"), ("write_report", "--records")):
        with monkeypatch.context() as patch, pytest.raises(StoreError, match=(
                f"figures: `{option}` must be a folder that takes the figures, got {folders[option]} .No space left")):
            patch.setattr(all_studies, part, no_space)
            all_studies.regenerate(studies, "quick", None, "cpu", run, tmp_path / "results", tmp_path / "records",
                                   tmp_path / "gallery")
    assert all(path.read_bytes() == content for path, content in there.items())


def test_a_study_whose_files_find_no_room_has_failed_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    """Also where its notebook ran to the end: no stamp says that its figures are there."""
    notebook = ROOT / "studies" / "lesions.ipynb"
    monkeypatch.setattr(one_study, "run_notebook", lambda _notebook, executed, _given: shutil.copy(notebook, executed))
    monkeypatch.setattr(one_study, "write_whole", no_space)
    assert not one_study.run_study(notebook, "quick", {"device": "cpu", "results": str(tmp_path)}, tmp_path / "lesions")
    assert "lesions: FAILED: [Errno 28] No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "lesions" / "stamp.json").exists()


def test_a_study_is_run_again_only_where_something_has_changed(tmp_path, monkeypatch):
    """A parameter, or a file that is no longer what the study wrote; the stamp names the device that `auto` chose."""
    folder, ran = tmp_path / "lesions", []

    def run_notebook(notebook: Path, executed: Path, parameters: dict) -> None:
        cells = nbformat.read(notebook, as_version=4)
        cells["metadata"]["papermill"] = {"parameters": parameters}
        nbformat.write(cells, executed)
        (folder / "lesions.svg").write_text("<svg></svg>")
        ran.append(parameters)

    def is_run(**parameters: object) -> bool:
        before, common = len(ran), {"device": "auto", "results": str(tmp_path)}
        assert one_study.run_study(ROOT / "studies" / "lesions.ipynb", "quick", common | parameters, folder)
        return len(ran) > before

    monkeypatch.setattr(one_study, "run_notebook", run_notebook)
    monkeypatch.setattr(one_study.HTMLExporter, "from_filename", lambda *_: ("<html></html>", {}))
    assert is_run() and not is_run()
    assert read_stamp(folder)["device"].startswith("CPU") == (not torch.cuda.is_available())
    (folder / "lesions.svg").write_text("<svg/>")
    assert is_run() and not is_run()
    assert is_run(epochs=3) and not is_run(epochs=3)


def test_the_studies_that_are_asked_for_are_run_once_and_counted(tmp_path, monkeypatch, capsys):
    """All of a profile, or one alone; those that failed are named, and the bar ends full."""
    ran, studies = [], own_studies()

    def run_study(notebook: Path, *_arguments: object) -> bool:
        ran.append(notebook.stem)
        return notebook.stem != "lesions"

    monkeypatch.setattr(type(studies), "parameters", lambda *_: {"mnist_conv": {}, "lesions": {}})
    monkeypatch.setattr(all_studies, "run_study", run_study)
    for only, wanted in (("mnist_conv", ["mnist_conv"]), (None, ["lesions", "mnist_conv"])):
        ran.clear()
        failed = all_studies.regenerate(studies, "quick", only, "cpu", tmp_path, tmp_path / "results")
        assert (sorted(ran), failed) == (wanted, [name for name in wanted if name == "lesions"])
        assert f"{len(wanted)}/{len(wanted)}" in capsys.readouterr().err


@pytest.mark.parametrize("asked, seconds", [({}, "5"), ({"TQDM_MININTERVAL": "2"}, "2")])
def test_the_bars_of_kernels_speak_every_few_seconds(asked, seconds, monkeypatch):
    """A process started afterwards, as a kernel is, has bars of that pace; a pace that the user has set stays."""
    monkeypatch.setattr(os, "environ", dict(asked))
    one_study.quieten()
    bar = "import tqdm; print(f'{tqdm.tqdm([]).mininterval:g}')"
    said = subprocess.run([sys.executable, "-c", bar], env=os.environ, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == seconds


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"3", b"{}", None], ids=str)
def test_a_damaged_stamp_leaves_its_study_out_and_no_other(run, tmp_path, damage, monkeypatch, capsys):
    """The page shows the others, and says which is missing; a flipped bit is damage as half a file is."""
    whole = sealed_json(json.loads((run / "lesions" / "stamp.json").read_text()))
    shutil.copytree(run / "lesions", run / "mnist_conv")
    (run / "lesions" / "stamp.json").write_bytes(whole)
    (run / "mnist_conv" / "mnist_conv.ipynb").write_bytes((run / "lesions" / "lesions.ipynb").read_bytes())
    flipped = whole.replace(b"today", b"uoday") if damage is None else damage
    (run / "mnist_conv" / "stamp.json").write_bytes(flipped)
    studies = own_studies()
    monkeypatch.setattr(type(studies), "parameters", lambda *_: {"lesions": {}, "mnist_conv": {}})
    monkeypatch.setattr(all_studies, "run_study", lambda *_: True)
    assert all_studies.regenerate(studies, "quick", None, "cpu", run, tmp_path / "results") == []
    page = (run / "index.html").read_text()
    assert "lesions/lesions.svg" in page and "mnist_conv" not in page
    assert "mnist_conv: left out of the page" in capsys.readouterr().err


def test_git_sees_the_gallery_alone():
    """What `make figures`, `flowstudy study` and papermill write is ignored; only two targets change what is not."""
    try:
        asked = ["figures/quick/index.html", "figures/paper/lesions/lesions.svg", "figures/lesions/lesions.svg",
                 "figures/gallery/lesions/lesions.svg", "figures/gallery/index.html"]
        said = subprocess.run(["git", "check-ignore", "--no-index", *asked], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        pytest.skip("no git")
    if said.returncode > 1:
        pytest.skip("not a git checkout")
    assert said.stdout.split() == asked[:3]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_only_two_targets_change_what_git_keeps():
    def commands(target: str) -> str:
        asked = ["make", "-n", "--no-print-directory", target, "ONLY=lesions", "ARGS=--port 8890"]
        alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # `make test` is one
        return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True, env=alone).stdout

    def figures(target: str) -> str:
        return next(line for line in commands(target).splitlines() if "flowstudy figures" in line)

    assert "--gallery" not in figures("figures") and "--records" not in figures("figures")
    assert "--gallery figures/gallery" in figures("gallery") and "--records ." in figures("records")
    assert commands("lab").splitlines()[-1].endswith("--port 8890")
