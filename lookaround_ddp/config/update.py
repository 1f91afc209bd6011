"""What the sections of a config on an update of a replica must agree in: its loss, and the parts of its minibatch."""

from __future__ import annotations

from lookaround_ddp.config.schema import Config
from lookaround_ddp.errors import UserError, shortened


def check_update(config: Config) -> None:
    """Raises UserError if there is no such loss, or a minibatch has too few images for its parts."""
    own = [path for what, path in config.own_code() if what == "loss"]
    if config.loss != "cross_entropy" and (not own or (isinstance(config.loss, dict) and len(config.loss) != 1)):
        raise UserError(
            f"loss is {shortened(str(config.loss))}: it should be cross_entropy, or the path of a function or class of "
            "your own, my.module.loss or {my.module.Loss: {argument: value}}"
        )
    if own and config.label_smoothing:
        raise UserError(f"label_smoothing is cross_entropy's, and loss is {own[0]}: set label_smoothing=0")
    size, most = config.data.batch_size, max(1, config.data.batch_size // 2)
    if config.data.accumulate > most:
        raise UserError(
            f"data.accumulate is {config.data.accumulate}: a minibatch of {size} images has at most {most} parts of "
            "2 or more"
        )
