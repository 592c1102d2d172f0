"""Which vectors does a model hold of each text, layer by layer?

In: token ids, each list with one prefix token before the text's own. Out: float32 states, pooled
over the tokens of a text, or of a part of it that is read within the whole. Layer 0 is what enters
the first block (embeddings, with whatever scale or position an architecture adds); layer l is what
leaves block l, as transformers reports it: the last one has passed the final norm, which the others
have not, so a step between the last two layers is partly that norm. Texts are padded on the right,
where no causal model looks.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple, final

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sft_atlas.errors import DataError
from sft_atlas.model.forward import default_batch_tokens

Pooling = Literal["last", "mean"]
POOLINGS: Final[tuple[Pooling, ...]] = ("last", "mean")
"""State of the text's last token; mean over its own tokens, the prefix token left out."""

NO_PART: Final = -1
"""Number of the part of a token that belongs to none."""

_STATE_BYTES: Final = 1 << 28
"""Bound on one pass's states of all layers; a single longer text still runs."""

Array = np.ndarray[Any, np.dtype[np.float32]]


@final
class States(NamedTuple):
    """States of one model, float32."""

    texts: Array
    """(layers + 1, poolings, texts, dimension), in the order of `POOLINGS`."""
    parts: Array
    """(layers + 1, parts, dimension): means over the tokens of a part."""


def pooled_states(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    *,
    names: Sequence[str] | None = None,
    batch_tokens: int | None = None,
    state_bytes: int = _STATE_BYTES,
) -> Array:
    """Return the states (layers + 1, poolings, texts, dimension) in the order of `POOLINGS`.

    Each text is a prefix token and at least one token of its own; `names` are for errors. Computed
    in float32 without gradients. What else is in a batch changes a value by rounding alone. The
    model must be in evaluation mode and is left as it was.

    Raises:
        DataError: for a text without a token of its own, or whose states are not finite.
    """
    parts = [[NO_PART] * len(ids) for ids in texts]
    return part_states(
        model, texts, parts, names=names, batch_tokens=batch_tokens, state_bytes=state_bytes
    ).texts


def part_states(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    parts: Sequence[Sequence[int]],
    *,
    names: Sequence[str] | None = None,
    batch_tokens: int | None = None,
    state_bytes: int = _STATE_BYTES,
) -> States:
    """Return the states of texts as `pooled_states` does, and those of parts of them.

    `parts` has for each id the number of its part, `NO_PART` for none; parts are numbered from 0
    without a gap, and none lies in two texts.

    Raises:
        DataError: as `pooled_states`.
    """
    assert not model.training, "dropout would make the states random"
    names = names or [str(i) for i in range(len(texts))]
    for name, ids in zip(names, texts, strict=True):
        if len(ids) < 2:
            raise DataError(
                f"text {name}: has {len(ids)} tokens; expected a prefix token and at least one of "
                f"its own. Leave empty texts out."
            )
    config = model.config.get_text_config()
    num_layers, size = int(config.num_hidden_layers), int(config.hidden_size)
    num_parts = len({number for numbers in parts for number in numbers} - {NO_PART})
    states = States(
        np.empty((num_layers + 1, len(POOLINGS), len(texts), size), dtype=np.float32),
        np.empty((num_layers + 1, num_parts, size), dtype=np.float32),
    )
    fitting = max(state_bytes // (4 * (num_layers + 1) * size), 1)
    room = min(fitting, batch_tokens or default_batch_tokens(model.device))
    for batch in _iter_batches([len(ids) for ids in texts], room):
        places = _places([parts[i] for i in batch])
        pooled = _pool(model, [texts[i] for i in batch], list(places.values()))
        # What is not finite in a part is not finite in its text's mean either.
        finite = np.isfinite(pooled.texts).all(axis=(1, 3))
        if not finite.all():
            layer, place = (int(index) for index in np.argwhere(~finite)[0])
            raise DataError(
                f"text {names[batch[place]]}, layer {layer}: the model's states are not finite; "
                f"expected numbers. Its weights diverged: look at its loss and its drift."
            )
        states.texts[:, :, batch] = pooled.texts
        states.parts[:, list(places)] = pooled.parts
    return states


def _iter_batches(lengths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Yield indices of texts of similar length whose padded tokens fit into `room`."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and lengths[i] * (len(batch) + 1) > room:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _places(parts: Sequence[Sequence[int]]) -> dict[int, list[tuple[int, int]]]:
    """Return (row, column) of the tokens of each part of a batch."""
    places: dict[int, list[tuple[int, int]]] = {}
    for row, numbers in enumerate(parts):
        for column, number in enumerate(numbers):
            if number != NO_PART:
                places.setdefault(number, []).append((row, column))
    return places


def _pool(
    model: PreTrainedModel,
    texts: Sequence[Sequence[int]],
    places: Sequence[Sequence[tuple[int, int]]],
) -> States:
    """Return the states of one batch, and of parts whose tokens lie at (row, column)."""
    lengths = torch.tensor([len(ids) for ids in texts])
    ids = torch.zeros((len(texts), int(lengths.max())), dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.as_tensor(np.asarray(text, dtype=np.int64))
    device = model.device
    columns = torch.arange(ids.shape[1])
    own = ((columns >= 1) & (columns < lengths[:, None])).to(device)
    rows, last = torch.arange(len(texts), device=device), (lengths - 1).to(device)
    count = (lengths - 1).to(device)[:, None]
    at = torch.tensor([place for part in places for place in part], dtype=torch.long)
    in_row, in_column = at.view(-1, 2).T.to(device)
    sizes = [len(part) for part in places]
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        output = model.base_model(
            input_ids=ids.to(device), use_cache=False, output_hidden_states=True
        )
        pooled, of_parts = [], []
        for states in output.hidden_states:
            states = states.float()
            # Selected, not multiplied by 0: what stands in the padding may not be finite.
            mean = torch.where(own[:, :, None], states, 0.0).sum(dim=1) / count
            pooled.append(torch.stack([states[rows, last], mean]))
            of_parts.append(_means(states[in_row, in_column], sizes))
        return States(torch.stack(pooled).cpu().numpy(), torch.stack(of_parts).cpu().numpy())


def _means(states: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return means (parts, dimension) over as many rows of `states` as each part has."""
    means = states.new_empty((len(sizes), states.shape[1]))
    start = 0
    for i, size in enumerate(sizes):
        # One by one: adding at an index is in no fixed order on an accelerator.
        means[i] = states[start : start + size].mean(dim=0)
        start += size
    return means
