"""The data sets that nets are trained on: whole sets as tensors on one device, from checksummed files."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from flowstudy.arguments import is_whole
from flowstudy.refusal import RefusalError, did_you_mean
from flowstudy.torch_arguments import check_torch_device

from .download import download, package
from .read_files import (
    CHECKSUMS,
    IDX,
    Batch,
    MissingDataError,
    check_files,
    check_labels,
    checksum,
    read_cifar_archive,
    read_cifar_binary,
    read_cifar_pickles,
    read_idx_files,
    read_mnist,
)

__all__ = ["DATASETS", "Dataset", "load_dataset", "read_mnist"]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A classification set, all of it, as tensors on one device.

    Attributes:
        name: as in `load_dataset`.
        x_train: pixels in [0, 1]; axes sample, channel, height, width, or sample, feature after `.flat()`.
        y_train: class of each sample, 0..classes - 1.
        x_test: as x_train.
        y_test: as y_train.
        classes: number of classes.
    """

    name: str
    x_train: Float[Tensor, "sample *pixel"]
    y_train: Int64[Tensor, "sample"]
    x_test: Float[Tensor, "test_sample *pixel"]
    y_test: Int64[Tensor, "test_sample"]
    classes: int

    def __repr__(self) -> str:
        train, test = tuple(self.x_train.shape), tuple(self.x_test.shape)
        return f"Dataset({self.name!r}, train {train}, test {test}, {self.classes} classes, on {self.x_train.device})"

    def flat(self) -> "Dataset":
        """The same set with one axis of features, channel by channel and row by row.

        Returns:
            A Dataset, x_train and x_test (sample, feature).
        """
        return replace(self, x_train=self.x_train.flatten(1), x_test=self.x_test.flatten(1))

    def to(self, device: str | torch.device) -> "Dataset":
        """The same set on another device.

        Returns:
            A Dataset; tensors that are on the device already are not copied.
        """
        check_torch_device("Dataset.to", "device", device)
        tensors = {key: getattr(self, key).to(device) for key in ("x_train", "y_train", "x_test", "y_test")}
        return replace(self, **tensors)

    def subset(self, train: int) -> "Dataset":
        """The first `train` training samples in the order of the files, and the whole test set.

        Returns:
            A Dataset.
        """
        if not is_whole(train) or not 1 <= train <= len(self.x_train):
            raise RefusalError(
                f"Dataset.subset: `train` must be 1..{len(self.x_train)}, the samples of {self.name!r}, got {train}. "
                f"Ask for fewer, or for at least one."
            )
        return replace(self, x_train=self.x_train[:train], y_train=self.y_train[:train])


def load_dataset(
    name: str,
    *,
    device: str | torch.device = "cpu",
    folder: str | Path | None = None,
    download: bool = True,
) -> Dataset:
    """A data set as float32 tensors on `device`.

    | name | train, test samples | pixels | terms and citation |
    |---|---|---|---|
    | digits | 1,500, 297 | 1 x 8 x 8 | inside scikit-learn; UCI, CC BY 4.0; Alpaydin & Kaynak 1998 |
    | mnist | 60,000, 10,000 | 1 x 28 x 28 | usually quoted as CC BY-SA 3.0; LeCun et al. 1998 |
    | fashion_mnist | 60,000, 10,000 | 1 x 28 x 28 | MIT; Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747 |
    | cifar10 | 50,000, 10,000 | 3 x 32 x 32 | none stated, asks to cite Krizhevsky 2009 |
    | cifar100 | 50,000, 10,000 | 3 x 32 x 32 | as cifar10; the 100 fine labels |

    `digits` is split in file order, which goes writer by writer: but for some tens of samples at the seam, the test
    digits are by hands that the training set has not seen. That is harder than a shuffled split (1-nearest-neighbour
    accuracy 0.946 against 0.990).

    Every file is compared with its published checksum before it is read (the loose .bin files of CIFAR-100, which have
    none, with their size). A folder counts once it holds any file of the set; then all must be there and right.

    Args:
        name: one of the table.
        device: where the tensors go.
        folder: read from here and nowhere else: the set's own folder, or one laid out as FLOWSTUDY_DATA.
            Without it: the folder that the environment variable FLOWSTUDY_DATA names, where it has the set (mnist/,
            fashion-mnist/, cifar-10/, cifar-100/, or as torchvision lays them out); then the cache, which is pooch's,
            or FLOWSTUDY_CACHE.
        download: whether files that are not in the cache may be fetched into it.
    Returns:
        The set: x float32 in [0, 1], pixels / 255 (digits: / 16), y int64. ValueError for an unknown name or a file
        that is damaged; FileNotFoundError for files that are neither here nor to be had, with each mirror's reason as
        a note.
    """
    if not isinstance(name, str) or name not in DATASETS:
        raise RefusalError(_unknown(name))
    check_torch_device("load_dataset", "device", device)  # a missing device is an error before the download
    if name == "digits":
        return _as_tensors(name, _digits(), classes=10, largest=16, device=device)
    form, files = _locate(name, folder, download)
    check_files(name, files)
    return _as_tensors(name, form.read(files), SOURCES[name].classes, largest=255, device=device)


