"""A pretrained model of another project, converted: it tells its story, in the same tokens."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from real.stories import encode_greedily, read_vocabulary
from sft_atlas.data.encoding import adds_bos, load_tokenizer
from sft_atlas.model.generate import greedy_completions
from sft_atlas.study.spec import ModelSpec, Source

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)
TEXTS = (
    STORY,
    'Tom and Sue went to the zoo. "Look!" said Tom. "A lion!"\nThey were so happy.',
    "He didn't know   what to do -- 3 + 4 = 7?",
    " one space in front, two at the end  ",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f642 \t{x: [1, 2]}",
    "",
)


@pytest.fixture(scope="module")
def model(stories: Path) -> ModelSpec:
    return ModelSpec(name="stories", source=Source(path=stories))


def test_greedy_decoding_tells_the_known_story(model: ModelSpec, stories: Path) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(stories)
    tokenizer = load_tokenizer(model)
    assert loaded.num_parameters() == 260_032
    ids = loaded.generate(torch.tensor([[1]]), max_new_tokens=64, do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).startswith(STORY)
    [ours] = greedy_completions(loaded, [[1]], max_new_tokens=64, eos_ids=frozenset({2}))
    assert [1, *ours.ids] == ids[0].tolist()


def test_a_text_begins_with_bos_and_decodes_to_itself(model: ModelSpec) -> None:
    tokenizer = load_tokenizer(model)
    assert adds_bos(tokenizer)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_texts_are_cut_as_llama2_c_cuts_them(model: ModelSpec, data: Path) -> None:
    pieces = read_vocabulary(data / "models" / "stories260K" / "tok512.bin")
    with gzip.open(data / "training" / "gsm8k_train.jsonl.gz", "rt", encoding="utf-8") as lines:
        questions = [
            json.loads(line)["question"] for line, _ in zip(lines, range(40), strict=False)
        ]
    tokenizer = load_tokenizer(model)
    for text in (*TEXTS, *questions):
        assert tokenizer(text)["input_ids"] == encode_greedily(text, pieces), text
