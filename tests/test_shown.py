"""In a notebook: words, table and picture of each result, safe to put into any page."""

import base64
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch
from torch import nn

import flowstudy as fs
from flowstudy.measure import GradientMonitor
from flowstudy.shown import ROWS

EVIL = "<script>alert(1)</script>&"


class Fragment(HTMLParser):
    """Tags, attributes of pictures, rows of tables and all text."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.images, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag not in ("br", "hr", "col"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def net(depth: int = 30) -> nn.Module:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth - 1)))
    model.add_module(EVIL, nn.Linear(4, 3))
    return model


def monitor() -> GradientMonitor:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with GradientMonitor(model) as watching:
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()
    return watching


X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
HIGHWAY = fs.HighwayNet(4, 6, 5, 3)
DRAWN = {
    "flow": lambda: fs.gradient_flow(net(), X, Y), "monitor": monitor,
    "comparison": lambda: fs.compare({EVIL: net(3), "b": net(4)}, X, Y),
    "no record": lambda: GradientMonitor(net()),
    "spectrum": lambda: fs.jacobian_spectrum(HIGHWAY, X), "gates": lambda: fs.gate_activity(HIGHWAY, X, Y),
    "gates in time": lambda: fs.gate_activity(lstm := nn.LSTM(4, 5, batch_first=True), X[:, None].expand(-1, 7, -1),
                                              gates={EVIL: lstm}),
    "trainability": lambda: fs.trainability(net(3), X, Y),
}
NAMED = ("flow", "monitor", "comparison", "gates in time", "trainability")  # their tables have the user's names


@pytest.mark.parametrize("name", DRAWN)
def test_a_result_shows_words_a_short_table_and_a_picture(name):
    """Names that a user gave are text and no tags; the picture is whole, 500 to 1000 pixels wide on the screen."""
    result = DRAWN[name]()
    shown = Fragment(result._repr_html_())
    assert repr(result).split()[0] in shown.text and "script" not in shown.tags
    assert (EVIL in shown.text) == (name in NAMED)
    assert shown.tags.count("tr") <= ROWS + 2
    [image] = shown.images
    kind, _, data = image["src"].partition(",")
    png = base64.b64decode(data)
    width, height = (int.from_bytes(png[place:place + 4], "big") for place in (16, 20))
    assert kind == "data:image/png;base64" and png.startswith(b"\x89PNG") and png.endswith(b"IEND\xaeB`\x82")
    on_screen = int(image["style"].partition("width: ")[2].partition("px")[0])
    assert 500 <= on_screen <= 1000 and on_screen < width <= 2 * on_screen + 2 and height > 100


def test_verdicts_and_stores_show_words_and_numbers(tmp_path):
    flow = fs.gradient_flow(net(60), X, Y)
    shown = Fragment(flow.verdict._repr_html_())
    assert str(flow.verdict) in shown.text and flow.verdict.advice in shown.text and "table" in shown.tags
    assert "vanishing" in shown.text
    verdict = fs.trainability(net(3), X, Y).verdict
    words = Fragment(verdict._repr_html_()).text
    assert words.startswith(f"{verdict.kind}.") and verdict.predicted in words
    store = fs.Store(tmp_path / EVIL.replace("/", ""))
    assert "script" not in Fragment(store._repr_html_()).tags
    fs.run(fs.grid(depth=2, width=3, seed=range(3)), measure="gradient_flow", samples=1, store=store.root,
           progress=False)
    assert store.tables()["cells"].tolist() == [3]
    assert Fragment(store._repr_html_()).tags.count("tr") == 2


def test_measured_columns_come_before_the_settings(tmp_path):
    """The key first; all fields of the cell at the end, in their order."""
    frame = fs.run(fs.grid(depth=2, width=3, epochs=1, train_samples=20), store=tmp_path, progress=False)
    assert list(frame)[:4] == ["cell", "epoch", "loss", "diverged"] and list(frame)[4] == "net"
    assert isinstance(frame, pd.DataFrame) and frame["net"].eq("plain").all()


def test_a_monitor_lists_what_users_call():
    names = {name for name in dir(monitor()) if not name.startswith("__")}
    assert {"attach", "detach", "frame", "load", "plot", "records", "step"} <= names
    assert not [name for name in names if name.startswith("_")]


def test_gates_are_drawn_as_their_medians():
    gates = fs.gate_activity(HIGHWAY, X)
    [line] = gates.plot().axes[0].lines
    assert line.get_xdata().tolist() == [2, 3, 4, 5]
    assert line.get_ydata() == pytest.approx(gates.frame.groupby("layer")["activity"].median().to_numpy())
