"""The page of a weight change shows each layer, kind and outer weight once, and every note."""

import json

from rich.console import Console

from sft_atlas.cli.drift_page import drift_json, drift_page
from sft_atlas.measure.drift import WeightChange, drift_rows
from sft_atlas.measure.weight_pair import PairDrift

CHANGES = [
    WeightChange("model.embed_tokens.weight", 0.0, 100.0, 50, 50),
    WeightChange("model.layers.0.mlp.up_proj.weight", 0.0, 4.0, 100, 100),
    WeightChange("model.layers.1.mlp.up_proj.weight", 1.0, 4.0, 100, 25),
    WeightChange("model.layers.1.mlp.up_proj.bias", 1.0, 0.0, 4, 0),
]
RESULT = PairDrift(
    rows=tuple(drift_rows(CHANGES, num_layers=2)),
    num_layers=2,
    from_adapter=False,
    seconds=2.0,
    bytes_read=3_000_000_000,
    notes=("somewhere: something was [ignored].",),
)


def test_the_page_shows_layers_kinds_the_rest_and_the_notes() -> None:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(drift_page(RESULT))
    lines = [line.split() for line in captured.get().splitlines() if line.strip()]
    assert ["0", "0.0000%", "0", "0", "100.00%", "100"] in lines
    assert ["1", "70.7107%", "1.414", "0.139", "24.04%", "104"] in lines
    assert ["mlp.up", "35.3553%", "1", "0.0707", "62.50%", "200"] in lines
    assert ["model.embed_tokens.weight", "0.0000%", "0", "0", "100.00%", "50"] in lines
    # The base's bias is zero: it has no relative change, and none is made up.
    assert ["other", "1", "0.5", "0.00%", "4"] in lines
    assert any(line[:2] == ["whole", "model"] for line in lines)
    text = " ".join(captured.get().split())
    assert "3,000.0 MB read in 2.0 s (1,500 MB/s)" in text
    assert "Note: somewhere: something was [ignored]." in text


def test_the_json_holds_every_row_and_no_number_that_is_none() -> None:
    found = json.loads(json.dumps(drift_json(RESULT), allow_nan=False))
    assert found.keys() == {
        "rows", "spectra", "num_layers", "from_adapter", "seconds", "bytes_read", "notes"
    }  # fmt: skip
    assert [row["tensor"] for row in found["rows"]] == [row.tensor for row in RESULT.rows]
    assert found["rows"][3]["relative"] is None
