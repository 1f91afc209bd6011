"""Command lines that show what a command is for: its `--help` ends with them."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "train": (
        "lookaround_ddp train digits/resnet8-lookaround optimizer.lr=0.05 out=runs/digits",
        "lookaround_ddp train digits/resnet8-lookaround out=runs/digits epochs=200 schedule.extend=stretch",
    ),
    "show": ("lookaround_ddp show digits/resnet8-lookaround epochs=3",),
    "configs": ("lookaround_ddp configs", "lookaround_ddp configs paper/cifar"),
    "processes": ("lookaround_ddp processes digits/resnet8-lookaround --nodes 2",),
    "reproduce": (
        "lookaround_ddp reproduce cifar --dry-run",
        "lookaround_ddp reproduce sweep.yaml data.root=/data --seeds 0,1,2",
    ),
    "evaluate": (
        "lookaround_ddp evaluate runs/digits",
        "lookaround_ddp evaluate runs/mine data.root=/data/photos --per-class --out classes.csv",
    ),
    "ensemble": ("lookaround_ddp ensemble runs/seed-0 runs/seed-1 runs/seed-2 --out runs/ensemble",),
    "soup": ("lookaround_ddp soup runs/seed-0 runs/seed-1 --recipe uniform --update-bn --out runs/soup",),
    "predict": (
        "lookaround_ddp predict runs/mine photo.jpg --top 3",
        "lookaround_ddp predict model.safetensors photos/ --csv classes.csv",
    ),
    "export": (
        "lookaround_ddp export runs/mine --timm runs/timm",
        "lookaround_ddp export runs/mine --onnx mine.onnx",
    ),
    "report": (
        "lookaround_ddp report runs/* --curves curves.png --csv scores.csv",
        "lookaround_ddp report --table cifar runs/paper/*/*",
    ),
    "analyze": ("lookaround_ddp analyze diversity runs/digits", "lookaround_ddp analyze quadratic --out steady"),
    "quadratic": ("lookaround_ddp analyze quadratic --a 0.5,1 --gamma 0.1 --k 5 --d 3",),
    "convergence": ("lookaround_ddp analyze convergence --kappa 1e2,1e4 --beta 0.9 --out convergence",),
    "diversity": ("lookaround_ddp analyze diversity runs/digits --at 100,200 --rounds 3",),
    "sharpness": ("lookaround_ddp analyze sharpness runs/digits runs/digits-sgdm --radius 0.5",),
    "plane": (
        "lookaround_ddp analyze plane runs/digits --points 21",
        "lookaround_ddp analyze plane runs/seed-0 runs/seed-1 runs/seed-2 --split train --images 1000",
    ),
    "trajectory": ("lookaround_ddp analyze trajectory runs/digits --iterations 20 --lr 0.1,0.01",),
    "bench": (
        "lookaround_ddp bench average --ranks 3 --step-ms 250",
        "lookaround_ddp bench train --json figures.json",
    ),
}
