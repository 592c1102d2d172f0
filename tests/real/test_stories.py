"""The converted model speaks in our decoder too, and its tokens are those of llama2.c."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import stories
from sft_atlas.data.encoding import adds_bos, load_tokenizer
from sft_atlas.model.generate import greedy_completions
from sft_atlas.study.spec import ModelSpec, Source

DATA = Path(__file__).parents[2].parent / "shared" / "data"
SOURCE = DATA / "models" / "stories260K"
TEXTS = (
    'Tom and Sue went to the zoo. "Look!" said Tom. "A lion!"\nThey were so happy.',
    "He didn't know   what to do -- 3 + 4 = 7?",
    " one space in front, two at the end  ",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f642 \t{x: [1, 2]}",
)

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the folder of real data is absent")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    folder = tmp_path_factory.mktemp("models") / "stories"
    stories.convert(SOURCE / "stories260K.bin", SOURCE / "tok512.bin", folder)
    return ModelSpec(name="stories", source=Source(path=folder))


def test_our_decoding_equals_that_of_transformers(model: ModelSpec) -> None:
    loaded = AutoModelForCausalLM.from_pretrained(model.source.path)
    assert loaded.num_parameters() == 260_032
    ids = loaded.generate(torch.tensor([[1]]), max_new_tokens=64, do_sample=False, pad_token_id=0)
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


def test_real_questions_are_cut_as_llama2_c_cuts_them(model: ModelSpec) -> None:
    pieces = stories.read_vocabulary(SOURCE / "tok512.bin")
    with gzip.open(DATA / "training" / "gsm8k_train.jsonl.gz", "rt", encoding="utf-8") as lines:
        questions = [json.loads(next(lines))["question"] for _ in range(40)]
    tokenizer = load_tokenizer(model)
    for text in (*TEXTS, *questions):
        expected = [1, *stories.encode_by_score(pieces, text)]
        assert tokenizer(text)["input_ids"] == expected, text
