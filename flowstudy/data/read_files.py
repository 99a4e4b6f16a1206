"""Readers of the data sets' official files, into arrays of bytes; a wrong file is an error that names the file.

Every reader takes the files of one data set, those for testing last, and returns batches, the test batch last.
"""

import gzip
import hashlib
import io
import math
import pickle
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from flowstudy.arguments import check_path, takes
from flowstudy.refusal import RefusalError

Batch = tuple[UInt8[np.ndarray, "_sample channel height width"], Int64[np.ndarray, "_sample"]]  # _: varies in a set

# CIFAR-100's train.bin and test.bin have no published sum: their size is checked, and the sum of their archive
CHECKSUMS: dict[str, dict[str, str]] = {
    "mnist": {
        "train-images-idx3-ubyte.gz": "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "train-images-idx3-ubyte": "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        "train-images-idx3-ubyte": "sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    "cifar10": {
        "cifar-10-binary.tar.gz": "md5:c32a1d4ab5d03f1284b67883e8d87530",
        "data_batch_1.bin": "sha256:cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "sha256:a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "sha256:bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "sha256:014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "sha256:755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        "test_batch.bin": "sha256:8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "md5:40351d587109b95175f43aff81a1287e",
    },
    "cifar100": {
        "cifar-100-binary.tar.gz": "md5:03b5dce01913d631647c71ecec9e9cb8",
        "train": "md5:16019d7e3df5f24257cddd939b257f8d",
        "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
    },
}

CIFAR_SAMPLES = {  # records in each member of the two CIFAR archives
    **{f"data_batch_{i}.bin": 10_000 for i in range(1, 6)}, "test_batch.bin": 10_000,
    "train.bin": 50_000, "test.bin": 10_000,
}  # fmt: skip
IDX = tuple(f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1"))
IDX_UINT8 = 8  # the type code of unsigned bytes in an idx header
MOST_PIXELS = 2**31  # of an idx file: the largest official one has 47 million
CIFAR_PIXELS = 3 * 32 * 32


class MissingDataError(RefusalError, FileNotFoundError):
    """The files of a set are neither on this machine nor to be had; what each mirror said is in its notes."""


def wrong_file(file: str | Path, rule: str, got: object, call: str = "load_dataset") -> RefusalError:
    """The error for a file that exists but does not hold what it should."""
    return RefusalError(
        f"{call}: {file} must {rule}, got {got}. Replace it with a good copy, "
        f"or remove the set's files there and let load_dataset download the official ones."
    )


def check_files(name: str, files: Sequence[Path]) -> None:
    """Raise for the first file whose checksum is known and differs."""
    for file in files:
        if known := CHECKSUMS[name].get(file.name):
            with file.open("rb") as stream:
                got = checksum(stream, known)
            if got != known:
                raise wrong_file(file, f"have {known}", f"{got} ({file.stat().st_size} bytes)")


def checksum(stream: io.BufferedIOBase, known: str) -> str:
    """`algorithm:hexdigest` of a stream, by the algorithm of the known one (sha256 or md5)."""
    algorithm = known.split(":")[0]
    digest = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False))
    return f"{algorithm}:{digest.hexdigest()}"


def check_labels(
    labels: np.ndarray, classes: int, file: str | Path, call: str = "load_dataset"
) -> Int64[np.ndarray, "sample"]:
    """The labels as int64, when all are in 0..classes - 1."""
    labels = labels.astype(np.int64)
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise wrong_file(file, f"hold labels 0..{classes - 1}", f"{labels.min()}..{labels.max()}", call)
    return labels


# idx files: MNIST and Fashion-MNIST


@takes(folder=check_path)
def read_mnist(
    folder: str | Path,
) -> tuple[
    UInt8[np.ndarray, "sample height width"],
    Int64[np.ndarray, "sample"],
    UInt8[np.ndarray, "test_sample height width"],
    Int64[np.ndarray, "test_sample"],
]:
    """The four idx files of MNIST, Fashion-MNIST, or a set of your own of the same names, as arrays.

    The header decides the number and the size of the images, so that a small set can be read too; no checksum is asked
    for (`load_dataset` checks the official ones first).

    Args:
        folder: holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same with `t10k`, plain or as `.gz`.
    Returns:
        x_train, y_train, x_test, y_test: pixels 0..255 and labels 0..9; the official sets have 60,000 and 10,000 images
        of 28 x 28. ValueError, naming the file, for a header, size or label that is wrong; FileNotFoundError for a file
        that is not there.
    Source:
        LeCun's idx format: bytes 0, 0, type, number of axes, then the length of each axis as big-endian uint32.
    """
    (x_train, y_train), (x_test, y_test) = read_idx_files([_gz_or_plain(Path(folder), stem) for stem in IDX])
    return x_train[:, 0], y_train, x_test[:, 0], y_test


