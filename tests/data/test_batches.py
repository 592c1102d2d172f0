"""Steps see every sample once per epoch, and only answers reach the loss."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sft_atlas.data.batches import (
    IGNORED,
    TrainingRows,
    collate,
    epoch_order,
    iter_steps,
    num_steps,
    pack,
    split_passes,
)
from sft_atlas.data.prepared import PreparedRows, prepare
from sft_atlas.store.store import open_store
from sft_atlas.study.job import PrepareJob
from sft_atlas.study.spec import DatasetSpec, ModelSpec

PreparePart = Callable[[int], PreparedRows]


@pytest.fixture
def prepare_part(
    make_model: Callable[..., ModelSpec], write_rows: Callable[..., DatasetSpec], tmp_path: Path
) -> PreparePart:
    """Return a function that prepares a dataset of n rows of different lengths."""
    model, store = make_model(), open_store(tmp_path / "store", create=True)

    def build(number: int) -> PreparedRows:
        data = [
            {"question": "q" * (i + 1), "answer": f"{number} " * (i % 3 + 1)} for i in range(number)
        ]
        return prepare(
            store,
            PrepareJob(
                model=model,
                dataset=write_rows(data, name=f"{number}.jsonl", shape="question-answer"),
                num_samples=number,
                subset_seed=number,
                template="question-answer",
                max_tokens=64,
            ),
        )

    return build


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def summed_loss(model: LlamaForCausalLM, rows: TrainingRows, indices: list[int]) -> torch.Tensor:
    batch = collate(rows, indices)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum"
    )


def test_parts_stand_end_to_end(prepare_part: PreparePart) -> None:
    parts = [prepare_part(3), prepare_part(1), prepare_part(4)]
    rows = TrainingRows([parts[0], parts[0].prefix(0), *parts[1:]])
    assert len(rows) == 8
    expected = [part.example(i) for part in parts for i in range(len(part))]
    for i, (ids, prompt_length) in enumerate(expected):
        assert rows.example(i)[0].tolist() == ids.tolist()
        assert rows.example(i)[1] == prompt_length
        assert rows.lengths[i] == len(ids)
        assert rows.num_supervised([i]) == len(ids) - prompt_length


def test_an_epoch_sees_every_sample_once_and_keeps_the_last_partial_step(
    prepare_part: PreparePart,
) -> None:
    rows = TrainingRows([prepare_part(10)])
    steps = list(iter_steps(rows, batch_samples=4, seed=0, epoch=1))
    assert [len(step) for step in steps] == [4, 4, 2]
    assert len(steps) == num_steps(10, 4)
    assert sorted(i for step in steps for i in step) == list(range(10))
    assert [i for step in steps for i in step] == epoch_order(10, 0, 1).tolist()


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    assert epoch_order(50, 0, 1).tolist() == epoch_order(50, 0, 1).tolist()
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(3) for epoch in range(1, 4)}
    assert len(orders) == 9


def test_a_batch_is_right_padded_and_labels_answers_only(prepare_part: PreparePart) -> None:
    rows = TrainingRows([prepare_part(5)])
    indices = [4, 0, 2]
    batch = collate(rows, indices, pad_id=7)
    assert batch.input_ids.shape == (3, int(rows.lengths[indices].max()))
    assert (
        batch.num_supervised == int((batch.labels != IGNORED).sum()) == rows.num_supervised(indices)
    )
    for line, index in enumerate(indices):
        ids, prompt_length = rows.example(index)
        length = len(ids)
        assert batch.input_ids[line, :length].tolist() == ids.tolist()
        assert batch.labels[line, prompt_length:length].tolist() == ids[prompt_length:].tolist()
        assert (batch.labels[line, :prompt_length] == IGNORED).all()
        assert (batch.labels[line, length:] == IGNORED).all()
        assert (batch.input_ids[line, length:] == 7).all()
        assert batch.attention_mask[line].sum() == length


def test_padding_and_micro_batches_change_the_loss_by_rounding_only(
    prepare_part: PreparePart,
) -> None:
    rows, model = TrainingRows([prepare_part(9)]), tiny_model()
    with torch.no_grad():
        whole = summed_loss(model, rows, list(range(9)))
        split = sum(summed_loss(model, rows, part) for part in ([3, 1], [0, 2, 4, 5], [6, 7, 8]))
        alone = sum(summed_loss(model, rows, [i]) for i in range(9))
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=0)
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=0)


def test_no_prompt_token_is_a_target_of_the_loss(prepare_part: PreparePart) -> None:
    rows, model = TrainingRows([prepare_part(4)]), tiny_model()
    ids, prompt_length = rows.example(3)
    logits = model(torch.tensor([ids.tolist()])).logits[0]
    by_hand = -torch.log_softmax(logits, dim=-1)[
        torch.arange(prompt_length - 1, len(ids) - 1), torch.tensor(ids[prompt_length:].tolist())
    ].sum()
    torch.testing.assert_close(summed_loss(model, rows, [3]), by_hand, rtol=1e-5, atol=0)


def test_a_packed_line_holds_a_runs_samples_end_to_end(prepare_part: PreparePart) -> None:
    first, second = TrainingRows([prepare_part(5)]), TrainingRows([prepare_part(3)])
    members = [(first, [4, 0]), (second, []), (second, [1])]
    batch = pack(members)
    width = max(batch.num_tokens)
    assert batch.input_ids.shape == (3, width)
    assert batch.num_tokens[1] == batch.num_supervised[1] == 0
    document, begin = 0, 0
    for line, (rows, indices) in enumerate(members):
        place, supervised = 0, []
        for index in indices:
            ids, prompt_length = rows.example(index)
            own = slice(place, place + len(ids))
            assert batch.input_ids[line, own].tolist() == ids.tolist()
            assert batch.position_ids[line, own].tolist() == list(range(len(ids)))
            assert set(batch.samples[line, own].tolist()) == {index}
            assert batch.starts[document] == line * width + place
            assert batch.lengths[document] == len(ids)
            supervised += range(place + prompt_length, place + len(ids))
            document, place = document + 1, place + len(ids)
        assert batch.num_tokens[line] == place
        for values, blank in ((batch.input_ids, 0), (batch.position_ids, 0), (batch.samples, -1)):
            assert (values[line, place:] == blank).all()
        own = slice(begin, begin + batch.num_supervised[line])
        assert batch.predictors[own].tolist() == [line * width + t - 1 for t in supervised]
        assert batch.targets[own].tolist() == batch.input_ids[line, supervised].tolist()
        begin = own.stop
    assert document == len(batch.starts) and begin == len(batch.targets)


def test_padded_tokens_know_their_sample_and_their_place(prepare_part: PreparePart) -> None:
    rows = TrainingRows([prepare_part(5)])
    batch = collate(rows, [3, 1])
    for line, index in enumerate([3, 1]):
        length = int(rows.lengths[index])
        assert set(batch.samples[line, :length].tolist()) == {index}
        assert (batch.samples[line, length:] == -1).all()
        assert batch.position_ids[line].tolist() == list(range(batch.input_ids.shape[1]))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 50, 64, 1000, 10**6])
def test_passes_hold_every_sample_once_and_no_more_than_they_may(
    max_tokens: int, packed: bool
) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, size=40)
    indices = np.random.default_rng(1).permutation(40)[:30].tolist()
    passes = split_passes(lengths, indices, max_tokens, packed=packed)
    flat = [index for own in passes for index in own]
    assert sorted(flat) == sorted(indices)
    assert lengths[flat].tolist() == sorted(lengths[indices].tolist(), reverse=True)

    def tokens(own: list[int]) -> int:
        return int(lengths[own].sum() if packed else len(own) * lengths[own].max())

    assert all(tokens(own) <= max_tokens or len(own) == 1 for own in passes)
    for own, later in itertools.pairwise(passes):
        assert tokens([*own, later[0]]) > max_tokens, "a pass ends where it is full"
