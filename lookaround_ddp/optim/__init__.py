"""What moves the weights: optimizers, learning rates, averages along time."""

from lookaround_ddp.optim.factory import create_optimizer, set_learning_rate
from lookaround_ddp.optim.lookahead import Lookahead
from lookaround_ddp.optim.sam import climbed, frozen_statistics
from lookaround_ddp.optim.schedule import ends_cycle, learning_rate
from lookaround_ddp.optim.swad import Swad
from lookaround_ddp.optim.weight_averaging import Trajectory

__all__ = [
    "Lookahead",
    "Swad",
    "Trajectory",
    "climbed",
    "create_optimizer",
    "ends_cycle",
    "frozen_statistics",
    "learning_rate",
    "set_learning_rate",
]
