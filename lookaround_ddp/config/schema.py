"""What a run is made of: the sections of a frozen `Config`, with their defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lookaround_ddp.config.average import AverageConfig
from lookaround_ddp.config.optimizer import OptimizerConfig
from lookaround_ddp.config.schedule import ScheduleConfig
from lookaround_ddp.config.section import Count, Epochs, ListOf, OwnPath, PathText, Seconds, Section, Seed
from lookaround_ddp.config.text import dump
from lookaround_ddp.own_code import is_path

Augmentation = str | dict[str, dict[str, Any]]  # hflip, "crop+hflip", my.module.Class, or {rotation: {degrees: 30}}


LossConfig = str | dict[str, dict[str, Any]]


class ModelConfig(Section):
    name: str = "resnet8"
    """resnet8 | 14 | 20 (small images), resnet18 | 34 | 50 | 101 | 152, resnext50, vgg19 (CIFAR size), or timm:NAME. Or
    my.module.Net, a class or function of your own, called with the numbers of classes and of channels."""
    pretrained: bool | PathText = False
    """True for timm's weights, or the path of a state dict, a checkpoint or a finished run; a head of another size is
    made anew."""
    width: int = Field(16, ge=1, le=2**14)
    """Channels of the first stage of resnet8, 14 and 20."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Probability of dropping a feature before the head; by default the network's own: 0.5 in vgg19, else 0."""
    seed: Seed | None = None
    """Draws the initial weights; by default the run's. Runs that share it can be averaged afterwards (a soup)."""
    options: dict[str, Any] = Field({})
    """Further arguments of timm.create_model, or of a network of your own."""
    checkpointing: bool = False
    """Compute activations anew in the backward pass instead of keeping them: less memory, the same weights. For those
    of timm's networks that can, and for your own with a method set_grad_checkpointing."""


class DataConfig(Section):
    name: (
        Literal["digits", "fashion_mnist", "cifar10", "cifar100", "stanford_cars", "imagefolder", "noise"] | OwnPath
    ) = "digits"
    """noise: random images in memory, of 10 classes and data.size (32) pixels, to measure speed with. Or
    my.module.images, a function or class of your own, called with data.root: it returns what to train on and what to
    test on (see above)."""
    options: dict[str, Any] = Field({})
    """Further arguments of a dataset of your own."""
    root: PathText = "data"
    """The folder of the images."""
    download: bool = False
    """Fetch the dataset into `root` if it is not there."""
    batch_size: Count = 128
    """Images in an update of one replica, whatever the number of ranks."""
    accumulate: Count = 1
    """Parts in which a minibatch goes through the network, one after the other, for less memory: an update is still one
    of the whole minibatch, and k counts updates. Batch-norm sees each part for itself."""
    workers: int = Field(0, ge=0, le=1024)
    """Loader processes of each rank."""
    pipeline: Literal["workers", "device", "auto"] = "auto"
    """Who augments: loader processes, image by image; or the device that trains, whole batches of images in memory.
    auto: the device, if it can; a run that has begun goes on as it began. The draws differ, and with them the weights.
    """
    on_corrupt: Literal["error", "skip"] = "error"
    """What a file that is no image does to training: it ends the run; or the next image stands for it, with a warning.
    Among the images to evaluate on it always ends the run."""
    missing_class: Literal["error", "allow"] = "error"
    """imagefolder: what a class does of which train or val has no images. With allow it is one of the network's, which
    cannot learn it, or is not asked for it."""
    batches: Literal["shared", "independent"] = "shared"
    """shared: the replicas see the same minibatches (Algorithm 1); independent: each has its own shuffle."""
    drop_last: bool = False
    """Leave out the last, smaller batch of an epoch."""
    size: int | None = Field(None, ge=1, le=2**14)
    """Side of the square images that the network sees; by default the dataset's own (photographs: 224)."""
    train_images: int | None = Field(None, ge=1)
    """Train on so many images, drawn with the seed; by default all."""
    validation: int = Field(0, ge=0)
    """Hold out so many training images, drawn with the seed, to select the best epoch by."""
    split_seed: Seed | None = None
    """Draws train_images and the held-out ones; by default the run's seed. Soups select by what no run trained on."""
    mean: ListOf[Annotated[float, Field(ge=0, le=1)]] | None = None
    """See std."""
    std: ListOf[Annotated[float, Field(ge=1e-4, le=1)]] | None = None
    """Per channel, in [0, 1] pixel values; by default the dataset's own (photographs: ImageNet's)."""


class AugmentConfig(Section):
    before: ListOf[Augmentation] = ()
    """Augmentations before each replica's own one."""
    after: ListOf[Augmentation] = ()
    """Augmentations after it."""


class TrajectoryConfig(Section):
    name: Literal["none", "swa", "swad", "ema"] = "none"
    """An average along time beside the replicas' mean, of the mean after average steps, and saved beside it."""
    start: Epochs = 0
    """Epochs before it begins."""
    every: Annotated[int, Field(ge=1)] | Literal["epoch"] | None = None
    """Iterations between two snapshots (swa, by default an epoch; ema, 1), or two validations (swad, an epoch)."""
    swa_lr: float | None = Field(None, gt=0)
    """swa: the learning rate once it has begun; by default the schedule's."""
    anneal_epochs: Epochs = 10
    """swa: how long the learning rate takes from the schedule's to swa_lr."""
    anneal: Literal["cos", "linear"] = "cos"
    """swa: the form of that way."""
    decay: float = Field(0.999, gt=0, lt=1)
    """ema: the weight of the past."""
    n_converge: int = Field(3, ge=1)
    """swad: the average begins with the lowest of so many validation losses in a row, if that is the first."""
    n_tolerance: int = Field(6, ge=1)
    """swad: it ends before so many losses in a row above the threshold."""
    ratio: float = Field(0.3, ge=0)
    """swad: the threshold is 1 + ratio times the mean loss of the window in which it begins."""

    def period(self, per_epoch: int) -> int:
        """Iterations between two snapshots or validations."""
        if self.every is None:
            return 1 if self.name == "ema" else per_epoch
        return per_epoch if self.every == "epoch" else self.every


