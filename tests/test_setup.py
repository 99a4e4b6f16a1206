"""The set-up: one list of requirements, told three times (pyproject, constraints, conda) and never differently."""

import itertools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import flowstudy

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WANTED = [Requirement(line) for line in sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "seaborn": "seaborn-base", "dask": "dask-core",
               "duckdb": "python-duckdb", "build": "python-build"}


def pins() -> dict[str, str]:
    """Name to version, as constraints.txt gives it for this platform and Python."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    entries = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = [entry for entry in entries if entry.marker is None or entry.marker.evaluate()]
    assert all(len(entry.specifier) == 1 and str(entry.specifier).startswith("==") for entry in here)
    return {canonicalize_name(entry.name): str(entry.specifier).removeprefix("==") for entry in here}


def is_text(line: object) -> bool:
    return isinstance(line, str)


def required() -> Iterator[tuple[str, Requirement]]:
    """(who asks, for what) throughout the tree below core and all extras, descending as far as it is installed."""
    todo, seen = [("flowstudy", requirement) for requirement in WANTED], set()
    while todo:
        asker, requirement = todo.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        yield asker, requirement
        if key in seen:
            continue
        seen.add(key)
        try:
            below = distribution(requirement.name).requires or []
        except PackageNotFoundError:
            continue
        for line in map(Requirement, below):
            extras = {"", *requirement.extras}
            if line.marker is None or any(line.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append((requirement.name, line))


def test_the_lock_has_the_files_of_the_pinned_versions():
    """lock.txt: every line of constraints.txt but torch's own, as it is, with at least one SHA-256 each."""
    pinned = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
              if not re.match(r"#|(torch|triton|cuda-[a-z]+|nvidia-[a-z0-9-]+)==", line)]
    text = (ROOT / "lock.txt").read_text(encoding="utf-8").replace("\\\n", "")
    locked = [line.split(" --hash=") for line in text.splitlines() if not line.startswith("#")]
    assert [line.strip() for line, *_ in locked] == pinned
    assert all(hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", one) for one in hashes) for _, *hashes in locked)


def test_no_example_names_an_extra_index():
    """A package that is looked for in two indexes comes from the one that claims the higher version."""
    said = [path for pattern in ("*.md", "Makefile", "*.yml", "docs/**/*", "benchmarks/*", ".ci/*", ".github/**/*.yml",
                                 "studies/*") for path in ROOT.glob(pattern) if path.is_file()]
    assert len(said) > 20
    wrong = re.compile(rb"extra.index.url", re.IGNORECASE)
    assert not [str(path.relative_to(ROOT)) for path in said if wrong.search(path.read_bytes())]


def test_every_requirement_is_pinned_to_a_version_that_satisfies_it():
    """Core and all extras, with all that these require in turn, so that two installations are the same."""
    if Path(sys.prefix) == ROOT / ".venv-lower":
        pytest.skip("the oldest versions ask for other packages than the pinned ones do")
    pinned, wrong = pins(), []
    for asker, requirement in required():
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{asker} needs {requirement}, constraints.txt has {version}")
    assert not wrong, "\n".join(wrong)


def test_what_is_installed_is_what_is_pinned():
    """The tests run on the constrained versions; a local tag (torch's +cpu) is another build of the same version."""
    if Path(sys.prefix) != ROOT / ".venv" or not (ROOT / ".venv" / ".core").exists():
        pytest.skip("not the Makefile's .venv: versions are the environment's own")
    pinned, wrong = pins(), []
    for name in sorted({canonicalize_name(requirement.name) for _, requirement in required()} & pinned.keys()):
        try:
            installed = Version(distribution(name).version)
        except PackageNotFoundError:
            continue
        if Version(installed.public) != Version(pinned[name]):
            wrong.append(f"{name} {installed} is installed, constraints.txt has {pinned[name]}")
    assert not wrong, "\n".join(wrong)


def test_conda_environment_is_pyproject():
    """Same packages, same lower bounds, under conda-forge's names; then pip has only flowstudy to add."""
    lines = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    conda = {entry.name: entry.specifier for entry in map(Requirement, filter(is_text, lines))}
    expected = {CONDA_NAMES.get(entry.name, entry.name): entry.specifier for entry in WANTED}
    assert conda == expected | {"python": Requirement(f"python{PROJECT['requires-python']}").specifier,
                                "pip": Requirement("pip").specifier}
    assert list(itertools.filterfalse(is_text, lines)) == [{"pip": ["-e ."]}]


def test_lower_bounds_are_what_is_tested():
    """constraints-lower.txt pins each direct requirement of the core, `dev` and `studies` to its lower bound."""
    lines = (ROOT / "constraints-lower.txt").read_text(encoding="utf-8").splitlines()
    pinned = {canonicalize_name(entry.name): entry.specifier for entry in
              (Requirement(line) for line in lines if line and not line.startswith("#"))}
    extras = PROJECT["optional-dependencies"]
    for wanted in map(Requirement, PROJECT["dependencies"] + extras["dev"] + extras["studies"]):
        [pin] = pinned[canonicalize_name(wanted.name)]
        [bound] = wanted.specifier
        assert bound.operator == ">=" and is_first_release(Version(pin.version), Version(bound.version)), wanted


def is_first_release(pinned: Version, bound: Version) -> bool:
    """2.1.0 is what `>=2.1` means; an index may lack that very one, and have 1.11.1 as the first of 1.11."""
    return pinned >= bound and pinned.release[:len(bound.release)] == bound.release


def test_pythons_and_version_are_told_alike():
    """The workflow tries every Python of the classifiers, on three systems; the citation is of this version."""
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]["test"]
    pythons = [line.rpartition(" :: ")[2] for line in PROJECT["classifiers"]
               if line.startswith("Programming Language :: Python :: 3.")]
    assert job["strategy"]["matrix"]["python"] == pythons and pythons[0] == PROJECT["requires-python"].lstrip(">=")
    assert {system.partition("-")[0] for system in job["strategy"]["matrix"]["os"]} == {"ubuntu", "macos", "windows"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= citation.keys()
    assert citation["authors"] == PROJECT["authors"] == [{"name": "The flowstudy authors"}]
    assert citation["version"] == PROJECT["version"] == flowstudy.__version__
    assert citation["license"] == PROJECT["license"] and citation["keywords"] == PROJECT["keywords"]


def test_issue_forms_and_hooks_can_be_read():
    """Each form has a name, a description and questions with labels; each hook is a target of the Makefile."""
    forms = [path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml"]
    assert forms
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form.keys() == {"name", "description", "labels", "body"}
        ids = [field["id"] for field in form["body"]]
        assert len(ids) == len(set(ids))
        assert all(field["type"] in ("textarea", "input") and field["attributes"]["label"] for field in form["body"])
    [local] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert local["repo"] == "local"
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in local["hooks"]:
        make, target = hook["entry"].split()
        assert make == "make" and f"\n{target}: " in targets
def test_the_version_is_known_where_nothing_is_installed():
    """A tree that was only copied, to a machine that has torch, imports and says pyproject's version."""
    program = """
import importlib.metadata as metadata
found = metadata.version
def version(name):
    if name == "flowstudy":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
import flowstudy
print(flowstudy.__version__)
"""
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert answer.stdout.strip() == PROJECT["version"], answer.stderr


def test_git_holds_no_notebook_outputs():
    """Outputs belong to a run and its machine; the gallery keeps them."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z", "--", "*.ipynb"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.decode().split("\0")):
        cells = json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"]
        full = [i for i, cell in enumerate(cells) if cell.get("outputs") or cell.get("execution_count")]
        assert not full, f"{name}: cells {full} hold outputs. Run `.venv/bin/nbstripout --keep-id {name}`."
