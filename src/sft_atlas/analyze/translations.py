"""Which benchmarks are one test in several languages?

In: scores, whose rows name benchmark, skill, metric and language. Out: the benchmarks of each such
test. The one decision: tables do not say that a test is a translation of another, so that the name
must: mmlu is contained in cmmlu and jmmlu.
"""

import re
from typing import Final

import pandas as pd


def same_tests(scores: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Find benchmarks that are one test in several languages: name of the test -> benchmark ->
    language.
    """
    counted = scores[scores["in_mean"].astype(bool) & (scores["language"] != "")]
    found = counted.drop_duplicates("benchmark")[["benchmark", "skill", "metric", "language"]]
    tests: dict[str, dict[str, str]] = {}
    for _, part in found.groupby(["skill", "metric"], sort=False):
        stems = {
            str(name): _stem(str(name), str(language))
            for name, language in zip(part["benchmark"], part["language"], strict=True)
        }
        languages = dict(zip(part["benchmark"], part["language"], strict=True))
        for stem in sorted(set(stems.values()), key=len):
            free = [name for name in stems if not any(name in test for test in tests.values())]
            members = {name: str(languages[name]) for name in free if stem in stems[name]}
            if len(stem) >= _SHORTEST and len(set(members.values())) > 1:
                tests[stem] = members
    return tests


_SHORTEST: Final = 3
_PARTS = re.compile(r"[\W_]+")
_SHOTS = re.compile(r"^\d+shots?$")


def _stem(name: str, language: str) -> str:
    """Name of a benchmark without shots and language.

    >>> _stem("jmmlu-0shot", "ja"), _stem("mini-knowledge-b", "b")
    ('jmmlu', 'miniknowledge')
    """
    parts = _PARTS.split(name.lower())
    return "".join(part for part in parts if part != language and not _SHOTS.match(part))
