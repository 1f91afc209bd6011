"""What the parts of a config on an update of a replica must agree in: its loss."""

from __future__ import annotations

from lookaround_ddp.config.schema import Config
from lookaround_ddp.errors import UserError, shortened


def check_update(config: Config) -> None:
    """Raises UserError if there is no such loss, or it goes with no label smoothing."""
    own = [path for what, path in config.own_code() if what == "loss"]
    if config.loss != "cross_entropy" and (not own or (isinstance(config.loss, dict) and len(config.loss) != 1)):
        raise UserError(
            f"loss is {shortened(str(config.loss))}: it should be cross_entropy, or the path of a function or class of "
            "your own, my.module.loss or {my.module.Loss: {argument: value}}"
        )
    if own and config.label_smoothing:
        raise UserError(f"label_smoothing is cross_entropy's, and loss is {own[0]}: set label_smoothing=0")
