"""Scores in mid-run, of models that are lent for it; batch-norm's statistics measured anew for them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lookaround_ddp.averaging import broadcast_
from lookaround_ddp.checkpoint import RunState
from lookaround_ddp.evaluation import recalibrate
from lookaround_ddp.models import Normalize
from lookaround_ddp.optim import Trajectory
from lookaround_ddp.training.model_files import keep_best
from lookaround_ddp.training.rounds import share_single
from lookaround_ddp.training.run import EVALUATING, Run, evaluation_weights, load_batches


def validate(run: Run) -> None:
    """Scores the mean model, and each replica as it is before the average step, if asked for. Collective.

    Raises:
        NotFiniteError: a loss or a weight is not finite.
    """
    run.world.does(f"evaluating after iteration {run.iteration}")
    check_finite(run)
    with run.watch.paused(EVALUATING):
        run.scores = _scores(run)
    run.record.evaluation({"iteration": run.iteration, "epoch": run.iteration / run.per_epoch, **run.scores})


def _scores(run: Run) -> RunState:
    """Returns what an evaluation finds, and keeps the mean model if it is the best. Collective."""
    config, world = run.config, run.world
    scores: RunState = {}
    with evaluation_weights(run):
        share_single(run)
        if config.average.k != "never":
            with run.around.averaged() as mean:
                recalibrate_mean(run, mean)
                scores["mean"] = run.test.shared(mean)
                if run.validation is not None:
                    scores["validation"] = run.validation.shared(mean)
                keep_best(run, scores, mean)
        models = [replica.model for replica in run.replicas]
        if config.evaluate.replicas or config.average.k == "never":
            scores["replicas"] = run.test.replicas(models)
        if config.average.k == "never" and world.replicas > 1:
            scores["ensemble"] = run.test.ensemble_of_replicas(models)
    if config.trajectory.name == "ema" and config.average.k != "never" and run.weight_averages[0].updates:
        scores["trajectory"] = run.test.shared(averaged_model(run, run.weight_averages[0]))
    return scores


def check_finite(run: Run) -> None:
    """Raises NotFiniteError on all ranks if a loss, or a weight of a replica, is inf or NaN."""
    run.losses.check()
    run.around.synchronize_shards()  # before the weights, so that all ranks find the same
    run.around.check_finite(run.iteration)


def averaged_model(run: Run, average: Trajectory) -> nn.Module:
    """Returns SWA's, SWAD's or EMA's model, the same on all ranks; buffers that are no mean are the first one's."""
    model = average.average.model()
    broadcast_(list(model.buffers()), run.world.shard_group)
    if not average.own:
        broadcast_(list(model.buffers()), run.world.replica_group)
    return model


def recalibrate_mean(run: Run, mean: nn.Module) -> None:
    """Measures the mean model's batch-norm statistics anew, if the config asks for it."""
    if run.config.evaluate.recalibrate:
        recalibrate_models(run, [mean] * len(run.replicas))


def recalibrate_models(run: Run, models: Sequence[nn.Module], apart: bool = False) -> None:
    """Measures the batch-norm statistics of a model for each hosted replica, or of one that stands for all.

    Args:
        apart: each model over the batches of its own replica alone.
    """
    iterations = range(min(run.per_epoch, run.config.evaluate.recalibrate_iterations or run.per_epoch))
    normalize = Normalize(run.dataset.mean, run.dataset.std, run.world.device, run.config.channels_last)
    recalibrate(models, load_batches(run, iterations), normalize, run.config.precision, run.world, apart=apart)
