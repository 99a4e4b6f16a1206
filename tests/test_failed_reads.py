"""A read that fails is not damage: it is tried again, then told, and nothing in the store is set aside for it."""

import errno
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pandas.testing import assert_frame_equal

from flowstudy import whole_file
from flowstudy.sweep import Store, StoreError, grid, run
from flowstudy.sweep.status import status
from flowstudy.sweep.store import store as tables
from flowstudy.train import Checkpoint

PLAN = grid(net=["plain", "highway"], depth=2, seed=range(2), width=3, train_samples=20, batch_size=10, epochs=1)
ERRORS = [*(OSError(number, os.strerror(number)) for number in (
    errno.EIO, errno.ESTALE, errno.EACCES, errno.EMFILE, errno.EPERM, errno.ENFILE, errno.ETIMEDOUT)), MemoryError()]
TRIES = len(whole_file.PAUSES) + 1


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(whole_file, "PAUSES", (0.0,) * (TRIES - 1))


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    sweep(folder)
    return folder


@pytest.fixture
def store(swept, tmp_path) -> Path:
    return shutil.copytree(swept, tmp_path / "store")


def sweep(folder: Path, **options: object):
    return run(PLAN, store=folder, device="cpu", progress=False, nets_at_once=1, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(patch: pytest.MonkeyPatch, what: str, error: BaseException, times: float, ending: str = "") -> None:
    """The first so many calls on paths with that ending raise."""
    real, left = getattr(Path, what), [times]

    def failing(path: Path, *arguments: object, **options: object):
        if str(path).endswith(ending) and left[0] > 0:
            left[0] -= 1
            raise error
        return real(path, *arguments, **options)

    patch.setattr(Path, what, failing)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: getattr(error, "strerror", None) or "memory")
@pytest.mark.parametrize("what, ending", [("open", ".parquet"), ("stat", ".parquet"), ("iterdir", "")])
def test_a_failed_read_is_tried_again_and_then_told(store, monkeypatch, error, what, ending):
    """Away for a moment: nobody sees it. For good: a StoreError. No file is touched, nothing is told or computed."""
    before, whole = contents(store), sweep(store)
    monkeypatch.setattr("flowstudy.sweep.engine.execute", lambda *_: pytest.fail("something was computed"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with monkeypatch.context() as patch:
            fails(patch, what, error, TRIES - 1, ending)
            assert_frame_equal(sweep(store), whole, check_exact=True)
        for call in (lambda: sweep(store), lambda: Store(store).tables(), lambda: status(store)):
            with monkeypatch.context() as patch:
                fails(patch, what, error, float("inf"), ending)
                with pytest.raises(StoreError, match=r"Store: `store` must be readable, got .*Nothing is lost"):
                    call()
    assert contents(store) == before


@pytest.mark.parametrize("error", ERRORS[:2], ids=str)
def test_a_checkpoint_that_cannot_be_read_ends_the_run_and_stays(store, monkeypatch, error):
    """The training that it holds is not begun anew, and its group is not halved."""
    path = next(store.glob("training_loss-*/*.parquet"))
    saved, path_of = Checkpoint.save, []

    def die(checkpoint: Checkpoint, state: dict) -> None:
        saved(checkpoint, state)
        path_of.append(checkpoint.path)
        raise KeyboardInterrupt

    path.unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "save", die)
        sweep(store, checkpoint_every=0.0)
    before = contents(store)
    assert any(name.endswith(".pt") for name in before)
    with monkeypatch.context() as patch:
        fails(patch, "open", error, float("inf"), ".pt")
        with pytest.raises(StoreError, match=r"must be readable, got .*\.pt"):
            sweep(store)
    assert contents(store) == before
    sweep(store)
    assert not list(store.rglob("*.pt*"))


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:100] + b"?" + data[101:], lambda _: b""],
                         ids=["short", "another byte", "nothing"])
def test_what_reads_otherwise_each_time_is_no_damage(store, monkeypatch, change):
    """A bad cable, or memory: the second reading is right, and nothing is told. Never the same: a StoreError."""
    before, whole, reads = contents(store), sweep(store), []
    for always in (False, True):
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("error")

            def read(path: Path, always: bool = always) -> bytes:
                reads.append(path)
                content = path.read_bytes()
                wrong = always or reads.count(path) == 1
                return change(content) + b"%d" % len(reads) if wrong else content

            patch.setattr(tables, "read_from_store", read)
            if always:
                with pytest.raises(StoreError, match="it reads otherwise each time"):
                    sweep(store)
            else:
                assert_frame_equal(sweep(store), whole, check_exact=True)
    assert contents(store) == before


def test_memory_that_is_short_while_a_table_is_decoded_is_no_damage(store, monkeypatch):
    """Arrow's own error for it is one of values as well."""
    before = contents(store)

    def full(_content: bytes):
        raise pa.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(tables, "parquet_file", full)
    with pytest.raises(StoreError, match="out of memory"):
        sweep(store)
    assert contents(store) == before


def test_half_of_a_file_is_not_taken_for_the_whole(tmp_path, monkeypatch):
    """A read that ends before the file does, as where a network disk lost its connection, is one that failed."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    real: Callable = Path.open

    class Half:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_exception):
            self.file.close()

        def fileno(self):
            return self.file.fileno()

        def read(self):
            return self.file.read(5)

    monkeypatch.setattr(Path, "open", lambda path, *mode: Half(real(path, *mode)))
    with pytest.raises(OSError, match="only 5 of 10 bytes could be read"):
        whole_file.read_whole(path)
