"""How a command ends: by a mistake of the user, a crash of the user's code, or an error of flowstudy."""

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn

import typer

import flowstudy
from flowstudy.refusal import RefusalError

AGAINST, MISTAKE, NOT_TAKEN, OURS = 1, 2, 3, 70  # exit statuses; 70 is EX_SOFTWARE of BSD's sysexits
HOUSE = Path(flowstudy.__file__).parent
STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib"))
# Both flowstudy and the user's code call these libraries: an error inside one counts as an error of its caller.
LIBRARIES = ("torch", "numpy", "scipy", "pandas", "pyarrow", "matplotlib", "seaborn", "rich", "typer", "click",
             "jaxtyping", "beartype")


@contextmanager
def endings(call: str) -> Iterator[None]:
    """Turn errors into messages and exit statuses while the context lasts.

    A refused argument prints one line and exits with 2; a crash of the user's code prints its traceback and exits with
    2; a crash of flowstudy prints the whole traceback and exits with 70.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except RefusalError as error:
        if error.__cause__ is not None and is_users(error.__cause__):  # the user's model raised it while measured
            crashed(call, error.__cause__)
        stop(str(error))
    except SystemExit as error:  # flowstudy never raises this: the user's code did
        crashed(call, error)
    except Exception as error:
        if is_users(error):
            crashed(call, error)
        traceback.print_exception(error)
        typer.echo(f"{call}: this is an error of flowstudy, not of your model. Please report it with the lines above.",
                   err=True)
        raise typer.Exit(OURS) from None


@contextmanager
def users_code(call: str) -> Iterator[None]:
    """Treat every error raised while the context lasts, sys.exit(0) too, as a crash of the user's code."""
    try:
        yield
    except (Exception, SystemExit) as error:
        crashed(call, error)


def crashed(call: str, error: BaseException) -> NoReturn:
    """Print the traceback from the first frame of the user's code on, then one line, and exit."""
    traceback.print_exception(error.with_traceback(without_ours(error.__traceback__)))
    # The status is the argument: a copy that distributed's pickling made has lost its `code`.
    what = f"ended the program with status {next(iter(error.args), None)}" if isinstance(error, SystemExit) else \
        f"raised {type(error).__name__}"
    stop(f"{call}: the model's code {what}.")


@contextmanager
def one_line() -> Iterator[None]:
    """Print errors that the user can mend as one line, without a traceback."""
    from flowstudy.sweep import StoreError, SweepError  # of commands that have imported it

    try:
        yield
    except SweepError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    except StoreError as error:
        typer.echo(error.strerror, err=True)
        raise typer.Exit(2) from None
    except RefusalError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def stop(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(MISTAKE)


def is_users(error: BaseException) -> bool:
    """Whether the user's code raised the error: the innermost frame outside of all libraries is not flowstudy's."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        if not in_library(frame):
            return not in_house(frame)
    return False


def without_ours(trace: TracebackType | None) -> TracebackType | None:
    """The traceback without its outermost frames that belong to flowstudy or to Python's import machinery."""
    while trace is not None and (in_house(trace.tb_frame) or trace.tb_frame.f_code.co_filename.startswith("<frozen")
                                 or Path(trace.tb_frame.f_code.co_filename).parent.name == "importlib"):
        trace = trace.tb_next
    return trace


def in_house(frame: FrameType) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(HOUSE)


def in_library(frame: FrameType) -> bool:
    path = Path(frame.f_code.co_filename)
    if path.name.startswith("<"):  # code without a file: generated methods, wrappers that check annotations
        return True
    package = frame.f_globals.get("__name__", "").partition(".")[0]
    return package in LIBRARIES or (path.is_relative_to(STANDARD_LIBRARY) and "site-packages" not in path.parts)
