"""`analyze plane` (the paper's Fig. 1 and 7): loss and accuracy on the plane through three networks."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lookaround_ddp.analysis.arguments import select_checkpoints
from lookaround_ddp.analysis.geometry import axis, plane_through
from lookaround_ddp.analysis.output import Output
from lookaround_ddp.analysis.plane_figure import draw_plane
from lookaround_ddp.analysis.scoring import (
    code_of,
    default_output,
    describe_images,
    lone_scorer,
    map_over_ranks,
    parameters_of,
    replica_states,
    shapes,
    shipped_states,
)
from lookaround_ddp.checkpoint import Checkpoints, run_of
from lookaround_ddp.config import Config
from lookaround_ddp.data import Dataset, open_on_all_ranks
from lookaround_ddp.distributed import World
from lookaround_ddp.errors import UserError
from lookaround_ddp.evaluation import Score, Scorer, State, mean_state
from lookaround_ddp.files import write_atomically

SAVE_INTERVAL = 2.0  # seconds between two saves of the finished points


def analyze_plane(options: argparse.Namespace, runs: Sequence[Path], configs: Sequence[Config], world: World) -> None:
    """Scores the networks and every point of a grid, which the ranks share; goes on where it was interrupted."""
    _check_plane_options(options)
    config, dataset = configs[0], open_on_all_ranks(configs[0], world)
    with world.together():
        output = Output(default_output(options, runs[0], "plane"))
        networks = _networks(options, runs, configs, dataset, world)
        scorer = lone_scorer(
            config, dataset, world, options.split, options.images, options.recalibrate, code_of(options)
        )
        names, states = list(networks), list(networks.values())
        if shapes(states[0]) != shapes(scorer.model.state_dict()):  # the checkpoints were not asked yet
            raise UserError(
                f"{runs[0]}: its checkpoint is of another network than the config describes: leave model be"
            )
        plane = plane_through(scorer.model, states[:3])
        places = [plane.place(parameters_of(scorer.model, state)) for state in states]
        xs, ys = (axis([place[side] for place in places], options.margin, options.points) for side in (0, 1))

    def score(number: int) -> Score:
        if number < len(states):
            return scorer.score(states[number])
        row, column = divmod(number - len(states), len(xs))
        return scorer.score(plane.state(float(xs[column]), float(ys[row])))

    count = len(states) + len(xs) * len(ys)
    kept = Kept(output, _digest_of_scores(scorer, states, options), world)
    left = [number for number in range(count) if number not in kept.scores]
    if world.main and len(left) < count:
        print(f"{count - len(left)} of {count} points were kept of a run that was interrupted", flush=True)
    if world.main:
        less = ", evaluate.recalibrate_iterations=N" if options.recalibrate else ""
        print(f"{len(left)} points, a pass over {scorer.cost()} each; for fewer: --points, --images{less}", flush=True)
    try:
        map_over_ranks(
            len(left), lambda place: score(left[place]), world, "points", lambda i, new: kept.add(left[i], new)
        )
    except BaseException:
        kept.save()
        raise
    scores = [kept.scores[number] for number in range(count)]
    if world.main:
        grid = scores[len(states) :]
        numbers = {
            "runs": [str(run) for run in runs],
            "images": describe_images(options, scorer),
            "batch_norm": "measured anew" if options.recalibrate else "mixed like the weights",
            "networks": [
                {"name": name, "x": x, "y": y, "distance_from_plane": distance, **own}
                for name, (x, y, distance), own in zip(names, places, scores, strict=False)
            ],
            "x": xs.tolist(),
            "y": ys.tolist(),
            "nll": np.reshape([each["nll"] for each in grid], (len(ys), len(xs))).tolist(),
            "top1": np.reshape([each["top1"] for each in grid], (len(ys), len(xs))).tolist(),
        }
        for each in numbers["networks"]:
            x, y = (round(each[side], 4) + 0.0 for side in "xy")  # no -0
            print(f"{each['name']}: top-1 {each['top1']:.2f} NLL {each['nll']:.4f} at ({x:.4f}, {y:.4f})")
        draw_plane(numbers, output)
        output.write(numbers)
        kept.remove()


class Kept:
    """The scores that are known, on every rank, and a file of them from which an interrupted grid goes on.

    Args:
        digest: of all that the scores depend on; a file with another one is ignored.
    """

    def __init__(self, output: Output, digest: str, world: World) -> None:
        self.path, self.digest, self.world = output.json.with_suffix(".partial.json"), digest, world
        self.saved = time.monotonic()
        self.scores: dict[int, Score] = world.share(self._read() if world.main else {})

    def add(self, number: int, score: Score) -> None:
        self.scores[number] = score
        if time.monotonic() - self.saved > SAVE_INTERVAL:
            self.save()

    def save(self) -> None:
        if self.world.main:
            text = json.dumps({"of": self.digest, "scores": self.scores})
            write_atomically(self.path, text.encode())
        self.saved = time.monotonic()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def _read(self) -> dict[int, Score]:
        try:
            found = json.loads(self.path.read_text())
            return {int(key): value for key, value in found["scores"].items()} if found["of"] == self.digest else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # there is no such file, or it is not ours
            return {}


def _networks(
    options: argparse.Namespace, runs: Sequence[Path], configs: Sequence[Config], dataset: Dataset, world: World
) -> Mapping[str, State]:
    """Returns the networks to mark, by name; the plane goes through the first three.

    Raises:
        UserError: there are not three.
    """
    if len(runs) >= 3:
        return dict(zip(map(str, runs), shipped_states(runs, configs, dataset, world), strict=True))
    (run, at), config = run_of(runs[0]), configs[0]
    if len(runs) == 2 or len(config.replicas) == 1:
        raise UserError("a plane goes through three networks: name three runs, or one that has replicas")
    known = sorted(Checkpoints(run, 1, world, print).iterations())
    if not known:
        raise UserError(f"{run} has no checkpoint: its replicas are not known any more")
    at = options.at if at is None else at
    at = select_checkpoints(None if at is None else [at], known, run)[-1]
    states = replica_states(run, config, at, world)
    networks = {f"replica {number}, iteration {at}": state for number, state in enumerate(states)}
    if len(states) == 2:  # their mean is on the line between them, so a third network must span the plane
        earlier = [each for each in known if each < at]
        if not earlier:
            raise UserError(f"{run} has two replicas, and no checkpoint before {at} to span a plane with: give an --at")
        networks[f"mean phi, iteration {earlier[0]}"] = mean_state(replica_states(run, config, earlier[0], world))
    return networks | {"the replicas' mean phi": mean_state(states)}


def _check_plane_options(options: argparse.Namespace) -> None:
    if options.points < 2:
        raise UserError(f"--points is {options.points}: give 2 or more")
    if not options.margin >= 0:
        raise UserError(f"--margin is {options.margin:g}: give 0 or more")


def _digest_of_scores(scorer: Scorer, states: Sequence[State], options: argparse.Namespace) -> str:
    """Hashes everything that the scores depend on."""
    digest = hashlib.sha256()
    for state in states:
        for name, value in state.items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().numpy().tobytes())
    values = [options.split, options.images, options.recalibrate, options.points, options.margin]
    config = scorer.config
    values += [config.identity(), config.evaluate.model_dump(mode="json")]  # batch-norm sees augmented images
    digest.update(json.dumps(values).encode())
    return digest.hexdigest()
