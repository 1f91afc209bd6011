"""Models of a run, written into its folder; and the best one, which is kept over a resumed run."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lookaround_ddp.checkpoint import BEST, RunState, file_digest, save_model
from lookaround_ddp.data import described
from lookaround_ddp.files import make_folder, write_atomically
from lookaround_ddp.training.run import Run


def save_shared_model(run: Run, name: str, model: nn.Module) -> None:
    """Saves a model that all ranks hold into the run's folder. Collective."""
    with run.world.together():
        if run.world.main:
            write_model(run, name, model)


def write_model(run: Run, name: str, model: nn.Module) -> None:
    """Writes a model into the run's folder, with what it takes to build the network and to show it images."""
    path = Path(run.config.out) / name
    make_folder(path.parent)
    metadata = {"start": run.start, "config": run.config.identity()}
    save_model(path, model.state_dict(), described(run.dataset) | metadata)


def keep_best(run: Run, scores: RunState, mean: nn.Module) -> None:
    """Remembers an evaluation that is the best so far, and saves its mean model where images are held out. Collective.

    The best one is chosen by the held-out images; without them by the test set, which is named so, and nothing is
    saved: a model that is chosen by the images that score it is worth less than they say.
    """
    selected_by = "validation" if "validation" in scores else "test"
    top1 = scores["validation" if selected_by == "validation" else "mean"]["top1"]
    if run.best is not None and top1 <= run.best["selected_top1"]:
        return
    run.best = {
        "iteration": run.iteration,
        "epoch": run.iteration / run.per_epoch,
        "selected_by": selected_by,
        "selected_top1": top1,
        "mean": scores["mean"],
    }
    if selected_by == "validation":
        save_shared_model(run, BEST, mean)
        if run.world.main:
            run.best["sha256"] = file_digest(Path(run.config.out) / BEST)


def restore_best(run: Run) -> None:
    """Makes best.safetensors what it was at the checkpoint from which the run goes on. Collective.

    A run that was killed may have found a better one after it, which need not come again: how often a run is
    evaluated may be changed.
    """
    if run.validation is not None:
        with run.world.together():
            if run.world.main:
                _put_back(run)


def _put_back(run: Run) -> None:
    path = Path(run.config.out) / BEST
    kept = run.checkpoints.folder / str(run.iteration) / BEST
    best = run.best or {}
    wanted = best.get("sha256")
    if wanted is not None:
        if path.is_file() and file_digest(path) == wanted:
            return
        if kept.is_file() and file_digest(kept) == wanted:
            write_atomically(path, kept.read_bytes())
            return
        run.record.say(f"warning: the weights of iteration {best['iteration']}, the best so far, are lost")
        del best["sha256"]
    path.unlink(missing_ok=True)
