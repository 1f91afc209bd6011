"""One replica: its network, optimizer and gradient scaler, and one update of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lookaround_ddp import seeds
from lookaround_ddp.averaging import reset_state
from lookaround_ddp.config import Config
from lookaround_ddp.data import Batch, Dataset, mixed
from lookaround_ddp.distributed import World
from lookaround_ddp.models import Normalize, autocast, compensate_norm_momentum, create_model, refuse_unsafe_layout
from lookaround_ddp.optim import Lookahead, climbed, create_optimizer, frozen_statistics, set_learning_rate
from lookaround_ddp.training.loss import make_loss


class Replica:
    """A network that trains on its own augmentations.

    Args:
        number: 0..d-1, in the whole run.
    """

    def __init__(self, config: Config, number: int, dataset: Dataset, world: World) -> None:
        seed = config.seed if config.model.seed is None else config.model.seed
        seeds.seed_torch(world.device, seed, seeds.INITIAL)
        self.own = bool(config.own_code())  # which may draw from `random` and numpy
        if self.own:
            seeds.seed_python(seed, seeds.INITIAL)
        model = create_model(config.model, dataset.classes, dataset.channels)
        for setting in ("channels_last", "compile"):
            if getattr(config, setting) and world.device.type == "cpu":
                refuse_unsafe_layout(model, setting)
        if config.data.accumulate > 1:  # batch-norm's statistics move in each part, and remember as many images
            compensate_norm_momentum(model, 1 / config.data.accumulate)
        layout = torch.channels_last if config.channels_last else torch.preserve_format
        self.model: nn.Module = model.to(world.device).to(memory_format=layout)
        if config.compile:
            self.model.compile()
        self.network: nn.Module = self.model
        if world.shard_group is not None:
            self.network = DistributedDataParallel(
                self.model,
                process_group=world.shard_group,
                gradient_as_bucket_view=True,  # else they exist twice, and are copied
            )
        self.loss = make_loss(config, world.device)
        self.optimizer = create_optimizer(config.optimizer, self.model)
        self.sam, self.lookahead = config.optimizer.sam, None
        if config.optimizer.lookahead is not None:
            self.lookahead = Lookahead(self.optimizer, **config.optimizer.lookahead.model_dump())
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.precision == "fp16")
        self.normalize = Normalize(dataset.mean, dataset.std, world.device, config.channels_last)
        self.config, self.number, self.world = config, number, world

    def step(self, batches: Sequence[Batch], iteration: int, rate: float) -> Tensor:
        """Takes an update for each augmentation's batch; returns the mean loss, shape (), without waiting for it.

        A replica that has none, since a single network trains for all of them, does nothing: its loss is 0.
        """
        self.network.train()
        set_learning_rate(self.optimizer, rate)
        losses = []
        for update, batch in enumerate(batches):
            images, targets = self.normalize(batch.images), batch.labels.to(self.world.device, non_blocking=True)
            key = (self.config.seed, self.number, iteration, update, self.world.shard)
            if batch.mix is not None:
                seeds.seed_python(key[0], seeds.MIX, *key[1:])
                images, targets = mixed(batch.mix, images, targets)
            losses.append(self._update(images, targets, batch.share, key))
        return torch.stack(losses).mean() if losses else torch.zeros((), device=self.world.device)

    def _update(self, images: Tensor, targets: Tensor, share: float, key: tuple[int, ...]) -> Tensor:
        """Takes one step of the optimizer; with SAM, by the gradient of the same loss at the top of the climb."""
        if self.sam is None:
            loss = self._gradient(images, targets, share, key)
        else:
            with self._apart() if self.sam.perturbation == "local" else nullcontext():
                loss = self._gradient(images, targets, share, key)
            with (
                climbed(
                    self.model.named_parameters(),
                    self.sam.rho,
                    adaptive=self.sam.adaptive,
                    eta=self.sam.eta,
                    loss_scale=self.scaler.scale(torch.ones((), device=self.world.device)),
                ),
                frozen_statistics(self.model),
            ):
                self._gradient(images, targets, share, key)
        if self.config.optimizer.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.lookahead is not None:
            self.lookahead.step()
        return loss

    def _gradient(self, images: Tensor, targets: Tensor, share: float, key: tuple[int, ...]) -> Tensor:
        """Computes the loss, and leaves gradients in the parameters' `grad`. Equal keys draw equal dropout masks.

        With data.accumulate the images go through the network in parts; their gradients are summed by their shares.
        """
        seeds.seed_torch(self.world.device, key[0], seeds.FORWARD, *key[1:])
        if self.own:
            seeds.seed_python(key[0], seeds.FORWARD, *key[1:])
        self.optimizer.zero_grad(set_to_none=True)
        count = max(1, min(self.config.data.accumulate, len(images) // 2))  # batch-norm needs two images
        parts = list(zip(images.tensor_split(count), targets.tensor_split(count), strict=True))
        losses = []
        for number, (some, own) in enumerate(parts, 1):
            weight = len(some) / len(images)
            with self._apart() if number < count else nullcontext():
                with autocast(self.config.precision, self.world.device):
                    logits = self.network(some)
                loss = self.loss(logits.float(), own)
                # Where activations are computed anew, batch-norm's statistics would move twice.
                with frozen_statistics(self.model) if self.config.model.checkpointing else nullcontext():
                    self.scaler.scale(loss * (share * weight)).backward()
            losses.append(loss.detach() if count == 1 else loss.detach() * weight)
        return losses[0] if count == 1 else torch.stack(losses).sum()

    def _apart(self) -> AbstractContextManager[None]:
        """Lets the ranks of a replica keep their gradients to themselves while the block runs."""
        if isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()  # type: ignore[no-any-return]  # torch gives it no type
        return nullcontext()

    def restart(self) -> None:
        """Clears the optimizer's state: the weights are a new starting point."""
        reset_state(self.optimizer)
        self.restart_lookahead()

    def restart_lookahead(self) -> None:
        """Restarts Lookahead's slow weights from the current weights; to be called after these were overwritten."""
        if self.lookahead is not None:
            self.lookahead.restart()

    def compensate_norm_momentum(self) -> None:
        """Raises batch-norm's momentum to that of one of d replicas; see `average.norm_momentum`."""
        average = self.config.average
        if average.k != "never" and average.norm_momentum == "compensated":
            compensate_norm_momentum(self.model, average.nodes.size if average.nodes else self.world.replicas)

    def shown(self) -> AbstractContextManager[None]:
        """Gives the model the weights to evaluate while the block runs: Lookahead's slow ones, or else its own."""
        return nullcontext() if self.lookahead is None else self.lookahead.slow_weights()

    def state_dict(self) -> dict[str, Any]:
        with self.shown():
            shown = {} if self.lookahead is None else {"shown": _copied_state(self.model.state_dict())}
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "lookahead": None if self.lookahead is None else self.lookahead.state_dict(),
            **shown,  # for those who read the weights alone
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.lookahead is not None:
            self.lookahead.load_state_dict(state["lookahead"])


@contextmanager
def shown(replicas: Sequence[Replica]) -> Iterator[None]:
    """Gives these replicas the weights to evaluate while the block runs (with Lookahead the slow ones)."""
    with ExitStack() as stack:
        for replica in replicas:
            stack.enter_context(replica.shown())
        yield


def _copied_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}
