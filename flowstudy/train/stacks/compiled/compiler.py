"""The C of this folder as a library of this processor, compiled once by the compiler that is there, then kept.

Where there is none, or it fails, the reason is said and torch does the work: nothing of this is needed.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from flowstudy.refusal import RefusalError
from flowstudy.train.stacks.choice import CHOICE, wanted
from flowstudy.whole_file import remove, write_whole

HERE = Path(__file__).parent
SOURCES = ("products.h", "functions.h", "steps.c")
BUILT = "steps.so"
COMPILERS = ("cc", "gcc", "clang")
# No -ffast-math: nan and infinity are how a net that diverged is known.
FLAGS = ("-O3", "-fno-math-errno", "-ffp-contract=fast", "-std=gnu11", "-shared", "-fPIC")
OF_THIS_PROCESSOR = (("-march=native",), ("-mcpu=native",), ())  # in turn: not every compiler knows each
PATIENCE = 120.0  # seconds for a compilation, which takes one to five

BACKENDS = ("compiled", "torch")  # on a CPU
Command = tuple[str, ...]


def chosen_backend() -> str:
    """Of fully connected nets in float32 on a CPU: `compiled` where there is a C compiler, `torch` elsewhere.

    Raises:
        RefusalError: FLOWSTUDY_BACKEND asks for compiled steps where no compiler works.
    """
    asked = wanted()
    if asked == "torch":
        return "torch"
    found, reason = library()
    if asked == "compiled" and found is None:
        raise RefusalError(f"train: `{CHOICE}` must be torch where no C compiler works, got 'compiled': {reason}. "
                           "Install one (Debian: gcc, macOS: xcode-select --install), name it in CC, or unset it.")
    return "torch" if found is None else "compiled"


@functools.cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """The library; or None, and why there is none."""
    compiler = found_compiler()
    if compiler is None:
        return None, f"none of {', '.join(COMPILERS)} is on the path"
    try:
        with tempfile.TemporaryDirectory() as apart:
            kept = kept_library(compiler, Path(apart))
            if kept is not None:
                try:
                    return declared(ctypes.CDLL(str(kept))), ""
                except OSError:  # damaged: the next process makes it anew
                    remove(kept)
            built = Path(apart, BUILT)  # there already where it could not be kept
            return declared(ctypes.CDLL(str(built if built.exists() else compile_into(Path(apart), compiler)))), ""
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return None, f"{' '.join(compiler)} failed: {said.strip().splitlines()[-1] if said.strip() else error!r}"


def found_compiler() -> Command | None:
    """The command that CC names, as `ccache gcc`, or the first of COMPILERS that is there."""
    named = shlex.split(os.environ.get("CC", ""))
    for name, *rest in (*([named] if named else []), *([name] for name in COMPILERS)):
        if (path := shutil.which(name)) is not None:
            return path, *rest
    return None


def kept_library(compiler: Command, apart: Path) -> Path | None:
    """In the user's cache, one for each source, compiler and processor; None where it is not the user's alone.

    `apart` is an empty folder to compile in.
    """
    try:
        path = cache_folder() / f"{identity(compiler)}.so"
    except RuntimeError:  # this user has no home
        return None
    if path.exists():
        return path if is_ours(path.parent) and is_ours(path) else None
    content = compile_into(apart, compiler).read_bytes()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, content)
    except OSError as error:  # a full or read-only disk
        warnings.warn(f"train: the compiled training step cannot be kept in {path.parent} ({error}); every process "
                      "compiles its own. Set FLOWSTUDY_CACHE to a folder that takes files.", stacklevel=2)
        return None
    return path if is_ours(path.parent) else None


def cache_folder() -> Path:
    """As pooch has it for data sets, whose import alone takes a quarter of a second."""
    if given := os.environ.get("FLOWSTUDY_CACHE"):
        return Path(given).expanduser() / "compiled"
    systems = {"darwin": Path.home() / "Library" / "Caches", "win32": Path(os.environ.get("LOCALAPPDATA", Path.home()))}
    otherwise = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return systems.get(sys.platform, otherwise) / "flowstudy" / "compiled"


def is_ours(path: Path) -> bool:
    """Nobody else can have put it there, or changed it."""
    if os.name == "nt":
        return True
    about = path.stat()
    return about.st_uid == os.getuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def compile_into(folder: Path, compiler: Command) -> Path:
    target = folder / BUILT
    for which in OF_THIS_PROCESSOR:
        command = [*compiler, *FLAGS, *which, str(HERE / "steps.c"), "-o", str(target), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
            if not target.exists():
                raise OSError("it ended well and wrote nothing")
            break
        except subprocess.CalledProcessError:
            if which == OF_THIS_PROCESSOR[-1]:
                raise
    return target


def identity(compiler: Command) -> str:
    """Of what the library depends on."""
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=PATIENCE).stdout
    parts = [*((HERE / name).read_text() for name in SOURCES), *compiler, version, *FLAGS, platform.machine(),
             processor_features()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def processor_features() -> str:
    """A home folder may be shared by machines whose processors differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


def declared(found: ctypes.CDLL) -> ctypes.CDLL:
    whole, place, number = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
    found.lanes.restype = found.evaluated.restype = found.scratch_size.restype = whole
    found.lanes.argtypes = found.evaluated.argtypes = []
    found.scratch_size.argtypes = [place, whole]
    found.train.restype = found.activations.restype = None
    found.train.argtypes = [place, place, place, number, number, place, place, place, place, whole, place]
    found.loss.restype = ctypes.c_double
    found.loss.argtypes = [place, place, place, place, whole, place]
    found.activations.argtypes = [whole, place, place, place, whole]
    return found
