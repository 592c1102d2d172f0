"""Name the tables of a study, for those that only choose one: reading tables imports pandas."""

from typing import Literal

TableName = Literal[
    "scores",
    "cells",
    "drift",
    "spectra",
    "updates",
    "datasets",
    "descriptions",
    "similarities",
    "likelihoods",
    "benchmark_likelihoods",
    "forgetting",
    "representations",
    "scans",
    "curves",
]
"""Tables that can be written by name; docs/records.md lists their columns."""
