"""The variables that torchrun sets: what they mean, and what does not go together."""

from __future__ import annotations

import pytest

from lookaround_ddp.distributed.environment import place_in_job
from lookaround_ddp.errors import UserError

RANK = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
JOB = RANK | {"MASTER_ADDR": "host0", "MASTER_PORT": "29500"}


def test_the_place_of_a_rank_and_of_a_process_alone() -> None:
    assert place_in_job(JOB) == (3, 4, 1)
    assert place_in_job({}) == (0, 1, 0)
    assert place_in_job({"WORLD_SIZE": "1"}) == (0, 1, 0)
    assert place_in_job({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) == (0, 1, 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0': start the ranks with torchrun, or unset it"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1', which is no number"),
        ({"WORLD_SIZE": None}, "RANK is '3', and WORLD_SIZE 1"),
        ({"RANK": None}, "RANK is not set, and WORLD_SIZE is 4"),
        ({"RANK": ""}, "RANK is not set"),
        ({"RANK": "4"}, "RANK is '4', and WORLD_SIZE 4"),
        ({"RANK": "\N{SUPERSCRIPT TWO}"}, "RANK is '\N{SUPERSCRIPT TWO}', which is no number"),
        ({"LOCAL_RANK": "one"}, "LOCAL_RANK is 'one'"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is '0'"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set, and WORLD_SIZE is 4"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is not set, and WORLD_SIZE is 4"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    ],
)
def test_what_does_not_go_together(changed: dict[str, str | None], message: str) -> None:
    environment = {name: value for name, value in (JOB | changed).items() if value is not None}
    with pytest.raises(UserError, match=f"the environment variable {message}"):
        place_in_job(environment)
