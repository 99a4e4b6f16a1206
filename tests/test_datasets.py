"""Data sets: the real ones have their published statistics; damaged or hostile files and bad mirrors are refused."""

import contextlib
import functools
import gzip
import hashlib
import io
import itertools
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowstudy.data import datasets, download, read_files
from flowstudy.data.datasets import load_dataset, read_mnist

DATA = os.environ.get("FLOWSTUDY_DATA")
REMEDY = "Replace it with a good copy"
IDX_FILES = [f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = IDX_FILES


@pytest.fixture(autouse=True)
def no_internet_and_no_real_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("FLOWSTUDY_DATA", raising=False)
    monkeypatch.setenv("FLOWSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in datasets.MIRRORS:
        monkeypatch.setitem(datasets.MIRRORS, name, ())


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def small_mnist(folder: Path, train: int = 6, test: int = 3) -> dict[str, np.ndarray]:
    """A tiny set under the official names: its arrays, in the order of IDX_FILES."""
    draw = np.random.default_rng(0)
    arrays = {}
    for (images, labels), n in zip((IDX_FILES[:2], IDX_FILES[2:]), (train, test), strict=True):
        arrays[images] = draw.integers(0, 256, (n, 28, 28), np.uint8)
        arrays[labels] = draw.integers(0, 10, n, np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        (folder / name).write_bytes(gzip.compress(idx(array), mtime=0))
    return arrays


def make_official(monkeypatch, name: str, *files: Path) -> None:
    """Declare the bytes that these files have now to be the official ones."""
    for file in files:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        monkeypatch.setitem(datasets.CHECKSUMS[name], file.name, f"sha256:{digest}")


# The real sets

MNIST_COUNTS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.parametrize(
    "name, folder, counts, mean, sd",
    [
        ("mnist", "mnist", MNIST_COUNTS, 0.1307, 0.3081),
        ("fashion_mnist", "fashion-mnist", [6000] * 10, 0.2860, 0.3530),
    ],
)
def test_official_files_have_their_published_statistics(monkeypatch, name, folder, counts, mean, sd):
    """Class counts exactly, pixel mean and sd to the four published digits."""
    if not DATA or not Path(DATA, folder).is_dir():
        pytest.skip(f"FLOWSTUDY_DATA has no {folder}/")
    monkeypatch.setenv("FLOWSTUDY_DATA", DATA)
    data = load_dataset(name)
    assert data.x_train.shape == (60_000, 1, 28, 28) and data.x_test.shape == (10_000, 1, 28, 28)
    assert data.y_train.bincount().tolist() == counts
    pixels = data.x_train.double()
    assert pixels.min() == 0 and pixels.max() == 1
    assert abs(pixels.mean() - mean) < 5e-5 and abs(pixels.std() - sd) < 5e-5


def test_digits_are_scikit_learns_in_file_order():
    """x * 16 are the embedded integers, first 1,500 for training; flat() keeps the row-by-row order."""
    from sklearn.datasets import load_digits

    official, data = load_digits(), load_dataset("digits")
    flat = data.flat()
    assert data.x_train.shape == (1500, 1, 8, 8) and data.x_train.dtype == torch.float32
    assert np.array_equal(torch.cat([flat.x_train, flat.x_test]).numpy() * 16, official.data)
    assert np.array_equal(torch.cat([data.y_train, data.y_test]).numpy(), official.target)
    assert "1500, 1, 8, 8" in repr(data) and flat.to("cpu").classes == 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_one_line(monkeypatch):
    """Before a file is looked for, let alone fetched."""
    monkeypatch.setattr(datasets, "_locate", lambda *_: pytest.fail("looked for files"))
    for name, device in itertools.product(("digits", "mnist"), ("cuda", "cuda:3", "abacus")):
        message = rf"^load_dataset: `device` must be a device that torch sees, got '{device}'"
        with pytest.raises(ValueError, match=message):
            load_dataset(name, device=device)


def test_a_download_that_dries_up_is_given_up(monkeypatch):
    """As many bytes as keep the pace, then one every ten seconds: however much there was."""
    parts, clock = itertools.chain([bytes(download.PACE)], itertools.repeat(b"0")), itertools.count(0, 10)
    monkeypatch.setattr(download, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    answer = SimpleNamespace(headers={}, raw=SimpleNamespace(read1=lambda _size: next(parts)))
    with pytest.raises(download.WrongBytesError, match="are no progress"):
        for _ in zip(range(100), download.body_of(answer, "a file"), strict=False):
            pass


def test_subset_is_the_first_samples():
    data = load_dataset("digits")
    part = data.subset(train=7)
    assert torch.equal(part.x_train, data.x_train[:7]) and torch.equal(part.y_train, data.y_train[:7])
    assert torch.equal(part.x_test, data.x_test)
    for wrong in (0, 1501):
        with pytest.raises(ValueError, match=rf"`train` must be 1\.\.1500, .* got {wrong}"):
            data.subset(train=wrong)


@pytest.mark.parametrize(
    "typed, meant", [("MNIST", "mnist"), ("fashion-mnist", "fashion_mnist"), ("CIFAR-10", "cifar10")]
)
def test_unknown_name_lists_the_known_and_guesses(typed, meant):
    with pytest.raises(ValueError, match=rf"'digits', 'mnist', .*'cifar100', got '{typed}'. Did you mean '{meant}'\?"):
        load_dataset(typed)


# idx files


@settings(max_examples=20)
@given(
    shape=st.tuples(*[st.integers(1, 4)] * 3), tests=st.integers(1, 4), zipped=st.booleans(), seed=st.integers(0, 99)
)
def test_read_mnist_returns_what_was_written(tmp_path_factory, shape, tests, zipped, seed):
    """Writing idx files of any size and reading them is the identity, plain or gzipped."""
    folder, draw = tmp_path_factory.mktemp("idx"), np.random.default_rng(seed)
    written = []
    for n in (shape[0], tests):
        written += [draw.integers(0, 256, (n, *shape[1:]), np.uint8), draw.integers(0, 10, n, np.uint8)]
    for name, array in zip(IDX_FILES, written, strict=True):
        raw = idx(array)
        (folder / (name if zipped else name.removesuffix(".gz"))).write_bytes(gzip.compress(raw) if zipped else raw)
    for got, array in zip(read_mnist(folder), written, strict=True):
        assert np.array_equal(got, array) and got.flags.writeable


IMAGES = np.zeros((6, 28, 28), np.uint8)
DAMAGE = [  # file, new content given the old, what the error says
    (TRAIN_IMAGES, lambda old: old[:-9], "be a whole gzip file"),
    (
        TRAIN_IMAGES,
        lambda _: b"<html>gone</html>",
        "begin with an idx header, 00 00 08 03 and 3 sizes, got 3c 68 74 6d",
    ),
    (TRAIN_IMAGES, lambda _: b"", "begin with an idx header"),
    (TRAIN_IMAGES, lambda _: b"\0\0\x0d" + idx(IMAGES)[3:], "begin with an idx header"),  # floats
    (TRAIN_IMAGES, lambda _: idx(IMAGES[0]), "00 00 08 03"),  # two axes
    (
        TRAIN_IMAGES,
        lambda _: idx(IMAGES)[:-1],
        r"hold 4704 bytes and at least one, as its header \(6, 28, 28\) says, got 4703",
    ),
    (TRAIN_IMAGES, lambda _: idx(IMAGES) + b"!", "got 4705"),
    (TRAIN_IMAGES, lambda _: idx(IMAGES[:0]), "at least one"),
    (TEST_IMAGES, lambda _: idx(IMAGES[:3, :, :27].copy()), "hold 28 x 28 images, got 28 x 27"),
    (TRAIN_LABELS, lambda _: idx(np.zeros(5, np.uint8)), "hold 6 labels, as many as images, got 5"),
    (TRAIN_LABELS, lambda _: idx(np.array([0, 1, 2, 3, 4, 10], np.uint8)), r"hold labels 0\.\.9, got 0\.\.10"),
]


@pytest.mark.parametrize("file, damage, rule", DAMAGE)
def test_damaged_idx_file_is_named(tmp_path, file, damage, rule):
    """Each error names the call, the file, what it must be, and the remedy."""
    small_mnist(tmp_path)
    (tmp_path / file).write_bytes(damage((tmp_path / file).read_bytes()))
    with pytest.raises(ValueError, match=rf"read_mnist: .*{file} must .*{rule}.*{REMEDY}"):
        read_mnist(tmp_path)


# Local folders


@pytest.mark.parametrize("shape, rule", [((6, 28, 28), "hold 4704 bytes"), ((2**20, 2**20, 1), "say of at most")])
def test_a_small_gzip_file_does_not_become_a_large_array(tmp_path, shape, rule):
    """Zeros beyond what the header says are not unpacked, and a header that says of terabytes is not believed."""
    small_mnist(tmp_path)
    header = struct.pack(">4B3I", 0, 0, 8, 3, *shape)
    (tmp_path / TRAIN_IMAGES).write_bytes(gzip.compress(header + bytes(2**27), 1))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"read_mnist: .*{TRAIN_IMAGES} must {rule}.*{REMEDY}"):
            read_mnist(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_order_of_places(monkeypatch, tmp_path):
    """`folder` before FLOWSTUDY_DATA before the cache; the set's own folder or the one above it; pixels / 255."""
    written = small_mnist(tmp_path / "data/mnist")
    make_official(monkeypatch, "mnist", *(tmp_path / "data/mnist" / file for file in IDX_FILES))
    monkeypatch.setenv("FLOWSTUDY_DATA", str(tmp_path / "data"))
    here = load_dataset("mnist")
    assert np.array_equal((here.x_train[:, 0] * 255).round().numpy(), written[TRAIN_IMAGES])
    assert here.x_train.equal(torch.from_numpy(written[TRAIN_IMAGES][:, None]).float() / 255)

    with pytest.raises(FileNotFoundError, match=r"`folder` must hold the files of 'mnist'.*nowhere with none"):
        load_dataset("mnist", folder=tmp_path / "nowhere")
    for folder in ("data", "data/mnist"):
        assert load_dataset("mnist", folder=tmp_path / folder).y_train.equal(here.y_train)

    (tmp_path / "data/mnist").rename(
        tmp_path / "moved"
    )  # FLOWSTUDY_DATA without the set is no error: the cache is next
    with pytest.raises(
        FileNotFoundError, match=r"cache/mnist\. Pass download=True, or put train-images.* FLOWSTUDY_DATA"
    ):
        load_dataset("mnist", download=False)
    (tmp_path / "cache").mkdir()
    (tmp_path / "moved").rename(tmp_path / "cache/mnist")
    assert load_dataset("mnist", download=False).y_train.equal(here.y_train)
    assert load_dataset("mnist").y_train.equal(here.y_train)  # nothing to fetch: no mirror is asked


def test_local_folder_is_never_silently_replaced(monkeypatch, tmp_path):
    """A set that FLOWSTUDY_DATA has in part or damaged is an error even where the cache has it whole."""
    for folder in ("data/mnist", "cache/mnist"):
        small_mnist(tmp_path / folder)
    labels = tmp_path / "data/mnist" / TEST_LABELS
    make_official(monkeypatch, "mnist", *(tmp_path / "data/mnist" / file for file in IDX_FILES))
    monkeypatch.setenv("FLOWSTUDY_DATA", str(tmp_path / "data"))
    load_dataset("mnist")
    labels.write_bytes(labels.read_bytes()[:-1] + b"?")
    with pytest.raises(
        ValueError, match=rf"load_dataset: .*data/mnist/{TEST_LABELS} must have sha256:.*, got .*{REMEDY}"
    ):
        load_dataset("mnist")
    labels.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"data/mnist must hold every file .* without {TEST_LABELS}.*Put the rest"
    ):
        load_dataset("mnist")


def test_module_imports_without_pooch_and_scikit_learn():
    """Only a download needs pooch, only digits need scikit-learn; where pooch is missing the error says the way out."""
    script = """
import sys
sys.modules.update(pooch=None, sklearn=None)
from flowstudy.data import load_dataset
try:
    load_dataset("mnist")
except ModuleNotFoundError as error:
    assert "set FLOWSTUDY_DATA" in str(error), error
else:
    sys.exit("no error")
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FLOWSTUDY")}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


# Mirrors


class Mirrors(SimpleHTTPRequestHandler):
    """Serves /<mirror>/<file>; `short` promises the whole file and sends half, `page` is an error page sent as 200."""

    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        _, mirror, file = self.path.split("/")
        if mirror == "missing":
            self.send_error(404)
            return
        whole = Path(self.directory, file).read_bytes()
        if mirror in ("endless", "slow"):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):  # the other side has had enough
                for _ in range(100):
                    self.wfile.write(b"x" * (2**14 if mirror == "endless" else 1))
                    time.sleep(0 if mirror == "endless" else 0.05)
            return
        body = b"<html>moved</html>" if mirror == "page" else whole
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if mirror == "short" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def mirrors(tmp_path, monkeypatch):
    """The address of a local server of a small MNIST, and the list of paths it was asked for."""
    served = tmp_path / "served"
    small_mnist(served)
    make_official(monkeypatch, "mnist", *(served / file for file in IDX_FILES))
    asked = []
    handler = type("Handler", (Mirrors,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(served))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


DEAD = "http://127.0.0.1:1/"  # nothing listens on port 1


def files_under(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.rglob("*") if file.is_file())


def test_bad_mirrors_lead_to_the_next(mirrors, monkeypatch, tmp_path):
    """Dead, missing, error page and truncated are passed over in order; the right bytes win, once, and stay cached."""
    host, asked = mirrors
    order = ("missing", "page", "short", "good", "never")
    monkeypatch.setitem(datasets.MIRRORS, "mnist", (DEAD, *(f"{host}/{mirror}/" for mirror in order)))
    data = load_dataset("mnist")
    assert data.x_train.shape == (6, 1, 28, 28)
    assert asked == [f"/{mirror}/{file}" for file in IDX_FILES for mirror in order[:-1]]
    assert files_under(tmp_path / "cache") == sorted(IDX_FILES)

    asked.clear()
    (tmp_path / "cache/mnist" / TEST_LABELS).write_bytes(b"damaged on disk")
    assert load_dataset("mnist").y_test.equal(data.y_test)
    assert asked == [f"/{mirror}/{TEST_LABELS}" for mirror in order[:-1]]  # only the damaged file is fetched again


def test_when_every_mirror_fails_each_has_its_reason(mirrors, monkeypatch, tmp_path):
    """One line with the way out, each mirror with its reason as a note; the cache holds no file."""
    host, _ = mirrors
    bad = [DEAD, *(f"{host}/{mirror}/" for mirror in ("missing", "page", "short"))]
    monkeypatch.setitem(datasets.MIRRORS, "mnist", tuple(bad))
    monkeypatch.setenv("FLOWSTUDY_DATA", str(tmp_path / "mistyped"))
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("mnist")
    said = str(caught.value)
    assert said.startswith(f"load_dataset: 'mnist' must come from a mirror that serves the official {TRAIN_IMAGES}")
    reasons = ("refused", "404", "SHA256", "IncompleteRead")
    for note, mirror, reason in zip(caught.value.__notes__, bad, reasons, strict=True):
        assert note.startswith(f"{mirror}{TRAIN_IMAGES}: ") and reason in note
    assert f"Put the file into {tmp_path / 'cache/mnist'}, or set FLOWSTUDY_DATA (now {tmp_path / 'mistyped'}" in said
    assert "\n" not in said
    assert files_under(tmp_path / "cache") == []


def test_a_mirror_that_never_ends_or_hardly_moves_is_left(mirrors, monkeypatch, tmp_path):
    """More bytes than any official file has, and bytes that come one by one; of both nothing stays."""
    host, _ = mirrors
    monkeypatch.setattr(download, "MOST_BYTES", 2**17)
    monkeypatch.setattr(download, "PATIENCE", 0.3)
    monkeypatch.setitem(datasets.MIRRORS, "mnist", tuple(f"{host}/{mirror}/" for mirror in ("endless", "slow", "good")))
    said = []
    fetched = datasets.download
    monkeypatch.setattr(datasets, "download", lambda *given: said.append(fetched(*given)) or said[-1])
    assert load_dataset("mnist").x_train.shape == (6, 1, 28, 28)
    assert said[:3] == [said[0], said[1], None] and "more than 131,072 bytes" in said[0] and "no progress" in said[1]
    assert files_under(tmp_path / "cache") == sorted(IDX_FILES)


@pytest.mark.parametrize("begins", [[], [download.PACE], [download.PACE, 2 * download.PACE]])
def test_a_good_beginning_does_not_excuse_a_mirror_that_hardly_moves(begins, monkeypatch):
    """What counts are the bytes since there were last enough of them; patience is over at once here."""
    monkeypatch.setattr(download, "PATIENCE", -1.0)
    pieces = iter([b"x" * size for size in (*begins, 7)])
    answer = SimpleNamespace(headers={}, raw=SimpleNamespace(read1=lambda _most: next(pieces, b"")))
    came = []
    with pytest.raises(download.WrongBytesError, match=r"^7 bytes in .* are no progress"):
        came.extend(map(len, download.body_of(answer, "file")))
    assert came == begins


def test_what_killed_downloads_left_is_swept(mirrors, monkeypatch, tmp_path):
    """Of this version and of earlier ones, which pooch fetched for; what still grows is left alone."""
    host, _ = mirrors
    monkeypatch.setitem(datasets.MIRRORS, "mnist", (f"{host}/good/",))
    cache = tmp_path / "cache/mnist"
    cache.mkdir(parents=True)
    old, growing = [cache / f".{TRAIN_IMAGES}.host.1.tmp", cache / "tmpab12cd34"], cache / f".{TRAIN_IMAGES}.host.2.tmp"
    for file in (*old, growing):
        file.write_bytes(b"half")
    for file in old:
        os.utime(file, (time.time() - 2 * download.ABANDONED,) * 2)
    load_dataset("mnist")
    assert files_under(tmp_path / "cache") == sorted([*IDX_FILES, growing.name])


# CIFAR


def small_cifar(monkeypatch, classes: int) -> dict[str, bytes]:
    """Two records in each member, under the official names: name in the archive -> bytes."""
    draw, members = np.random.default_rng(classes), {}
    folder, names = {
        10: ("cifar-10-batches-bin", [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]),
        100: ("cifar-100-binary", ["train.bin", "test.bin"]),
    }[classes]
    for name in names:
        labels = [[9, 1], [3, 7]] if classes == 10 else [[19, 99, 1], [3, 77, 7]]  # 100: coarse, fine; then red[0]
        records = [bytes(label) + draw.bytes(3071) for label in labels]
        members[f"{folder}/{name}"] = b"".join(records)
        monkeypatch.setitem(read_files.CIFAR_SAMPLES, name, 2)
        if name in datasets.CHECKSUMS[f"cifar{classes}"]:
            digest = hashlib.sha256(members[f"{folder}/{name}"]).hexdigest()
            monkeypatch.setitem(datasets.CHECKSUMS[f"cifar{classes}"], name, f"sha256:{digest}")
    return members


def write_archive(monkeypatch, file: Path, entries: dict[str, bytes | str]) -> None:
    """A .tar.gz declared official; bytes become files, a str becomes a symbolic link to it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz") as archive:
        for name, content in entries.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    make_official(monkeypatch, file.parent.name.replace("-", ""), file)


@pytest.mark.parametrize("classes, labels", [(10, [9, 3]), (100, [99, 77])])
def test_cifar_archive_and_loose_files_agree_with_the_record_layout(monkeypatch, tmp_path, classes, labels):
    """Fine label, then planes R, G, B row by row: the last byte of a record is blue's last pixel."""
    members = small_cifar(monkeypatch, classes)
    file = tmp_path / f"a/cifar-{classes}/cifar-{classes}-binary.tar.gz"
    outside = {"../evil": b"x", "/evil": b"x", f"{next(iter(members)).split('/')[0]}/batches.meta.txt": b"x"}
    write_archive(monkeypatch, file, outside | dict(reversed(members.items())))
    data = load_dataset(f"cifar{classes}", folder=tmp_path / "a")
    assert data.y_test.tolist() == labels and data.y_train.tolist() == labels * (len(members) - 1)
    raw = np.concatenate([np.frombuffer(member, np.uint8).reshape(2, -1)[:, -3072:] for member in members.values()])
    pixels = (torch.cat([data.flat().x_train, data.flat().x_test]) * 255).round().numpy()
    assert np.array_equal(pixels, raw)
    assert data.x_train[0, 0, 0, 0] == 1 / 255 and data.x_train.shape[1:] == (3, 32, 32)
    assert files_under(tmp_path) == [file.name]  # nothing was unpacked, nowhere

    loose = tmp_path / f"b/cifar-{classes}"
    loose.mkdir(parents=True)
    for name, content in members.items():
        (loose / Path(name).name).write_bytes(content)
    assert load_dataset(f"cifar{classes}", folder=tmp_path / "b").x_train.equal(data.x_train)


@pytest.mark.parametrize(
    "change, rule",
    [
        (
            lambda good: {**good, "cifar-10-batches-bin/test_batch.bin": "/etc/hostname"},
            "6146 bytes, got a link or folder",
        ),
        (lambda good: {**good, "cifar-10-batches-bin/test_batch.bin": b"x" * 6145}, "6146 bytes, got a file of 6145"),
        (lambda good: {**good, "cifar-10-batches-bin/test_batch.bin": b"x" * 6146}, "have sha256:"),
        (
            lambda good: {f"../{name}": content for name, content in good.items()},
            "have the member cifar-10-batches-bin",
        ),
    ],
)
def test_hostile_or_damaged_archive_is_refused(monkeypatch, tmp_path, change, rule):
    """Links, wrong sizes, wrong sums and climbing names, in an archive whose own checksum is right."""
    file = tmp_path / "cifar-10/cifar-10-binary.tar.gz"
    write_archive(monkeypatch, file, change(small_cifar(monkeypatch, 10)))
    with pytest.raises(ValueError, match=rf"load_dataset: .*{file.name}.* must .*{rule}.*{REMEDY}"):
        load_dataset("cifar10", folder=tmp_path)
    assert files_under(tmp_path) == [file.name]


def test_cifar_labels_and_lengths_are_checked(monkeypatch, tmp_path):
    """Where no checksum is published: coarse and fine label out of range, a record cut short, a cut archive."""
    members = small_cifar(monkeypatch, 100)
    for name, content in members.items():
        (tmp_path / Path(name).name).write_bytes(content)
    good = (tmp_path / "test.bin").read_bytes()
    for bad, rule in [
        (b"\x14" + good[1:], r"hold labels 0\.\.19"),
        (good[:1] + b"\x64" + good[2:], r"hold labels 0\.\.99, got 77\.\.100"),
        (good[:-1], "hold 2 records of 3074 bytes = 6148, got 6147"),
    ]:
        (tmp_path / "test.bin").write_bytes(bad)
        with pytest.raises(ValueError, match=rf"test\.bin must {rule}.*{REMEDY}"):
            load_dataset("cifar100", folder=tmp_path)

    file = tmp_path / "cifar-100/cifar-100-binary.tar.gz"
    write_archive(monkeypatch, file, members)
    file.write_bytes(file.read_bytes()[:-2000])
    make_official(monkeypatch, "cifar100", file)
    with pytest.raises(ValueError, match=rf"{file.name} must be a whole .tar.gz archive.*{REMEDY}"):
        load_dataset("cifar100", folder=tmp_path)


def python2_batch(images: np.ndarray, labels: list[int], key: bytes) -> bytes:
    """A batch byte by byte as Python 2's cPickle wrote the official ones: str keys, numpy.core, ints as dtype flags."""
    string = lambda value: b"U" + bytes([len(value)]) + value  # noqa: E731
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + string(b"b") + b"tR"
    dtype = (
        b"cnumpy\ndtype\n("
        + string(b"u1")
        + b"K\x00K\x01tR(K\x03"
        + string(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    shape = b"(" + b"".join(b"M" + struct.pack("<H", n) for n in images.shape) + b"t"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<I", images.size) + images.tobytes() + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}(" + string(b"data") + array + state + string(key) + numbers + b"u."


@pytest.mark.parametrize(
    "classes, key, folder", [(10, b"labels", "cifar-10-batches-py"), (100, b"fine_labels", "cifar-100-python")]
)
def test_python_batches_are_read_without_numpys_unpickling(monkeypatch, tmp_path, classes, key, folder):
    """As Python 2 wrote them and as Python 3 does, C or Fortran order; numpy itself reads the same arrays from them."""
    files = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"] if classes == 10 else ["train", "test"]
    images = np.random.default_rng(0).integers(0, 256, (2, 3072), np.uint8)
    with warnings.catch_warnings(action="ignore"):  # numpy deprecates what Python 2 wrote
        by_numpy = pickle.loads(python2_batch(images, [5, 8], key), encoding="bytes")
    assert np.array_equal(by_numpy[b"data"], images) and by_numpy[key] == [5, 8]
    (tmp_path / folder).mkdir()
    for name in files[:-1]:
        (tmp_path / folder / name).write_bytes(python2_batch(images, [5, 8], key))
    fortran = {key.decode(): [5, 8], "data": np.asfortranarray(images), "filenames": ["a", "b"]}
    (tmp_path / folder / files[-1]).write_bytes(pickle.dumps(fortran, protocol=4))
    make_official(monkeypatch, f"cifar{classes}", *(tmp_path / folder / name for name in files))
    data = load_dataset(f"cifar{classes}", folder=tmp_path).flat()
    assert data.y_train[:2].tolist() == data.y_test.tolist() == [5, 8]
    for pixels in (data.x_train[:2], data.x_test):
        assert np.array_equal((pixels * 255).round().numpy(), images)


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_unpickler_runs_nothing(monkeypatch, tmp_path, protocol):
    """A batch that asks for os.system, eval or any array but bytes is refused by name, and its payload does not run."""
    trace = tmp_path / "ran"
    hostile = {
        "posix.system|nt.system": Payload(os.system, f"echo > {trace}"),
        "(__builtin__|builtins).eval": Payload(eval, f"open({str(trace)!r}, 'w')"),
        "io.open": Payload(open, str(trace), "w"),
    }
    if protocol == 4:
        hostile["not of bytes"] = {"labels": [0], "data": np.zeros((1, 3072), object)}
    files = [tmp_path / name for name in datasets.CIFAR10]
    for reason, content in hostile.items():
        for file in files:
            file.write_bytes(pickle.dumps(content, protocol))
        make_official(monkeypatch, "cifar10", *files)
        with pytest.raises(ValueError, match=rf"data_batch_1 must be a CIFAR batch.*({reason}).*{REMEDY}"):
            load_dataset("cifar10", folder=tmp_path)
        assert not trace.exists()


def test_folder_with_other_files_only_does_not_hold_the_set(monkeypatch, tmp_path):
    """A cifar-10/ that has none of the known files is passed over, and the download's error does not mention them."""
    (tmp_path / "cifar-10").mkdir()
    (tmp_path / "cifar-10/data_batch_1.bin.packed").write_bytes(b"x")
    monkeypatch.setenv("FLOWSTUDY_DATA", str(tmp_path))
    monkeypatch.setitem(datasets.MIRRORS, "cifar10", (DEAD,))
    with pytest.raises(FileNotFoundError, match=r"cifar-10-binary.tar.gz") as caught:
        load_dataset("cifar10")
    assert DEAD in caught.value.__notes__[0] and "refused" in caught.value.__notes__[0]
    assert "packed" not in str(caught.value)
