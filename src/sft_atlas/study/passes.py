"""Say how many padded tokens go through a model at once: what runs do, and what plans count on."""

from typing import Final

MICRO_BATCH_TOKENS: Final = {"cpu": 2048, "cuda": 16_384}
"""Of one forward and backward pass in training, by device; those of all runs that train together.

A processor's caches hold the activations of a small pass."""

MIN_MICRO_BATCH_TOKENS: Final = 256
"""Where memory is short, passes of training get no smaller: fewer tokens save hardly any."""

SCORE_BATCH_TOKENS: Final = {"cpu": 2048, "cuda": 16_384}
"""Of one forward pass in scoring, by device.

On a processor a small batch is the faster one (0.3 M parameters: 0.22 s at 2,048 tokens, 0.34 s at
4,096), because its activations stay in the cache.
"""

DECODE_CACHE_TOKENS: Final = {"cpu": 32_768, "cuda": 262_144}
"""Cached positions of one decoding batch at most: its rows times the longest prompt and the limit.

A GPU reads all weights at each step, whatever the number of rows, so it takes many at once."""

DECODE_MEMORY_FRACTION: Final = 0.3
"""Part of a GPU's free memory that the cache of a decoding batch may take; it stands there twice
while rows that have ended are dropped."""
