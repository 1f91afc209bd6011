"""What follows an iteration: the average step where it is due, and those who look at its result."""

from __future__ import annotations

from collections.abc import Iterator

from lookaround_ddp.averaging import check_agreement
from lookaround_ddp.checkpoint import RunState
from lookaround_ddp.config import iterations_of, lengths
from lookaround_ddp.optim import Swad
from lookaround_ddp.training.run import EVALUATING, SAVING, Run, evaluation_weights, times_due


def average(run: Run) -> None:
    """Ends an iteration with the average step, if it is due, and with what goes with it. Collective."""
    around, iteration = run.around, run.iteration
    if around.due(iteration):
        run.world.does(f"averaging after iteration {iteration}")
    around.measure = shows_distances(run, iteration)
    over_all = around.due_over_all(iteration)
    if around.step() and run.world.replicas > 1:
        if run.config.optimizer.lookahead is not None:
            for replica in run.replicas:
                replica.restart_lookahead()
        if over_all and iteration // run.per_epoch > run.last_checked_epoch:
            run.last_checked_epoch = iteration // run.per_epoch
            compare_ranks(run)
    if iteration == run.single_phase_end:
        around.restart()
        for replica in run.replicas:
            replica.restart()
        begin_rounds(run)
    update_weight_averages(run, over_all)


def begin_rounds(run: Run) -> None:
    """Makes the hosted replicas parts of a mean: from here on their norm layers' momentum is that of d replicas."""
    for replica in run.replicas:
        replica.compensate_norm_momentum()


def share_single(run: Run) -> None:
    """Gives all ranks the single network's weights while it trains on replica 0's ranks, to evaluate and save them."""
    if run.iteration <= run.single_phase_end:
        run.around.restart()


def compare_ranks(run: Run) -> None:
    """Compares the mean on all ranks, bit by bit.

    Raises:
        RuntimeError: a rank has another mean.
    """
    buffers, gather = run.config.average.buffers, run.world.gather
    if run.config.average.delay:
        with run.around.averaged() as mean:
            check_agreement([mean], buffers, run.iteration, gather)
    else:
        run.around.look()
        check_agreement([replica.model for replica in run.replicas], buffers, run.iteration, gather)


def unreached(run: Run) -> Iterator[str]:
    """Yields a line on each kind of average step of the config to which no round of the run comes."""
    average, total, start = run.config.average, run.total, run.around.start
    rounds = lengths(average.k, run.per_epoch)
    if run.world.replicas == 1 or not rounds:
        return
    ends = f"the run ends after iteration {total}, and the first average"
    first = start + next(length for begin, length in reversed(rounds) if begin <= start)
    if first > total:
        yield (
            f"{ends} step would be after {first} (average.start, average.k): each replica trains for itself, and they "
            "are averaged once, in the end"
        )
        return
    if average.nodes is not None and (first := start + iterations_of(average.nodes.k, run.per_epoch)) > total:
        yield f"{ends} over all would be after {first} (average.nodes.k): till the end each node is averaged for itself"
    end = start
    for number, (_, length) in enumerate(rounds):
        until = min(rounds[number + 1][0], total) if number + 1 < len(rounds) else total
        if end < until:
            end += -(-(until - end) // length) * length
        elif until > start and isinstance(average.k, tuple):
            epoch, k = average.k[number]
            yield f"average.k is {k} from epoch {epoch:g} on, but no round begins then: an earlier one is under way"


def shows_distances(run: Run, iteration: int) -> bool:
    """Returns whether this iteration's average over all is the last before a line of the record with its distances."""
    if not run.around.due_over_all(iteration):
        return False
    every = run.config.record.period(run.per_epoch)
    line = min(iteration - iteration % every + every, run.total)
    return not any(run.around.due_over_all(later) for later in range(iteration + 1, line))


def update_weight_averages(run: Run, averaged: bool) -> None:
    """Shows the weights to SWA, SWAD or EMA, where they are a mean, or independent for good; SWAD also validates."""
    independent = run.config.average.k == "never"
    if not run.weight_averages or not (averaged or independent or run.world.replicas == 1):
        return
    run.around.look()
    with evaluation_weights(run):
        due = [
            average.observe(replica.model, run.iteration)
            for average, replica in zip(run.weight_averages, run.replicas, strict=False)
        ]
        if any(due) and run.config.trajectory.name == "swad":
            with run.watch.paused("validating segments"):
                _validate_segments(run, independent)


def training_line(run: Run, rate: float) -> RunState:
    """Returns a line of the record: mean losses since the last one, distances to phi, speed. Collective.

    Args:
        rate: the learning rate of the last iteration.
    """
    losses = run.losses.since_last()
    run.around.look()
    (before, earlier), seconds = run.last_logged, run.watch.seconds()
    run.last_logged = (run.iteration, seconds)
    distances = run.around.distances
    return {
        "iteration": run.iteration,
        "epoch": run.iteration / run.per_epoch,
        "lr": rate,
        "loss": losses.tolist(),
        "distance": None if distances is None else distances.tolist(),
        "images_per_second": run.losses.images(before, run.iteration) / (seconds - earlier),
        "seconds": seconds,
        "total_seconds": run.watch.total(),
        "eta": (run.total - run.iteration) * (seconds - earlier) / (run.iteration - before) + pauses_left(run),
    }


def pauses_left(run: Run) -> float:
    """Returns the seconds of the pauses from this iteration's on, judged by those since this start.

    An evaluation and a checkpoint take what they took on average, other pauses their share of the iterations.
    """
    done, seconds = run.iteration - 1, 0.0
    every = {EVALUATING: run.config.evaluate.every, SAVING: run.config.checkpoint.every}
    for what, spent in run.watch.spent.items():
        if what in every:
            times = times_due(run, every[what], run.first, done)
            seconds += spent / max(1, times) * times_due(run, every[what], done, run.total)
        else:
            seconds += spent / max(1, done - run.first) * (run.total - done)
    return seconds


def _validate_segments(run: Run, independent: bool) -> None:
    """Closes SWAD's segment with the validation loss of the mean model, or of each replica that is never averaged."""
    assert run.validation is not None
    if independent:
        run.around.synchronize_shards()
        scores = run.validation.replicas(replica.model for replica in run.replicas)
        losses = [scores[number]["nll"] for number in run.world.hosted]
    else:
        with run.around.averaged() as mean:
            losses = [run.validation.shared(mean)["nll"]]
    for each, loss in zip(run.weight_averages, losses, strict=True):
        assert isinstance(each.average, Swad)
        each.average.validated(loss)
