"""What may stand as `average.k`, and the lengths of rounds that it means."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from lookaround_ddp.errors import UserError

Length = int | str  # of a round: iterations, epoch, or "10 epochs"
Entry = Annotated[tuple[float, Length], Field(strict=False)]  # (epoch, length): of the rounds that begin from it on
K = Length | Annotated[tuple[Entry, ...], Field(strict=False)]

EPOCHS = re.compile(r"(epoch|[1-9]\d* ?epochs?)$")


def check_k(k: K) -> None:
    """Raises UserError unless k is one length of all rounds, never, or lengths by the epoch from which they hold."""
    if not isinstance(k, tuple):
        if k != "never":
            check_length_of_round(k, "average.k is", " or never")
        return
    if not k or k[0][0] != 0:
        raise UserError("average.k: its first entry is for the rounds from epoch 0 on, such as [[0, epoch], [100, 5]]")
    for (earlier, _), (later, _) in pairwise(k):
        if later <= earlier:
            raise UserError(
                f"average.k: epoch {later:g} stands after epoch {earlier:g}: put the entries in their order"
            )
    for epoch, length in k:
        if length == "never":
            raise UserError(f"average.k is never from epoch {epoch:g} on: it stands alone, for a run without rounds")
        check_length_of_round(length, f"average.k from epoch {epoch:g} on is")


def check_length_of_round(length: Length, which: str, or_never: str = "") -> None:
    """Raises UserError unless it is the length of a round."""
    if isinstance(length, int) and length < 1:
        raise UserError(f"{which} {length}: a round has at least 1 iteration, or use epoch{or_never}")
    if isinstance(length, str) and not EPOCHS.match(length):
        choice = 'epoch, "10 epochs" or never' if or_never else 'epoch or "10 epochs"'
        raise UserError(f"{which} {length!r}: it should be an integer, {choice}")


def lengths(k: K, per_epoch: int) -> list[tuple[int, int]]:
    """Returns (iteration, length): rounds that begin after so many iterations, or later, have so many; [] for never."""
    if k == "never":
        return []
    entries = k if isinstance(k, tuple) else ((0.0, k),)
    return [(round(epoch * per_epoch), iterations_of(length, per_epoch)) for epoch, length in entries]


def iterations_of(length: Length, per_epoch: int) -> int:
    """Returns the iterations of a round of this length."""
    if isinstance(length, int):
        return length
    return per_epoch * int(length.removesuffix("s").removesuffix("epoch").strip() or 1)


def k_text(k: K) -> str:
    """Returns k in words: "epoch, 5 from epoch 100 on"."""
    if not isinstance(k, tuple):
        return str(k)
    (_, first), *later = k
    return ", ".join([str(first), *(f"{length} from epoch {epoch:g} on" for epoch, length in later)])
