"""Count weights, FLOPs and bytes of a base model from its card."""

from collections.abc import Sequence

from sft_atlas.catalog.cards import ModelCard
from sft_atlas.study.spec import LoraSpec


def matmul_weights(card: ModelCard) -> int:
    """Return N: the weights that every token is multiplied with.

    All of them but the input embedding, which is a look-up; a tied one serves as the output head.
    """
    embedding = 0 if card.tied_embeddings else card.vocab_size * card.hidden_size
    return max(card.parameters - embedding, 1)


def head_weights(card: ModelCard) -> int:
    """Return the part of N that is the output head: scoring needs it only where a token counts."""
    return min(card.vocab_size * card.hidden_size, matmul_weights(card))


def attention_flops(card: ModelCard, length: float) -> float:
    """Return the FLOPs of scores and weighted sums per token in a causal pass over a text.

    Each token sees half of the text on average: 2 products x 2 FLOPs x width x length / 2.
    """
    return 2.0 * card.layers * card.num_heads * head_dim(card) * length


def reading_flops(card: ModelCard, length: float, scored_fraction: float) -> float:
    """Return the FLOPs per token of a forward pass over texts of a length, whose output head sees a
    part of the tokens.
    """
    head = head_weights(card)
    weights = matmul_weights(card) - head + scored_fraction * head
    return 2 * weights + attention_flops(card, length)


def training_flops(
    card: ModelCard, lora: LoraSpec | None, length: float, supervised_fraction: float
) -> float:
    """Return the FLOPs per token of a forward and a backward pass (Kaplan et al. 2020, sec. 2.1).

    6 per weight; 4 where it is frozen, since its gradient is never formed. The output head is
    computed for supervised tokens alone.
    """
    head = head_weights(card)
    weights = matmul_weights(card) - head + supervised_fraction * head
    attention = 3 * attention_flops(card, length)
    if lora is None:
        return 6 * weights + attention
    return 4 * weights + 6 * adapter_weights(card, lora) + attention


def kv_bytes(card: ModelCard, bytes_per_value: float) -> float:
    """Return the size of keys and values of one token in all layers."""
    return 2.0 * card.layers * card.num_kv_heads * head_dim(card) * bytes_per_value


def head_dim(card: ModelCard) -> int:
    """Return the width of one attention head."""
    return card.head_dim or card.hidden_size // card.num_heads


def adapter_weights(card: ModelCard, lora: LoraSpec) -> int:
    """Return the weights that an adapter trains.

    That is rank x (in + out) for each adapted matrix, and out more for DoRA's row lengths; trained
    embeddings count in full. Biases are left out: no card counts them, and they are few. Targets
    other than `all-linear` are matched with the names of Llama's layers.
    """
    hidden, inner = card.hidden_size, card.intermediate_size
    queries, keys = card.num_heads * head_dim(card), card.num_kv_heads * head_dim(card)
    shapes = {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }
    chosen: Sequence[str] = [name for name in shapes if name in lora.targets]
    if lora.targets == ("all-linear",) or not chosen:
        chosen = list(shapes)
    of_layer = sum(lora.rank * sum(shapes[name]) for name in chosen)
    if lora.dora:
        of_layer += sum(shapes[name][1] for name in chosen)
    num_layers = len(lora.layers) or card.layers
    num_embeddings = (1 if card.tied_embeddings else 2) if lora.train_embeddings else 0
    return num_layers * of_layer + num_embeddings * card.vocab_size * card.hidden_size
