"""Show what a model would learn from a dataset, before anything is trained.

The first samples of the seeded order are encoded as for training and decoded again, split where
supervision begins: what is shown is the tokens and not the file. Malformed rows are listed whatever
`on_bad_rows` says.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Final

from sft_atlas.data.encoding import EncodedExample, load_tokenizer
from sft_atlas.data.prepared import iter_encoded, length_quantiles
from sft_atlas.data.sources import NUM_SHOWN, read_examples
from sft_atlas.data.subsets import row_order
from sft_atlas.study.spec import DatasetSpec, ModelSpec

NUM_MEASURED: Final = 2000
"""How many samples at most are encoded for the length figures."""


@dataclass(frozen=True, kw_only=True)
class InspectedExample:
    """One sample as the model sees it."""

    row: int
    """Source row, counted from 0 over all rows read."""
    unsupervised: str
    """Decoded prompt tokens, special ones included."""
    supervised: str
    """Decoded answer tokens; ends in the end-of-sequence token unless truncated."""
    num_prompt_tokens: int
    num_answer_tokens: int
    is_truncated: bool


@dataclass(frozen=True, kw_only=True)
class DroppedRow:
    """A row that is not trained on, and why."""

    where: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What `inspect` tells of a dataset under a model's tokenizer; `asdict` makes it JSON."""

    dataset: str
    model: str
    template: str
    max_tokens: int
    num_rows: int
    num_usable: int
    """Rows that are neither malformed nor filtered."""
    num_filtered: int
    num_malformed: int
    num_measured: int
    """Usable rows that the figures below rest on, the first of the seeded order."""
    num_dropped_truncated: int
    num_dropped_empty: int
    num_truncated: int
    num_tokens: int
    num_supervised_tokens: int
    token_length_quantiles: dict[str, float]
    """Tokens per sample by fraction of the samples; empty where no sample is left."""
    examples: tuple[InspectedExample, ...]
    dropped: tuple[DroppedRow, ...]
    """The first malformed and the first dropped rows."""


def inspect_dataset(
    dataset: DatasetSpec,
    model: ModelSpec,
    *,
    template: str,
    max_tokens: int,
    num_examples: int = 3,
    subset_seed: int = 0,
) -> Inspection:
    """Encode the first samples of the seeded order and report what is supervised, cut and dropped.

    Raises:
        DataError: if the data or the tokenizer cannot be read, or the template cannot be rendered.
    """
    tokenizer = load_tokenizer(model)
    loaded = read_examples(dataset)
    order = row_order(len(loaded.examples), subset_seed)[:NUM_MEASURED].tolist()
    encoded = iter_encoded(
        tokenizer,
        [loaded.examples[i] for i in order],
        template=template,
        max_tokens=max_tokens,
    )
    outcomes = [(loaded.indices[i], e) for i, e in zip(order, encoded, strict=True)]
    kept = [(row, e) for row, e in outcomes if isinstance(e, EncodedExample)]
    drops = [(row, e) for row, e in outcomes if not isinstance(e, EncodedExample)]
    reasons = Counter(reason for _, reason in drops)
    num_tokens = sum(len(e.ids) for _, e in kept)
    malformed = [DroppedRow(where=r.where, reason=r.reason) for r in loaded.rejects[:NUM_SHOWN]]
    lost = [DroppedRow(where=f"row {row}", reason=_REASONS[e]) for row, e in drops[:NUM_SHOWN]]
    return Inspection(
        dataset=dataset.name,
        model=model.name,
        template=template,
        max_tokens=max_tokens,
        num_rows=loaded.num_rows,
        num_usable=len(loaded.examples),
        num_filtered=loaded.num_filtered,
        num_malformed=len(loaded.rejects),
        num_measured=len(order),
        num_dropped_truncated=reasons["truncated"],
        num_dropped_empty=reasons["empty"],
        num_truncated=sum(e.is_truncated for _, e in kept),
        num_tokens=num_tokens,
        num_supervised_tokens=num_tokens - sum(e.prompt_length for _, e in kept),
        token_length_quantiles=length_quantiles(len(e.ids) for _, e in kept) if kept else {},
        examples=tuple(
            InspectedExample(
                row=row,
                unsupervised=tokenizer.decode(e.ids[: e.prompt_length]),
                supervised=tokenizer.decode(e.ids[e.prompt_length :]),
                num_prompt_tokens=e.prompt_length,
                num_answer_tokens=len(e.ids) - e.prompt_length,
                is_truncated=e.is_truncated,
            )
            for row, e in kept[:num_examples]
        ),
        dropped=(*malformed, *lost),
    )


_REASONS: Final = {
    "truncated": "the prompt alone fills max_tokens",
    "empty": "the tokenizer turns the answer into no token",
}
