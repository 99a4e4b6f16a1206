"""The studies as users run them: by `flowstudy figures`, `flowstudy study` and papermill, in processes of their own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from typer.testing import CliRunner

from flowstudy.cli import app, studies

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "studies").glob("*.ipynb"))
PROFILES = yaml.safe_load((ROOT / "studies" / "profiles.yaml").read_text())
TINY = {"depths": [2], "inits": ["he_normal"], "gate_biases": [-1], "width": 4, "seeds": 1, "samples": 1}
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1",  # tiny nets: threads only cost
                           "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}


@pytest.fixture
def checkout(tmp_path):
    """A folder with a copy of studies/, whose figures and results are its own."""
    shutil.copytree(ROOT / "studies", tmp_path / "studies", ignore=shutil.ignore_patterns("__pycache__", ".ipynb*"))
    return tmp_path


def regenerate(checkout: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), cwd=checkout, capture_output=True, text=True, env=ONE_THREAD,
                          timeout=900)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flowstudy", "figures", "--studies", "studies", "--profile", "smoke", *arguments]


def change_smoke(checkout: Path, change: dict) -> None:
    path = checkout / "studies" / "profiles.yaml"
    profiles = yaml.safe_load(path.read_text())
    profiles["smoke"] = change
    path.write_text(yaml.safe_dump(profiles))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_study_is_thin(path):
    """Question, parameters, plan, run, plot, save; no function and no loop: what computes lives in the library."""
    cells = nbformat.read(path, as_version=4)["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown"] + ["code"] * 5
    assert cells[1]["metadata"]["tags"] == ["parameters"]
    code = "\n".join(cell["source"] for cell in cells[1:])
    assert not re.search(r"^\s*(def|for|while|class)\b", code, re.MULTILINE)


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_name_every_study_and_only_known_parameters(profile):
    """A parameter that a notebook does not have would be ignored by papermill."""
    assert set(PROFILES[profile]) == {path.stem for path in NOTEBOOKS}
    for study, parameters in PROFILES[profile].items():
        assert set(parameters) <= set(papermill.inspect_notebook(str(ROOT / "studies" / f"{study}.ipynb")))


@pytest.mark.slow
def test_every_figure_is_made_once_and_the_gallery_shows_it(checkout):
    """All studies run; a second run computes nothing; every link and picture of the gallery is there."""
    first = regenerate(checkout, "--gallery", "figures/gallery")
    assert first.returncode == 0, first.stderr
    assert_made_once([path.stem for path in NOTEBOOKS], checkout)
    gallery = checkout / "figures" / "gallery"
    assert_links_lead_somewhere(gallery)
    assert {path.relative_to(gallery) for path in gallery.rglob("*.csv")} == {
        Path(path.stem, f"{path.stem}.csv") for path in NOTEBOOKS}


def assert_made_once(studies: list[str], checkout: Path, *arguments: str) -> None:
    """Stamps and pictures of these studies; every link and picture of the gallery; a second run computes nothing."""
    figures = checkout / "figures" / "smoke"
    for study in studies:
        stamp = json.loads((figures / study / "stamp.json").read_text())
        assert {"parameters", "versions", "device", "commit", "seconds"} <= set(stamp)
    targets = assert_links_lead_somewhere(figures)
    for study in studies:
        pictures = {f"{study}/{path.name}" for path in (figures / study).glob("*.svg")}
        assert pictures and pictures <= set(targets)
    written = {path: path.stat().st_mtime_ns for path in (checkout / "results").rglob("*.parquet")}
    assert written
    second = regenerate(checkout, *arguments)
    assert second.stdout.count("unchanged") == len(studies)
    assert {path: path.stat().st_mtime_ns for path in (checkout / "results").rglob("*.parquet")} == written


def assert_links_lead_somewhere(folder: Path) -> list[str]:
    targets = re.findall(r'(?:href|src)="([^"#]+)"', (folder / "index.html").read_text())
    assert [target for target in targets if not (folder / target).is_file()] == []
    return targets


def test_a_misspelt_parameter_is_refused_before_anything_runs(checkout, monkeypatch):
    """papermill itself only warns."""
    change_smoke(checkout, {"depth_vs_gradient": {"seeds": 1}, "loss_vs_depth": {"epoch": 1}})
    monkeypatch.chdir(checkout)
    done = CliRunner().invoke(app, ["figures", "--studies", "studies", "--profile", "smoke"])
    assert done.exit_code == 2
    assert "loss_vs_depth: unknown parameter epoch; the notebook has" in done.stderr
    assert not (checkout / "results").exists()


def test_part_of_a_gallery_is_refused(checkout, monkeypatch):
    """The page would lose the others."""
    monkeypatch.chdir(checkout)
    done = CliRunner().invoke(app, ["figures", "--gallery", "figures/gallery", "--only", "lesions"])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert "`--gallery` must show every study, got `--only` lesions. Leave one of them out." in done.stderr


def test_a_figure_of_no_study_is_refused(checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    done = CliRunner().invoke(app, ["figures", "--studies", "studies", "--profile", "smoke", "--only", "lesion"])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1
    assert re.match(r"figures: `--only` must be one of loss_vs_depth, .* Did you mean 'lesions'\?", done.stderr)
    assert not (checkout / "results").exists()


@pytest.mark.slow
def test_a_study_that_fails_does_not_stop_the_others(checkout):
    """The run goes on, and ends non-zero with the name of what failed; what did not is made once and shown."""
    change_smoke(checkout, {"loss_vs_depth": {"depths": [0]}, "jacobian_spectra": TINY})
    done = regenerate(checkout)
    assert done.returncode != 0
    assert done.stderr.strip().endswith("failed: loss_vs_depth. The other studies are done.")
    assert "`depth` must be an integer of at least 1, got 0" in done.stderr
    assert not (checkout / "figures" / "smoke" / "loss_vs_depth" / "stamp.json").exists()
    assert_made_once(["jacobian_spectra"], checkout, "--only", "jacobian_spectra")


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_figures(checkout, tmp_path_factory):
    """SIGKILL at several moments, then to the end: the bytes of the figures are those of an uninterrupted run."""
    only = ("--only", "loss_vs_depth")
    whole = tmp_path_factory.mktemp("whole")
    shutil.copytree(checkout / "studies", whole / "studies")
    assert regenerate(whole, *only).returncode == 0
    for seconds in (3.0, 6.0, 8.0):
        process = subprocess.Popen(command(*only), cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   env=ONE_THREAD)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert regenerate(checkout, *only).returncode == 0
    figures = (f"figures/smoke/loss_vs_depth/figure_1.{kind}" for kind in ("png", "pdf"))
    assert all((whole / f).read_bytes() == (checkout / f).read_bytes() for f in figures)


@pytest.mark.slow
def test_two_runs_at_once_do_not_meet(checkout):
    """Started in the same moment from the same folder: each talks to its own kernel."""
    change_smoke(checkout, {"jacobian_spectra": TINY})
    places = {name: ("--out", str(checkout / name), "--results", str(checkout / name / "store"))
              for name in ("one", "two")}
    runs = [subprocess.Popen(command(*place), cwd=checkout, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                             text=True, env=ONE_THREAD) for place in places.values()]
    said = [run.communicate(timeout=900)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    assert all((checkout / name / "jacobian_spectra" / "stamp.json").exists() for name in places)


@pytest.mark.slow
def test_one_study_by_name_in_any_folder(tmp_path):
    """Parameters are changed by name; what it writes lies in the current folder; a second run computes nothing."""
    asked = [sys.executable, "-m", "flowstudy", "study", "jacobian_spectra", "--profile", "smoke",
             *(f"--parameter={name}={json.dumps(value)}" for name, value in TINY.items())]
    first, second = (subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, env=ONE_THREAD, timeout=900)
                     for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr
    assert "unchanged, skipped" in second.stdout
    stamp = json.loads((tmp_path / "figures" / "jacobian_spectra" / "stamp.json").read_text())
    assert TINY.items() <= stamp["parameters"].items()
    assert {path.name for path in tmp_path.iterdir()} == {"figures", "results"}


@pytest.mark.slow
def test_a_long_name_of_the_folder_for_temporary_files(tmp_path):
    """The address of a kernel's socket has 107 bytes at most; the folder may have more, and no port is opened."""
    long = tmp_path / ("x" * 110)
    long.mkdir()
    done = subprocess.run([sys.executable, "-m", "flowstudy", "study", "jacobian_spectra", "--profile", "smoke",
                           *(f"--parameter={name}={json.dumps(value)}" for name, value in TINY.items())],
                          cwd=tmp_path, capture_output=True, text=True, env=ONE_THREAD | {"TMPDIR": str(long)},
                          timeout=900)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figures" / "jacobian_spectra" / "stamp.json").exists()


