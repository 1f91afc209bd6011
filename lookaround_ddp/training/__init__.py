"""`fit`: Algorithm 1, from a config to a run folder."""

from lookaround_ddp.training.fit import fit
from lookaround_ddp.training.preflight import run_preflight
from lookaround_ddp.training.replica import shown
from lookaround_ddp.training.setup import build, make_lookaround
from lookaround_ddp.training.show import facts, of_one_replica
from lookaround_ddp.training.state import check_resumable, parts

__all__ = [
    "build",
    "check_resumable",
    "facts",
    "fit",
    "make_lookaround",
    "of_one_replica",
    "parts",
    "run_preflight",
    "shown",
]
