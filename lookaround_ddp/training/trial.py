"""Two images through the whole of a config: what its first iteration would fail at, told in a line."""

from __future__ import annotations

import re
import traceback

import torch

from lookaround_ddp.config import Config
from lookaround_ddp.data import Dataset, make_batches
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import BatchError, UserError, shortened
from lookaround_ddp.optim import learning_rate
from lookaround_ddp.own_code import left_out, place_in_own_code
from lookaround_ddp.training.replica import Replica

# what a wrong config makes PyTorch, timm and torchvision raise; not OSError, MemoryError or an interrupt
TRIED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
MENDS = (  # what a message of PyTorch or timm speaks of, and what to do about it
    (
        r"(?i)input.* doesn't match model|input size .* match",
        "model.options.img_size={size} makes a network for such images",
    ),
    (
        r"(?i)kernel size can't be greater|calculated (padded )?input size|output size is too small|too small",
        "images of {size} px are too small for {model}: raise data.size, or take a network for small images",
    ),
    (r"(?i)out of memory", "lower data.batch_size ({batch_size})"),
    (
        r"does not require grad|create_graph",
        "{optimizer} needs second derivatives, which are not computed here: take another",
    ),
    (
        r"finished reduction|did not receive grad",
        "{model} has parameters that take no part: start a process per replica at most",
    ),
)


def try_out(config: Config, dataset: Dataset, shards: int) -> None:
    """Makes two images with each of the config's augmentations, and trains a network on the first two pairs.

    On the CPU, in fp32 and without compiling, whatever the config says of these, and without code that it names.

    Args:
        shards: processes that share a replica.

    Raises:
        UserError: something in it fails, whatever it is; the line says what to do, where that is known.
    """
    small = config.data.model_copy(update={"batch_size": 2, "workers": 0, "drop_last": True, "pipeline": "workers"})
    plain = config.model_copy(update={"data": small, "compile": False, "precision": "fp32", "channels_last": False})
    cpu = torch.device("cpu")
    try:
        batches = make_batches(plain, dataset, World(0, 1, len(config.replicas), cpu, "none"), left_out)[0]
        replica = Replica(plain, 0, dataset, World(0, 1, 1, cpu, "none"))
        for iteration, batch in enumerate([batch for own in batches for batch in own][:2]):
            replica.step([batch], iteration, learning_rate(config, iteration, len(dataset.train)))
    except BatchError as error:
        raise UserError(str(error)) from error
    except TRIED as error:
        raise as_mistake(error, config, dataset) from error
    idle = [name for name, each in replica.model.named_parameters() if each.requires_grad and each.grad is None]
    if idle and shards > 1:
        raise UserError(
            f"{idle[0]} and {len(idle) - 1} other parameters of {config.model.name} take no part in the loss: start at "
            f"most {len(config.replicas)} processes, one for each replica"
        )


def as_mistake(error: Exception, config: Config, dataset: Dataset) -> UserError:
    """Returns the line for what an iteration failed at; prints the traceback first if somebody's own code raised it."""
    if place_in_own_code(error) is not None:
        traceback.print_exception(error)
    text = shortened(" ".join(str(error).split()), 300)
    values = {
        "size": dataset.size,
        "model": config.model.name,
        "batch_size": config.data.batch_size,
        "optimizer": f"optimizer.name={config.optimizer.name}",
    }
    mends = [mend.format(**values) for pattern, mend in MENDS if re.search(pattern, str(error))]
    return UserError(
        "".join([f"the first iteration fails: {type(error).__name__}: {text}", *(f": {mend}" for mend in mends[:1])])
    )