@pytest.mark.parametrize("asked, said", [
    (["depth_vs_gradien"], "`name` must be one of loss_vs_depth, .* Did you mean 'depth_vs_gradient'"),
    (["lesions", "--profile", "quik"], "`--profile` must be one of smoke, .* Did you mean 'quick'"),
    (["lesions", "-p", "epoch=3"], "lesions: unknown parameter epoch; the notebook has .* Did you mean 'epochs'"),
    (["lesions", "-p", "seeds"], "`-p` must be name=value, got 'seeds'"),
])
def test_a_study_that_is_not_there_is_refused_in_one_line(asked, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["study", *asked])
    assert done.exit_code == 2 and re.match(f"study: .*{said}", done.stderr) and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", [["study", "lesions"], ["figures"]])
def test_without_the_extra_the_command_says_what_to_install(call, monkeypatch):
    monkeypatch.setattr(studies, "NEEDED", ("papermill", "no_such_package"))
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 2
    assert done.stderr == (f"{call[0]}: studies are notebooks, and no_such_package must be installed to run them. "
                           'Run: pip install "flowstudy[studies]"\n')


@pytest.mark.slow
def test_papermill_alone_writes_to_figures(checkout):
    """`papermill studies/<study>.ipynb` from the repository's root needs no script of ours."""
    tiny = ["-y", "depths: [2]", "-p", "seeds", "1", "-p", "width", "4", "-p", "samples", "2"]
    with (checkout / "out.ipynb").open("w") as out:
        done = subprocess.run([sys.executable, "-m", "papermill", "studies/depth_vs_gradient.ipynb", *tiny],
                              cwd=checkout, stdout=out, stderr=subprocess.PIPE, text=True, env=ONE_THREAD, timeout=900)
    assert done.returncode == 0, done.stderr
    assert (checkout / "figures" / "depth_vs_gradient" / "slope_by_depth.png").exists()
    assert "image/png" in (checkout / "out.ipynb").read_text()  # the figure shows in the notebook
