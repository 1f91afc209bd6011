"""What a run leaves on disk, whole or not at all."""

from lookaround_ddp.checkpoint.checkpoints import Checkpoints, RunState
from lookaround_ddp.checkpoint.digests import file_digest
from lookaround_ddp.checkpoint.ended import ENDED, set_aside
from lookaround_ddp.checkpoint.made import check_free, check_network, save_made
from lookaround_ddp.checkpoint.model_file import load_model, load_state, read_network, save_model
from lookaround_ddp.checkpoint.part_file import Part
from lookaround_ddp.checkpoint.run_folder import (
    BEST,
    LOCK,
    METRICS,
    MODEL,
    PREEMPTED,
    RESULT,
    TRAJECTORY,
    locked,
    member_files,
    members,
    members_differ,
    refuse_foreign_config,
    run_config,
    run_folder,
    run_of,
    write_config,
)
from lookaround_ddp.checkpoint.shipped import check_shipped, missing_files, pipeline_before, read_result, write_result

__all__ = [
    "BEST",
    "ENDED",
    "LOCK",
    "METRICS",
    "MODEL",
    "PREEMPTED",
    "RESULT",
    "TRAJECTORY",
    "Checkpoints",
    "Part",
    "RunState",
    "check_free",
    "check_network",
    "check_shipped",
    "file_digest",
    "load_model",
    "load_state",
    "locked",
    "member_files",
    "members",
    "members_differ",
    "missing_files",
    "pipeline_before",
    "read_network",
    "read_result",
    "refuse_foreign_config",
    "run_config",
    "run_folder",
    "run_of",
    "save_made",
    "save_model",
    "set_aside",
    "write_config",
    "write_result",
]
