"""Convert a pretrained model of llama2.c (github.com/karpathy/llama2.c) to a transformers folder.

In: the legacy weights (seven int32, then float32 matrices by kind) and the scored vocabulary. Out:
a `LlamaForCausalLM` in float32 and a fast tokenizer. llama2.c rotates adjacent pairs of a head's
rows and transformers rotates halves, so the rows of query and key are reordered. Its tokenizer is
sentencepiece's BPE: the neighbours whose joined text scores best are merged first.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPACE = "\u2581"
SPECIAL = ("<unk>", "<s>", "</s>")
NUM_BYTES = 256
"""Tokens of single bytes, which follow the special ones."""

Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Header:
    """The sizes at the head of a weights file, in its order."""

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    max_tokens: int


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; a higher score is merged first."""

    text: bytes
    score: float


def convert(weights: Path, vocabulary: Path, folder: Path) -> None:
    """Write the model and its tokenizer to a folder that the Auto classes load."""
    read_model(weights).save_pretrained(folder)
    build_tokenizer(read_vocabulary(vocabulary)).save_pretrained(folder)


def read_model(path: Path) -> LlamaForCausalLM:
    """Read a weights file whose output head is its embedding."""
    content = path.read_bytes()
    sizes = struct.unpack_from("<7i", content)
    header = Header(**dict(zip(Header.__dataclass_fields__, sizes, strict=True)))
    assert header.vocab_size > 0, "a negative size means an output head of its own"
    flat = np.frombuffer(content, dtype="<f4", offset=struct.calcsize("<7i"))
    config = LlamaConfig(
        vocab_size=header.vocab_size,
        hidden_size=header.hidden,
        intermediate_size=header.intermediate,
        num_hidden_layers=header.num_layers,
        num_attention_heads=header.num_heads,
        num_key_value_heads=header.num_kv_heads,
        max_position_embeddings=header.max_tokens,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=None,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    state = {name: torch.from_numpy(value) for name, value in _name_weights(flat, header)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"], missing
    assert not unexpected
    model.tie_weights()
    return model.eval()


def read_vocabulary(path: Path) -> list[Piece]:
    """Read the scored vocabulary, in order of ids."""
    content = path.read_bytes()
    position = struct.calcsize("<i")
    pieces = []
    while position < len(content):
        score, length = struct.unpack_from("<fi", content, position)
        position += struct.calcsize("<fi")
        pieces.append(Piece(content[position : position + length], score))
        position += length
    return pieces


def build_tokenizer(pieces: list[Piece]) -> PreTrainedTokenizerFast:
    """Return the fast tokenizer of a vocabulary; it begins every text with BOS."""
    texts = list(SPECIAL)
    texts += [piece.text.decode().replace(" ", SPACE) for piece in pieces[len(SPECIAL) :]]
    tokenizer = Tokenizer(
        models.BPE(
            {text: index for index, text in enumerate(texts)},
            _list_merges(texts, pieces),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def encode_greedily(text: str, pieces: list[Piece]) -> list[int]:
    """Encode as llama2.c's `encode` does: the slow rule that the fast tokenizer must equal."""
    ids_by_text = {piece.text: index for index, piece in enumerate(pieces)}
    ids = [1]
    for character in f" {text}" if text else "":
        raw = character.encode()
        fallback = [byte + len(SPECIAL) for byte in raw]
        ids += [ids_by_text[raw]] if raw in ids_by_text else fallback
    while True:
        best_score, best_place, best_id = -np.inf, -1, -1
        for place, (left, right) in enumerate(zip(ids, ids[1:], strict=False)):
            merged = ids_by_text.get(pieces[left].text + pieces[right].text)
            if merged is not None and pieces[merged].score > best_score:
                best_score, best_place, best_id = pieces[merged].score, place, merged
        if best_place < 0:
            return ids
        ids[best_place : best_place + 2] = [best_id]


def _list_merges(texts: list[str], pieces: list[Piece]) -> list[tuple[str, str]]:
    known = set(texts[len(SPECIAL) + NUM_BYTES :])
    scored = [
        (-pieces[index].score, cut, (text[:cut], text[cut:]))
        for index, text in enumerate(texts)
        if text in known
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]
    return [pair for _, _, pair in sorted(scored)]


def _name_weights(flat: Array, header: Header) -> Iterator[tuple[str, Array]]:
    head = header.hidden // header.num_heads
    square = (header.hidden, header.hidden)
    narrow = (header.num_kv_heads * head, header.hidden)
    wide = (header.intermediate, header.hidden)
    by_layer = (
        ("input_layernorm", (header.hidden,)),
        ("self_attn.q_proj", square),
        ("self_attn.k_proj", narrow),
        ("self_attn.v_proj", narrow),
        ("self_attn.o_proj", square),
        ("post_attention_layernorm", (header.hidden,)),
        ("mlp.gate_proj", wide),
        ("mlp.down_proj", wide[::-1]),
        ("mlp.up_proj", wide),
    )
    position = header.vocab_size * header.hidden
    yield "model.embed_tokens.weight", _take(flat, 0, (header.vocab_size, header.hidden))
    for name, shape in by_layer:
        for layer in range(header.num_layers):
            matrix = _take(flat, position, shape)
            position += matrix.size
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                matrix = _split_halves(matrix, head)
            yield f"model.layers.{layer}.{name}.weight", matrix
    yield "model.norm.weight", _take(flat, position, (header.hidden,))
    # Two tables of angles follow, which transformers computes.
    assert flat.size == position + header.hidden + header.max_tokens * head


def _take(flat: Array, start: int, shape: tuple[int, ...]) -> Array:
    return flat[start : start + int(np.prod(shape))].reshape(shape).copy()


def _split_halves(matrix: Array, head: int) -> Array:
    rows, columns = matrix.shape
    pairs = matrix.reshape(rows // head, head // 2, 2, columns)
    return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3)).reshape(rows, columns)