def fetch_dataset(name: str) -> None:
    """Download the files of a set unless they are on this machine; errors as of `load_dataset`."""
    if name != "digits":
        _locate(name, None, download=True)


# Sources of each data set: the forms in which its files exist, the folders to search, the mirrors to download from


@dataclass(frozen=True)
class Form:
    files: tuple[str, ...]  # test last
    read: Callable[[Sequence[Path]], list[Batch]]


@dataclass(frozen=True)
class Source:
    classes: int
    folders: tuple[str, ...]  # under FLOWSTUDY_DATA, in order; the first is also the one in the cache
    forms: tuple[Form, ...]  # in order of preference; the first is the one downloaded


IDX_FORMS = (Form(tuple(f"{file}.gz" for file in IDX), read_idx_files), Form(IDX, read_idx_files))
CIFAR10 = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")

MIRRORS: dict[str, tuple[str, ...]] = {  # tried in order; the file's name is appended
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://raw.githubusercontent.com/fgnt/mnist/master/",
    ),
    "fashion_mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    "cifar10": ("https://www.cs.toronto.edu/~kriz/",),
    "cifar100": ("https://www.cs.toronto.edu/~kriz/",),
}


def _cifar_source(name: str, classes: int, batches: tuple[str, ...], binary_folder: str, python_folder: str) -> Source:
    own, members = f"cifar-{classes}", tuple(f"{batch}.bin" for batch in batches)
    paths = [f"{binary_folder}/{member}" for member in members]
    archive = partial(read_cifar_archive, members=paths, sums=CHECKSUMS[name], classes=classes)
    forms = (
        Form((f"{own}-binary.tar.gz",), archive),
        Form(members, partial(read_cifar_binary, classes=classes)),
        Form(batches, partial(read_cifar_pickles, classes=classes)),
    )
    folders = (own, f"{own}/{binary_folder}", f"{own}/{python_folder}", binary_folder, python_folder)
    return Source(classes, folders, forms)


SOURCES = {
    "mnist": Source(10, ("mnist", "MNIST/raw"), IDX_FORMS),
    "fashion_mnist": Source(10, ("fashion-mnist", "FashionMNIST/raw"), IDX_FORMS),
    "cifar10": _cifar_source("cifar10", 10, CIFAR10, "cifar-10-batches-bin", "cifar-10-batches-py"),
    "cifar100": _cifar_source("cifar100", 100, ("train", "test"), "cifar-100-binary", "cifar-100-python"),
}

DATASETS = ("digits", *SOURCES)  # the names that load_dataset knows
TRAIN_SAMPLES = {"digits": 1500, "mnist": 60_000, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}


# Where the files are


