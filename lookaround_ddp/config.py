"""YAML and key=value pairs -> one validated, frozen `Config`; a mistake is one line that names the mend."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError


class UserError(Exception):
    """A mistake that a user made and can mend: shown as one line, without a traceback, exit status 2."""


class Section(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)


Item = TypeVar("Item")
ListOf = Annotated[tuple[Item, ...], Field(strict=False)]  # a YAML list, frozen

Augmentation = str | dict[str, dict[str, Any]]  # hflip, "crop+hflip", my.module.Class, or {rotation: {degrees: 30}}


class ModelConfig(Section):
    name: str = "resnet8"
    """resnet8 | 14 | 20 (small images), resnet18 | 34 | 50 | 101 | 152 (CIFAR size), or timm:NAME."""
    pretrained: bool | str = False
    """True for timm's weights, or the path of a state dict; a head of another size is made anew."""
    width: int = Field(16, ge=1)
    """Channels of the first stage of resnet8, 14 and 20."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of dropping a feature before the head."""
    options: dict[str, Any] = {}
    """Further arguments of timm.create_model."""


class DataConfig(Section):
    name: Literal["digits", "fashion_mnist", "cifar10", "cifar100", "imagefolder"] = "digits"
    root: str = "data"
    download: bool = False
    batch_size: int = Field(128, ge=1)
    """Images in an update of one replica, whatever the number of ranks."""
    workers: int = Field(0, ge=0)
    """Loader processes of each rank."""
    batches: Literal["shared", "independent"] = "shared"
    """shared: the replicas see the same minibatches (Algorithm 1); independent: each has its own shuffle."""
    drop_last: bool = False
    """Leave out the last, smaller batch of an epoch."""
    size: int | None = Field(None, ge=1)
    """Side of the square images that the network sees; by default the dataset's own (imagefolder: 224)."""
    train_images: int | None = Field(None, ge=1)
    """Train on so many images, drawn with the seed; by default all."""
    validation: int = Field(0, ge=0)
    """Hold out so many training images, drawn with the seed, to select the best epoch by."""
    mean: ListOf[float] | None = None
    std: ListOf[float] | None = None
    """Per channel, in [0, 1] pixel values; by default the dataset's own (imagefolder: ImageNet's)."""


class AugmentConfig(Section):
    before: ListOf[Augmentation] = ()
    after: ListOf[Augmentation] = ()
    """Around each replica's own augmentation."""


class OptimizerConfig(Section):
    name: str = "sgd"
    """Any name of timm's factory; sgd is without Nesterov's momentum unless `nesterov` is set."""
    lr: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    nesterov: bool = False
    no_decay: Literal["none", "norm_bias"] = "none"
    """norm_bias: no weight decay on biases and one-dimensional parameters."""
    clip_norm: float | None = Field(None, gt=0)
    """Clip the gradient's L2 norm to this."""
    options: dict[str, Any] = {}
    """Further arguments of the optimizer, such as betas."""


class ScheduleConfig(Section):
    name: Literal["constant", "multistep", "cosine"] = "cosine"
    warmup_epochs: float = Field(0, ge=0)
    """Linear, per iteration."""
    per: Literal["epoch", "iteration"] = "iteration"
    """How often the cosine moves."""
    milestones: ListOf[float] = ()
    """Epochs at which the learning rate is multiplied by gamma."""
    gamma: float = Field(0.2, gt=0)
    min_lr: float = Field(0.0, ge=0)
    cycles: int = Field(1, ge=1)
    """Cosine restarts: the run is divided into so many."""


class AverageConfig(Section):
    k: int | Literal["epoch", "never"] = 5
    """Iterations in a round."""
    start: float = Field(0, ge=0)
    """Epochs before the first round."""
    optimizer_state: Literal["local", "average", "reset"] = "local"
    exact: bool = True
    buffers: ListOf[str] = ()
    """Names of buffers to average beside the norm layers' running statistics."""
    norm_momentum: Literal["compensated", "own"] = "compensated"
    """compensated: batch-norm's momentum m becomes 1 - (1 - m)^d, as if the d replicas shared the statistics."""


class TrajectoryConfig(Section):
    name: Literal["none"] = "none"