def read_idx_files(files: Sequence[Path]) -> list[Batch]:
    """Train images, train labels, test images, test labels: idx files of 10 classes, one channel."""
    batches = []
    for image_file, label_file in (files[:2], files[2:]):
        images, labels = read_idx(image_file, axes=3), read_idx(label_file, axes=1)
        if len(images) != len(labels):
            raise wrong_file(label_file, f"hold {len(images)} labels, as many as images", len(labels), "read_mnist")
        batches.append((images[:, None], check_labels(labels, 10, label_file, "read_mnist")))
    (train, _), (test, _) = batches
    if train.shape[2:] != test.shape[2:]:
        size = "{} x {}".format
        raise wrong_file(files[2], f"hold {size(*train.shape[2:])} images", size(*test.shape[2:]), "read_mnist")
    return batches


def read_idx(file: Path, axes: int) -> UInt8[np.ndarray, "..."]:
    """One idx file of unsigned bytes, plain or gzipped (told by its content, browsers unpack without renaming)."""
    start, header = bytes([0, 0, IDX_UINT8, axes]), 4 + 4 * axes
    with file.open("rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        raw = unzipped(file, stream, header) if zipped else stream.read(header)
        if len(raw) < header or raw[:4] != start:
            got = f"{raw[:4].hex(' ') or 'nothing'} in {file.stat().st_size} bytes"
            raise wrong_file(file, f"begin with an idx header, {start.hex(' ')} and {axes} sizes", got, "read_mnist")
        shape = tuple(np.frombuffer(raw, ">u4", axes, offset=4).tolist())
        whole = header + math.prod(shape)  # one byte more is unpacked at most, to see that the file ends there
        if math.prod(shape) > MOST_PIXELS:
            raise wrong_file(file, f"say of at most {MOST_PIXELS:,} bytes in its header", shape, "read_mnist")
        stream.seek(0)
        raw = unzipped(file, stream, whole + 1) if zipped else stream.read(whole + 1)
    if 0 in shape or len(raw) != whole:
        rule = f"hold {math.prod(shape)} bytes and at least one, as its header {shape} says"
        raise wrong_file(file, rule, len(raw) - header, "read_mnist")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape).copy()  # writable


def unzipped(file: Path, stream: io.BufferedIOBase, most: int) -> bytes:
    """The first bytes of a gzip file's content."""
    try:
        with gzip.GzipFile(fileobj=stream) as content:
            return content.read(most)
    except (OSError, EOFError, zlib.error) as error:
        got = f"{file.stat().st_size} bytes ({error})"
        raise wrong_file(file, "be a whole gzip file", got, "read_mnist") from error


def _gz_or_plain(folder: Path, stem: str) -> Path:
    for file in (folder / f"{stem}.gz", folder / stem):
        if file.is_file():
            return file
    raise MissingDataError(
        f"read_mnist: `folder` must hold {stem}.gz or {stem}, got {folder} without. "
        f"Put it there, or pass another folder."
    )


# CIFAR: each record is one label byte (CIFAR-100: coarse, then fine) and the red, green and blue planes, row by row


def read_cifar_binary(files: Sequence[Path], classes: int) -> list[Batch]:
    """The loose .bin files of a CIFAR set."""
    return [_cifar_records(file.read_bytes(), file.name, classes, str(file)) for file in files]


