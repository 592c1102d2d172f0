"""Say what a training loop does with the weights of a run, on whatever devices they are."""

import math
from typing import Protocol, final

import torch
from torch import Tensor, nn

from sft_atlas.model.stack import Weights
from sft_atlas.study.spec import MethodSpec
from sft_atlas.train.checkpoint import Checkpoint, restore, state_tensors


class State(Protocol):
    """Weights that train, their gradients and their optimizer."""

    @property
    def parameters(self) -> Weights:
        """What this process has of the weights, by their names in the live model."""
        ...

    def clip(self) -> Tensor:
        """Scale the gradients down to the method's norm; returns their norm before, a scalar."""
        ...

    def move(self, rate: float) -> None:
        """Take the optimizer's step at this learning rate."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds, by `state_tensors`' names."""
        ...

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what a checkpoint holds."""
        ...


@final
class LocalState:
    """Weights that this process has alone."""

    def __init__(self, method: MethodSpec, parameters: Weights) -> None:
        self.parameters = parameters
        self._method = method
        self._optimizer = make_optimizer(method, parameters)

    def clip(self) -> Tensor:
        clip_norm = self._method.clip_norm
        return nn.utils.clip_grad_norm_(
            self.parameters.values(), math.inf if clip_norm is None else clip_norm
        )

    def move(self, rate: float) -> None:
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        return state_tensors(self.parameters, self._optimizer)

    def restore(self, checkpoint: Checkpoint) -> None:
        restore(checkpoint, parameters=self.parameters, optimizer=self._optimizer)


def clear_gradients(parameters: Weights) -> None:
    for parameter in parameters.values():
        parameter.grad = None


def make_optimizer(method: MethodSpec, parameters: Weights) -> torch.optim.AdamW:
    """Return a run's optimizer; its learning rate is set before each step."""
    return torch.optim.AdamW(
        parameters.values(),
        lr=method.learning_rate,
        betas=(method.beta1, method.beta2),
        eps=method.epsilon,
        weight_decay=method.weight_decay,
        # One kernel for all weights: measured 4x faster than the default on small models, and
        # element by element, so nothing depends on how the work is split.
        fused=True,
    )
