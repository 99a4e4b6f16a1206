"""Workers on a Dask cluster: one Dask task for each group; the rows go to the store, not over the network."""

import contextlib
import ipaddress
import secrets
import time
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from flowstudy.arguments import in_short
from flowstudy.sweep.plan_error import MissingExtraError, PlanError
from flowstudy.sweep.store.failures import Failure, failure, remember
from flowstudy.sweep.store.store import Store

from .local import Done
from .tasks import Task, serve_task

RETRIES = 2  # retries of a task that raises, as when a disk is away for a moment; lost workers are counted by Dask
SEEN_AFTER = 90  # seconds that a network disk may take to show what another machine wrote (NFS: 60 by default)


ENCRYPTED = ("tls", "wss")  # protocols in which both sides show certificates


def check_engine(engine: object, insecure_network: bool) -> None:
    """Refuse an engine that is neither "local" nor Dask's, and addresses at which others on the network may run code.
    """
    address = isinstance(engine, str) and "://" in engine
    if not is_local(engine) and not address and not hasattr(engine, "scheduler_address") and not is_client(engine):
        raise PlanError("run: `engine` must be 'local', the address of a Dask scheduler such as "
                        f"'tcp://127.0.0.1:8786', a distributed.Client or a cluster, got {in_short(engine)}.")
    if address and not insecure_network and not is_private(engine):
        raise PlanError("run: `engine` must be on this machine or encrypted, got "
                        f"{engine!r}: whoever reaches such a scheduler runs code on it and on its workers. Give it "
                        "certificates and pass 'tls://...'; or, where nobody else is in the network, pass "
                        "insecure_network=True (--insecure-network).")
    if not is_local(engine):
        try:
            import distributed  # noqa: F401
        except ModuleNotFoundError:
            raise MissingExtraError("run: `engine` must be 'local' where Dask is not installed. Install the extra "
                                    "`cluster`: pip install 'flowstudy[cluster]'.") from None


def is_local(engine: object) -> bool:
    return isinstance(engine, str) and engine == "local"


def is_private(address: str) -> bool:
    """Whether others cannot take part: this machine's loopback, this process, or certificates."""
    try:
        parts = urlsplit(address)
        return (parts.scheme in (*ENCRYPTED, "inproc") or parts.hostname == "localhost"
                or ipaddress.ip_address(parts.hostname or "").is_loopback)
    except ValueError:  # the host is a name, or no host at all
        return False


def is_client(engine: object) -> bool:
    return hasattr(engine, "submit") and hasattr(engine, "scheduler")


def run_on_dask(tasks: Sequence[Task], engine: object, store: Store) -> Iterator[Done]:
    """Each task with its failures, as it ends; a task whose worker is lost runs again on another.

    Dask blames every task that a dying worker held, though most were only waiting, and gives a task up after four lost
    workers.  Such a task is run once more, alone, at the end; if that fails too, its cells have failed.
    """
    from distributed import KilledWorker

    with client_of(engine) as client:
        suspects = []
        for task, future in ended(client, tasks, "flowstudy"):
            if isinstance(future.exception(), KilledWorker):
                suspects.append(task)
            else:
                yield task, outcome(task, future, store)
        for suspect in suspects:
            for task, future in ended(client, [suspect], "flowstudy-again"):
                yield task, outcome(task, future, store)


def ended(client: object, tasks: Sequence[Task], prefix: str) -> Iterator[tuple[Task, object]]:
    """Tasks and their futures in the order in which they end; none is left on the cluster."""
    from distributed import as_completed

    # A task's name has its hash and a random part of this call, so that another run of the plan cancels only its own.
    call = secrets.token_hex(4)
    todo = {client.submit(serve_task, task, key=f"{prefix}-{task.key}-{call}", pure=False, retries=RETRIES): task
            for task in tasks}
    try:
        completed = as_completed(list(todo), loop=client.loop, raise_errors=False)
        for future in completed:
            if future.status in ("pending", "lost"):  # the worker died and its result is lost: Dask runs it again
                completed.add(future)
                continue
            if future.status == "cancelled":
                raise RuntimeError("run: the Dask scheduler is gone or has cancelled the tasks. What was computed is "
                                   "stored: run again to go on.")
            yield todo[future], future
    finally:
        client.cancel(list(todo))  # of those that have ended nothing is left to cancel


def outcome(task: Task, future: object, store: Store) -> list[Failure]:
    from distributed import KilledWorker

    error = future.exception()
    if error is None:
        check_arrived(task, future.result(), store)
        return future.result()
    if not isinstance(error, KilledWorker):
        raise error
    failed = [failure(cell, error) for cell in task.cells]
    remember(store, task.table, failed)
    return failed


def check_arrived(task: Task, failed: Sequence[Failure], store: Store) -> None:
    """Wait until the rows that the worker has stored are visible here; an error if they do not come."""
    gone, deadline = {failure.key for failure in failed}, time.monotonic() + SEEN_AFTER
    computed = [cell for cell in task.cells if cell.key not in gone]
    while not store.holds(computed, task.table) and store.missing(computed, task.table):
        if time.monotonic() > deadline:
            raise RuntimeError("run: `store` must be a folder that the workers share with this process, got "
                               f"{task.store}: a worker has stored rows that are not there. Pass one on a shared disk.")
        time.sleep(0.2)


@contextlib.contextmanager
def client_of(engine: object) -> Iterator:
    """The user's own client, or one for as long as the run lasts."""
    from distributed import Client

    if is_client(engine):
        yield engine
    else:
        try:
            client = Client(engine, set_as_default=False)
        except (OSError, ValueError) as error:  # no scheduler answers, or the address is not valid
            raise PlanError(f"run: `engine` must be a scheduler that answers, got {in_short(engine)}: {error}"
                            ) from None
        with client:
            yield client
