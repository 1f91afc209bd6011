"""Which images a run has met that cannot be read: known to all ranks, said once, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from lookaround_ddp.data.batches import Batch
from lookaround_ddp.data.images import Images
from lookaround_ddp.distributed import World

NAMED = 3  # of the images that a warning is about


class Unreadable:
    """The images of a split that were met and cannot be read.

    Args:
        kind: what the split is for: train, validation or test.
    """

    def __init__(self, split: Images, kind: str, world: World) -> None:
        self.split, self.kind, self.world = split, kind, world
        self.known: set[int] = set()  # on all ranks
        self.found: dict[int, str] = {}  # by this rank since all shared theirs: why each cannot be read

    def note(self, batch: Batch) -> None:
        """Takes in what a batch has met. Not collective."""
        self.found.update(batch.unreadable)

    def noted(self, batches: Iterable[list[list[Batch]]]) -> Iterator[list[list[Batch]]]:
        """These batches of iterations, each noted when it is asked for."""
        for hosted in batches:
            for own in hosted:
                for batch in own:
                    self.note(batch)
            yield hosted

    def share(self, say: Callable[[str], None]) -> int:
        """What any rank has met is known on all, and said once; returns how many there are. Collective."""
        found = {index: reason for each in self.world.gather(self.found) for index, reason in each.items()}
        new = sorted(found.keys() - self.known)
        self.known |= found.keys()
        self.found = {}
        if new:
            names = [f"{self.split.name(index)} ({found[index]})" for index in new[:NAMED]]
            names += [f"and {len(new) - NAMED} more"] if len(new) > NAMED else []
            fate = "the next ones stand for them" if self.kind == "train" else "the scores leave them out"
            say(f"warning: {len(new)} unreadable {self.kind} images, {fate}: {', '.join(names)}")
        return len(self.known)
