"""Build wheel and sdist, look into them, and use the wheel as a stranger would: outside the repository, in an
environment that holds nothing else.

    python .ci/try_package.py            # make package

The wheel is built from the sdist, so that both are complete or neither is.  Versions are those of constraints.txt.
"""

import os
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLAN = """
measure: training_loss
grid: {net: plain, depth: [2, 4], width: 8, epochs: 1, train_samples: 100, init: [he_normal, orthogonal]}
"""
MODEL = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5))
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        built, home = Path(folder) / "dist", Path(folder) / "home"
        home.mkdir()
        run("build", [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), str(ROOT)])
        [wheel], [sdist] = built.glob("*.whl"), built.glob("*.tar.gz")
        run("twine", [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)])
        check_contents(wheel, sdist)
        use(Stranger(Path(folder) / "venv", home), wheel)
    print("package: built, complete, and used outside the repository")


def check_contents(wheel: Path, sdist: Path) -> None:
    """Every file of git that belongs there, and no other."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {name for name in tracked.stdout.split("\0") if name}
    package = {name for name in files if name.startswith("flowstudy/")}
    studies = {f"flowstudy/{name}" for name in files if name.startswith("studies/")}
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    compare("the wheel", inside, package | studies)
    with tarfile.open(sdist) as archive:
        unpacked = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    pictures = {name for name in files if name.startswith("figures/")}
    own = {".gitignore"}  # of a checkout
    made = {name for name in unpacked if name.startswith("flowstudy.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    compare("the sdist", unpacked - made, files - pictures - own)


def compare(what: str, found: set[str], wanted: set[str]) -> None:
    if found != wanted:
        sys.exit(f"{what} lacks {sorted(wanted - found)} and should not hold {sorted(found - wanted)}")
    print(f"{what}: {len(found)} files")


class Stranger:
    """A new virtual environment, in a folder outside the repository."""

    def __init__(self, environment: Path, home: Path):
        venv.create(environment, with_pip=True)
        self.bin = environment / ("Scripts" if os.name == "nt" else "bin")
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self.env = kept | {"PATH": f"{self.bin}{os.pathsep}{kept['PATH']}", "VIRTUAL_ENV": str(environment)}

    def install(self, what: str) -> None:
        self.run("pip install", ["python", "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt"), what])

    def run(self, name: str, command: list[str], status: int = 0) -> subprocess.CompletedProcess[str]:
        return run(name, command, status, cwd=self.home, env=self.env)


def use(stranger: Stranger, wheel: Path) -> None:
    """The quick start, each command, a sweep; then, with the extra, a study."""
    stranger.install(str(wheel))
    (stranger.home / "quick_start.py").write_text(quick_start(), encoding="utf-8")
    (stranger.home / "plan.yaml").write_text(PLAN, encoding="utf-8")
    (stranger.home / "models.py").write_text(MODEL, encoding="utf-8")
    where = stranger.run("where it is", ["python", "-c", "import flowstudy; print(flowstudy.__file__)"]).stdout
    if str(ROOT) in where:
        sys.exit(f"package: the repository's own code was used: {where}")
    print(stranger.run("quick start", ["python", "quick_start.py"]).stdout, end="")
    print(stranger.run("version", ["flowstudy", "--version"]).stdout, end="")
    stranger.run("check", ["flowstudy", "check", "models:build", "--input", "20"])
    stranger.run("spectrum", ["flowstudy", "spectrum", "models.py:build", "--input", "20"])
    stranger.run("sweep", ["flowstudy", "sweep", "plan.yaml", "--store", "results"])
    stranger.run("status", ["flowstudy", "status", "results"])
    refused = stranger.run("study without the extra", ["flowstudy", "study", "lesions"], status=2)
    if 'pip install "flowstudy[studies]"' not in refused.stderr:
        sys.exit(f"package: without the extra, `flowstudy study` said: {refused.stderr}")
    stranger.install(f"{wheel}[studies]")
    stranger.run("study", ["flowstudy", "study", "depth_vs_gradient", "--profile", "smoke"])
    written = {path.name for path in (stranger.home / "figures" / "depth_vs_gradient").iterdir()}
    if not {"depth_vs_gradient.html", "slope_by_depth.svg", "stamp.json"} <= written:
        sys.exit(f"package: the study wrote {sorted(written)}")


def quick_start() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.search(r"## Quick start.*?```python\n(.*?)```", readme, re.DOTALL).group(1)


def run(name: str, command: list[str], status: int = 0, **how: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, **how)
    if done.returncode != status:
        sys.exit(f"package: {name} ended with {done.returncode}, not {status}: {' '.join(command)}\n"
                 f"{done.stdout}{done.stderr}")
    return done


if __name__ == "__main__":
    main()
