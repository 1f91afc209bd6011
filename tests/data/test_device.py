"""Batches that are made on the device: what is made is a function of image and draws, and nothing waits."""

from __future__ import annotations

import pytest
import torch
from torchvision import transforms as T
from torchvision.transforms import functional as F

from lookaround_ddp.config.load import load_config
from lookaround_ddp.config.schema import Augmentation
from lookaround_ddp.data import make_batches
from lookaround_ddp.data.augmentations import AUGMENTATIONS
from lookaround_ddp.data.datasets import Dataset, open_dataset
from lookaround_ddp.data.device.batches import batched, pixels, resolved
from lookaround_ddp.data.images import Files, Subset
from lookaround_ddp.data.loader import load
from lookaround_ddp.data.transforms import train_pipelines
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.own_code import imported
from tests.support.devices import CPU, PLAIN, dataset, epoch, iterations

ALL = ["crop+hflip+vflip", "rotation", "randaugment", "autoaugment", "perspective", "equalize", "random_resized_crop"]


@pytest.mark.parametrize("name", [*AUGMENTATIONS])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_name_makes_a_uint8_image_of_the_networks_size(name: str, channels: int) -> None:
    data = dataset(4, channels, 20, size=16)
    (batch,) = iterations(data, [name], 4)[0][0]
    assert batch.images.shape == (4, channels, 16, 16)
    assert batch.images.dtype == torch.uint8


def test_without_augmentation_they_are_the_images() -> None:
    for channels in (1, 3):
        data = dataset(6, channels)
        expected = torch.stack([F.pil_to_tensor(data.train.image(n)) for n in range(6)])
        assert torch.equal(epoch(iterations(data, ["none"], 4)), expected)
    some = Subset(data.train, [4, 1])
    assert torch.equal(pixels(some, CPU), expected[[4, 1]])


@pytest.mark.parametrize("own", ALL)
def test_an_image_is_augmented_alike_in_any_batch_and_on_any_rank(own: str) -> None:
    data = dataset()
    whole = epoch(iterations(data, [own]))
    assert torch.equal(epoch(iterations(data, [own], batch=7)), whole)
    shards = [iterations(data, [own], 16, shard=shard, shards=3) for shard in range(3)]
    images = torch.cat([shard[i][0][0].images for i in range(3) for shard in shards])
    labels = torch.cat([shard[i][0][0].labels for i in range(3) for shard in shards])
    assert torch.equal(images, whole[labels])


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            "tests.data.test_batches.invert",
            "data.pipeline=device has no augmentation tests.data.test_batches.invert: set data.pipeline",
        ),
        ({"rotation": {"degrees": 5, "expand": True}}, "no augmentation rotation with expand True: set data.pipeline"),
        ({"perspective": {"fill": 7}}, "no augmentation perspective with fill 7"),
    ],
)
def test_what_a_device_cannot_do_is_named(own: Augmentation, message: str) -> None:
    (pipeline,) = train_pipelines(PLAIN, [own], dataset(), 0.0)
    with pytest.raises(UserError, match=message):
        batched(pipeline)


def test_auto_is_the_device_where_it_can_do_all() -> None:
    def pipeline(data: Dataset, *values: str) -> str:
        return resolved(load_config(None, values), data, imported).data.pipeline

    data = dataset()
    files = Files(["one.png"], [0])
    photographs = Dataset(files, files, 1, 3, 20, None, (0.5,) * 3, (0.5,) * 3, T.AutoAugmentPolicy.IMAGENET)
    own = "replicas=[[hflip],[mixup,tests.data.test_batches.invert]]"
    assert pipeline(data) == "device"  # new runs
    assert pipeline(data, "data.pipeline=workers") == "workers"
    assert pipeline(data, "data.pipeline=auto", "replicas=[[hflip],[mixup]]") == "device"
    assert pipeline(data, "data.pipeline=auto", own) == "workers"
    assert pipeline(photographs, "data.pipeline=auto") == "workers"
    with pytest.raises(UserError, match=r"device has no augmentation tests\.data\.test_batches\.invert"):
        pipeline(data, "data.pipeline=device", own)
    with pytest.raises(UserError, match=r"data\.pipeline=device is for images in memory, and these are in files"):
        pipeline(photographs, "data.pipeline=device")


def test_the_training_keeps_its_threads() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        found = epoch(iterations(dataset(), ["randaugment"]))
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        assert torch.equal(epoch(iterations(dataset(), ["randaugment"])), found)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("own", ALL)
def test_a_gpu_makes_the_same_pixels_and_is_not_waited_for(own: str) -> None:
    data = dataset()
    batches = iterations(data, [own])
    on_gpu = iterations(data, [own])
    on_gpu.stored = batches.stored.cuda()
    on_gpu[0]
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = on_gpu[0][0][0].images
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), batches[0][0][0].images)


def test_the_loader_makes_them_in_its_own_process_whatever_the_workers() -> None:
    config = load_config(None, ["data.train_images=40", "data.batch_size=16", "data.workers=2"])
    world = World(0, 1, 3, torch.device("cpu"), "none")
    asked = {name: config.data.model_copy(update={"pipeline": name}) for name in ("workers", "device")}
    made = {
        name: make_batches(config.model_copy(update={"data": data}), open_dataset(data, 0), world, imported)
        for name, data in asked.items()
    }
    assert {name: batches.workers for name, batches in made.items()} == {"workers": 2, "device": 0}
    batches = made["device"]
    found = [hosted[0][0].images for hosted in load(batches, range(3), batches.workers, world.device)]
    assert all(torch.equal(images, batches[number][0][0].images) for number, images in enumerate(found))
