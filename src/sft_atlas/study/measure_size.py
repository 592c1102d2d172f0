"""Estimate what measures leave on the disk: bytes of one cell's, or of a job's.

In: the shapes of a `CostModel`. Base models leave the most: their states and distributions, which
cells are compared with, and the singular vectors of their matrices. All else is small tables.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from sft_atlas.study.job import DescribeJob, MeasureJob, OverlapJob, SimilarityJob, UpdatesJob
from sft_atlas.study.measure import (
    CellMeasure,
    DriftMeasure,
    ForgettingMeasure,
    LikelihoodMeasure,
    SpectrumMeasure,
)
from sft_atlas.study.measure_cost import COMPARED_TEXTS, state_points
from sft_atlas.study.shape import matmul_weights
from sft_atlas.study.spec import CellSpec, ModelSpec

if TYPE_CHECKING:
    from sft_atlas.study.cost import CostModel

MeasuringJob = MeasureJob | OverlapJob | DescribeJob | SimilarityJob | UpdatesJob

_RESULT_BYTES: Final = 8_000
"""A record and what a table has beside its rows: 6 to 17 KB on the miniature study."""
_ROW_BYTES: Final = 60
"""A row of a compressed table: 30 to 60 bytes on the miniature study, 100 of it in wide ones."""
_LAYER_ROWS: Final = 10
"""Weights of a layer with a row of their own, and its sum."""
_SCAN_ROWS: Final = 12
"""Of one layer's states in one pooling: scales, and sizes of subsamples."""
_MAX_VECTOR_BYTES: Final = 16 << 30
"""Of one base model's singular vectors; no more are kept."""


class MeasureSize:
    """Sizes what one study's measures publish."""

    def __init__(self, model: "CostModel") -> None:
        self._model = model
        self._known: dict[tuple[str, bool, str], int] = {}

    def cell(self, cell: CellSpec, measures: Iterable[CellMeasure]) -> int:
        """Return the bytes of a cell's measures, or of a base model's."""
        is_base = cell.trajectory is None
        total = 0
        for measure in measures:
            key = (cell.model.name, is_base, measure.fingerprint)
            if key not in self._known:
                self._known[key] = _RESULT_BYTES + self._one(cell.model, measure, is_base=is_base)
            total += self._known[key]
        return total

    def job(self, job: MeasuringJob) -> int:
        """Return the bytes that a job about texts or stored weights leaves."""
        if isinstance(job, UpdatesJob):
            num_pairs = len(job.cells) * (len(job.cells) - 1) // 2
            scopes = 1 + self._model.card(job.model).layers + _LAYER_ROWS
            return _RESULT_BYTES + num_pairs * scopes * _ROW_BYTES
        if isinstance(job, SimilarityJob):
            num_rows = sum(min(pair.num_samples, COMPARED_TEXTS) for pair in job.pairs)
            num_items = sum(self._model.measures.items(pair.benchmark)[0] for pair in job.pairs)
            return len(job.pairs) * _RESULT_BYTES + round((num_rows + num_items) * _ROW_BYTES)
        # Of overlap only the rows that hold an item are kept.
        num_rows = 0 if isinstance(job, OverlapJob) else job.num_samples
        return _RESULT_BYTES + num_rows * _ROW_BYTES

    def vectors(self, model: ModelSpec) -> int:
        """Return the bytes of a base model's left singular vectors, float32.

        A matrix has at most as many numbers in them as weights.
        """
        return min(4 * matmul_weights(self._model.card(model)), _MAX_VECTOR_BYTES)

    def _one(self, model: ModelSpec, measure: CellMeasure, *, is_base: bool) -> int:
        card = self._model.card(model)
        if isinstance(measure, (DriftMeasure, SpectrumMeasure)):
            return card.layers * _LAYER_ROWS * _ROW_BYTES
        num_texts, tokens = self._model.measures.texts(measure.texts)
        if isinstance(measure, LikelihoodMeasure):
            return round(num_texts * _ROW_BYTES)
        if isinstance(measure, ForgettingMeasure):
            if not is_base:
                return round(num_texts * _ROW_BYTES)
            kept = min(measure.num_kept, card.vocab_size)
            # An id and a log-probability of each kept token; the rest, the likelihood, the best.
            return round(num_texts * min(tokens, measure.max_tokens) * (8 * kept + 12))
        clouds = state_points(num_texts, min(tokens, measure.max_tokens))
        rows = len(clouds) * (card.layers + 1) * _SCAN_ROWS * _ROW_BYTES
        states = 4 * sum(clouds) * (card.layers + 1) * card.hidden_size if is_base else 0.0
        return round(states) + rows
