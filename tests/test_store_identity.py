"""A run writes to the store that it began with, which is not made anew elsewhere; what killed runs leave is swept."""

import os
import shutil
import socket
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from flowstudy import whole_file
from flowstudy.sweep import Store, StoreError, engine, grid, run
from flowstudy.sweep.looks.table import MEASUREMENTS, training_loss
from flowstudy.sweep.store.identity import MARK, mark_of
from flowstudy.train import Checkpoint

PLAN = grid(net=["plain", "highway"], depth=2, seed=range(3), width=3, train_samples=20, batch_size=10, epochs=1)
DEAD = 2**22 + 1  # beyond the largest process number of Linux


def sweep(store: Path, **options: object):
    return run(PLAN, **({"store": store, "device": "cpu", "progress": False, "nets_at_once": 1} | options))


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def at_third_group(monkeypatch, happens) -> None:
    """Something happens to the store while the third net trains."""
    groups = []

    def measured(moment, data):
        groups.append(moment)
        if len(groups) == 3:
            happens()
        return training_loss(moment, data)

    monkeypatch.setitem(MEASUREMENTS, "training_loss", measured)


@pytest.mark.parametrize("instead", ["nothing", "an empty folder", "another store"])
def test_a_store_that_moves_stops_the_run(tmp_path, monkeypatch, instead):
    """It says so, nothing is written in its place, and with the store back it goes on where it stopped."""
    store, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    whole = sweep(tmp_path / "whole")
    other = tmp_path / "other"
    run(PLAN[:1], store=other, device="cpu", progress=False)

    def move() -> None:
        store.rename(elsewhere)
        if instead == "an empty folder":
            store.mkdir()
        elif instead == "another store":
            shutil.copytree(other, store)

    with monkeypatch.context() as patch:
        at_third_group(patch, move)
        with pytest.raises(StoreError, match=r"`store` must stay where it is .*is gone or another folder by now"):
            sweep(store)
    there = {"nothing": set(), "an empty folder": set(), "another store": files_of(other)}[instead]
    assert store.exists() == (instead != "nothing") and (not store.exists() or files_of(store) == there)
    shutil.rmtree(store, ignore_errors=True)
    elsewhere.rename(store)
    done = len(list(store.glob("training_loss-*/*.parquet")))
    computed = []
    with monkeypatch.context() as patch:
        patch.setitem(MEASUREMENTS, "training_loss",
                      lambda moment, data: computed.extend(moment.cells) or training_loss(moment, data))
        pd.testing.assert_frame_equal(sweep(store), whole, check_exact=True)
    assert done == 2 and len(computed) == len(PLAN) - 2


def test_a_disk_that_goes_away_stops_the_run(tmp_path, monkeypatch):
    """What lies under its mount point is not taken for the store."""
    store = tmp_path / "disk"
    store.mkdir()
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "none", store], capture_output=True).returncode:
        pytest.skip("no permission to mount a small file system")
    mounted = [True]

    def unmount() -> None:
        subprocess.run(["umount", "-l", store], check=True)
        mounted[0] = False

    try:
        at_third_group(monkeypatch, unmount)
        with pytest.raises(StoreError, match="is gone or another folder by now"):
            sweep(store)
        assert list(store.iterdir()) == []
    finally:
        if mounted[0]:
            unmount()


def test_a_store_keeps_its_mark(tmp_path):
    """Made with the first run, empty, the same for later ones and for a store that was moved between two runs."""
    sweep(tmp_path / "store")
    marks = [path.name for path in (tmp_path / "store").glob(f"{MARK}*")]
    assert len(marks) == 1 and (tmp_path / "store" / marks[0]).read_bytes() == b""
    (tmp_path / "store").rename(tmp_path / "moved")
    sweep(tmp_path / "moved", measure="accuracy")
    assert [path.name for path in (tmp_path / "moved").glob(f"{MARK}*")] == marks
    assert mark_of(tmp_path / "moved") == marks[0]
    assert mark_of(tmp_path) not in marks


# --- what is left ----------------------------------------------------------------------------------------------------


def test_temporary_names_differ_also_within_a_process(tmp_path):
    """Threads, and containers that share a host's name and the numbers of processes, do not write into one file."""
    assert len({whole_file.temporary(tmp_path / "x").name for _ in range(100)}) == 100


def test_what_the_dead_have_left_is_swept_of_this_version_and_earlier_ones(tmp_path):
    host = socket.gethostname()
    gone = [f".a.parquet.{host}.{DEAD}.tmp", f".a.parquet.{host}.{DEAD}.0123abcd.tmp", f".a.b.c.{host}.{DEAD}.ff.tmp"]
    stay = [f".a.{host}.{os.getppid()}.0123abcd.tmp", f".a.{host}.{os.getpid()}.0123abcd.tmp",
            f".a.not{host}.{DEAD}.tmp", f".a.{host}.{DEAD}.parquet", "a.tmp"]
    for name in gone + stay:
        (tmp_path / name).touch()
    whole_file.sweep_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(stay)


def test_a_rename_outlives_a_power_cut(tmp_path, monkeypatch):
    """The file is on the disk before it has its name, and the folder after it."""
    events, sync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: events.append(
        "folder" if Path(f"/dev/fd/{file}").resolve().is_dir() else "file") or sync(file))
    monkeypatch.setattr(Path, "replace", lambda path, to: events.append("rename") or replace(path, to))
    whole_file.write_whole(tmp_path / "x", b"content")
    assert events == ["file", "rename", "folder"]


def test_a_checkpoint_that_outlived_its_tables_is_swept_by_the_next_run(tmp_path, monkeypatch):
    """Killed between the last table and the removal of the checkpoint: the next run computes nothing, and sweeps it."""
    def killed(_checkpoint: Checkpoint) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "remove", killed)
        sweep(tmp_path, nets_at_once=6, checkpoint_every=0.0)
        sweep(tmp_path, nets_at_once=6, checkpoint_every=0.0)
    while Store(tmp_path).missing(PLAN, next(tmp_path.glob("training_loss-*")).name):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Checkpoint, "remove", killed)
            sweep(tmp_path, nets_at_once=6, checkpoint_every=0.0)
    assert list(tmp_path.rglob("*.pt"))
    monkeypatch.setattr(engine, "execute", lambda *_: pytest.fail("something was computed"))
    sweep(tmp_path)
    assert not list(tmp_path.rglob("*.pt*"))
