"""Numbers that environment variables hold, and those that torchrun sets for its ranks."""

from __future__ import annotations

from collections.abc import Mapping

from lookaround_ddp.errors import UserError

MEND = "start the ranks with torchrun, or unset it"


def number_in(environment: Mapping[str, str], name: str, default: str) -> int:
    """Returns a number that a variable holds, 0 or more; raises UserError if it holds none. Empty counts as unset."""
    text = environment.get(name) or default
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"the environment variable {name} is {text!r}, which is no number")
    return int(text)


def place_in_job(environment: Mapping[str, str]) -> tuple[int, int, int]:
    """Returns the rank, how many there are, and the rank's number on its machine; without torchrun 0, 1, 0.

    Raises:
        UserError: the variables are not all there, or no numbers, or do not go together.
    """
    rank, size = number_in(environment, "RANK", "0"), number_in(environment, "WORLD_SIZE", "1")
    local_rank, local_size = number_in(environment, "LOCAL_RANK", "0"), number_in(environment, "LOCAL_WORLD_SIZE", "1")
    if size == 0 or local_size == 0:
        name = "WORLD_SIZE" if size == 0 else "LOCAL_WORLD_SIZE"
        raise UserError(f"the environment variable {name} is '0': {MEND}")
    if rank >= size:
        raise UserError(f"the environment variable RANK is '{rank}', and WORLD_SIZE {size}: {MEND}")
    if size > 1:
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if not environment.get(name):
                raise UserError(f"the environment variable {name} is not set, and WORLD_SIZE is {size}: {MEND}")
        number_in(environment, "MASTER_PORT", "")
    return rank, size, local_rank