class EvaluateConfig(Section):
    every: Annotated[Epochs, Field(gt=0)] = 1
    """Epochs between evaluations; may be a fraction."""
    replicas: bool = False
    """Evaluate each replica too, as it is just before the average step."""
    recalibrate: bool = False
    """Measure batch-norm's statistics over the training data before each evaluation and in what is saved. Averages
    along time and soups are measured anew in any case."""
    recalibrate_iterations: int | None = Field(50, ge=1)
    """Iterations of an epoch to measure them over, on every augmentation; null: the whole epoch."""
    batch_size: Count = 256
    """Images scored at a time; no score depends on it."""


class CheckpointConfig(Section):
    every: Annotated[Epochs, Field(gt=0)] = 1
    """Epochs between checkpoints; may be a fraction. Their files are written while the training goes on: one is whole
    when the ranks vote next (see grace_seconds), or when the next one begins."""
    keep: int = Field(2, ge=1)
    """How many of the newest checkpoints stay."""
    grace_seconds: Seconds = 20
    """How long a process has from SIGTERM, SIGUSR1 or Ctrl-C to its end: the ranks save and leave within it. They vote
    on whether a signal has come four times in it."""


class RecordConfig(Section):
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    """Log to Weights & Biases; offline into the run's folder."""
    project: str = "lookaround_ddp"
    """Its project."""
    tensorboard: bool = False
    """Also write event files into the run's folder, for `tensorboard --logdir runs`; needs the package tensorboard."""
    every: int | None = Field(None, ge=1)
    """Iterations between two lines of the record; by default 50, or those of an epoch where they are fewer."""

    def period(self, per_epoch: int) -> int:
        """Iterations between two lines of a run with so many in an epoch."""
        return min(50, per_epoch) if self.every is None else self.every


class Config(Section):
    out: PathText = "runs/digits-resnet8-lookaround"
    """The run's folder: what it leaves, and where it goes on from."""
    seed: Seed = 0
    """Draws the initial weights, the order of the images, their augmentation, dropout and what is held out."""
    epochs: int = Field(20, ge=1, le=10**9)
    """Passes over the training images: the run's length, unless `iterations` says it."""
    iterations: int | None = Field(None, ge=1, le=10**12)
    """The run's length in iterations, instead of `epochs`; what is measured in epochs still is."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """On a GPU fp32 has full products and TF32 convolutions, as PyTorch does; tf32 both in TF32: several times as fast
    for transformers. (A CPU has no TF32: there the two are the same.) bf16 and fp16 use autocast."""
    channels_last: bool = False
    """Memory layout of images and weights; faster convolutions on GPUs and on most CPUs."""
    compile: bool = False
    """Compile the network (torch.compile): a minute at the start, faster iterations."""
    deterministic: bool = True
    """On a GPU, only kernels that give the same bits each time; false: the fastest, found by trying (cudnn.benchmark),
    and a run is no longer the same bit for bit."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Of cross_entropy: the share of each label that is spread over all classes."""
    loss: LossConfig = "cross_entropy"
    """cross_entropy; or a function of your own, my.module.loss, or a class, torch.nn.MultiMarginLoss or
    {my.module.Loss: {argument: value}}: called with fp32 logits (n, classes) and labels (n,), or with mixup's targets
    (n, classes), it returns the mean loss."""
    timeout: Seconds = 600
    """Seconds that ranks wait for each other before the job fails."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    replicas: ListOf[ListOf[Augmentation]] = (("crop",), ("rotation",), ("perspective",))
    """A list of replicas, each a list of augmentations; it takes one update for each of them in an iteration."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    average: AverageConfig = AverageConfig()
    trajectory: TrajectoryConfig = TrajectoryConfig()
    snapshots: bool = False
    """Keep the model at the end of each of the schedule's cycles, and score them together (snapshot ensemble)."""
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    record: RecordConfig = RecordConfig()

    def length(self, per_epoch: int) -> int:
        """Returns the run's length in iterations, of which an epoch has `per_epoch`."""
        return self.epochs * per_epoch if self.iterations is None else self.iterations

    def text(self) -> str:
        """Returns the whole config as YAML."""
        return dump(self.model_dump(mode="json"))

    def own_code(self) -> list[tuple[str, str]]:
        """Returns what the config names of somebody's own but for augmentations: pairs of what it is, and its path."""
        loss = self.loss if isinstance(self.loss, str) else next(iter(self.loss), "")
        named = [("model", self.model.name), ("dataset", self.data.name), ("loss", loss)]
        return [(what, name) for what, name in named if is_path(name)]

    def identity(self) -> dict[str, Any]:
        """Returns the values that decide the weights: not where files are or what a damaged one does, who loads, which
        kernels compute, or what is shown. Of `epochs` and `iterations` it has the one that is the run's length.
        """
        others = {"out", "timeout", "deterministic", "evaluate", "checkpoint", "record"}
        values = self.model_dump(mode="json", exclude=others)
        for key in ("root", "download", "workers", "on_corrupt", "missing_class"):
            del values["data"][key]
        del values["model"]["checkpointing"], values["schedule"]["extend"]
        del values["epochs" if self.iterations is not None else "iterations"]
        return values
