"""Turn llama2.c's `stories260K` checkpoint into a model folder of transformers.

The legacy format (karpathy/llama2.c, `export.py`): seven int32 (dim, hidden, layers, heads,
key-value heads, vocabulary, length), then float32 weights by kind. It rotates adjacent pairs of a
head where transformers rotates its two halves, so the rows of query and key are reordered.
"""

import struct
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Floats = NDArray[np.float32]
SPACE = "\u2581"


def convert(checkpoint: Path, vocabulary: Path, folder: Path) -> Path:
    """Write config, weights and tokenizer; returns the folder."""
    content = checkpoint.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocab, length = struct.unpack("7i", content[:28])
    config = LlamaConfig(
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=length,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    weights = _Weights(np.frombuffer(content, np.float32, offset=28))
    model = LlamaForCausalLM(config)
    state = _state(weights, config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(read_vocabulary(vocabulary)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    tokenizer.save_pretrained(folder)
    return folder


def read_vocabulary(path: Path) -> list[tuple[str, float]]:
    """Return (piece, score) by id; a space is SPACE and byte pieces are `<0x41>`."""
    content, at, pieces = path.read_bytes(), 4, []
    while at < len(content):
        score, size = struct.unpack_from("fi", content, at)
        text = content[at + 8 : at + 8 + size].decode()
        pieces.append((text.strip("\n") if 0 < len(pieces) < 3 else text, score))
        at += 8 + size
    names = {0: "<unk>", 1: "<s>", 2: "</s>"}
    return [(names.get(i, text.replace(" ", SPACE)), s) for i, (text, s) in enumerate(pieces)]


def build_tokenizer(pieces: list[tuple[str, float]]) -> Tokenizer:
    """Express sentencepiece's merging by score as merges by rank, with byte fallback."""
    ids = {text: i for i, (text, _) in enumerate(pieces)}
    merges = [
        (score, text[:cut], text[cut:])
        for text, score in pieces[259:]
        for cut in range(1, len(text))
        if text[:cut] in ids and text[cut:] in ids
    ]
    merges.sort(key=lambda merge: -merge[0])
    tokenizer = Tokenizer(
        BPE(ids, [(a, b) for _, a, b in merges], unk_token="<unk>", byte_fallback=True)
    )
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
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def encode_by_score(pieces: list[tuple[str, float]], text: str) -> list[int]:
    """Encode as llama2.c's `run.c` does: merge the best-scored adjacent pair until none is left."""
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    tokens: list[int] = []
    for character in (" " + text).replace(" ", SPACE):
        known = character in ids
        tokens += [ids[character]] if known else [byte + 3 for byte in character.encode()]
    while True:
        pairs = [
            (pieces[ids[joined]][1], -i, ids[joined])
            for i in range(len(tokens) - 1)
            if (joined := pieces[tokens[i]][0] + pieces[tokens[i + 1]][0]) in ids
        ]
        if not pairs:
            return tokens
        _, place, merged = max(pairs)
        tokens[-place : -place + 2] = [merged]


class _Weights:
    def __init__(self, values: Floats) -> None:
        self._values = values
        self._at = 0

    def take(self, *shape: int) -> torch.Tensor:
        size = int(np.prod(shape))
        values = self._values[self._at : self._at + size]
        self._at += size
        return torch.from_numpy(values.reshape(shape).copy())


def _state(weights: _Weights, config: LlamaConfig) -> dict[str, torch.Tensor]:
    dim, hidden, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    kv_dim = dim // heads * kv_heads
    state = {"model.embed_tokens.weight": weights.take(config.vocab_size, dim)}
    stacks = {
        "input_layernorm": weights.take(layers, dim),
        "self_attn.q_proj": _halves(weights.take(layers, dim, dim), heads),
        "self_attn.k_proj": _halves(weights.take(layers, kv_dim, dim), kv_heads),
        "self_attn.v_proj": weights.take(layers, kv_dim, dim),
        "self_attn.o_proj": weights.take(layers, dim, dim),
        "post_attention_layernorm": weights.take(layers, dim),
        "mlp.gate_proj": weights.take(layers, hidden, dim),
        "mlp.down_proj": weights.take(layers, dim, hidden),
        "mlp.up_proj": weights.take(layers, hidden, dim),
    }
    for name, stack in stacks.items():
        for layer in range(layers):
            state[f"model.layers.{layer}.{name}.weight"] = stack[layer].contiguous()
    state["model.norm.weight"] = weights.take(dim)
    return state


def _halves(stack: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Move the even rows of each head before its odd ones."""
    layers, rows, dim = stack.shape
    split = stack.view(layers, num_heads, rows // num_heads // 2, 2, dim)
    return split.transpose(2, 3).reshape(layers, rows, dim)
