"""Configs with something wrong in them, or something odd, drawn at random: as a tired person writes, or a program."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import yaml

Values = dict[str, Any]

# A run of seconds that has every section, so that each key is somewhere to be mutated
BASE: Values = {
    "seed": 3,
    "epochs": 2,
    "precision": "fp32",
    "label_smoothing": 0.1,
    "timeout": 60,
    "model": {"name": "resnet8", "width": 4, "pretrained": False, "options": {}},
    "data": {"name": "digits", "train_images": 48, "batch_size": 16, "validation": 20, "pipeline": "workers"},
    "augment": {"before": [], "after": ["hflip"]},
    "replicas": [["crop"], [{"rotation": {"degrees": 30}}, "mixup"], [{"randaugment": {"magnitude": 9}}]],
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "options": {}, "clip_norm": 1.0},
    "schedule": {"name": "cosine", "warmup_epochs": 0.5, "per": "iteration", "min_lr": 0.0, "cycles": 1},
    "average": {"k": 2, "start": 0, "optimizer_state": "local", "exact": True, "delay": 0, "buffers": []},
    "trajectory": {"name": "none", "start": 0, "decay": 0.9},
    "snapshots": False,
    "evaluate": {"every": 1, "replicas": False, "recalibrate": False, "batch_size": 64},
    "checkpoint": {"every": 1, "keep": 1, "grace_seconds": 20},
    "record": {"wandb": "disabled", "every": 1},
}
# What stands where something else should; no sizes that a machine cannot hold
ODD: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 0.5, -0.25, 1e-300, 1e308, 10**30, float("inf"), float("nan"), True, False, None),
    *(
        "",
        "x",
        "none",
        "never",
        "epoch",
        "3 epochs",
        "0x10",
        "1e-3",
        "\N{SUPERSCRIPT TWO}",
        "a\nb",
        "\0",
        "../..",
        "~",
        "%s",
    ),
    *([], {}, [[]], [1, 2], ["crop"], {"a": 1}, {"": None}, [None], [["crop"], "hflip"], {"hflip": {"p": 2}}),
    *("sam", "adamw", "lamb", "adahessian", "swa", "swad", "ema", "mixup", "cutmix", "imagefolder", "timm:", "device"),
    *("os.system", "torch.nn.Identity", "torchvision.transforms.Grayscale", {"crop": {"padding": -3}}, "single"),
)
WORDS = (
    *("none", "crop", "hflip", "mixup", "cutmix", "rotation", "equalize", "perspective", "autoaugment", "randaugment"),
    *("single", "single_in_turn", "average", "reset", "local", "never", "epoch", "iteration", "cosine", "constant"),
    *("multistep", "swa", "swad", "ema", "sgd", "adamw", "lamb", "rmsprop", "bf16", "fp16", "tf32", "device", "auto"),
    *("resnet14", "resnet18", "vgg19", "timm:resnet10t", "timm:vit_tiny_patch16_224", "independent", "skip", "offline"),
)
UNSIZED = {("model", "width"), ("data", "size"), ("epochs",)}  # odd numbers there are honest wishes for large things


def places(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths of all values in nested dicts and lists."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [found for key, value in items for found in ((*path, key), *places(value, (*path, key)))]


def parent(values: Values, path: tuple[Any, ...]) -> Any:
    found: Any = values
    for key in path[:-1]:
        found = found[key]
    return found


def replace(values: Values, draw: random.Random) -> None:
    path = draw.choice(places(values))
    value = draw.choice(ODD)
    if path in UNSIZED and isinstance(value, (int, float)) and not isinstance(value, bool) and value > 7:
        return
    parent(values, path)[path[-1]] = copy.deepcopy(value)


def vary(values: Values, draw: random.Random) -> None:
    """Changes a number or a word into one of the same kind."""
    path = draw.choice(places(values))
    holder, key = parent(values, path), path[-1]
    if isinstance(holder[key], bool):
        holder[key] = not holder[key]
    elif isinstance(holder[key], int):
        holder[key] = draw.choice((0, 1, 2, 5, holder[key] + 1, holder[key] * 2))
    elif isinstance(holder[key], float):
        holder[key] = draw.choice((0.0, holder[key] / 7, holder[key] * 3, 1.0, 1.5, -holder[key]))
    elif isinstance(holder[key], str):
        holder[key] = draw.choice(WORDS)


def remove(values: Values, draw: random.Random) -> None:
    path = draw.choice(places(values))
    del parent(values, path)[path[-1]]


def insert(values: Values, draw: random.Random) -> None:
    path = draw.choice(places(values))
    holder = parent(values, path)
    if isinstance(holder, dict):
        holder[draw.choice(("lr", "name", "k", "x", "options", "lookahead", "nodes", "outer", "sam"))] = draw.choice(
            ODD
        )
    else:
        holder.insert(0, draw.choice(ODD))


def swap(values: Values, draw: random.Random) -> None:
    one, other = draw.choice(places(values)), draw.choice(places(values))
    if one[: len(other)] == other or other[: len(one)] == one:  # one is in the other
        return
    first, second = parent(values, one), parent(values, other)
    first[one[-1]], second[other[-1]] = second[other[-1]], first[one[-1]]


def spoil(text: str, draw: random.Random) -> str:
    """Changes a character, repeats a line, or cuts the text."""
    at = draw.randrange(len(text))
    kind = draw.randrange(3)
    if kind == 0:
        return text[:at] + draw.choice("\t:{}[]&*!|>'\"%@`#,?-\0\u00e9 0") + text[at + 1 :]
    if kind == 1:
        lines = text.splitlines(keepends=True)
        line = draw.choice(lines)
        return "".join([*lines, line])
    return text[:at]


CHANGES: tuple[Callable[[Values, random.Random], None], ...] = (replace, vary, vary, vary, remove, insert, swap)


def mutated_config(seed: int) -> str:
    """Returns the text of a config with one mutation, two or three."""
    draw = random.Random(seed)
    values = copy.deepcopy(BASE)
    for _ in range(draw.choice((1, 1, 2, 3))):
        draw.choice(CHANGES)(values, draw)
    text = yaml.safe_dump(values, sort_keys=False)
    return spoil(text, draw) if draw.random() < 0.1 else text
