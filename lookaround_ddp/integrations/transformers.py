"""Lookaround for the Trainer of Hugging Face: each process trains a replica of the model.

    trainer = Trainer(model, arguments, train_dataset=...)
    attach(trainer, k=5)
    trainer.train()

Evaluations see the mean model, and checkpoints hold it; a training that goes on from one begins there. Each process
goes over all of the data, in an order and with dropout of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from transformers import Trainer, TrainerCallback, set_seed

from lookaround_ddp.averaging import Lookaround
from lookaround_ddp.integrations.accelerate import check_accelerator, whole_loader


def attach(trainer: Trainer, k: Any = 5, **options: Any) -> AttachedCallback:
    """Makes a trainer's processes train replicas, which `Lookaround(..., k, **options)` averages, as `around`.

    Raises:
        ValueError: the trainer has wrapped its model already, or is to shard the weights.
    """
    if trainer.model_wrapped is not trainer.model:
        raise ValueError("the trainer has wrapped its model already: attach Lookaround before it trains")
    accelerator, loader = trainer.accelerator, trainer.get_train_dataloader
    check_accelerator(accelerator, trainer.model)

    def every_process_whole() -> Any:
        accelerator.prepare_data_loader = lambda bare, **_: whole_loader(accelerator, bare)
        try:
            return loader()
        finally:
            del accelerator.prepare_data_loader

    callback = AttachedCallback(trainer, k, options)
    trainer.add_callback(callback)
    trainer.args.average_tokens_across_devices = False  # losses of replicas are their own
    accelerator.prepare_model = partial(accelerator.prepare_model, evaluation_mode=True)  # without DDP
    own: Any = trainer  # whose methods these replace
    own.get_train_dataloader = every_process_whole
    own.evaluate, own.save_model = callback.with_mean(own.evaluate), callback.with_mean(own.save_model)
    return callback


class AttachedCallback(TrainerCallback):
    """What `attach` adds to a trainer."""

    def __init__(self, trainer: Trainer, k: Any, options: dict[str, Any]) -> None:
        self.trainer, self.arguments = trainer, {"k": k, **options}
        self.around: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.around = Lookaround(self.trainer.model_wrapped, **self.arguments)
        self.around.load_state_dict({"steps": state.global_step, "distances": None})
        if state.global_step == 0:
            set_seed(args.seed + args.process_index)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.around.step()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.around.average()
        self.around = None

    def with_mean(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a method of the trainer that sees the mean model while it trains; collective then."""

        def lent(*args: Any, **kwargs: Any) -> Any:
            with nullcontext() if self.around is None else self.around.averaged():
                return method(*args, **kwargs)

        return lent
