"""A run around its training loop: the average step, averages along time, evaluating, recording, saving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from torch import nn

from lookaround_ddp.averaging import Lookaround, broadcast_, check_agreement
from lookaround_ddp.checkpoint import Checkpoints, State, save_model
from lookaround_ddp.config import Config
from lookaround_ddp.data import Batch, Dataset, Iterations, load
from lookaround_ddp.distributed import World
from lookaround_ddp.evaluation import make_evaluator, recalibrate
from lookaround_ddp.models import Normalize
from lookaround_ddp.optim import Swad, Trajectory, ends_cycle
from lookaround_ddp.training.progress import Losses, Stopwatch
from lookaround_ddp.training.record import Record
from lookaround_ddp.training.replica import Replica, shown
from lookaround_ddp.training.state import SHARED_TRAJECTORY, parts

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
        trajectories: Sequence[Trajectory],
        world: World,
        record: Record,
        state: State,
    ) -> None:
        self.config, self.dataset, self.batches, self.world, self.record = config, dataset, batches, world, record
        self.replicas, self.around, self.trajectories = replicas, around, trajectories
        self.start: str = state["start"]  # digest of the weights that the run began with
        self.scores: State = state["scores"]  # the last evaluation
        self.best: State | None = state["best"]
        self.watch = Stopwatch(state["seconds"])
        self.normalize = Normalize(dataset.mean, dataset.std, world.device, config.channels_last)
        self.per_epoch = batches.plan.iterations
        self.total = config.epochs * self.per_epoch
        self.test = make_evaluator(config, dataset, dataset.test, world)
        held_out = dataset.validation
        self.validation = None if held_out is None else make_evaluator(config, dataset, held_out, world)
        self.branch = batches.single.until  # iterations that a single network trains, from which the replicas start
        self.compared = state["iteration"] // self.per_epoch  # epochs after which replicas were compared
        self.losses = Losses(config, batches, world, state["iteration"])
        self.since = (self.losses.counted, self.watch.seconds())
        if self.losses.counted > self.branch or self.branch == 0:
            self._begin_rounds()

    def load(self, iterations: Sequence[int] | range) -> Iterator[list[list[Batch]]]:
        """The hosted replicas' batches of these iterations."""
        pin = self.world.device.type == "cuda"
        return load(self.batches, iterations, self.config.data.workers, pin)

    def record_training(self, iteration: int, rate: float) -> None:
        """A line of the record: mean losses since the last one, distances to phi, speed."""
        losses = self.losses.since_last()
        self.around.wait()  # for the distances
        before, seconds = self.since
        self.since = (iteration, self.watch.seconds())
        elapsed = self.since[1] - seconds
        distances = self.around.distances
        self.record.train(
            {
                "iteration": iteration,
                "epoch": iteration / self.per_epoch,
                "lr": rate,
                "loss": losses.tolist(),
                "distance": None if distances is None else distances.tolist(),
                "images_per_second": self.losses.images(before, iteration) / elapsed,
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

    def advance(self, iteration: int) -> None:
        """What ends an iteration: the average step, if it is due, and what goes with it."""
        if self.around.due(iteration):
            self.world.does(f"averaging after iteration {iteration}")
        self.around.measure = self.shows_distances(iteration)
        averaged = self.around.step()
        if averaged and self.world.replicas > 1:
            if self.config.optimizer.lookahead is not None:
                self.around.wait()
                for replica in self.replicas:
                    replica.moved()
            if iteration // self.per_epoch > self.compared:
                self.compared = iteration // self.per_epoch
                self.compare(iteration)
        if iteration == self.branch:
            self.around.restart()
            for replica in self.replicas:
                replica.restart()
            self._begin_rounds()
        self.observe(iteration, averaged)

    def compare(self, iteration: int) -> None:
        """Whether all ranks got the same mean."""
        buffers = self.config.average.buffers
        if self.config.average.delay:
            with self.around.averaged() as mean:
                check_agreement([mean], buffers, iteration, self.world.gather)
        else:
            self.around.wait()
            check_agreement([replica.model for replica in self.replicas], buffers, iteration, self.world.gather)

    def observe(self, iteration: int, averaged: bool) -> None:
        """Shows the weights to the averages along time, where they are a mean, or independent for good."""
        independent = self.config.average.k == "never"
        if not self.trajectories or not (averaged or independent or self.world.replicas == 1):
            return
        self.around.wait()
        with self.shown():
            due = [
                trajectory.observe(replica.model, iteration)
                for trajectory, replica in zip(self.trajectories, self.replicas, strict=False)
            ]
            if not any(due) or self.config.trajectory.name != "swad":
                return
            self.watch.pause()
            assert self.validation is not None
            if independent:
                self.around.synchronize_shards()
                scores = self.validation.replicas(replica.model for replica in self.replicas)
                losses = [scores[number]["nll"] for number in self.world.hosted]
            else:
                with self.around.averaged() as mean:
                    losses = [self.validation.shared(mean)["nll"]]
            for trajectory, loss in zip(self.trajectories, losses, strict=True):
                assert isinstance(trajectory.average, Swad)
                trajectory.average.validated(loss)
            self.watch.go()

    def evaluate(self, iteration: int) -> None:
        """Scores of the mean model, and of each replica as it is before the average step, if asked for."""
        self.world.does(f"evaluating after iteration {iteration}")
        self.losses.check()
        self.watch.pause()
        self.around.synchronize_shards()  # before the check, so that all ranks find the same
        self.around.check_finite(iteration)
        scores: State = {}
        with self.shown():
            self._share_single(iteration)
            if self.config.average.k != "never":
                with self.around.averaged() as mean:
                    self.recalibrate_mean(mean)
                    scores["mean"] = self.test.shared(mean)
                    if self.validation is not None:
                        scores["validation"] = self.validation.shared(mean)
            models = [replica.model for replica in self.replicas]
            if self.config.evaluate.replicas or self.config.average.k == "never":
                scores["replicas"] = self.test.replicas(models)
            if self.config.average.k == "never" and self.world.replicas > 1:
                scores["ensemble"] = self.test.ensemble_of_replicas(models)
        if self.config.trajectory.name == "ema" and self.config.average.k != "never" and self.trajectories[0].updates:
            scores["trajectory"] = self.test.shared(self.along_time(self.trajectories[0]))
        self.scores = scores
        self._keep_best(iteration)
        self.record.evaluation({"iteration": iteration, "epoch": iteration / self.per_epoch, **scores})
        self.watch.go()

    def snapshot(self, iteration: int) -> None:
        """Keeps the mean model, if one of the schedule's cycles ends here."""
        if not (self.config.snapshots and ends_cycle(self.config.schedule, iteration, self.total)):
            return
        self.watch.pause()
        self._share_single(iteration)
        cycle = iteration * self.config.schedule.cycles // self.total
        with self.shown(), self.around.averaged() as mean:
            self.recalibrate_mean(mean)
            self.keep_model(f"snapshots/{cycle}.safetensors", mean)
        self.watch.go()

    def save(self, iteration: int, checkpoints: Checkpoints) -> None:
        """A checkpoint of the replicas as they are before the average step of this iteration."""
        self.world.does(f"saving after iteration {iteration}")
        self.losses.check()
        self.watch.pause()
        self.around.synchronize_shards()
        self.around.check_finite(iteration)
        self._share_single(iteration)
        state = {
            **self.around.state_dict(),
            "seconds": self.watch.elapsed,
            "scores": self.scores,
            "best": self.best,
            "start": self.start,
            "classes": self.dataset.classes,
            "trained_on": self.dataset.trained_on,
            "config": self.config.identity(),
        }
        mine = {
            name: part
            for name, part in parts(self.replicas, self.trajectories, self.around).items()
            if (self.world.main if name == SHARED_TRAJECTORY else self.world.shard == 0)
        }
        checkpoints.save(iteration, mine, state)
        self.watch.go()

    def along_time(self, trajectory: Trajectory) -> nn.Module:
        """The average along time, the same on all ranks that share it; buffers that are no mean are the first one's."""
        model = trajectory.average.model()
        broadcast_(list(model.buffers()), self.world.shard_group)
        if not trajectory.own:
            broadcast_(list(model.buffers()), self.world.replica_group)
        return model

    def keep_model(self, name: str, model: nn.Module) -> None:
        """Saves a model that all ranks hold into the run's folder; collective."""
        with self.world.together():
            if self.world.main:
                self.write_model(name, model)

    def write_model(self, name: str, model: nn.Module) -> None:
        """Saves a model into the run's folder with what its readers need to build the network without the data."""
        path = Path(self.config.out) / name
        path.parent.mkdir(exist_ok=True)
        metadata = {
            "classes": self.dataset.classes,
            "channels": self.dataset.channels,
            "start": self.start,
            "config": self.config.identity(),
        }
        save_model(path, model.state_dict(), metadata)

    def shown(self) -> AbstractContextManager[None]:
        """Inside, the hosted replicas have the weights to evaluate (with Lookahead, the slow ones)."""
        return shown(self.replicas)

    def recalibrate_mean(self, mean: nn.Module) -> None:
        if self.config.evaluate.recalibrate:
            self.recalibrate([mean] * len(self.replicas))

    def recalibrate(self, models: Sequence[nn.Module], apart: bool = False) -> None:
        """Measures the batch-norm statistics of the hosted replicas' models, or of one for all of them."""
        iterations = range(min(self.per_epoch, self.config.evaluate.recalibrate_iterations or self.per_epoch))
        recalibrate(models, self.load(iterations), self.normalize, self.config.precision, self.world, apart=apart)

    def _share_single(self, iteration: int) -> None:
        """While a single network trains, on replica 0's ranks, the others get its weights to evaluate and save."""
        if iteration <= self.branch:
            self.around.restart()

    def _begin_rounds(self) -> None:
        for replica in self.replicas:
            replica.compensate_norm_momentum()

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
