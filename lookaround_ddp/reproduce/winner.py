"""The best of several runs: of a sweep's points, or of the cells that a recipe names."""

from __future__ import annotations

from lookaround_ddp.checkpoint import save_made
from lookaround_ddp.errors import UserError
from lookaround_ddp.report import RunRecord, held_out, judged_score, read_run
from lookaround_ddp.reproduce.plan import Making


def write_winner(making: Making) -> str:
    """Selects by top-1, and NLL between equals, writes the winner's scores as a run's folder, and names it.

    Raises:
        UserError: a run has no score to select by.
    """
    by = "validation" if making.recipe is None else making.recipe.by
    records = [read_run(each.run) for each in making.of]
    scores = [_score(record, by) for record in records]
    place = max(range(len(scores)), key=lambda number: (scores[number]["top1"], -scores[number]["nll"]))
    shown = judged_score(records[place])
    assert shown is not None  # it has a score
    images = "held-out" if by == "validation" else "test"
    winner = {
        "name": making.of[place].run.name,
        "run": str(making.of[place].run),
        "overrides": list(making.of[place].point),
        "by": images,
        "score": scores[place],
    }
    how = {"recipe": "sweep"} if making.recipe is None else making.recipe.record()
    runs, configs = [each.run for each in making.of], [record.config for record in records]
    save_made(making.run, configs[place], how, runs, configs, {"mean": shown[1], "winner": winner})
    return f"{winner['name']} is the best of {len(scores)} by {images} images"


def _score(record: RunRecord, by: str) -> dict[str, float]:
    found = held_out(record) if by == "validation" else (judged_score(record) or ("", None))[1]
    if found is None:
        images = "held-out" if by == "validation" else "test"
        raise UserError(f"{record.name} has no score on {images} images to select by")
    return found
