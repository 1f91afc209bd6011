"""A network and a loss of somebody's own: how they are called, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lookaround_ddp.config.load import make_config
from lookaround_ddp.config.schema import Config, ModelConfig
from lookaround_ddp.errors import UserError
from lookaround_ddp.models import create_model, empty_model
from lookaround_ddp.training.loss import make_loss
from tests.support.own_code import HERE, Net

CPU = torch.device("cpu")


def made(name: str, **values: Any) -> nn.Module:
    return create_model(ModelConfig(name=name, **values), 5, 3)


def test_a_network(tmp_path: Path) -> None:
    model = made(f"{HERE}.Net", options={"hidden": 7})
    assert isinstance(model, Net)
    assert (model.inner.weight.shape, model.fc.weight.shape) == ((7, 192), (5, 7))
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    other = made(f"{HERE}.Net", options={"hidden": 7}, pretrained=str(path))
    assert torch.equal(other.inner.weight, model.inner.weight)
    with pytest.raises(UserError, match=r"does not fit the model: 3 tensors too many, 0 missing, such as inner.weight"):
        made(f"{HERE}.Net", pretrained=str(path))
    config = ModelConfig(name=f"{HERE}.Checkpointed", checkpointing=True)
    assert create_model(config, 5, 3).checkpointing
    assert not hasattr(empty_model(config, 5, 3), "checkpointing")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        (f"{HERE}.Nix", {}, "model .*Nix: module 'tests.support.own_code' has no attribute 'Nix'"),
        ("nobodys.Net", {}, "No module named 'nobodys': start from the folder in which it lies, or name that in"),
        ("tests.support.broken_code.Net", {}, "model .*: ZeroDivisionError: division by zero"),
        (f"{HERE}.Net", {"options": {"depth": 2}}, "TypeError: .* unexpected keyword argument 'depth'"),
        (f"{HERE}.nothing", {}, "it returned NoneType, no torch.nn.Module"),
        (f"{HERE}.lazy", {}, "a lazy layer has no weights before it sees an image"),
        (f"{HERE}.Net", {"dropout": 0.5}, "model.dropout is not for"),
        (f"{HERE}.Net", {"pretrained": True}, "no published weights for .*: give model.pretrained a path"),
        (f"{HERE}.Net", {"width": 4}, "model.width is for resnet8"),
        ("my/Net", {}, r"unknown model 'my/Net': .*your own my.module.Net"),
    ],
)
def test_what_is_no_network(
    name: str, values: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        made(name, **values)
    assert "\n" not in str(raised.value)
    assert ("Traceback" in capsys.readouterr().err) == ("Error: " in message)


LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 0.0]], requires_grad=True)
LABELS = torch.tensor([0, 2])


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        # sum over the other classes of max(0, by - x_y + x_i), divided by the 3 classes; mean of two images
        (f"{HERE}.margin", ((0 + 0) / 3 + (1 + 1.5) / 3) / 2),
        ({f"{HERE}.margin": {"by": 2.0}}, ((1 + 0) / 3 + (2 + 2.5) / 3) / 2),
        ("torch.nn.MultiMarginLoss", ((0 + 0) / 3 + (1 + 1.5) / 3) / 2),
        ({"torch.nn.MultiMarginLoss": {"margin": 2.0}}, ((1 + 0) / 3 + (2 + 2.5) / 3) / 2),
    ],
)
def test_a_loss(loss: Any, value: float) -> None:
    assert make_loss(make_config({"loss": loss}), CPU)(LOGITS, LABELS).item() == pytest.approx(value)


def test_cross_entropy_has_the_bits_that_it_had() -> None:
    logits, labels = torch.randn(6, 4, requires_grad=True), torch.tensor([0, 1, 2, 3, 0, 1])
    targets = torch.rand(6, 4).softmax(1)
    loss = make_loss(make_config({"label_smoothing": 0.1}), CPU)
    assert torch.equal(loss(logits, labels), nn.functional.cross_entropy(logits, labels, label_smoothing=0.1))
    assert torch.equal(loss(logits, targets), nn.functional.cross_entropy(logits, targets))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (f"{HERE}.each", "it returned 2 values: return their mean"),
        (f"{HERE}.nothing", "it returned NoneType, no tensor"),
        (f"{HERE}.constant", "has no gradient"),
        (f"{HERE}.Trained", "it has parameters, which no optimizer would train"),
        ({"torch.nn.MultiMarginLoss": {"nix": 2}}, "TypeError: .*'nix'"),
        (f"{HERE}.nix", "has no attribute 'nix'"),
    ],
)
def test_what_is_no_loss(loss: Any, message: str) -> None:
    def value() -> Tensor:
        return make_loss(make_config({"loss": loss}), CPU)(LOGITS, LABELS)

    with pytest.raises(UserError, match=f"loss .*{message}"):
        value()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "focal"}, "loss is focal: it should be cross_entropy, or the path of"),
        ({"loss": {}}, "loss is {}: it should be"),
        ({"loss": {"a.b": {}, "c.d": {}}}, "it should be"),
        ({"loss": "a.b", "label_smoothing": 0.1}, "label_smoothing is cross_entropy's, and loss is a.b"),
        ({"data": {"name": "my/data"}}, "data.name is 'my/data': should be 'digits'"),
    ],
)
def test_refused_configs(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_config(values)


def test_what_of_a_config_is_somebodys_own() -> None:
    assert Config().own_code() == []
    config = make_config(
        {"model": {"name": "timm:resnet50.a1_in1k"}, "data": {"name": "a.b"}, "loss": {"c.d": {"e": 1}}}
    )
    assert config.own_code() == [("dataset", "a.b"), ("loss", "c.d")]
