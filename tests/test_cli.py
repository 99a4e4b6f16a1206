"""The command line: readings as exit status, a table, a picture, and one readable line where the user erred."""

import importlib
import inspect
import json
import math
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from torch import nn
from typer.main import get_command
from typer.testing import CliRunner

import flowstudy
from flowstudy.arguments import LARGEST
from flowstudy.cli import check, options, readings, screen, spectrum, studies
from flowstudy.cli import commands as cli
from flowstudy.cli.as_json import plain
from flowstudy.cli.targets import load
from flowstudy.figures import all_studies, one_study
from flowstudy.measure import gradient_flow
from flowstudy.measure.gradients import losses
from flowstudy.refusal import RefusalError
from flowstudy.trainability import will_it_train

MODELS = '''
import math
import torch
import typer
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

def layers(*more): return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), *more)
def small(): return layers(nn.Linear(16, 5))
def regression(): return layers(nn.Linear(16, 1))
def normalised(): return layers(nn.BatchNorm1d(16), nn.Linear(16, 5))
def softmax(): return layers(nn.Linear(16, 5), nn.Softmax(1))
def zero_branch():
    model = Skip()
    nn.init.zeros_(model.out.weight)
    return model

class Skip(nn.Module):
    """A branch beside the main path, whose inner layer gets no gradient at first where its outer one begins at 0."""
    def __init__(self, bias=0.0):
        super().__init__()
        self.first, self.inner, self.out, self.last = (nn.Linear(a, b) for a, b in
                                                       ((20, 16), (16, 16), (16, 16), (16, 5)))
        nn.init.constant_(self.inner.bias, bias)
    def forward(self, x):
        h = self.first(x)
        return self.last(h + self.out(self.inner(h).relu()))
def dead_branch(): return Skip(-1e3)

class Both(nn.Module):
    """Two inputs; labels make it return its loss."""
    def __init__(self):
        super().__init__()
        self.u, self.v, self.out = nn.Linear(20, 16), nn.Linear(3, 16), nn.Linear(16, 5)
    def forward(self, u, v, labels=None):
        z = self.out(torch.tanh(self.u(u) + self.v(v)))
        return {"hidden": u, "scores": z, "loss": None if labels is None else nn.functional.cross_entropy(z, labels)}

class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.below, self.above = nn.Linear(20, 16), nn.Linear(16, 5)
    def forward(self, x): return self.above(self.below(x).detach())

class Raising(nn.Linear):
    """In forward, on every call, or of an input that asks for a gradient alone."""
    def __init__(self, error=ValueError("their own words"), measured=False):
        super().__init__(20, 5)
        self.error, self.measured = error, measured
    def forward(self, x):
        if x.requires_grad or not self.measured: raise self.error
        return super().forward(x)
def raising(): return Raising()
def exiting(): return Raising(SystemExit(0))
def raising_when_measured(): return Raising(measured=True)
def exiting_when_measured(): return Raising(SystemExit(0), measured=True)
def raising_when_built(): raise KeyError("their own words")
def exiting_when_built(): raise SystemExit(0)
def twice():
    class Twice(nn.Linear):
        def forward(self, x): return super().forward(x), x
    return Twice(20, 5)
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
    assert f"\n    {kind}: " in result.output
    assert ("Nothing is against it." in result.output) == (kind == "stable")
    assert ("..." in result.output) == (kind in ("vanishing", "exploding", "chaotic"))  # more than 12 layers
    assert len(result.output.splitlines()) <= 45
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
    assert {path.name for path in user.iterdir()} <= {"their_models.py", "__pycache__"}   # no picture unasked


def test_the_seed_decides_what_the_builder_draws(user):
    """Same seed, same table; another seed, another; the builder uses torch's global random state."""
    def table(seed: int) -> pd.DataFrame:
        assert call("check", "their_models:random", "--seed", seed, "--csv", "t.csv").exit_code == 0
        return pd.read_csv("t.csv")
    pd.testing.assert_frame_equal(table(1), table(1))
    assert not table(1).equals(table(2))


# --- the three readings ----------------------------------------------------------------------------------------------


def save_batch(path: str, form: str = "tuple", samples: int = 300, real: bool = False) -> None:
    """Labels that a linear map of the inputs decides."""
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 20, generator=draws)
    scores = x @ torch.randn(20, 5, generator=draws)
    y = scores[:, :1] / 5 if real else scores.argmax(1)
    torch.save({"tuple": (x, y), "list": [x, y], "dict": {"x": x, "y": y}, "int32": (x, y.int())}[form], path)


@pytest.mark.parametrize("name, answer, status", [
    ("small", "Yes: 3 of the 3", 0), ("Cut", "No: 1 of the 2", 1), ("dead_branch", "No: 2 of the 4", 1),
    ("zero_branch", "Yes: 4 of the 4", 0)])
@pytest.mark.usefixtures("user")
def test_every_trainable_layer_gets_a_gradient_or_is_named(name, answer, status):
    """Detached layers and dead ones are named; what waits for a weight that begins at 0 is no fault."""
    result = call("check", f"their_models:{name}")
    assert result.exit_code == status and f"gradient? {answer}" in result.output, result.output
    words = " ".join(result.output.split())
    assert ("cut off: the loss does not depend on the weights of 'below'" in words) == (name == "Cut")
    assert ("exactly 0 at 'inner', 'out'" in words) == (name == "dead_branch")
    assert ("0 at 'inner' only until" in words) == (name == "zero_branch")


@pytest.mark.usefixtures("annotations_unchecked")  # stand-ins for a batch and a flow
def test_weights_that_begin_at_0_are_nudged_by_normal_draws(monkeypatch):
    """Mean square and mean fourth power, 1 and 3 in units of the nudge, to 4.5 standard errors (variances 2 and 96 over
    the number of draws); every other weight stays, and the user's model too."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3))
    nn.init.zeros_(model[1].weight)
    before, measured = {name: p.clone() for name, p in model.named_parameters()}, []
    found = SimpleNamespace(frame=pd.DataFrame({"module": ["0"], "trainable": [True], "gradient": ["value"]}))
    monkeypatch.setattr(readings, "gradient_flow", lambda net, *_, **__: measured.append(net) or found)
    batch = SimpleNamespace(x=torch.randn(2, 64), y=torch.zeros(2), options={})
    assert readings.still_zero(model, batch, found, ["0", "1"]) == ["1"]
    after = dict(measured[0].named_parameters())
    draws = after.pop("1.weight").detach().double() / readings.NUDGE
    for power, moment, variance in ((2, 1, 2), (4, 3, 96)):
        assert abs(draws.pow(power).mean().item() - moment) < 4.5 * math.sqrt(variance / draws.numel())
    assert all(p.equal(before[name]) for name, p in after.items())
    assert all(p.equal(before[name]) for name, p in model.named_parameters())


@pytest.mark.usefixtures("user")
def test_inputs_that_collapse_are_against_a_net():
    """A critical ReLU net of depth 100: its gradient is fine, and all inputs look alike."""
    Path("deep.py").write_text("import flowstudy as fs\ndef net():\n"
                               "    return fs.initialize(fs.PlainNet(20, 400, 100, 5, 'relu'), 'he_normal', seed=0)")
    result = call("check", "deep.py:net")
    assert result.exit_code == 1 and "apart? No." in result.output, result.output
    assert "inputs collapse: " in result.output and " at 'blocks.9" in " ".join(result.output.split())


@pytest.mark.usefixtures("user")
def test_softmax_before_cross_entropy_is_named():
    """With and without data, and not of logits."""
    save_batch("b.pt")
    for more in ([], ["--data", "b.pt"]):
        assert "softmax before cross-entropy" in call("check", "their_models:softmax", *more).output
        assert "softmax before cross-entropy" not in call("check", "their_models:small", *more).output


@pytest.mark.parametrize("form", ["tuple", "list", "dict", "int32"])
@pytest.mark.usefixtures("user")
def test_a_saved_batch_is_read_in_every_form(form):
    """The kernel reads it; the picture is that of the third reading."""
    save_batch("b.pt", form)
    result = call("check", "their_models:small", "--data", "b.pt", "--csv", "t.csv", "--picture", "p.svg")
    assert result.exit_code == 0 and "by sgd on your data" in result.output, result.output
    assert "The tangent kernel predicts" in result.output
    assert Path("p.svg").stat().st_size > 10_000
    assert pd.read_csv("t.csv")["share_of_learning"].sum() == pytest.approx(1)


@pytest.mark.usefixtures("user")
def test_a_trial_on_a_saved_batch():
    """Labels or real targets, SGD or Adam; the table of the command is trainability's."""
    save_batch("b.pt")
    save_batch("real.pt", real=True)
    for name, data, optimizer in (("small", "b.pt", "sgd"), ("small", "b.pt", "adam"),
                                  ("normalised", "b.pt", "sgd"), ("regression", "real.pt", "sgd")):
        result = call("check", f"their_models:{name}", "--data", data, "--trial", 100, "--optimizer", optimizer)
        assert result.exit_code == 0, result.output
        assert f"(3) Will it train? trains, by {optimizer} on your data." in result.output
        assert "In a trial of 100 steps the loss went from" in " ".join(result.output.split())


@pytest.mark.usefixtures("user")
def test_a_trial_that_fails_is_against_a_net():
    """Labels that are right at random, of inputs that are all the same: nothing can be learnt."""
    torch.save((torch.ones(200, 20), torch.arange(200) % 5), "b.pt")
    result = call("check", "their_models:small", "--data", "b.pt", "--trial", 20)
    assert result.exit_code == 1 and "Will it train? does not train" in result.output, result.output
    assert "(3)." in result.output.rstrip().splitlines()[-1]


@pytest.mark.usefixtures("user")
def test_without_data_inputs_and_labels_are_drawn_and_training_is_tried_if_asked_for():
    """The screen says so."""
    plain = call("check", "their_models:small")
    assert "(3) Will it train? not tried on your data." in plain.output and plain.exit_code == 0
    words = " ".join(plain.output.split())
    assert "drawn inputs (standard normal), and random labels of 5 classes" in words
    tried = call("check", "their_models:small", "--trial", 100)
    assert "by sgd on drawn inputs and random labels." in tried.output and tried.exit_code == 0, tried.output


def test_several_inputs_and_an_entry_of_the_output(user):
    """Drawn ones of several shapes; a file's tuple or dict; the table is `gradient_flow`'s."""
    drawn = call("check", "their_models:Both", "--input", 20, "--input", 3, "--output", "scores")
    assert drawn.exit_code == 0, drawn.output
    assert "48 samples of 20 and 3, drawn inputs (standard normal), and random labels of 5 classes" in " ".join(
        drawn.output.split())
    torch.manual_seed(0)
    u, v, labels = torch.randn(9, 20), torch.randn(9, 3), torch.arange(9) % 5
    torch.save({"u": u, "v": v, "labels": labels}, "dict.pt")
    torch.save((u, v), "tuple.pt")
    result = call("check", "their_models:Both", "--inputs", "dict.pt", "--loss", "output", "--csv", "own.csv")
    assert result.exit_code == 0 and "9 samples of dict.pt, and the loss that the model returns" in result.output
    torch.manual_seed(0)
    model = load("check", "their_models:Both", 0)
    flow = gradient_flow(model, (u, v), labels, output="scores")
    np.testing.assert_allclose(pd.read_csv("own.csv")["log10_weight_gradient_norm"],
                               flow.frame["log10_weight_gradient_norm"], atol=1e-6)
    result = call("spectrum", "their_models:Both", "--inputs", "tuple.pt", "--wrt", 1, "--output", "scores",
                  "--samples", 20, "--csv", "s.csv")
    assert result.exit_code == 0 and "over 9 samples" in result.output, result.output
    assert len(pd.read_csv(user / "s.csv")) == 9 * 3


def test_a_saved_batch_of_several_inputs(user):
    """The x of --data has any structure; with --trial the net of several inputs is trained on it."""
    draws = torch.Generator().manual_seed(0)
    u, v = torch.randn(200, 20, generator=draws), torch.randn(200, 3, generator=draws)
    torch.save(({"u": u, "v": v}, u[:, :5].argmax(1)), "b.pt")
    result = call("check", "their_models:Both", "--data", "b.pt", "--trial", 60, "--output", "scores")
    assert result.exit_code == 0 and "(3) Will it train? trains, by sgd on your data." in result.output, result.output


def test_losses_that_are_asked_for(user):
    """Real targets are drawn for the mean squared error; the model's own loss cannot be tried, and that is said."""
    result = call("check", "their_models:regression", "--loss", "mse", "--trial", 5)
    assert "and standard normal targets" in " ".join(result.output.split()), result.output
    torch.save({"u": torch.randn(9, 20), "v": torch.randn(9, 3), "labels": torch.arange(9) % 5}, "dict.pt")
    result = call("check", "their_models:Both", "--inputs", "dict.pt", "--loss", "output", "--trial", 5)
    assert result.exit_code == 3 and "own loss has no targets apart from it" in " ".join(result.output.split())


def test_messages_name_options_that_exist():
    """Every --option in the words and the code of the command line is one of some command, or of Python's own."""
    app = get_command(cli.app)
    known = {name for command in (app, *app.commands.values()) for option in command.params
             for name in (*option.opts, *option.secondary_opts)}
    folder = Path(inspect.getfile(cli)).parent
    named = {word for path in folder.glob("*.py") for word in re.findall(r"--[a-z][a-z-]*[a-z]", path.read_text())}
    assert named and named <= known | {"--help"}, named - known
    root = Path(__file__).parents[1]
    lines = [line for page in (root / "README.md", *(root / "docs").rglob("*.md"))
             for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("flowstudy ")]
    assert {word for line in lines for word in re.findall(r"--[a-z][a-z-]*[a-z]", line)} <= known | {"--help"}


@pytest.mark.parametrize("option, words", [
    (None, "in training mode, as it trains"), ("--train", "in training mode, as it trains"),
    ("--eval", "in evaluation mode, which for batch statistics is another net than the one that trains")])
@pytest.mark.usefixtures("user")
def test_batch_statistics_are_measured_as_they_train(option, words):
    result = call("check", "their_models:normalised", *([option] if option else []))
    assert words in " ".join(result.output.split()), result.output
    assert "; in evaluation mode." in " ".join(call("check", "their_models:small").output.split())


@pytest.mark.parametrize("arguments, words", [
    (("their_models:small", "--data", "b.pt", "--trial", "50", "--seconds", "0"), "ran out of time"),
    (("their_models:regression", "--trial", "5"), "no labels can be drawn")])
@pytest.mark.usefixtures("user")
def test_a_reading_that_could_not_be_taken_is_status_3(arguments, words):
    """The other two are there."""
    save_batch("b.pt")
    result = call("check", *arguments)
    assert result.exit_code == 3 and words in " ".join(result.output.split()), result.output
    assert "(2) Does the signal" in result.output and "(3) could not be answered" in result.output


@pytest.mark.usefixtures("user")
def test_what_trainability_refuses_is_status_3(monkeypatch):
    def refuse(*_args: object, **_options: object) -> None:
        raise RefusalError("trainability: `model` must be another one.")
    monkeypatch.setattr(readings, "trainability", refuse)
    save_batch("b.pt")
    result = call("check", "their_models:small", "--data", "b.pt")
    assert result.exit_code == 3 and "must be another one." in result.output, result.output


# --- for programs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stable", "vanishing"])
@pytest.mark.usefixtures("user")
def test_json_says_what_the_screen_says(kind):
    """Readings, exit status, and every layer; nothing else on standard output, whatever the model prints."""
    Path("loud.py").write_text(f"print('loud')\nfrom their_models import {kind} as net")
    text, result = call("check", "loud.py:net"), call("check", "loud.py:net", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == text.exit_code == found["status"]
    for reading in found["readings"]:
        assert reading["question"] in text.output and reading["answer"].split()[0] in text.output
    assert [reading["against"] for reading in found["readings"]] == [False, kind != "stable", False]
    flow = gradient_flow(load("check", f"their_models:{kind}", 0).eval(), *drawn(48))
    assert [row["log10_error_signal_norm"] for row in found["layers"]] == pytest.approx(
        flow.frame["log10_error_signal_norm"].tolist())


def drawn(samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As the command draws them."""
    generators = torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)
    return torch.randn(samples, 20, generator=generators[0]), torch.randint(5, (samples,), generator=generators[1])


@pytest.mark.usefixtures("user")
def test_a_spectrum_speaks_of_decades_alone():
    """Table, summary and JSON are log10: a linear net of weight 10 I has every value at 1."""
    Path("tens.py").write_text("from torch import nn\nm = nn.Linear(3, 3, bias=False)\n"
                               "nn.init.eye_(m.weight).data.mul_(10)")
    result = call("spectrum", "tens.py:m", "--input", "3", "--device", "cpu")
    assert result.exit_code == 0 and "log10 of the singular values" in result.output, result.output
    assert result.output.count("ln ") == 0 and "largest 1, smallest 1" in result.output
    rows = json.loads(call("spectrum", "tens.py:m", "--input", "3", "--json").stdout)["log10_singular_values"]
    assert [row[name] for row in rows for name in ("median", "lowest", "highest")] == pytest.approx([1.0] * 9)
    assert not list(Path().glob("*.png"))


def test_json_has_no_word_for_nan_and_infinity():
    """Strings and null are read by every parser; numpy's numbers are numbers."""
    given = {"a": [math.nan, math.inf, -math.inf, np.float64(0.5), np.int64(3), np.bool_(True), None, pd.NA],
             "frame": pd.DataFrame({"x": [1, 2]}), "path": Path("p")}
    assert json.loads(json.dumps(plain(given), allow_nan=False)) == {
        "a": [None, "inf", "-inf", 0.5, 3, True, None, None], "frame": [{"x": 1}, {"x": 2}], "path": "p"}


def test_the_shell_completes_commands():
    """What a shell asks when the tab key is pressed."""
    asked = {"_FLOWSTUDY_COMPLETE": "complete_bash", "COMP_WORDS": "flowstudy s", "COMP_CWORD": "1"}
    done = CliRunner().invoke(cli.app, prog_name="flowstudy", env=asked)
    assert done.output.split() == ["spectrum", "sweep", "status", "study"]


# --- whose fault it is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, words", [
    ("raising", "ValueError: their own words"), ("raising_when_measured", "ValueError: their own words"),
    ("raising_when_built", "KeyError: 'their own words'"), ("exiting", "ended the program with status 0"),
    ("exiting_when_measured", "ended the program with status 0"),
    ("exiting_when_built", "ended the program with status 0")])
@pytest.mark.parametrize("command", ["check", "spectrum"])
@pytest.mark.usefixtures("user")
def test_a_crash_of_the_users_code_is_status_2_with_their_traceback(command, name, words):
    """Built, run as it is, or measured; the traceback begins in their file."""
    result = call(command, f"their_models:{name}")
    assert result.exit_code == 2 and words in result.stderr and "their_models.py" in result.stderr, result.output
    assert result.stderr.splitlines()[-1].startswith(f"{command}: the model's code ")


@pytest.mark.parametrize("code, words", [
    ("import sys\nsys.exit(0)", "ended the program with status 0"), ("1 / 0", "ZeroDivisionError"),
    ("def (", "SyntaxError"), ("import nowhere_at_all", "No module named 'nowhere_at_all'")])
@pytest.mark.usefixtures("user")
def test_a_module_that_cannot_be_imported_is_status_2(monkeypatch, code, words):
    """By its name and as a file."""
    Path("broken_models.py").write_text(code)
    monkeypatch.delitem(sys.modules, "broken_models", raising=False)
    for target in ("broken_models:net", "broken_models.py:net"):
        result = call("check", target)
        assert result.exit_code == 2 and words in result.stderr, result.output


@pytest.mark.parametrize("name", ["json", "numpy", "colorsys"])  # imported long ago, with parts of its own, not yet
def test_a_file_named_as_a_library_does_not_take_its_place(user, name):
    """Whoever imports the library afterwards gets the library; the file's own classes are found where they say."""
    before = sys.modules.get(name)
    Path(f"{name}.py").write_text(MODELS + "\nclass Own(nn.Linear): pass\nown = Own(4, 3)\n")
    try:
        result = call("check", f"{name}.py:own", "--input", 4)
        assert result.exit_code == 0, result.output
        assert sys.modules.get(name) is before
        assert not Path(importlib.import_module(name).__file__).is_relative_to(user)
        assert hasattr(sys.modules[f"{name}_file"], "Own")
    finally:
        sys.modules.pop(f"{name}_file", None)


@pytest.mark.usefixtures("user")
def test_inputs_that_do_not_fit_are_the_users_mistake():
    """What the model raises of itself, in its own dtype, no error of measuring."""
    result = call("check", "their_models:small", "--input", 7)
    assert result.exit_code == 2 and "cannot be multiplied" in result.stderr, result.output


@pytest.mark.parametrize("command, where, name", [
    ("check", check, "gradient_flow"), ("check", readings, "trainability"),
    ("spectrum", spectrum, "jacobian_spectrum")])
@pytest.mark.usefixtures("user")
def test_an_error_of_ours_is_status_70(monkeypatch, command, where, name):
    """An exception out of flowstudy's own frames, whatever library raised it."""
    monkeypatch.setattr(where, name, partial(torch.add, "neither"))
    save_batch("b.pt")
    data = ["--data", "b.pt"] if name == "trainability" else []
    result = call(command, "their_models:small", *data)
    assert result.exit_code == 70 and "this is an error of flowstudy" in result.stderr, result.output
    assert "TypeError" in result.stderr


@pytest.mark.parametrize("rows, length, shown", [(4, 9, [0, 1, "...", 7, 8]), (9, 9, range(9)), (4, 3, range(3))])
def test_a_long_table_is_its_first_and_last_rows(capsys, rows, length, shown):
    screen.show(pd.DataFrame({"number": range(length), "word": "w"}), rows)
    printed = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in printed] == [str(number) for number in shown]


@pytest.mark.parametrize("target", ["their_models:stable", "their_models.py:stable", "no_such:stable"])
def test_the_path_of_modules_is_as_it_was(user, target):
    """Whether the target is a module, a file, or not there."""
    before = list(sys.path)
    assert call("spectrum", target, "--samples", 1).exit_code == (2 if target.startswith("no") else 0)
    assert sys.path == before


def test_as_many_samples_are_measured_as_are_asked_for(user):
    """More than `jacobian_spectrum` draws of itself."""
    call("spectrum", "their_models:random", "--samples", 20, "--csv", "s.csv")
    assert pd.read_csv("s.csv")["sample"].nunique() == 20


def test_spectrum_prints_values_and_keeps_them(user):
    """As many values as the Jacobian has, samples each; the Python call gives the same."""
    result = call("spectrum", "their_models:stable", "--samples", 3, "--csv", "s.csv")
    assert result.exit_code == 0, result.output
    assert "5 singular values of 3 samples" in result.output
    kept = pd.read_csv(user / "s.csv")
    assert len(kept) == 15
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
    "picture": (["check", "their_models:stable", "--picture", "flow.doc"], "`--picture` must be a file that ends in"),
    "no picture": (["spectrum", "their_models:stable", "--picture", ""], "`--picture` must be a file that ends in one"),
    "hidden": (["check", "their_models:stable", "--picture", ".png"], "got '.png'"),
    "device": (["check", "their_models:stable", "--device", "abacus"], "`--device` must be a device that torch sees"),
    "optimizer": (["check", "their_models:stable", "--optimizer", "adm"], "got 'adm'. Did you mean 'adam'?"),
    "two outputs": (["check", "their_models:twice"], "`model` must return one tensor, got tuple"),
    "no data": (["check", "their_models:small", "--data", "nowhere.pt"], "`--data` must name a file that exists"),
    "not data": (["check", "their_models:small", "--data", "their_models.py"], "must be a file of tensors that torch"),
    "broken data": (["check", "their_models:small", "--data", "broken.pt"], "must be a file of tensors that torch"),
    "an object": (["check", "their_models:small", "--data", "object.pt"], "must be a file of tensors that torch"),
    "other data": (["check", "their_models:small", "--data", "three.pt"], "must hold a tuple (x, y) or a dict"),
    "fewer targets": (["check", "their_models:small", "--data", "fewer.pt"], "and a target for each, got x of shape"),
    "shape of targets": (["check", "their_models:small", "--data", "column.pt"], "`y` must be labels of shape (8,)"),
    "nan": (["check", "their_models:small", "--data", "nan.pt"], "must hold finite real numbers"),
    "labels": (["check", "their_models:small", "--data", "labels.pt"], "`y` must hold labels from 0 to 4"),
    "both files": (["check", "their_models:Both", "--data", "three.pt", "--inputs", "three.pt"],
                   "`--inputs` must be left out with --data"),
    "file and shape": (["check", "their_models:Both", "--inputs", "three.pt", "--input", "3"],
                       "`--input` must be left out with --inputs"),
    "no inputs": (["check", "their_models:Both", "--inputs", "nowhere.pt"], "`--inputs` must name a file that exists"),
    "no tensors": (["check", "their_models:Both", "--inputs", "words.pt"], "`--inputs` must hold tensors, alone, in a"),
    "loss": (["check", "their_models:small", "--loss", "msee"], "`--loss` must be one of cross_entropy, mse, output, "
             "got 'msee'. Did you mean 'mse'?"),
    "own loss": (["check", "their_models:small", "--data", "three.pt", "--loss", "output"], "Pass what the model"),
    "entry": (["check", "their_models:Both", "--input", "20", "--input", "3"], "Pass `output=`, one of its keys: 'hid"),
    "varied": (["spectrum", "their_models:Both", "--input", "20", "--input", "3", "--output", "scores"],
               "Pass `wrt=`, one of 0, 1"),
    "data and input": (["check", "their_models:small", "--data", "fewer.pt", "--input", "20"],
                       "`--input` must be left out with --data, got '20'"),
    "part": (["spectrum", "their_models:stable", "--part", "head"], "`part` must be 'all', 'body'"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.usefixtures("annotations_unchecked", "user")
def test_mistakes_get_one_line_and_exit_status_2(case):
    """The line goes to stderr, names the rule, and nothing is written."""
    arguments, words = WRONG[case]
    x, y = torch.zeros(8, 20), torch.arange(8) % 5
    for name, held in {"three": (x, y, y), "fewer": (x, y[1:]), "column": (x, y[:, None]), "labels": (x, y + 5),
                       "nan": (x / 0, y)}.items():
        torch.save(held, f"{name}.pt")
    Path("broken.pt").write_bytes(Path("three.pt").read_bytes()[:-40])
    torch.save({"x": Path(), "y": y}, "object.pt")
    torch.save(["words"], "words.pt")
    result = call(*arguments)
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1, result.output
    assert not list(Path().glob("*.png"))


def test_the_installed_command_finds_modules_in_the_folder_it_is_called_in(user):
    """As a user types it, in a process of its own."""
    script = Path(sys.executable).with_name("flowstudy")
    command = [script] if script.exists() else [sys.executable, "-m", "flowstudy"]
    run = subprocess.run([*command, "check", "their_models:vanishing"], cwd=user, capture_output=True, text=True)
    assert run.returncode == 1 and "vanishing: from layer" in run.stdout, run.stderr


# --- every option has its effect -------------------------------------------------------------------------------------


def noted(monkeypatch, where: object, name: str, returns: object = None) -> list[dict]:
    """The arguments of each call of a function, by name, with its defaults; it runs where it `returns` nothing else."""
    calls, function = [], getattr(where, name)

    def noting(*args: object, **kwargs: object) -> object:
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        calls.append(bound.arguments)
        return function(*args, **kwargs) if returns is None else returns

    monkeypatch.setattr(where, name, noting)
    return calls


def untested(command: object, tested: set[str], elsewhere: set[str]) -> set[str]:
    """Arguments of a command that no test of this part gives a value; those `elsewhere` have tests of their own."""
    return inspect.signature(command).parameters.keys() - tested - elsewhere


SPECTRUM = {"part": "body", "method": "dense", "k": 2, "start": "input", "samples": 3, "seed": 5}


@pytest.mark.usefixtures("user")
def test_each_option_of_spectrum_reaches_the_measurement(monkeypatch):
    """Alone, the others being as they are without; and of several inputs and outputs the one that is meant."""
    calls = noted(monkeypatch, spectrum, "jacobian_spectrum")
    assert call("spectrum", "their_models:stable").exit_code == 0
    without = calls[0]
    for name, value in SPECTRUM.items():
        assert call("spectrum", "their_models:stable", f"--{name}", value).exit_code == 0
        told = calls[-1]
        assert {key: told[key] for key in SPECTRUM} == {key: without[key] for key in SPECTRUM} | {name: value}
        assert without[name] != value and len(told["x"]) == told["samples"]
        drawn = [next(iter(one["x"].tensors.values())) for one in (without, told)]
        assert name == "samples" or torch.equal(*drawn) == (name != "seed")
    two = ("spectrum", "their_models:Both", "--input", "20", "--input", "3")
    assert call(*two, "--wrt", 1, "--output", "scores").exit_code == 0
    assert (calls[-1]["wrt"], calls[-1]["output"]) == (1, "scores")
    elsewhere = {"target", "shapes", "inputs", "vocabulary", "picture", "csv", "device", "as_json"}
    assert not untested(cli.spectrum, {*SPECTRUM, "wrt", "output"}, elsewhere)


CHECK = {"trial": 3, "optimizer": "adam", "samples": 7, "seconds": 2.5, "seed": 5}


@pytest.mark.usefixtures("user")
def test_each_option_of_check_reaches_the_measurements(monkeypatch):
    """Each value is another: none takes the place of its neighbour.  The mode is the one that is asked for."""
    trials, flows = noted(monkeypatch, readings, "trainability"), noted(monkeypatch, check, "gradient_flow")
    torch.save((torch.randn(40, 20), torch.arange(40) % 5), "b.pt")
    defaults = {name: inspect.signature(cli.check).parameters[name].default for name in CHECK}
    for told in ({}, CHECK):
        call("check", "their_models:small", "--data", "b.pt", *(f"--{name}={value}" for name, value in told.items()))
        assert {name: trials[-1][name] for name in CHECK} == defaults | told
        assert len(flows[-1]["x"]) == (7 if told else 40)
    assert not CHECK.items() & defaults.items()
    for mode in ("train", "eval"):
        call("check", "their_models:normalised", "--data", "b.pt", f"--{mode}")
        assert flows[-1]["model"].training == (mode == "train")
    elsewhere = {"target", "shapes", "inputs", "classes", "data", "loss", "output", "vocabulary", "picture", "csv",
                 "device", "as_json"}
    assert not untested(cli.check, {*CHECK, "train"}, elsewhere)


@pytest.mark.usefixtures("user")
def test_each_option_of_study_and_figures_reaches_the_studies(monkeypatch):
    """Folders absolute, parameters by what they are in YAML, the command's own before the profile's."""
    studied, drawn = noted(monkeypatch, one_study, "run_study", True), noted(monkeypatch, all_studies, "regenerate", [])
    here = Path.cwd()
    assert call("study", "lesions").exit_code == 0
    assert studied[0]["folder"] == here / "figures" / "lesions" and studied[0]["profile"] == "quick"
    assert studied[0]["parameters"]["device"] == "auto"
    assert studied[0]["parameters"]["results"] == str(here / "results")
    assert call("study", "lesions", "--out", "o", "--profile", "smoke", "-p", "depth=7", "--results", "r", "--device",
                "cpu").exit_code == 0
    assert studied[1]["folder"] == here / "o" and studied[1]["profile"] == "smoke"
    told = studied[1]["parameters"]
    assert (told["depth"], told["results"], told["device"]) == (7, str(here / "r"), "cpu")
    assert call("figures").exit_code == 0
    assert [*drawn[0].values()][1:] == ["quick", None, "auto", here / "figures" / "quick", here / "results", None, None]
    assert call("figures", "--profile", "smoke", "--only", "lesions", "--device", "cpu", "--out", "o", "--results", "r",
                "--gallery", "g", "--records", "e").exit_code == 0
    assert [*drawn[1].values()][1:] == ["smoke", "lesions", "cpu", here / "o", here / "r", here / "e", here / "g"]
    assert not untested(studies.study, {"name", "out", "profile", "parameter", "results", "device"}, {"studies"})
    assert not untested(studies.figures, {"profile", "only", "device", "out", "results", "gallery", "records"},
                        {"studies"})


def test_version_and_help_need_no_command():
    said = CliRunner().invoke(cli.app, ["--version"])
    assert (said.exit_code, said.stdout) == (0, f"flowstudy {flowstudy.__version__}\n")
    assert "Will this network train" in CliRunner().invoke(cli.app, []).output


COMPLETION = {"_FLOWSTUDY_COMPLETE": "complete_bash", "COMP_WORDS": "flowstudy check --op", "COMP_CWORD": "2"}


@pytest.mark.parametrize("arguments, environment, words", [
    (["--help"], {}, "Will this network train"), (["--version"], {}, flowstudy.__version__),
    *(([name, "--help"], {}, "Usage:") for name in ("check", "spectrum", "sweep", "status", "study", "figures")),
    ([], COMPLETION, "--optimizer")], ids=str)
def test_words_alone_import_nothing_heavy(arguments, environment, words):
    """Neither torch nor numpy, which take seconds: help, version, and what a shell asks when the tab key is pressed."""
    code = ("import atexit, sys; from flowstudy.cli import app\n"
            "atexit.register(lambda: print(*{'torch', 'numpy', 'pandas', 'matplotlib'} & sys.modules.keys(), "
            "sep='heavy: ', file=sys.stderr))\n"
            f"app({arguments!r}, prog_name='flowstudy')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0 and words in done.stdout and not done.stderr.strip(), done


def test_help_names_what_the_measurements_know():
    """The options are declared where nothing heavy is imported."""
    assert options.LARGEST == LARGEST
    assert options.OPTIMIZERS == will_it_train.OPTIMIZERS and (*losses.LOSSES, losses.OWN) == options.LOSSES


# --- bad values ------------------------------------------------------------------------------------------------------

GOOD = {"check": ["check", "their_models.py:small"], "spectrum": ["spectrum", "their_models.py:small"],
        "sweep": ["sweep", "plan.yaml", "--no-progress", "--device", "cpu"], "status": ["status", "results"],
        "study": ["study", "nothing"], "figures": ["figures", "--only", "nothing"]}
BAD = ["", "nonsense", "-1", "0", "nan", "inf", str(2**64), "[]", "{}", "None", "a b", "\x1b[2J"]
COMMANDS = typer.main.get_command(cli.app).commands
OPTIONS = [(name, parameter) for name in GOOD for parameter in COMMANDS[name].params
           if not getattr(parameter, "is_flag", False)]


def test_every_command_has_a_good_call():
    assert set(COMMANDS) == set(GOOD)


@pytest.mark.slow
@pytest.mark.parametrize("name, parameter", OPTIONS, ids=lambda of: getattr(of, "name", of))
def test_bad_values_of_options_end_in_words(user, name, parameter):
    """Twelve in each argument and option of each command: an exit status that is documented, and no traceback."""
    (user / "plan.yaml").write_text("grid: {depth: 2, width: 3, train_samples: 20}")
    for bad in BAD:
        result = call(*([name, "--", bad] if parameter.param_type_name == "argument" else
                        [*GOOD[name], parameter.opts[0], bad]))
        assert result.exit_code in (0, 1, 2, 3), (bad, result.output)
        assert isinstance(result.exception, SystemExit | None), (bad, result.exception)
        assert "Traceback" not in result.output, (bad, result.output)
