"""Networks, their starting weights, and their optimizers."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from lookaround_ddp.config.schema import ModelConfig, OptimizerConfig
from lookaround_ddp.errors import UserError
from lookaround_ddp.models.factory import compensate_norm_momentum, create_model
from lookaround_ddp.models.resnet import GroupedBottleneck
from lookaround_ddp.optim.factory import create_optimizer, set_learning_rate

COUNTED = {  # millions of parameters for 100 classes, of the networks in the authors' code
    "resnet18": 11.22,
    "resnet50": 23.71,
    "resnet101": 42.70,
    "resnet152": 58.34,
    "resnext50": 14.79,
    "vgg19": 39.33,
}


@pytest.mark.parametrize("name", COUNTED)
def test_parameter_counts_of_the_cifar_networks(name: str) -> None:
    with torch.device("meta"):
        model = create_model(ModelConfig(name=name), num_classes=100)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == COUNTED[name]


def test_vgg_for_small_images() -> None:
    """16 convolutions and 3 linear layers; at 32 px one pixel is left, at 28 and 40 px it is rounded up and pooled."""
    model = create_model(ModelConfig(name="vgg19"), num_classes=10, in_chans=1).eval()
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 16
    linear = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert linear == [(512, 4096), (4096, 4096), (4096, 10)]
    for side, left in ((32, 1), (28, 1), (40, 2)):
        assert model.features(torch.zeros(1, 1, side, side)).shape == (1, 512, left, left)
        assert model(torch.zeros(1, 1, side, side)).shape == (1, 10)
    for dropout, expected in ((None, 0.5), (0.0, 0.0), (0.2, 0.2)):
        other = create_model(ModelConfig(name="vgg19", dropout=dropout), num_classes=10)
        assert [m.p for m in other.modules() if isinstance(m, nn.Dropout)] == [expected, expected]


def test_a_grouped_block_is_32_paths_that_see_their_own_slice() -> None:
    """Fig. 3a of the ResNeXt paper, summed path by path; the paths end in one 1x1 convolution, as sums may."""
    torch.manual_seed(0)
    block = GroupedBottleneck(64, 64, stride=2).double().eval()
    x = torch.randn(2, 64, 8, 8, dtype=torch.float64)
    out = torch.zeros(2, 256, 4, 4, dtype=torch.float64)
    for path in range(32):
        own, wide = slice(2 * path, 2 * path + 2), slice(4 * path, 4 * path + 4)
        y = torch.einsum("ncij,oc->noij", x[:, own], block.conv1.weight[wide, :, 0, 0])
        y = torch.relu(y / (1 + 1e-5) ** 0.5)  # batch-norm as it is made: mean 0, variance 1
        y = torch.relu(nn.functional.conv2d(y, block.conv2.weight[wide], stride=2, padding=1) / (1 + 1e-5) ** 0.5)
        out += torch.einsum("ncij,oc->noij", y, block.conv3.weight[:, wide, 0, 0])
    expected = torch.relu(out / (1 + 1e-5) ** 0.5 + block.shortcut(x))
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(("name", "depth"), [("resnet8", 8), ("resnet14", 14), ("resnet20", 20)])
def test_small_resnets_have_their_depth_and_keep_the_resolution_at_first(name: str, depth: int) -> None:
    model = create_model(ModelConfig(name=name), num_classes=10, in_chans=1)
    weighted = [m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n]
    assert len(weighted) == depth
    sizes: list[tuple[int, ...]] = []
    for stage in model.stages:
        stage.register_forward_hook(lambda module, args, out: sizes.append(tuple(out.shape[1:])))
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert sizes == [(16, 28, 28), (32, 14, 14), (64, 7, 7)]


def test_any_timm_model_with_its_own_head_channels_and_options() -> None:
    config = ModelConfig(name="timm:vit_tiny_patch16_224", dropout=0.2, options={"img_size": 32, "patch_size": 8})
    model = create_model(config, num_classes=7, in_chans=1)
    assert model.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]


def test_pretrained_from_a_file_with_a_new_head(tmp_path: Path) -> None:
    source = create_model(ModelConfig(), num_classes=10)
    save_file(source.state_dict(), tmp_path / "ten.safetensors")
    torch.save({"state_dict": source.state_dict()}, tmp_path / "ten.pt")
    for name in ("ten.safetensors", "ten.pt"):
        same = create_model(ModelConfig(pretrained=str(tmp_path / name)), num_classes=10)
        other = create_model(ModelConfig(pretrained=str(tmp_path / name)), num_classes=3)
        assert torch.equal(same.fc.weight, source.fc.weight)
        assert torch.equal(other.conv1.weight, source.conv1.weight)
        assert other.fc.weight.shape == (3, 64)


def test_pretrained_from_a_checkpoint(tmp_path: Path) -> None:
    """Its folder stands for the one replica in it, with Lookahead for the slow weights that are evaluated."""
    fast, slow = (create_model(ModelConfig(), num_classes=10) for _ in range(2))
    state = {"model": fast.state_dict(), "optimizer": {"state": {}, "param_groups": []}, "lookahead": None}
    config = ModelConfig(pretrained=str(tmp_path))
    for more, source in (({}, fast), ({"shown": slow.state_dict()}, slow)):
        torch.save(state | more, tmp_path / "replica-0.pt")
        found = create_model(config, num_classes=10).state_dict()
        assert all(torch.equal(value, source.state_dict()[name]) for name, value in found.items())
    torch.save(state, tmp_path / "replica-1.pt")
    with pytest.raises(UserError) as raised:
        create_model(config, num_classes=10)
    said = f"model.pretrained: {tmp_path} has 2 replicas: name one of them, {tmp_path}/replica-0.pt"
    assert str(raised.value) == said


def test_pretrained_from_a_finished_run(tmp_path: Path) -> None:
    """From its average along time where it has one, else from its mean model."""
    for name in ("model.safetensors", "trajectory.safetensors"):
        source = create_model(ModelConfig(), num_classes=10).state_dict()
        save_file(source, tmp_path / name)
        found = create_model(ModelConfig(pretrained=str(tmp_path)), num_classes=10).state_dict()
        assert all(torch.equal(value, source[key]) for key, value in found.items())


def test_pretrained_timm_model_from_a_file(tmp_path: Path) -> None:
    source = timm.create_model("resnet10t", num_classes=1000)
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = create_model(ModelConfig(name="timm:resnet10t", pretrained=str(tmp_path / "w.pth")), num_classes=4)
    assert torch.equal(model.layer1[0].conv1.weight, source.layer1[0].conv1.weight)
    assert model.fc.weight.shape == (4, 512)


def test_weights_that_do_not_fit_or_cannot_be_read(tmp_path: Path) -> None:
    save_file(create_model(ModelConfig(), num_classes=10).state_dict(), tmp_path / "eight.safetensors")
    with pytest.raises(UserError, match="does not fit the model: 0 tensors too many, 72 missing, such as stages"):
        create_model(ModelConfig(name="resnet20", pretrained=str(tmp_path / "eight.safetensors")), num_classes=10)
    (tmp_path / "code.pt").write_bytes(b"not a state dict")
    with pytest.raises(UserError, match=r"code.pt is not a readable state dict"):
        create_model(ModelConfig(pretrained=str(tmp_path / "code.pt")), num_classes=10)


def test_batch_norm_momentum_of_d_replicas() -> None:
    """1 - (1 - 0.1)^3 = 0.271; a norm that takes the cumulative average keeps it."""
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm1d(4, momentum=None), nn.LayerNorm(4))
    compensate_norm_momentum(model, 3)
    assert model[0].momentum == pytest.approx(0.271)
    assert model[1].momentum is None


def test_sgd_is_plain_and_decays_everything_by_default() -> None:
    optimizer = create_optimizer(OptimizerConfig(), create_model(ModelConfig(), 10))
    assert type(optimizer) is torch.optim.SGD
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4]
    assert not optimizer.param_groups[0]["nesterov"]
    with_nesterov = create_optimizer(OptimizerConfig(nesterov=True), create_model(ModelConfig(), 10))
    assert with_nesterov.param_groups[0]["nesterov"]


def test_no_decay_on_norms_and_biases() -> None:
    model = create_model(ModelConfig(), 10)
    optimizer = create_optimizer(OptimizerConfig(name="adamw", weight_decay=0.01, no_decay="norm_bias"), model)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {decays[id(p)] for p in model.parameters() if p.dim() == 1} == {0.0}
    assert {decays[id(p)] for p in model.parameters() if p.dim() > 1} == {0.01}


def test_adam_couples_weight_decay_and_adamw_does_not() -> None:
    """Without a gradient, Adam's coupled decay moves a weight by lr; AdamW's by lr * decay * weight."""
    for name, expected in (("adam", 2.0 - 0.1), ("adamw", 2.0 - 0.1 * 0.5 * 2.0)):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 2.0)
        optimizer = create_optimizer(OptimizerConfig(name=name, lr=0.1, weight_decay=0.5), model)
        model.weight.grad = torch.zeros(1, 1)
        optimizer.step()
        assert model.weight.item() == pytest.approx(expected, abs=1e-5)


def test_groups_keep_timms_scale_of_the_learning_rate() -> None:
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr_scale": 0.5}], lr=1.0)
    set_learning_rate(optimizer, 0.2)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("name", "options", "fused"),
    [
        ("sgd", {}, True),
        ("adamw", {}, True),
        ("sgd", {"foreach": True}, None),
        ("lion", {}, None),
    ],
)
def test_pytorchs_own_optimizers_are_fused(name: str, options: dict[str, bool], fused: bool | None) -> None:
    optimizer = create_optimizer(OptimizerConfig(name=name, options=options), nn.Linear(2, 2))
    assert optimizer.defaults.get("fused") == fused


def test_a_fused_step_by_hand() -> None:
    """lr .1, momentum .9, decay .5: g + .5 p = 2.5, p = 1 - .25; then v = .9 * 2.5 + 2 + .375 = 4.625."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = create_optimizer(OptimizerConfig(lr=0.1, momentum=0.9, weight_decay=0.5), model)
    for expected in (0.75, 0.75 - 0.4625):
        model.weight.grad = torch.tensor([[2.0]])
        optimizer.step()
        assert model.weight.item() == pytest.approx(expected)


def test_complex_parameters_are_not_fused() -> None:
    model = nn.Linear(1, 1, dtype=torch.complex64)
    optimizer = create_optimizer(OptimizerConfig(), model)
    assert not optimizer.defaults["fused"]
    model(torch.ones(1, 1, dtype=torch.complex64)).abs().sum().backward()
    optimizer.step()
