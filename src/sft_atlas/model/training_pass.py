"""Answer how much samples lose under a model, with all gradients: one pass of training.

In: for each run that the model holds, its rows and the samples of this pass. Out: each run's summed
cross-entropy. Samples stand end to end and only supervised positions reach the head; a model that
cannot keep such samples apart gets them padded, and computes its logits by its own code.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from sft_atlas.data.batches import IGNORED, Batch, Member, collate, pack
from sft_atlas.model.forward import logits_at
from sft_atlas.model.head_loss import head_losses, head_rule
from sft_atlas.model.packed import can_pack as can_pack
from sft_atlas.model.packed import packed_states


def summed_losses(
    model: PreTrainedModel, members: Sequence[Member], *, packed: bool | None = None
) -> Tensor:
    """Return each run's cross-entropy, float32 (runs,), summed over its supervised tokens, nats.

    `members` holds the rows and the samples of each run in the order of the model's batch axis; a
    run may have no samples in this pass. `packed` says how they are laid out; by default as
    `can_pack` allows. The losses have first derivatives, to be asked for once.

    Raises:
        ValueError: if samples of several runs are to be padded.
    """
    if can_pack(model) if packed is None else packed:
        batch = pack(members).to(model.device)
        head = model.get_output_embeddings()
        states = packed_states(model, batch)
        return head_losses(head, head_rule(model), states, batch.targets, batch.num_supervised)
    if len(members) != 1:
        raise ValueError(
            f"{type(model).__name__}: {len(members)} runs in one pass, and padded samples; expected "
            f"one run. Only a model that packs its samples holds several runs."
        )
    logits, targets, _ = padded_logits(model, collate(*members[0]))
    return functional.cross_entropy(logits, targets, reduction="sum")[None]


def padded_logits(model: PreTrainedModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits (supervised, vocab), targets and lines of a padded batch.

    Token t is predicted at position t - 1. Padding stands right of every token, where causal
    attention does not look, so no mask is needed.
    """
    lines, columns = torch.nonzero(batch.labels[:, 1:] != IGNORED, as_tuple=True)
    targets = batch.labels[lines, columns + 1]
    device = model.device
    logits = logits_at(
        model,
        lines.to(device),
        columns.to(device),
        input_ids=batch.input_ids.to(device),
        use_cache=False,
    )
    return logits, targets.to(device), lines
