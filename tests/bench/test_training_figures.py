"""What `bench train` computes: operations and MFU by hand, and the original's loop by the mean of two networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lookaround_ddp.bench import flops
from lookaround_ddp.bench.original_loop import average_models, parse_options, train_original
from lookaround_ddp.config.schema import ModelConfig
from lookaround_ddp.models.factory import create_model


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (nn.Linear(3, 5), (3,), 30 + 30),  # forward, the weight's gradient; images need none
        (nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 7)), (3,), (30 + 70) + (30 + 70) + 70),
        # 4 x 4 places, 8 filters of 3 x 3 x 3: 2 * 16 * 8 * 27 = 6912, twice
        (nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten()), (3, 4, 4), 2 * 6912),
        (nn.BatchNorm1d(3), (3,), None),  # nothing that is counted
    ],
)
def test_operations_of_an_image(model: nn.Module, shape: tuple[int, ...], expected: int | None) -> None:
    assert flops.per_image(model, shape) == expected


def test_operations_of_a_network() -> None:
    """ResNet-18 at 224 px has 1.81 G multiplications and additions forward; backward twice that, less the images'."""
    model = create_model(ModelConfig(name="timm:resnet18"), 1000)
    stem = 2 * 112 * 112 * 64 * 3 * 49
    operations = flops.per_image(model, (3, 224, 224))
    assert operations is not None
    assert operations + stem == pytest.approx(3 * 2 * 1.814e9, rel=0.001)


def test_what_cannot_be_counted_is_nothing() -> None:
    class Fails(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("an operation without a formula")

    assert flops.per_image(Fails(3, 5), (3,)) is None


def test_utilization() -> None:
    """2 MFLOP an image, 1,000 images/s, on two cores of 10 GFLOP/s."""
    assert flops.utilization(2_000_000, 1000.0, 10e9, units=2) == pytest.approx(0.1)
    assert flops.utilization(None, 1000.0, 10e9, units=2) is None
    assert flops.utilization(2_000_000, 1000.0, None, units=2) is None


def test_a_products_speed_leaves_the_settings() -> None:
    threads, precision = torch.get_num_threads(), torch.backends.cuda.matmul.fp32_precision
    assert flops.product_speed(torch.device("cpu")) > 0
    with flops._like_convolutions():
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision
    assert (torch.get_num_threads(), torch.backends.cuda.matmul.fp32_precision) == (threads, precision)


def test_the_mean_of_state_dicts() -> None:
    """Weights, running statistics; of counters, 3 and 4, the mean rounded down."""
    models = [nn.BatchNorm1d(2), nn.BatchNorm1d(2)]
    for model, weight, mean, count in zip(
        models, ([1.0, 2.0], [3.0, 8.0]), ([0.5, 1.0], [1.5, 2.0]), (3, 4), strict=True
    ):
        model.weight.data, model.running_mean, model.num_batches_tracked = map(torch.tensor, (weight, mean, count))
    average_models(models)
    for model in models:
        assert model.weight.tolist() == [2.0, 5.0]
        assert model.running_mean.tolist() == [1.0, 1.5]
        assert model.num_batches_tracked.item() == 3


def original(*arguments: str) -> tuple[float, list[dict[str, Tensor]]]:
    """The loss of a short run on digits, and the networks' state dicts."""
    torch.manual_seed(0)
    _, loss, models = train_original(parse_options(["--batch-size=20", "--warm-up=1", *arguments]))
    return loss, [model.state_dict() for model in models]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_originals_loop() -> None:
    """Three iterations with k = 3 end in the mean of the two networks that three without an average end in."""
    loss, (one, other) = original("--iterations=3", "--k=4")
    assert not equal(one, other)
    averaged_loss, averaged = original("--iterations=3", "--k=3")
    assert averaged_loss == loss
    for state in averaged:
        assert all(torch.allclose(state[name], (one[name] + other[name]) / 2) for name in one if "tracked" not in name)
    assert equal(*averaged)
    _, after = original("--iterations=4", "--k=3")
    assert not equal(*after)
    assert not equal(after[0], averaged[0])
