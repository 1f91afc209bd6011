"""How long trainings are, without their data."""

from __future__ import annotations

from pathlib import Path

from lookaround_ddp.config import Config, DataConfig

IMAGES_OF = {"digits": 1000, "fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000, "stanford_cars": 8_144}


def iterations(config: Config) -> int | None:
    """Returns the iterations of a run; None if nobody knows how many images there are."""
    images = training_images(config.data)
    if images is None:
        return None
    size = config.data.batch_size
    per_epoch = images // size if config.data.drop_last else -(-images // size)
    return config.length(per_epoch)


def training_images(data: DataConfig) -> int | None:
    """Returns how many images a run trains on; None of a folder of images that is not there, or of your own."""
    if data.train_images is not None:
        return data.train_images
    whole = IMAGES_OF.get(data.name) or (_count_files(Path(data.root) / "train") if data.name == "imagefolder" else 0)
    return whole - data.validation if whole else None


def done(run: Path) -> int:
    """Returns the iteration of a run's newest checkpoint; 0 without one."""
    try:
        return int((run / "LATEST").read_text())
    except (OSError, ValueError):
        return 0


def _count_files(folder: Path) -> int:
    """Counts the files in the folders of a folder; 0 if it is not there."""
    return sum(1 for path in folder.glob("*/*") if path.is_file()) if folder.is_dir() else 0