class EvaluateConfig(Section):
    every: float = Field(1, gt=0)
    """Epochs between evaluations; may be a fraction."""
    replicas: bool = False
    """Evaluate each replica too, as it is just before the average step."""
    recalibrate: bool = False
    """Measure the mean model's batch-norm statistics over the training data before each evaluation."""
    batch_size: int = Field(256, ge=1)


class CheckpointConfig(Section):
    every: float = Field(1, gt=0)
    """Epochs between checkpoints; may be a fraction."""
    keep: int = Field(2, ge=1)


class RecordConfig(Section):
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "lookaround_ddp"
    every: int = Field(50, ge=1)
    """Iterations between two lines of the record."""


class Config(Section):
    out: str = "runs/digits-resnet8-lookaround"
    seed: int = Field(0, ge=0)
    epochs: int = Field(20, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    timeout: float = Field(600, gt=0)
    """Seconds that ranks wait for each other before the job fails."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    replicas: ListOf[ListOf[Augmentation]] = (("crop",), ("rotation",), ("perspective",))
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    average: AverageConfig = AverageConfig()
    trajectory: TrajectoryConfig = TrajectoryConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    record: RecordConfig = RecordConfig()

    def identity(self) -> dict[str, Any]:
        """The values that decide the trained weights: not where files are, who loads, or what is shown."""
        values = self.model_dump(mode="json", exclude={"out", "timeout", "evaluate", "checkpoint", "record"})
        for key in ("root", "download", "workers"):
            del values["data"][key]
        return values


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """The config of a YAML file (None: the defaults, handwritten digits) with `key.path=value` pairs on top.

    Raises:
        UserError: naming the file, the key, or the value, and what would be right.
    """
    values = _read(Path(path)) if path is not None else {}
    for pair in overrides:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(f"{pair!r} is not of the form key.path=value, such as optimizer.lr=0.05")
        *sections, name = key.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UserError(f"{pair!r}: {section} is a value, not a section")
        target[name] = _parse(text, pair)
    return make_config(values)


def make_config(values: Mapping[str, Any]) -> Config:
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error)) from None
    _check(config)
    return config


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """'key.path: old -> new' for every value in which two dumped configs differ."""
    for key in sorted({*old, *new}):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from changed_keys(was, now, f"{prefix}{key}.")
        elif was != now:
            yield f"{prefix}{key}: {was} -> {now}"


def _check(config: Config) -> None:
    """What one field alone cannot tell."""
    if not config.replicas or not all(config.replicas):
        raise UserError(
            "replicas: give at least one replica, and each at least one augmentation ('none' for no change)"
        )
    if isinstance(config.average.k, int) and config.average.k < 1:
        raise UserError(f"average.k is {config.average.k}: a round has at least 1 iteration, or use epoch or never")
    if config.schedule.name == "multistep" and not config.schedule.milestones:
        raise UserError("schedule.milestones is empty: multistep needs the epochs at which the rate falls")
    if config.schedule.warmup_epochs >= config.epochs:
        raise UserError(
            f"schedule.warmup_epochs is {config.schedule.warmup_epochs}: it must end before epoch {config.epochs}"
        )
    if (config.data.mean is None) != (config.data.std is None):
        raise UserError("data.mean and data.std go together: set both or neither")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 5e-4 as a string; people mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = _parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"config {path}: {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"config {path}: expected 'key: value' lines, found a {type(values).__name__}")
    return values


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    union = ("tuple[", "dict[", "literal[", "bool", "int", "float", "str")  # pydantic adds the member of a union
    location = [part for part in first["loc"] if not str(part).startswith(union)]
    if first["type"] == "extra_forbidden":
        *sections, name = map(str, location)
        section: type[BaseModel] = Config
        for part in sections:
            section = section.model_fields[part].annotation  # type: ignore[assignment]  # sections are classes
        known = list(section.model_fields)
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {'.'.join([*sections, close[0]])}?" if close else f"known here: {', '.join(known)}"
        return f"unknown key {'.'.join(map(str, location))}: {hint}"
    message = first["msg"].replace("tuple", "list").removeprefix("Input ")
    if first["type"] in ("int_type", "literal_error") and location[:2] == ["average", "k"]:
        message, location = "it should be an integer, epoch or never", location[:2]
    return f"{'.'.join(map(str, location))} is {first['input']!r}: {message}"