def read_cifar_archive(
    files: Sequence[Path], members: Sequence[str], sums: dict[str, str], classes: int
) -> list[Batch]:
    """The named members (paths in the archive) of one .tar.gz, each compared with `sums` where its name is in there.

    They are read into memory and nothing is written, so that no member's path or link can touch the disk.
    """
    (file,), found = files, {}
    try:
        with tarfile.open(file, "r:gz") as archive:
            for member in archive:
                if member.name in members:
                    found[member.name] = _cifar_member(archive, member, file, classes)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise wrong_file(file, "be a whole .tar.gz archive", f"{file.stat().st_size} bytes ({error})") from error
    if missing := [member for member in members if member not in found]:
        raise wrong_file(file, f"have the member {missing[0]}", f"only {', '.join(found) or 'others'}")
    batches = []
    for member in members:
        raw = found[member]
        name, where = Path(member).name, f"{file} [{member}]"
        if name in sums and (got := checksum(io.BytesIO(raw), sums[name])) != sums[name]:
            raise wrong_file(where, f"have {sums[name]}", got)
        batches.append(_cifar_records(raw, name, classes, where))
    return batches


def read_cifar_pickles(files: Sequence[Path], classes: int) -> list[Batch]:
    """The batches of the Python version, by an unpickler that can build an array of bytes and nothing else."""
    return [_cifar_pickle(file, classes) for file in files]


def _cifar_record_bytes(classes: int) -> int:
    return CIFAR_PIXELS + (2 if classes == 100 else 1)


def _cifar_member(archive: tarfile.TarFile, member: tarfile.TarInfo, file: Path, classes: int) -> bytes:
    size = CIFAR_SAMPLES[Path(member.name).name] * _cifar_record_bytes(classes)
    if not member.isfile() or member.size != size:
        got = f"a file of {member.size} bytes" if member.isfile() else "a link or folder"
        raise wrong_file(f"{file} [{member.name}]", f"be a file of {size} bytes", got)
    return archive.extractfile(member).read()


def _cifar_records(raw: bytes, name: str, classes: int, where: str) -> Batch:
    samples, record = CIFAR_SAMPLES[name], _cifar_record_bytes(classes)
    if len(raw) != samples * record:
        raise wrong_file(where, f"hold {samples} records of {record} bytes = {samples * record}", f"{len(raw)} bytes")
    table = np.frombuffer(raw, np.uint8).reshape(samples, record)
    if classes == 100:
        check_labels(table[:, 0], 20, where)  # coarse label
    labels = check_labels(table[:, -CIFAR_PIXELS - 1], classes, where)
    return table[:, -CIFAR_PIXELS:].reshape(samples, 3, 32, 32), labels


def _cifar_pickle(file: Path, classes: int) -> Batch:
    try:
        with file.open("rb") as stream:
            batch = _BytesUnpickler(stream, encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        labels = np.array(batch["fine_labels" if classes == 100 else "labels"])
        images = batch["data"].values.reshape(len(labels), 3, 32, 32)
    except Exception as error:  # a broken pickle may raise anything
        rule = "be a CIFAR batch: a pickled dict of one array of bytes and plain lists"
        raise wrong_file(file, rule, f"{type(error).__name__}: {error}") from error
    if labels.ndim != 1 or labels.dtype.kind != "i":
        raise wrong_file(file, "hold its labels as a list of integers", f"{labels.ndim} axes of {labels.dtype}")
    return images, check_labels(labels, classes, file)


class _ByteType:
    """Stands in for numpy.dtype while unpickling: unsigned bytes only."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"array of {code!r}, not of bytes")

    def __setstate__(self, state: tuple) -> None:
        pass  # byte order and the like: nothing to keep for single bytes


class _ByteArray:
    """Stands in for numpy.ndarray and its maker while unpickling, so that a file never calls numpy itself."""

    def __init__(self, *_: object) -> None:
        pass  # the empty array that pickles start from

    def __setstate__(self, state: tuple) -> None:
        _version, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _ByteType):
            raise pickle.UnpicklingError("array of an unknown type")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


class _BytesUnpickler(pickle.Unpickler):
    """Unpickles dicts, lists, numbers, strings and arrays of bytes; any other name is refused before it is imported."""

    ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _ByteArray,  # as Python 2 wrote the official files
        ("numpy._core.multiarray", "_reconstruct"): _ByteArray,  # as numpy 2 writes
        ("numpy", "ndarray"): _ByteArray,
        ("numpy", "dtype"): _ByteType,
    }

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which was not run")
        return self.ALLOWED[module, name]
