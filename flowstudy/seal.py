"""Digests inside files, by which damage is found.

A seal is the SHA-256 of a file's content in the file itself.  It is where other readers do not look: in a Parquet file
between the last column and the footer, in a zip archive (which torch.save writes) in the archive's comment.  In JSON it
is an entry `sha256`, the digest of all other entries.  Files of earlier versions have no seal and are accepted without.
"""

import hashlib
import json
from typing import Any

MARK = b"flowstudy sha256"
SIZE = len(MARK) + hashlib.sha256().digest_size
SEAL = "sha256"
CHANGED = "its content is not what was written: a bit has changed since"
PARQUET_END = 8  # the footer's length in four bytes, then PAR1
ZIP_COMMENT = 2  # the comment's length, the last bytes of an archive without one


def sealed_parquet(content: bytes) -> bytes:
    """The same table, sealed."""
    at = parquet_footer(content)
    return content[:at] + seal(content) + content[at:]


def parquet_is_sealed(content: bytes) -> bool:
    """Whether the table has a seal.

    Raises:
        ValueError: its seal is not that of its content.
    """
    return check_seal(content, parquet_footer(content))


def sealed_zip(content: bytes) -> bytes:
    """The same archive, sealed."""
    content = content[:-ZIP_COMMENT] + SIZE.to_bytes(ZIP_COMMENT, "little")
    return content + seal(content)


def zip_is_sealed(content: bytes) -> bool:
    """Whether the archive has a seal.

    Raises:
        ValueError: its seal is not that of its content.
    """
    return check_seal(content, len(content))


def sealed_json(entries: dict[str, Any]) -> bytes:
    """A mapping as JSON, sealed."""
    entries = json.loads(json.dumps(entries))  # as they will be read: keys are strings
    return (json.dumps(entries | {SEAL: json_digest(entries)}, indent=1) + "\n").encode()


def unsealed_json(content: bytes) -> Any:
    """The entries of a JSON file without its seal, which is checked.

    Raises:
        ValueError: it is none, or its seal is not that of its content.
    """
    entries = json.loads(content)
    if isinstance(entries, dict) and SEAL in entries:
        known = entries.pop(SEAL)
        if known != json_digest(entries):
            raise ValueError(CHANGED)
    return entries


def json_digest(entries: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def seal(content: bytes) -> bytes:
    return MARK + hashlib.sha256(content).digest()


def check_seal(content: bytes, end: int) -> bool:
    """Whether there is a seal that ends at byte `end`; ValueError if it is not the digest of the other bytes."""
    start = end - SIZE
    if start < 0 or content[start:start + len(MARK)] != MARK:
        return False
    around = hashlib.sha256(content[:start])
    around.update(content[end:])
    if content[start:end] != MARK + around.digest():
        raise ValueError(CHANGED)
    return True


def parquet_footer(content: bytes) -> int:
    """The byte at which a Parquet footer starts; negative if the file does not end as a Parquet file does."""
    return len(content) - PARQUET_END - int.from_bytes(content[-PARQUET_END:-PARQUET_END // 2], "little")
