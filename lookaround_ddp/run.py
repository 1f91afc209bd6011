"""A run around its training loop: counting losses, evaluating, saving, and what is left at the end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lookaround_ddp.averaging import Lookaround
from lookaround_ddp.checkpoint import Checkpoints, save_model, write_atomically
from lookaround_ddp.config import Config
from lookaround_ddp.data.datasets import Dataset
from lookaround_ddp.data.loader import Iterations, load
from lookaround_ddp.distributed import World
from lookaround_ddp.evaluate import make_evaluator, recalibrate
from lookaround_ddp.record import Record, Stopwatch
from lookaround_ddp.replica import Normalize, Replica

RECALIBRATION_ITERATIONS = 50

State = dict[str, Any]  # of a run, JSON-able: what a checkpoint holds beside the replicas
START: State = {"iteration": 0, "steps": 0, "distances": None, "seconds": 0.0, "scores": {}, "best": None}


class Run:
    """What `fit` asks for at the iterations that call for it. Every method is collective."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        batches: Iterations,
        replicas: Sequence[Replica],
        around: Lookaround,
        world: World,
        record: Record,
        state: State,
    ) -> None:
        self.config, self.dataset, self.batches, self.world, self.record = config, dataset, batches, world, record
        self.replicas, self.around = replicas, around
        self.scores: State = state["scores"]  # the last evaluation
        self.best: State | None = state["best"]
        self.watch = Stopwatch(state["seconds"])
        self.normalize = Normalize(dataset, world, config.channels_last)
        self.per_epoch = batches.plan.iterations
        self.total = config.epochs * self.per_epoch
        self.test = make_evaluator(config, dataset, dataset.test, world)
        held_out = dataset.validation
        self.validation = None if held_out is None else make_evaluator(config, dataset, held_out, world)
        self.pending: list[Tensor] = []  # losses of the last iterations, shape (hosted,), still on the device
        self.losses: list[Tensor] = []  # those of all replicas since the last line, shape (iterations, d)
        self.counted: int = state["iteration"]
        self.since = (self.counted, self.watch.seconds())

    def count(self, losses: list[Tensor]) -> None:
        """Takes in an iteration's loss of each hosted replica, without waiting for the device. Not collective."""
        self.pending.append(torch.stack(losses))
        self.counted += 1

    def record_training(self, iteration: int, rate: float) -> None:
        """A line of the record: mean losses since the last one, distances to phi, speed."""
        self.check_losses()
        losses, self.losses = torch.cat(self.losses).double(), []
        before, seconds = self.since
        self.since = (iteration, self.watch.seconds())
        elapsed = self.since[1] - seconds
        distances = self.around.distances
        self.record.train(
            {
                "iteration": iteration,
                "epoch": iteration / self.per_epoch,
                "lr": rate,
                "loss": losses.nan_to_num(0, 0, 0).sum(dim=0).div(losses.isfinite().sum(dim=0).clamp(min=1)).tolist(),
                "distance": None if distances is None else distances.tolist(),
                "images_per_second": self._images(before, iteration) / elapsed,
                "seconds": self.since[1],
                "eta": (self.total - iteration) * elapsed / (iteration - before),
            }
        )

    def shows_distances(self, iteration: int) -> bool:
        """Whether the average step after this iteration is the last before a line of the record, which shows it."""
        if not self.around.due(iteration):
            return False
        every = self.config.record.every
        line = min(iteration - iteration % every + every, self.total)
        return not any(self.around.due(later) for later in range(iteration + 1, line))

    def check_losses(self) -> None:
        """Gathers the pending losses; waits for the device.

        Raises:
            FloatingPointError: naming the first iteration and replica whose loss is not finite. (In fp16 a
                loss may overflow while the scaler looks for its scale; only weights are checked then.)
        """
        mine = torch.stack(self.pending).cpu() if self.pending else torch.zeros(0, len(self.replicas))
        self.pending = []
        losses = torch.cat(self.world.gather(mine)[:: self.world.shards], dim=1)
        self.losses.append(losses)
        bad = (~losses.isfinite()).nonzero().tolist()
        if bad and self.config.precision != "fp16":
            row, replica = bad[0]
            raise FloatingPointError(
                f"the loss of replica {replica} is not finite at iteration {self.counted - len(losses) + row + 1}: "
                f"lower optimizer.lr or set optimizer.clip_norm; the last checkpoint is kept"
            )

    def evaluate(self, iteration: int) -> None:
        """Scores of the mean model, and of each replica as it is before the average step, if asked for."""
        self.check_losses()
        self.around.check_finite(iteration)
        self.watch.pause()
        self.around.synchronize_shards()
        scores: State = {}
        if self.config.average.k != "never":
            with self.around.averaged() as mean:
                self._recalibrate(mean)
                scores["mean"] = self.test.shared(mean)
                if self.validation is not None:
                    scores["validation"] = self.validation.shared(mean)
        if self.config.evaluate.replicas or self.config.average.k == "never":
            scores["replicas"] = self.test.replicas(replica.model for replica in self.replicas)
        self.scores = scores
        self._keep_best(iteration)
        self.record.evaluation({"iteration": iteration, "epoch": iteration / self.per_epoch, **scores})
        self.watch.go()

    def save(self, iteration: int, checkpoints: Checkpoints) -> None:
        """A checkpoint of the replicas as they are before the average step of this iteration."""
        self.check_losses()
        self.around.check_finite(iteration)
        self.watch.pause()
        state = {
            **self.around.state_dict(),
            "seconds": self.watch.elapsed,
            "scores": self.scores,
            "best": self.best,
            "classes": self.dataset.classes,
            "config": self.config.identity(),
        }
        checkpoints.save(iteration, self.replicas, state)
        self.watch.go()

    def finish(self) -> State:
        """The last average step; model.safetensors and result.json."""
        folder = Path(self.config.out)
        if self.config.average.k != "never":
            self.around.average()
            with self.around.averaged() as mean:
                self._recalibrate(mean)
                with self.world.together():
                    if self.world.main:
                        save_model(folder / "model.safetensors", mean.state_dict(), self._metadata())
        result: State = {
            **self.scores,
            "best": self.best,
            "iterations": self.total,
            "epochs": self.config.epochs,
            "seconds": self.watch.seconds(),
            "processes": self.world.size,
            "device": str(self.world.device),
            "parameters": sum(parameter.numel() for parameter in self.replicas[0].model.parameters()),
        }
        with self.world.together():
            if self.world.main:
                write_atomically(folder / "result.json", json.dumps(result, indent=1).encode())
        return result

    def _recalibrate(self, mean: nn.Module) -> None:
        if self.config.evaluate.recalibrate:
            iterations = range(min(self.per_epoch, RECALIBRATION_ITERATIONS))
            batches = load(self.batches, iterations, self.config.data.workers, self.world.device.type == "cuda")
            recalibrate(mean, batches, self.normalize, self.config.precision, self.world)

    def _keep_best(self, iteration: int) -> None:
        """The best evaluation so far: by validation where images are held out, else by the test set, and named so."""
        selected_by = "validation" if "validation" in self.scores else "test"
        score = self.scores.get("validation" if selected_by == "validation" else "mean")
        if score is not None and (self.best is None or score["top1"] > self.best["selected_top1"]):
            self.best = {
                "iteration": iteration,
                "epoch": iteration / self.per_epoch,
                "selected_by": selected_by,
                "selected_top1": score["top1"],
                "mean": self.scores["mean"],
            }

    def _metadata(self) -> State:
        """What a reader of the weights needs to build the network without the data."""
        data = self.dataset
        return {"classes": data.classes, "channels": data.channels, "config": self.config.identity()}

    def _images(self, before: int, after: int) -> int:
        """Images that all replicas saw in these iterations."""
        updates = sum(len(own) for own in self.config.replicas)
        return updates * sum(len(self.batches.plan.indices(i, 0)) for i in range(before, after))
