"""Steps see every sample once per epoch, and only answers reach the loss."""

from collections.abc import Callable
from pathlib import Path

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
