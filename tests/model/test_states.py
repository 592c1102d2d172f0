"""Hidden states: equal to one text at a time without padding, for every architecture."""

import random
import re

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from sft_atlas.errors import DataError
from sft_atlas.model.states import NO_PART, POOLINGS, part_states, pooled_states
from tiny import VOCAB_SIZE, build_model


def draw_texts(num_texts: int = 13, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [
        [1, *(rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randint(1, 20)))]
        for _ in range(num_texts)
    ]


def reference_states(model: PreTrainedModel, text: list[int]) -> np.ndarray:
    with torch.no_grad():
        output = model(torch.tensor([text]), output_hidden_states=True)
    own = [states[0, 1:].double() for states in output.hidden_states]
    return torch.stack([torch.stack([s[-1], s.mean(dim=0)]) for s in own]).numpy()


def test_states_equal_those_of_each_text_alone(any_model: PreTrainedModel) -> None:
    texts = draw_texts()
    states = pooled_states(any_model, texts)
    size = any_model.config.hidden_size
    assert states.dtype == np.float32
    assert states.shape == (any_model.config.num_hidden_layers + 1, len(POOLINGS), 13, size)
    for i, text in enumerate(texts):
        expected = reference_states(any_model, text)
        np.testing.assert_allclose(
            states[:, :, i], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
        )


def test_batches_change_a_state_by_rounding_alone() -> None:
    model, texts = build_model(), draw_texts(40)
    together = pooled_states(model, texts)
    for other in (
        pooled_states(model, texts, batch_tokens=1),
        pooled_states(model, texts, batch_tokens=50),
        pooled_states(model, texts, state_bytes=4 * 3 * 32 * 30),
        pooled_states(model, texts[::-1])[:, :, ::-1],
    ):
        np.testing.assert_allclose(other, together, rtol=1e-4, atol=1e-5)


def test_a_pass_is_no_larger_than_asked() -> None:
    model, texts = build_model(), draw_texts(40)
    sizes: list[int] = []
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda _, args: sizes.append(args[0].numel()))
    pooled_states(model, texts, batch_tokens=60)
    assert max(sizes) <= 60
    sizes.clear()
    pooled_states(model, texts, state_bytes=4 * 3 * 32 * 30)
    assert max(sizes) <= 30
    handle.remove()


def test_the_mean_leaves_the_prefix_out_and_the_last_is_the_texts() -> None:
    model = build_model()
    states = pooled_states(model, [[1, 5, 9]])
    embedding = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(states[0, POOLINGS.index("last"), 0], embedding[9])
    np.testing.assert_allclose(
        states[0, POOLINGS.index("mean"), 0], (embedding[5] + embedding[9]) / 2, rtol=1e-6
    )


def test_the_model_is_left_as_it_was() -> None:
    model = build_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    pooled_states(model, draw_texts())
    assert not model.training
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_state_that_is_no_number_is_named() -> None:
    model, texts = build_model(), draw_texts(3)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    message = (
        "text b, layer 2: the model's states are not finite; expected numbers. Its weights "
        "diverged: look at its loss and its drift."
    )
    texts = sorted(texts, key=len)
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        pooled_states(model, texts, names=["b", "c", "d"])


def test_a_text_without_a_token_is_named() -> None:
    with pytest.raises(DataError, match=r"^text 1: has 1 tokens; expected a prefix token and at"):
        pooled_states(build_model(), [[1, 2], [1]])


def draw_parts(texts: list[list[int]], seed: int = 0) -> list[list[int]]:
    """Up to three parts in each text, numbered backwards; some tokens belong to none."""
    rng = random.Random(seed)
    parts = []
    for i, text in enumerate(texts):
        parts.append(
            [NO_PART, *(rng.choice([NO_PART, 3 * i, 3 * i + 1, 3 * i + 2]) for _ in text[1:])]
        )
    used = sorted({number for row in parts for number in row} - {NO_PART}, reverse=True)
    places = {number: place for place, number in enumerate(used)} | {NO_PART: NO_PART}
    return [[places[number] for number in row] for row in parts]


def test_a_part_is_pooled_as_it_stands_in_its_text(any_model: PreTrainedModel) -> None:
    texts = draw_texts()
    parts = draw_parts(texts)
    states = part_states(any_model, texts, parts)
    num_parts = 1 + max(max(row) for row in parts)
    assert states.parts.dtype == np.float32
    assert states.parts.shape == (states.texts.shape[0], num_parts, states.texts.shape[3])
    np.testing.assert_array_equal(states.texts, pooled_states(any_model, texts))
    for text, row in zip(texts, parts, strict=True):
        with torch.no_grad():
            output = any_model(torch.tensor([text]), output_hidden_states=True)
        for layer, values in enumerate(output.hidden_states):
            for part in set(row) - {NO_PART}:
                own = [values[0, i].double().numpy() for i in range(len(text)) if row[i] == part]
                np.testing.assert_allclose(
                    states.parts[layer, part],
                    np.mean(own, axis=0),
                    rtol=1e-4,
                    atol=1e-5 * values.abs().max().item(),
                )


def test_batches_change_a_part_by_rounding_alone() -> None:
    model, texts = build_model(), draw_texts(40)
    parts = draw_parts(texts)
    together = part_states(model, texts, parts).parts
    for other in (
        part_states(model, texts, parts, batch_tokens=1),
        part_states(model, texts, parts, batch_tokens=50),
        part_states(model, texts[::-1], parts[::-1]),
    ):
        np.testing.assert_allclose(other.parts, together, rtol=1e-4, atol=1e-5)


def test_a_part_that_is_its_whole_text_has_the_texts_mean() -> None:
    model, texts = build_model(), draw_texts()
    states = part_states(
        model, texts, [[NO_PART, *[i] * (len(t) - 1)] for i, t in enumerate(texts)]
    )
    np.testing.assert_allclose(
        states.parts, states.texts[:, POOLINGS.index("mean")], rtol=1e-5, atol=1e-6
    )


def test_without_parts_there_are_none() -> None:
    assert part_states(build_model(), [[1, 5]], [[NO_PART, NO_PART]]).parts.shape == (3, 0, 32)