def _locate(name: str, folder: str | Path | None, download: bool) -> tuple[Form, list[Path]]:
    places = [Path(folder, sub).expanduser() for sub in (*SOURCES[name].folders, ".")] if folder is not None else []
    if folder is None and os.environ.get("FLOWSTUDY_DATA"):
        places = [Path(os.environ["FLOWSTUDY_DATA"], sub).expanduser() for sub in SOURCES[name].folders]
    for place in places:
        if found := _find(name, place):
            return found
    first = ", ".join(SOURCES[name].forms[0].files)
    if folder is not None:
        raise MissingDataError(
            f"load_dataset: `folder` must hold the files of {name!r} ({first}) or a folder {SOURCES[name].folders[0]} "
            f"with them, got {folder} with none. Correct it, or leave `folder` out to have them downloaded."
        )
    cache = _cache_folder() / SOURCES[name].folders[0]
    if download:
        return _fetch(name, cache)
    if found := _find(name, cache):
        return found
    raise MissingDataError(
        f"load_dataset: {name!r} must be on this machine when download=False, got none of its files in "
        f"{', '.join(map(str, [*places, cache]))}. Pass download=True, or put {first} into {SOURCES[name].folders[0]}/ "
        f"of a folder and set FLOWSTUDY_DATA to it."
    )


def _find(name: str, folder: Path) -> tuple[Form, list[Path]] | None:
    """The first form of which `folder` has every file; None if it has no file of any."""
    begun = []
    for form in SOURCES[name].forms:
        missing = [file for file in form.files if not (folder / file).is_file()]
        if not missing:
            return form, [folder / file for file in form.files]
        if len(missing) < len(form.files):
            begun.append(missing)
    if not begun:
        return None
    raise MissingDataError(
        f"load_dataset: {folder} must hold every file of {name!r}, got it without {', '.join(min(begun, key=len))}. "
        f"Put the rest there, or remove the set's files there and let load_dataset download them."
    )


def _cache_folder() -> Path:
    if given := os.environ.get("FLOWSTUDY_CACHE"):
        return Path(given).expanduser()
    return Path(package("pooch").os_cache("flowstudy"))


# Downloads


def _fetch(name: str, folder: Path) -> tuple[Form, list[Path]]:
    """The downloaded form of a set, in the cache: each file from the first mirror that serves the right bytes."""
    form = SOURCES[name].forms[0]
    for file in form.files:
        _fetch_file(name, file, folder)
    return form, [folder / file for file in form.files]


def _fetch_file(name: str, file: str, folder: Path) -> None:
    known, target = CHECKSUMS[name][file], folder / file
    if target.is_file():
        with target.open("rb") as stream:
            if checksum(stream, known) == known:
                return
    failures = []
    for mirror in MIRRORS[name]:
        if (failure := download(mirror + file, known, target)) is None:
            return
        failures.append(f"{mirror}{file}: {failure}")
    here = f"{SOURCES[name].folders[0]}/{file}"
    data = os.environ.get("FLOWSTUDY_DATA")
    error = MissingDataError(
        f"load_dataset: {name!r} must come from a mirror that serves the official {file} ({known}), got "
        f"{len(failures)} that cannot be reached or do not. Put the file into {folder}, or set FLOWSTUDY_DATA "
        f"{f'(now {data}, without it) ' if data else ''}to a folder that has {here}."
    )
    for failure in failures:
        error.add_note(failure)
    raise error


# Into tensors


def _digits() -> list[Batch]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = bunch.images.astype(np.uint8)[:, None], check_labels(bunch.target, 10, "scikit-learn's digits")
    return [(images[:1500], labels[:1500]), (images[1500:], labels[1500:])]


def _as_tensors(name: str, batches: Sequence[Batch], classes: int, largest: int, device: str | torch.device) -> Dataset:
    def part(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        images, labels = (torch.from_numpy(np.concatenate(arrays)).to(device) for arrays in zip(*batches, strict=True))
        return images.float().div_(largest), labels  # bytes travel to the device, not floats

    return Dataset(name, *part(batches[:-1]), *part(batches[-1:]), classes)


def _unknown(name: object) -> str:
    hint = did_you_mean(str(name).lower().replace("-", "_"), DATASETS) or " Pass one of these."
    return f"load_dataset: `name` must be one of {', '.join(map(repr, DATASETS))}, got {name!r}.{hint}"
