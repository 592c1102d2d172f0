"""Make sure that what is scored is the tuned model, not the base that it came from.

An adapter that was never applied, or a merge that was lost, gives believable scores: the base
model's. So both models are asked for the same log-likelihoods, and equality in every bit is an
error. Nothing weaker would do: a gentle run moves a log-likelihood by less than any fixed
tolerance, and an untouched model moves none.
"""

import math
import random

from transformers import PreTrainedModel

from sft_atlas.errors import CanaryError
from sft_atlas.model.score import sample_log_likelihoods
from sft_atlas.study.spec import CellSpec

_NUM_TEXTS = 4
_NUM_TOKENS = 16
_SEED = 20_240_229

Probe = tuple[float, ...]
"""Log-likelihoods of fixed random texts, nats."""


def probe_model(model: PreTrainedModel) -> Probe:
    """Return the log-likelihoods of four texts of 16 random tokens, fixed by a seed."""
    generator = random.Random(_SEED)
    vocab_size = model.config.get_text_config().vocab_size
    texts = [
        [generator.randrange(vocab_size) for _ in range(_NUM_TOKENS)] for _ in range(_NUM_TEXTS)
    ]
    return tuple(score.answer for score in sample_log_likelihoods(model, [(t, 0) for t in texts]))


def check_cell(cell: CellSpec, *, base_probe: Probe, cell_probe: Probe) -> None:
    """Compare a cell's probe with its base model's; the base model itself passes.

    Raises:
        CanaryError: if no log-likelihood differs, so that the scores would be the base model's.
    """
    if cell.trajectory is None or any(
        a != b and not (math.isnan(a) and math.isnan(b))
        for a, b in zip(base_probe, cell_probe, strict=True)
    ):
        return
    raise CanaryError(
        f"cell {cell.fingerprint}: its log-likelihoods equal those of the base model "
        f"{cell.model.name} in every bit; expected a change by training. Check that its weights or "
        f"adapter were trained and loaded, and that the learning rate is not lost in rounding."
    )
