"""Whatever a user writes, a study loads and plans, or is refused in words."""

import copy
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft_atlas.errors import StudyError
from sft_atlas.study.loader import load_study
from sft_atlas.study.plan import make_plan

WHOLE: dict[str, Any] = {
    "study": "s",
    "about": "x",
    "seeds": [0],
    "models": ["olmo-7b", {"name": "m", "hub": "o/m", "parameters": 5, "languages": ["en"]}],
    "datasets": [
        "alpaca",
        {
            "name": "d",
            "path": "d1.jsonl",
            "where": {"a": ["b"]},
            "fields": {"prompt": "p", "answer": "a"},
        },
    ],
    "benchmarks": ["gsm8k", {"file": "bench.yaml", "shots": 1, "limit": 3}],
    "methods": {"lora": {"learning_rate": 1e-4, "batch_samples": 4, "rank": 2, "alpha": 4}},
    "mixtures": {"mix": {"alpaca": 1, "d": 2}},
    "blocks": {
        "b": {
            "data": ["each", "mix"],
            "samples": [3, 4],
            "epochs": 2,
            "keep": [1],
            "schedule": [{"kind": "constant", "warmup_steps": 1}, "cosine"],
            "exclude": [{"models": ["m"], "data": ["d"], "samples": [3]}],
        }
    },
    "measures": {"dataset_samples": 2},
    "published": [{"kind": "train", "device_hours": 1, "source": "x"}],
}


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else []
    items = enumerate(value) if isinstance(value, list) else items
    inner = [place for key, part in items for place in places(part, (*at, key))]
    return [at, *inner] if at else inner


PLACES = places(WHOLE)
WORDS = st.sampled_from(
    ["each", "all", "every", "alpaca", "m", "mix", "lora", "b", "", "../x", "é"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 5)
    | st.sampled_from([10**30, 10**399, -1, 1e-300, 1e300, 0.5])
    | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), VALUES), max_size=2), drop=st.booleans())
def test_a_changed_study_is_planned_or_refused(
    folder: Path, changes: list[tuple[tuple[Any, ...], Any]], drop: bool
) -> None:
    content = copy.deepcopy(WHOLE)
    for (*way, last), value in changes:
        holder: Any = content
        try:
            for key in way:
                holder = holder[key]
            if drop:
                del holder[last]
            else:
                holder[last] = value
        except (KeyError, IndexError, TypeError):
            continue
    path = folder / "changed.yaml"
    path.write_text(json.dumps(content, ensure_ascii=False))
    try:
        plan = make_plan(load_study(path, max_cells=5000))
    except StudyError as error:
        assert str(path.parent) in str(error)
    else:
        assert plan.cost.total_hours.low <= plan.cost.total_hours.high
