"""`Lookaround` for any training loop; what is in this folder needs torch alone."""

from lookaround_ddp.averaging.checks import check_agreement
from lookaround_ddp.averaging.lookaround import Lookaround
from lookaround_ddp.averaging.nodes import Nodes, neighbours
from lookaround_ddp.averaging.optimizer_state import reset_state
from lookaround_ddp.averaging.outer import Outer
from lookaround_ddp.averaging.replica_group import WeakGroup, broadcast_
from lookaround_ddp.averaging.shutdown import expect_lost_ranks
from lookaround_ddp.averaging.tensors import content_digest, preserved
from lookaround_ddp.averaging.verdict import NotFiniteError

__all__ = [
    "Lookaround",
    "Nodes",
    "NotFiniteError",
    "Outer",
    "WeakGroup",
    "broadcast_",
    "check_agreement",
    "content_digest",
    "expect_lost_ranks",
    "neighbours",
    "preserved",
    "reset_state",
]
