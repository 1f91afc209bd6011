"""The command line of `analyze`. Light: it is built for every command."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookaround_ddp.errors import UserError

Commands = Any  # argparse names no public type for what add_subparsers returns


def add_analyses(commands: Commands) -> None:
    """Adds a command for each analysis; `analysis` is then its name, and runs, if it has any, are `arguments`."""
    _add_quadratic(commands)
    _add_convergence(commands)
    _add_diversity(commands)
    _add_sharpness(commands)
    _add_plane(commands)
    _add_trajectory(commands)


def _add(
    commands: Commands, name: str, about: str, runs: str | None = None, split: str = "test"
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    default = name
    if runs is not None:
        command.add_argument("arguments", nargs="+", metavar=f"{runs} [key.path=value ...]")
        default = f"the (first) run's folder and {name}"
        command.add_argument(
            "--split", choices=("test", "train", "validation"), default=split, help="images to score on"
        )
        command.add_argument("--images", type=int, metavar="N", help="so many of them alone, always the same")
        add_trust(command)
    message = f"PREFIX.png and PREFIX.json are written; by default {default}"
    command.add_argument("--out", type=Path, metavar="PREFIX", help=message)
    command.set_defaults(analysis=name)
    return command


def add_trust(command: argparse.ArgumentParser) -> None:
    """Adds the option that lets a command which only reads runs run their code, too."""
    about = "run what is somebody's own code (network, data, loss, augmentations by dotted path), as training does"
    command.add_argument("--trust", action="store_true", help=about)


def _add_quadratic(commands: Commands) -> None:
    command = _add(commands, "quadratic", "steady-state variances of the noisy quadratic model")
    command.add_argument("--a", type=numbers, default=[1.0], metavar="A[,A...]", help="curvatures; by default 1")
    command.add_argument("--gamma", type=number, default=0.1, help="learning rate")
    command.add_argument(
        "--sigma2",
        type=numbers,
        default=[2.0],
        metavar="S[,S...]",
        help="variance of the noise; one, or one for each A",
    )
    command.add_argument("--k", type=int, default=5, help="steps in a round")
    command.add_argument("--alpha", type=number, default=0.5, help="Lookahead's step of the slow weights")
    command.add_argument("--d", type=int, default=3, help="replicas")
    command.add_argument(
        "--rho", type=number, default=0.0, help="correlation of the replicas' noise (shared minibatches)"
    )
    command.add_argument("--chains", type=int, default=400_000, help="of the Monte-Carlo; 0: none")
    command.add_argument("--seed", type=int, default=0)


def _add_convergence(commands: Commands) -> None:
    command = _add(
        commands, "convergence", "rates of momentum on deterministic quadratics, by condition number (Fig. 2)"
    )
    command.add_argument("--kappa", type=numbers, metavar="N[,N...]", help="condition numbers; by default 1e1 to 1e7")
    command.add_argument("--k", type=int, default=20, help="steps in a round")
    command.add_argument("--beta", type=number, default=0.99, help="momentum")
    command.add_argument("--alpha", type=number, default=0.5, help="Lookahead's step of the slow weights")
    command.add_argument("--spectrum", choices=("ends", "linear", "log"), default="ends", help="between 1/kappa and 1")
    command.add_argument("--eigenvalues", type=int, default=20, help="of a linear or log spectrum")


def _add_diversity(commands: Commands) -> None:
    about = "how far apart a run's replicas get in a round: distances, directions, predictions, loss barriers"
    command = _add(commands, "diversity", about, runs="RUN")
    command.add_argument("--at", type=integers, metavar="N[,N...]", help="checkpoints to start from; by default all")
    command.add_argument("--rounds", type=int, default=1, help="to train from each of them")
    command.add_argument("--lr", type=number, help="their learning rate; by default the run's schedule, then its last")
    command.add_argument("--recalibrate", action="store_true", help="measure batch-norm's statistics for each score")


def _add_sharpness(commands: Commands) -> None:
    about = "how flat runs' minima are: loss under random filter-normalized perturbation, top Hessian eigenvalue"
    command = _add(commands, "sharpness", about, runs="RUN ...", split="train")
    command.add_argument(
        "--radius", type=number, default=0.5, help="the largest perturbation, 1: each filter's own norm"
    )
    command.add_argument("--steps", type=int, default=10, help="radii up to it")
    command.add_argument("--directions", type=int, default=5, help="random ones, the same for all runs")
    command.add_argument("--seed", type=int, default=0, help="draws them")
    command.add_argument("--recalibrate", action="store_true", help="measure batch-norm's statistics for each score")
    command.add_argument("--hessian-images", type=int, default=1000, metavar="N", help="training images; 0: no Hessian")
    command.add_argument("--tolerance", type=number, default=1e-3, help="of the eigenvalue, relative")


def _add_plane(commands: Commands) -> None:
    about = (
        "loss and accuracy on the plane through three networks (Fig. 1, 7): of three runs, or the replicas of one, as "
        "they were before an average step; RUN/checkpoints/N is the run's mean model after iteration N"
    )
    command = _add(commands, "plane", about, runs="RUN ...")
    command.add_argument("--points", type=int, default=21, help="on each side of the grid")
    command.add_argument("--margin", type=number, default=0.5, help="around the networks, as a share of their extent")
    command.add_argument("--at", type=int, metavar="N", help="checkpoint to take replicas from; by default the newest")
    about = "mix batch-norm's statistics like the weights, instead of measuring them at each point"
    command.add_argument("--no-recalibrate", dest="recalibrate", action="store_false", help=about)


def _add_trajectory(commands: Commands) -> None:
    about = "replicas that train on from a checkpoint without average steps, and their mean at every iteration (Fig. 6)"
    command = _add(commands, "trajectory", about, runs="RUN")
    command.add_argument("--at", type=int, metavar="N", help="checkpoint to start from; by default the newest")
    command.add_argument("--iterations", type=int, default=20)
    about = "learning rates; by default the run's first one, a tenth and a hundredth of it"
    command.add_argument("--lr", type=numbers, metavar="LR[,LR...]", help=about)
    command.add_argument("--recalibrate", action="store_true", help="measure batch-norm's statistics for each score")


def integers(text: str) -> list[int]:  # argparse shows the name
    return [int(each) for each in text.split(",")]


def numbers(text: str) -> list[float]:
    found = [float(each) for each in text.split(",")]
    if not all(map(math.isfinite, found)):
        raise ValueError(text)
    return found


def number(text: str) -> float:
    return numbers(text)[0] if "," not in text else float(text)


def select_checkpoints(given: Sequence[int] | None, known: Sequence[int], run: Path) -> list[int]:
    """Returns the checkpoints that a user names, by default all of them.

    Raises:
        UserError: there is no such checkpoint.
    """
    for each in given or ():
        if each not in known:
            raise UserError(f"{run} has no checkpoint {each} of its rounds: it has {', '.join(map(str, known))}")
    return list(given or known)
