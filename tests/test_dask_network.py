"""Who gets in: the lines of docs/how-to/cluster.md listen to this machine alone; TLS lets in certificates only."""

import contextlib
import ipaddress
import shlex
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowstudy.sweep import grid, run
from flowstudy.sweep.workers.dask_engine import is_private

PAGE = (Path(__file__).parents[1] / "docs" / "how-to" / "cluster.md").read_text()
PLAN = "grid: {depth: 2, width: 3, train_samples: 20, batch_size: 10, epochs: 1}"


@pytest.mark.parametrize("address, private", [
    ("tcp://127.0.0.1:8786", True), ("tcp://127.9.9.9:1", True), ("tcp://localhost:8786", True),
    ("tcp://[::1]:1", True), ("inproc://127.0.0.1/1/1", True), ("tls://node1:8786", True), ("wss://node1:8786", True),
    ("tcp://0.0.0.0:8786", False), ("tcp://10.0.0.1:8786", False), ("tcp://node1:8786", False), ("tcp://[::]:1", False),
    ("tcp://localhost.example.org:1", False), ("tcp://127.0.0.1.example.org:1", False), ("tcp://", False),
    ("tcp://127.0.0.1@10.0.0.1:1", False), ("ws://node1:1", False), ("ucx://10.0.0.1:1", False),
    ("tcp://[::1:1", False)])
def test_addresses_that_others_reach_are_refused(tmp_path, address, private):
    """Loopback in all its forms and encrypted protocols are taken; names that only look like it are not."""
    assert is_private(address) == private
    if not private:
        with pytest.raises(ValueError, match=r"^run: `engine` must be on this machine or encrypted, .*insecure_"):
            run(grid(), store=tmp_path / "none", engine=address)
        assert not (tmp_path / "none").exists()


def test_a_scheduler_that_does_not_answer_is_one_line(tmp_path, monkeypatch):
    """With Dask's own words; distributed stands in here, so that nothing is waited for."""
    def unreachable(address: str, **_: object) -> None:
        raise OSError(f"Timed out trying to connect to {address} after 30 s")

    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(Client=unreachable, KilledWorker=RuntimeError))
    with pytest.raises(ValueError, match=r"^run: `engine` must be a scheduler that answers, .*9': Timed out") as caught:
        run(grid(depth=2, width=3, train_samples=20), store=tmp_path, engine="tcp://127.0.0.1:9", progress=False)
    assert "\n" not in str(caught.value)


def lines_of(word: str) -> list[str]:
    """The page's block of commands that has this word."""
    blocks = PAGE.split("```")[1::2]
    (block,) = [block for block in blocks if word in block and "dask scheduler" in block]
    return [line.partition("#")[0] for line in block.splitlines() if line.strip()]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def started(lines: list[str], folder: Path, ports: dict[str, int]) -> Iterator[tuple[list, list[str]]]:
    """The block's scheduler and worker as processes, and the line that sweeps; ports replaced, the host this one."""
    for old, new in (ports | {"node1": "127.0.0.1"}).items():
        lines = [line.replace(old, str(new)) for line in lines]
    running = []
    try:
        for line in lines:
            if line.startswith("dask "):
                port = ["--port", str(ports["8786"])] if "scheduler" in line else []
                command = [sys.executable, "-m", "dask", *shlex.split(line)[1:], *port]
                running.append(subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL,
                                                stderr=subprocess.DEVNULL))
        exports = dict(word.split("=") for line in lines if line.startswith("export ") for word in line.split()[1:])
        (sweep,) = [shlex.split(line) for line in lines if line.startswith("flowstudy ")]
        yield running, ["env", *(f"{name}={value}" for name, value in exports.items()),
                        sys.executable, "-m", "flowstudy", *sweep[1:], "--no-progress"]
    finally:
        for process in reversed(running):
            process.terminate()
        for process in running:
            process.wait(30)


def listening(running: list) -> dict[int, str]:
    """Address by port of every socket on which these processes and those that they started wait."""
    psutil = pytest.importorskip("psutil")
    family = [one for process in running for one in (psutil.Process(process.pid),
                                                     *psutil.Process(process.pid).children(recursive=True))]
    return {c.laddr.port: c.laddr.ip for one in family for c in one.net_connections("inet") if c.status == "LISTEN"}


def swept(command: list[str], folder: Path) -> None:
    (folder / "plan.yaml").write_text(PLAN)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and ": 1 cells" in done.stdout, done.stdout + done.stderr


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    pytest.fail(f"nothing listens to {port}")


@pytest.mark.slow
def test_the_lines_for_one_machine_listen_to_it_alone(tmp_path):
    """Scheduler, worker, nanny and both dashboards, while a sweep runs through them."""
    pytest.importorskip("distributed", reason="Dask is not installed")
    ports = {"8786": free_port(), "8787": free_port()}
    with started(lines_of("tcp://127.0.0.1"), tmp_path, ports) as (running, sweep):
        wait_for(ports["8786"])
        swept(sweep, tmp_path)
        found = listening(running)
    assert set(ports.values()) < found.keys() and len(found) >= 4
    assert {ip for ip in found.values() if not ipaddress.ip_address(ip).is_loopback} == set()


def certificates(folder: Path) -> None:
    """An authority and a certificate by it, as the page's lines name them."""
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=flowstudy test"]
    done = subprocess.run([*openssl, "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, capture_output=True)
    if done.returncode:
        pytest.skip("openssl cannot make a certificate")
    (folder / "ca.pem").write_bytes((folder / "cert.pem").read_bytes())


def first_byte(folder: Path, port: int, certificate: bool) -> bytes:
    """What a Dask process says first to whoever it has let in; nothing is an error too."""
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.check_hostname = False
    if certificate:
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    with socket.create_connection(("127.0.0.1", port), 20) as raw, context.wrap_socket(raw) as channel:
        said = channel.recv(1)
    if not said:
        raise ConnectionError("closed")
    return said


@pytest.mark.slow
def test_with_certificates_nobody_comes_without_one(tmp_path):
    """A sweep with the certificate runs; a connection without one is ended by the scheduler and by the worker."""
    pytest.importorskip("distributed", reason="Dask is not installed")
    try:
        certificates(tmp_path)
    except FileNotFoundError:
        pytest.skip("no openssl")
    ports = {"8786": free_port(), "8787": free_port()}
    with started(lines_of("tls://node1"), tmp_path, ports) as (running, sweep):
        wait_for(ports["8786"])
        swept(sweep, tmp_path)
        found = listening(running)
        dashboards = [port for port, ip in found.items() if ipaddress.ip_address(ip).is_loopback]
        others = found.keys() - set(dashboards)
        assert ports["8787"] in dashboards and ports["8786"] in others and len(others) >= 2
        for port in others:
            assert first_byte(tmp_path, port, certificate=True)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                first_byte(tmp_path, port, certificate=False)
