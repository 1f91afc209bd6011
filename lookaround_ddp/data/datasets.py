"""Labelled images by name: digits, Fashion-MNIST, CIFAR-10 and -100, Stanford Cars, folders of images."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from PIL import Image
from torchvision.transforms import AutoAugmentPolicy

from lookaround_ddp import seeds
from lookaround_ddp.config import DataConfig
from lookaround_ddp.data.folders import class_folders
from lookaround_ddp.data.images import Arrays, Files, Images, Subset
from lookaround_ddp.data.own_data import open_own
from lookaround_ddp.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """The splits of a dataset and what a network and its augmentations must know of it."""

    train: Images
    test: Images
    classes: int
    channels: int
    size: int  # side of the square images that the network sees
    native: int | None  # side of the stored images; None: they vary
    mean: tuple[float, ...]
    std: tuple[float, ...]
    policy: AutoAugmentPolicy
    validation: Images | None = None
    class_names: tuple[str, ...] = ()  # empty: their numbers

    @cached_property
    def trained_on(self) -> str:
        """Which training images these are: with one of them lost, indices would mean others."""
        labels = np.asarray(self.train.labels, np.int64)
        return f"{len(labels)} images with labels {hashlib.sha256(labels.tobytes()).hexdigest()[:12]}"


def open_dataset(config: DataConfig, seed: int) -> Dataset:
    """Opens the dataset that the config names, and limits and splits its training images as the config says.

    Raises:
        UserError: files are missing (and how to get them) or damaged, or more images are asked for than there are.
    """
    if config.options and config.name in OPENERS:
        raise UserError(f"data.options are for a dataset of your own, not for {config.name}")
    dataset = OPENERS.get(config.name, _own_dataset)(config)
    for name, split in (("training", dataset.train), ("test", dataset.test)):
        _check_split(split, dataset, f"the {name} images of {config.name} in {config.root}")
    if config.mean is not None and config.std is not None:
        dataset = replace(dataset, mean=config.mean, std=config.std)
    if len(dataset.mean) != dataset.channels or len(dataset.std) != dataset.channels:
        raise UserError(f"data.mean and data.std need {dataset.channels} values each for {config.name}")
    if config.size is not None:
        dataset = replace(dataset, size=config.size)
    available = len(dataset.train)
    count = config.train_images or available - config.validation
    if count < 1 or count + config.validation > available:
        raise UserError(
            f"data.train_images ({config.train_images}) and data.validation ({config.validation}) ask for more "
            f"than the {available} training images of {config.name}"
        )
    if count < available:
        order = seeds.permutation(available, split_seed(config, seed), seeds.SPLIT).tolist()
        whole = dataset.train
        held_out = Subset(whole, order[available - config.validation :]) if config.validation else None
        dataset = replace(dataset, train=Subset(whole, order[:count]), validation=held_out)
    return dataset


def _check_split(split: Images, dataset: Dataset, name: str) -> None:
    """Raises UserError unless there are images, all of the dataset's size, each with one of its labels."""
    if isinstance(split, Arrays):
        images, shape = len(split.pixels), split.pixels.shape[1:]
        if images != len(split.labels):
            raise UserError(f"{name}: there are {images} of them and {len(split.labels)} labels")
        if shape[:2] != (dataset.native, dataset.native):
            raise UserError(
                f"{name}: they have {'x'.join(map(str, shape))} pixels, not {dataset.native}x{dataset.native}"
            )
    if len(split) == 0:
        raise UserError(f"{name}: there are none")
    labels = np.asarray(split.labels)
    if labels.min() < 0 or labels.max() >= dataset.classes:
        place = int(((labels < 0) | (labels >= dataset.classes)).argmax())
        raise UserError(f"{name}: number {place} has label {labels[place]}, not one of 0 to {dataset.classes - 1}")


def split_seed(config: DataConfig, seed: int) -> int:
    """Returns the seed that draws the training images and the held-out ones: the run's, unless the config has one."""
    return seed if config.split_seed is None else config.split_seed


def _digits(config: DataConfig) -> Dataset:
    """Opens 1,797 handwritten digits (UCI optdigits, from scikit-learn), enlarged from 8 x 8 to 16 x 16 pixels.

    The first 1,000 of the file are for training and the last 797 for testing.
    """
    from sklearn.datasets import load_digits  # imported here: it takes a second, and only digits need it

    bunch = load_digits()
    small = [Image.fromarray(pixels) for pixels in (bunch.images * (255 / 16)).astype(np.uint8)]
    pixels = np.stack([np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)) for image in small])
    labels = bunch.target.tolist()
    train, test = Arrays(pixels[:1000], labels[:1000]), Arrays(pixels[1000:], labels[1000:])
    return Dataset(train, test, 10, 1, 16, 16, (0.306,), (0.319,), AutoAugmentPolicy.SVHN)


def _fashion_mnist(config: DataConfig) -> Dataset:
    """Opens pictures of clothes, 28 x 28, in torchvision's folder or in a flat folder of idx files, gzipped or not."""
    root = Path(config.root)
    flat = root / "train-images-idx3-ubyte"
    if flat.is_file() or flat.with_suffix(".gz").is_file():
        train, test = _idx_split(root, "train"), _idx_split(root, "t10k")
    else:
        train, test = (
            Arrays(split.data.numpy(), split.targets.tolist())
            for split in _torchvision_splits(torchvision.datasets.FashionMNIST, config)
        )
    names = tuple(torchvision.datasets.FashionMNIST.classes)
    return Dataset(train, test, 10, 1, 28, 28, (0.2860,), (0.3530,), AutoAugmentPolicy.CIFAR10, class_names=names)


