"""A digest of the measuring code, since a version number says little about somebody's working copy."""

import functools
import hashlib
from pathlib import Path

import flowstudy

HOUSE = Path(flowstudy.__file__).parent
SOURCES = ".py", ".h", ".c"
MEASURING = ("data", "kinds", "measure", "nets", "sweep/looks", "theory", "train")  # rooms that numbers come from


@functools.cache
def code_digest() -> str:
    """64 bits of SHA-256 over the sources of those rooms: equal wherever they are, and whatever else has changed."""
    digest = hashlib.sha256()
    for path in sorted(path for room in MEASURING for path in (HOUSE / room).rglob("*") if path.suffix in SOURCES):
        digest.update(path.relative_to(HOUSE).as_posix().encode() + b"\0")
        digest.update(path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:16]
