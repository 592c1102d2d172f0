"""Answer how much samples lose under a model, with all gradients: one pass of training.

In: for each run that the model holds, its rows and the samples of this pass. Out: each run's summed
cross-entropy. Samples stand end to end and only supervised positions reach the head; a model that
cannot keep such samples apart gets them padded, and computes its logits by its own code.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from sft_atlas.data.batches import IGNORED, Batch, Member, PackedBatch, collate, pack
from sft_atlas.model.dropout import place_tokens
from sft_atlas.model.forward import logits_at
from sft_atlas.model.head_loss import head_losses, head_rule
from sft_atlas.model.packed import can_pack as can_pack
from sft_atlas.model.packed import packed_states, recomputing


def lay_out(
    model: PreTrainedModel, members: Sequence[Member], *, packed: bool
) -> PackedBatch | Batch:
    """Lay the samples of one pass out on the model's device.

    `members` holds the rows and the samples of each run in the order of the model's batch axis; a
    run may have no samples in this pass.

    Raises:
        ValueError: if samples of several runs are to be padded.
    """
    if packed:
        return pack(members).to(model.device)
    if len(members) != 1:
        raise ValueError(
            f"{type(model).__name__}: {len(members)} runs in one pass of padded samples; expected "
            f"one. Several runs train together only in a model that packs."
        )
    return collate(*members[0]).to(model.device)


def batch_losses(model: PreTrainedModel, batch: PackedBatch | Batch) -> Tensor:
    """Return each run's cross-entropy, float32 (runs,), summed over its supervised tokens, nats.

    They have first derivatives, to be asked for once.
    """
    place_tokens(batch.samples, batch.position_ids)
    if isinstance(batch, Batch):
        logits, targets, _ = padded_logits(model, batch)
        return functional.cross_entropy(logits, targets, reduction="sum")[None]
    states = packed_states(model, batch)
    head, rule = model.get_output_embeddings(), head_rule(model)
    return head_losses(head, rule, states, batch.targets, batch.num_supervised)


def summed_losses(
    model: PreTrainedModel, members: Sequence[Member], *, packed: bool | None = None
) -> Tensor:
    """Return `batch_losses` of samples, laid out as `packed` says; by default as `can_pack`
    allows."""
    is_packed = can_pack(model) if packed is None else packed
    return batch_losses(model, lay_out(model, members, packed=is_packed))


def padded_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (supervised, vocab), targets and lines of a padded batch.

    Token t is predicted at position t - 1. Padding stands right of every token, where causal
    attention does not look, so no mask is needed.
    """
    lines, columns = torch.nonzero(batch.labels[:, 1:] != IGNORED, as_tuple=True)
    logits = logits_at(model, lines, columns, input_ids=batch.input_ids, use_cache=False)
    return logits, batch.labels[lines, columns + 1], lines


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Let a training model's layers forget their activations and recompute them.

    transformers' `activation_checkpointing_disable` ends it. A layer is recomputed with what it was
    computed with, wherever the backward pass runs.
    """
    settings = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), recomputing())}
    model.activation_checkpointing_enable(activation_checkpointing_kwargs=settings)
