"""The command line: a verdict as exit status, a table, a picture, and one readable line where the user erred."""

import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from flowstudy.cli import commands as cli

MODELS = '''
import math
import torch
from torch import nn

import flowstudy as fs

def net(scheme, activation, depth, gain=None):
    return fs.initialize(fs.PlainNet(20, 64, depth, 5, activation), scheme, seed=0, gain=gain)

def stable(): return net("he_normal", "relu", 10)
def vanishing(): return net("glorot_normal", "relu", 60)
def exploding(): return net("he_normal", "relu", 20, gain=3.0)
def chaotic(): return net("he_normal", "tanh", 60, gain=2.0)
def dead():
    model = stable()
    nn.init.constant_(model.blocks[4].affine.bias, -1e3)
    return model

def image(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5))
def tokens(): return nn.Sequential(nn.Embedding(11, 8), nn.Flatten(), nn.Linear(48, 5))
def random(): return nn.Linear(20, 5)
INSTANCE = nn.Linear(20, 5)
NUMBER = 3
'''


@pytest.fixture
def user(tmp_path, monkeypatch) -> Path:
    """A user's folder with a module of models."""
    (tmp_path / "their_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "their_models", raising=False)
    return tmp_path


def call(*arguments: str):
    return CliRunner().invoke(cli.app, [str(a) for a in arguments])


@pytest.mark.parametrize("kind", ["stable", "vanishing", "exploding", "chaotic", "dead"])
def test_exit_status_and_sentence_are_the_verdicts(user, kind):
    """0 for stable and 1 for all else; the sentence is printed, the picture and the whole table are written."""
    result = call("check", f"their_models:{kind}", "--classes", 5, "--csv", "out/flow.csv", "--picture", "out/flow.pdf")
    assert result.exit_code == (kind != "stable"), result.output
    assert f"\n{kind}: " in result.output
    assert ("..." in result.output) == (kind in ("vanishing", "chaotic"))  # more than 40 layers
    assert (user / "out/flow.pdf").read_bytes().startswith(b"%PDF")
    depth = {"stable": 10, "vanishing": 60, "exploding": 20, "chaotic": 60, "dead": 10}[kind]
    assert pd.read_csv(user / "out/flow.csv")["layer"].tolist() == list(range(1, depth + 1))


@pytest.mark.parametrize("arguments", [
    ("their_models:image", "--input", "3x8x8"), ("their_models.py:image", "--input", "3x8x8", "--classes", "5"),
    ("their_models:tokens", "--input", "6", "--vocabulary", "11"), ("their_models:INSTANCE",)])
def test_models_of_all_kinds(user, arguments):
    """A module or a file, a builder or an instance; images, token ids, or the shape that a first Linear tells."""
    result = call("check", *arguments)
    assert result.exit_code == 0, result.output
    assert (user / "gradient_flow.png").stat().st_size > 1000


def test_the_seed_decides_what_the_builder_draws(user):
    """Same seed, same table; another seed, another; the builder uses torch's global random state."""
    def table(seed: int) -> pd.DataFrame:
        assert call("check", "their_models:random", "--seed", seed, "--csv", "t.csv").exit_code == 0
        return pd.read_csv("t.csv")
    pd.testing.assert_frame_equal(table(1), table(1))
    assert not table(1).equals(table(2))


def test_spectrum_prints_values_and_keeps_them(user):
    """As many values as the Jacobian has, samples each; the Python call gives the same."""
    result = call("spectrum", "their_models:stable", "--samples", 3, "--csv", "s.csv")
    assert result.exit_code == 0, result.output
    assert "5 singular values of 3 samples" in result.output
    kept = pd.read_csv(user / "s.csv")
    assert len(kept) == 15 and (user / "jacobian_spectrum.png").exists()
    assert kept.groupby("sample")["log_singular_value"].max().lt(math.log(100)).all()


WRONG = {
    "no name": (["check", "their_models"], "`target` must be package.module:name or file.py:name, got 'their_models'"),
    "no module": (["check", "thier_models:net"], "must name a module that can be imported"),
    "no file": (["check", "thier_models.py:net"], "must name a file that exists, got 'thier_models.py'"),
    "no such name": (["check", "their_models:nett"], "must name something in their_models, got 'nett'. It has: "),
    "not a model": (["check", "their_models:NUMBER"], "an nn.Module or a function that returns one, got int"),
    "no shape": (["check", "their_models:image"], "`--input` must be given"),
    "bad shape": (["check", "their_models:image", "--input", "3*8*8"], "`--input` must be sizes joined by x"),
    "classes": (["check", "their_models:stable", "--classes", "9"], "`y` must hold labels from 0 to 4"),
    "part": (["spectrum", "their_models:stable", "--part", "head"], "`part` must be 'all', 'body'"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.usefixtures("annotations_unchecked", "user")
def test_mistakes_get_one_line_and_exit_status_2(case):
    """The line goes to stderr, names the rule, and nothing is written."""
    arguments, words = WRONG[case]
    result = call(*arguments)
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1, result.output
    assert not list(Path().glob("*.png"))


def test_the_installed_command_finds_modules_in_the_folder_it_is_called_in(user):
    """As a user types it, in a process of its own."""
    script = Path(sys.executable).with_name("flowstudy")
    command = [script] if script.exists() else [sys.executable, "-m", "flowstudy.cli"]
    run = subprocess.run([*command, "check", "their_models:vanishing"], cwd=user, capture_output=True, text=True)
    assert run.returncode == 1 and "vanishing: from layer" in run.stdout, run.stderr
