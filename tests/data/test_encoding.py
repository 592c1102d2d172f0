"""Training and scoring split prompt and answer by one rule, the one of lm-evaluation-harness."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from sft_atlas.data.encoding import (
    EncodedExample,
    encode_example,
    encode_pair,
    encode_pairs,
    load_tokenizer,
    tokenizer_sha256,
)
from sft_atlas.errors import DataError
from sft_atlas.study.spec import ModelSpec, Source

MakeModel = Callable[..., ModelSpec]


def reference_pair(
    tokenizer: PreTrainedTokenizerBase, context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Follow lm-evaluation-harness 0.4, lm_eval/api/model.py, TemplateLM._encode_pair, by hand."""
    num_spaces = len(context) - len(context.rstrip())
    if num_spaces > 0:
        continuation = context[-num_spaces:] + continuation
        context = context[:-num_spaces]
    whole = tokenizer.encode(context + continuation)
    head = tokenizer.encode(context)
    return head, whole[len(head) :]


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_pairs_equal_the_reference(make_model: MakeModel, adds_bos: bool) -> None:
    tokenizer = load_tokenizer(make_model(adds_bos=adds_bos))

    @settings(max_examples=150, deadline=None)
    @given(prompt=texts.filter(lambda text: bool(text.strip())), answer=texts)
    def check(prompt: str, answer: str) -> None:
        assert encode_pair(tokenizer, prompt, answer) == reference_pair(tokenizer, prompt, answer)

    check()


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(question=texts, answer=texts)
def test_the_two_parts_together_read_as_the_whole_text(
    make_model: MakeModel, question: str, answer: str
) -> None:
    tokenizer = load_tokenizer(make_model())
    prompt = f"###Question: {question}\n###Answer:"
    pair = encode_pair(tokenizer, prompt, f" {answer}")
    assert tokenizer.decode(pair.prompt_ids) == prompt
    assert tokenizer.decode(pair.answer_ids) == f" {answer}"


def test_whitespace_at_the_end_of_a_prompt_is_scored_with_the_answer(
    make_model: MakeModel,
) -> None:
    tokenizer = load_tokenizer(make_model())
    assert encode_pair(tokenizer, "Answer: ", "Paris") == encode_pair(
        tokenizer, "Answer:", " Paris"
    )


def test_many_pairs_at_once_equal_one_by_one(make_model: MakeModel) -> None:
    tokenizer = load_tokenizer(make_model(adds_bos=True))
    pairs = [("What?", " Paris"), ("", "x"), ("a b ", "c"), ("<bos>What", " é")]
    assert encode_pairs(tokenizer, pairs) == [encode_pair(tokenizer, *pair) for pair in pairs]
    assert encode_pairs(tokenizer, []) == []


def test_bos_comes_first_only_where_the_tokenizer_adds_it_and_never_twice(
    make_model: MakeModel,
) -> None:
    with_bos = load_tokenizer(make_model("with", adds_bos=True))
    without = load_tokenizer(make_model("without"))
    bos = with_bos.bos_token_id
    assert encode_pair(with_bos, "What?", " A").prompt_ids[0] == bos
    assert encode_pair(with_bos, "<bos>What?", " A") == encode_pair(with_bos, "What?", " A")
    assert bos not in encode_pair(without, "What?", " A").prompt_ids


@pytest.mark.parametrize(("adds_bos", "first"), [(True, "<bos>"), (False, "<eos>")])
def test_an_empty_prompt_still_has_a_token_to_predict_from(
    make_model: MakeModel, adds_bos: bool, first: str
) -> None:
    tokenizer = load_tokenizer(make_model(adds_bos=adds_bos))
    pair = encode_pair(tokenizer, " ", "Paris")
    assert tokenizer.decode(pair.prompt_ids) == first
    assert tokenizer.decode(pair.answer_ids) == " Paris"


def test_only_the_answer_and_its_end_of_sequence_are_supervised(make_model: MakeModel) -> None:
    tokenizer = load_tokenizer(make_model(adds_bos=True))
    found = encode_example(tokenizer, "###Question: a\n###Answer:", " Paris", max_tokens=99)
    assert isinstance(found, EncodedExample)
    assert tokenizer.decode(found.ids[: found.prompt_length]) == "<bos>###Question: a\n###Answer:"
    assert tokenizer.decode(found.ids[found.prompt_length :]) == " Paris<eos>"
    assert not found.is_truncated


def test_training_supervises_the_tokens_that_scoring_scores(make_model: MakeModel) -> None:
    tokenizer = load_tokenizer(make_model())
    trained = encode_example(tokenizer, "What? ", "Paris", max_tokens=99)
    scored = encode_pair(tokenizer, "What? ", "Paris")
    assert isinstance(trained, EncodedExample)
    assert trained.ids == [*scored.prompt_ids, *scored.answer_ids, tokenizer.eos_token_id]
    assert trained.prompt_length == len(scored.prompt_ids)


def test_truncation_takes_the_end_and_drops_what_has_no_answer_left(make_model: MakeModel) -> None:
    tokenizer = load_tokenizer(make_model())
    whole = encode_example(tokenizer, "What?", " xyz", max_tokens=99)
    assert isinstance(whole, EncodedExample)
    length, prompt = len(whole.ids), whole.prompt_length
    for limit in range(1, length + 2):
        found = encode_example(tokenizer, "What?", " xyz", max_tokens=limit)
        if limit <= prompt:
            assert found == "truncated"
        else:
            assert isinstance(found, EncodedExample)
            assert found.ids == whole.ids[:limit]
            assert found.is_truncated == (limit < length)


def test_an_answer_without_a_token_is_dropped(make_model: MakeModel) -> None:
    tokenizer = load_tokenizer(make_model())
    assert encode_example(tokenizer, "What?", "", max_tokens=99) == "empty"


def test_a_model_without_tokenizer_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    model = ModelSpec(source=Source(path=tmp_path / "empty"), name="empty")
    with pytest.raises(DataError, match="model empty: its tokenizer cannot be loaded from"):
        load_tokenizer(model)


def test_a_tokenizer_without_end_of_sequence_is_a_user_error(make_model: MakeModel) -> None:
    with pytest.raises(DataError) as caught:
        load_tokenizer(make_model(eos=None))
    assert str(caught.value) == (
        "model tiny: its tokenizer names no end-of-sequence token; expected `eos_token` in "
        "tokenizer_config.json. Add it there."
    )


def test_tokenizers_are_one_exactly_if_they_encode_alike(make_model: MakeModel) -> None:
    def digest(name: str, template: str = "question-answer", **options: object) -> str:
        return tokenizer_sha256(load_tokenizer(make_model(name, **options)), template)

    plain = digest("a")
    assert digest("b") == plain
    assert digest("c", adds_bos=True) != plain
    assert digest("d", eos="<|im_end|>") != plain
    assert digest("e", chat_template="x") == plain
    assert digest("f", "chat", chat_template="x") != digest("g", "chat", chat_template="y")
