"""What is trained: CIFAR-size networks and any of timm's; how images go into them."""

from lookaround_ddp.models.factory import compensate_norm_momentum, create_model, empty_model, refuse_unsafe_layout
from lookaround_ddp.models.inputs import Normalize, autocast, placed

__all__ = [
    "Normalize",
    "autocast",
    "compensate_norm_momentum",
    "create_model",
    "empty_model",
    "placed",
    "refuse_unsafe_layout",
]
