"""Say where and how a run trains; nothing here is hashed or changes a result beyond rounding."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from transformers import PreTrainedModel

from sft_atlas.study.passes import MICRO_BATCH_TOKENS
from sft_atlas.study.spec import CellSpec


class StopRequested(Exception):
    """Say that a run stopped because it was asked to, with its checkpoint written."""


@final
@dataclass(frozen=True, kw_only=True)
class TrainPlacement:
    """What a training process may use."""

    micro_batch_tokens: int | None = None
    """Tokens in one forward and backward pass, of all runs together; a longer single sample is a
    pass of its own. None: what suits the device."""
    checkpoint_seconds: float = 60.0
    """A killed run loses at most about this much training."""
    stack_runs: int = 1
    """Runs that train together in one model at most."""
    devices_per_run: int = 1
    """Devices of this machine that the weights of a run are spread over. Over more than one, a run
    trains alone and is not compiled."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass: a third more work, far less memory."""
    compile: bool = False
    """Compile the model with `torch.compile`; minutes at the start."""
    pack: bool = True
    """Lay samples end to end where the model allows it; False pads each to the longest."""

    def pass_tokens(self, device: str) -> int:
        """Return the tokens of a pass on a device of this type."""
        if self.micro_batch_tokens is not None:
            return self.micro_batch_tokens
        return MICRO_BATCH_TOKENS[device]


@final
@dataclass(frozen=True, kw_only=True)
class Observers:
    """What a caller does while a run goes on."""

    on_epoch: Callable[[CellSpec, PreTrainedModel], None] = lambda _cell, _model: None
    """Called after each kept epoch is published, with the live model holding the stored values, an
    adapter merged, in evaluation mode. After a kill it may be called again for the same cell."""
    on_step: Callable[[int, int], None] = lambda _done, _all: None
    """Called after each optimizer step with the number of steps done and of all."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked before the first step and after each; True raises StopRequested, with a checkpoint
    written."""