def _cifar10(config: DataConfig) -> Dataset:
    return _cifar(config, torchvision.datasets.CIFAR10, 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def _cifar100(config: DataConfig) -> Dataset:
    return _cifar(config, torchvision.datasets.CIFAR100, 100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def _cifar(config: DataConfig, kind: type, classes: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Dataset:
    splits = _torchvision_splits(kind, config)
    train, test = (Arrays(split.data, split.targets) for split in splits)
    names = tuple(splits[0].classes)
    return Dataset(train, test, classes, 3, 32, 32, mean, std, AutoAugmentPolicy.CIFAR10, class_names=names)


def _imagefolder(config: DataConfig) -> Dataset:
    """Opens `root`/train/CLASS/*.jpg to train and `root`/val/CLASS/*.jpg to test; ImageNet is such a folder."""
    train, val, names = class_folders(Path(config.root), config.missing_class == "allow")
    return _photographs(train, val, len(names), names)


def _stanford_cars(config: DataConfig) -> Dataset:
    """Opens photographs of 196 models of cars, 8,144 to train and 8,041 to test, in torchvision's `stanford_cars`."""
    if config.download:
        raise UserError(
            "stanford_cars cannot be downloaded any more: its source is gone; data.root=DIR says where it is"
        )
    splits = []
    for name in ("train", "test"):
        try:
            split = torchvision.datasets.StanfordCars(config.root, split=name)
            paths, labels = zip(*split._samples, strict=True)  # torchvision's class offers the paths nowhere else
        except Exception as error:  # on a damaged file scipy's reader may raise any exception
            raise UserError(
                f"no Stanford Cars in {Path(config.root).resolve()}/stanford_cars ({error}): it holds cars_train/, "
                "cars_test/, cars_test_annos_withlabels.mat and devkit/"
            ) from None
        splits.append(Files(paths, labels))
        names = tuple(split.classes)
    train, test = splits
    return _photographs(train, test, 196, names)


def _photographs(train: Files, test: Files, classes: int, names: tuple[str, ...]) -> Dataset:
    """Makes a dataset of photos, seen by the network at 224 px, normalized and augmented as ImageNet usually is."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    policy = AutoAugmentPolicy.IMAGENET
    return Dataset(train, test, classes, 3, 224, None, mean, std, policy, class_names=names)


def _own_dataset(config: DataConfig) -> Dataset:
    """Opens images of somebody's own: without data.size all have one, with it they are shown as photographs are.

    By default they are normalized as ImageNet usually is, grey ones by the mean of its colours.
    """
    train, test, names = open_own(config)
    policy = AutoAugmentPolicy.IMAGENET if train.side is None else AutoAugmentPolicy.CIFAR10
    classes = len(names) or 1 + max(*train.labels, *test.labels)
    mean, std = ((0.449,), (0.226,)) if train.mode == "L" else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    size, native = config.size or train.side or 224, train.side
    return Dataset(train, test, classes, len(mean), size, native, mean, std, policy, class_names=names)


def _noise(config: DataConfig) -> Dataset:
    """Makes random images, to measure speed with: 50,000 of 32 px, or as many bytes of larger ones; 512 to test."""
    size = config.size or 32
    count = max(1024, 50_000 * 32**2 // size**2)
    splits = []
    for number, images in enumerate((count, 512)):
        draws = np.random.default_rng(number)
        pixels = draws.integers(0, 256, (images, size, size, 3), dtype=np.uint8)
        splits.append(Arrays(pixels, draws.integers(0, 10, images).tolist()))
    half = (0.5, 0.5, 0.5)
    return Dataset(splits[0], splits[1], 10, 3, size, size, half, half, AutoAugmentPolicy.CIFAR10)


OPENERS = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "stanford_cars": _stanford_cars,
    "imagefolder": _imagefolder,
    "noise": _noise,
}


def _torchvision_splits(kind: type, config: DataConfig) -> tuple[Any, Any]:
    """Opens torchvision's dataset of that class twice; returns the training split and the test split."""
    try:
        train, test = (kind(config.root, train=train, download=config.download) for train in (True, False))
        return train, test
    except Exception as error:  # it is missing, or damaged in a way that the reader did not expect
        hint = "data.root=DIR says where it is, data.download=true fetches it"
        if config.name == "fashion_mnist":
            hint += "; Debian's package dataset-fashion-mnist installs it in /usr/share/datasets/fashion-mnist"
        raise UserError(f"no {config.name} under {Path(config.root).resolve()} ({error}): {hint}") from None


def _idx_split(root: Path, stem: str) -> Arrays:
    pixels = _idx(root / f"{stem}-images-idx3-ubyte", 3)
    return Arrays(pixels, _idx(root / f"{stem}-labels-idx1-ubyte", 1).tolist())


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """Reads the uint8 array of an idx file (LeCun's MNIST format): a magic number, the shape, the bytes."""
    try:
        data = path.read_bytes() if path.is_file() else gzip.decompress(path.with_suffix(".gz").read_bytes())
        magic, *shape = np.frombuffer(data, ">i4", 1 + dimensions)
        if magic != 0x800 + dimensions:
            raise ValueError(f"magic number {magic:#x}")
        return np.frombuffer(data, np.uint8, offset=4 * (1 + dimensions)).reshape(shape)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path} is not a readable idx file: {error}") from None
