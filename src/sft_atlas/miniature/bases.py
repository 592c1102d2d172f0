"""How does a base model of the miniature world come to be?

In: a recipe (architecture, size, mixture, tokens, seed). Out: a pretrained `transformers` causal
model and its tokenizer. The same recipe on the same machine with one thread gives the same bits.

Pretraining packs documents into windows of 128 tokens without masking between documents, as common
recipes do. It shares no code with fine-tuning: other data, other loss, other schedule, and a change
there must not change the models that are shipped.
"""

import random
from collections.abc import Callable, Iterator

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sft_atlas.miniature import corpus, world
from sft_atlas.miniature.recipe import MAX_TOKENS, NUM_HEADS, VOCAB_SIZE, BaseRecipe

LEARNING_RATE = 3e-3
SEQUENCE_TOKENS = 128
SEQUENCES_PER_STEP = 16
TOKENS_PER_STEP = SEQUENCE_TOKENS * SEQUENCES_PER_STEP
WARMUP_STEPS = 50
DECAY_FRACTION = 0.3
"""Share of the steps, at the end, over which the learning rate falls linearly to a tenth."""
TEMPLATE_STAGE_FRACTION = 0.15
"""Share of the steps, at the end, whose corpus holds documents in the study's template."""
TEMPLATE_FRACTION = 0.03


def build_tokenizer(recipe: BaseRecipe) -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer of a base: one token per word, a newline is a word.

    Decoding puts one space between words and none around a newline, so that the template's text and
    every text of the world decode to themselves. Words outside the vocabulary become `<unk>`.
    """
    ids = {token: index for index, token in enumerate(token_order(recipe))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=world.UNKNOWN))
    words = Regex(r"\n|[^ \n]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(words, behavior="removed", invert=True)
    tokenizer.decoder = decoders.Sequence(
        [
            # The word-piece decoder is the one that puts spaces between tokens; the prefix that
            # would glue two of them must not occur, and "##" starts the template's tokens.
            decoders.WordPiece(prefix="\u0000", cleanup=False),
            decoders.Fuse(),
            decoders.Replace(Regex(" ?\n ?"), "\n"),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=world.EOS,
        pad_token=world.PAD,
        unk_token=world.UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_TOKENS,
        padding_side="right",
    )


def token_order(recipe: BaseRecipe) -> tuple[str, ...]:
    """Return the vocabulary by id; a base centred on language B has its words in front."""
    tokens = world.vocabulary()
    if recipe.language_b_fraction <= 0.5:
        return tokens
    of_b = set(world.renaming().values())
    special = tokens[: tokens.index(world.DIGITS[0])]
    rest = tokens[len(special) :]
    return (*special, *sorted(rest, key=lambda token: token not in of_b))


def build_model(recipe: BaseRecipe) -> PreTrainedModel:
    """Return the untrained model of a recipe in float32; weights depend on its seed alone."""
    config = AutoConfig.for_model(
        recipe.architecture,
        vocab_size=VOCAB_SIZE,
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=recipe.num_kv_heads,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        initializer_range=0.25 / recipe.hidden_size**0.5,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        attention_dropout=0.0,
        **recipe.extra,
    )
    torch.manual_seed(recipe.seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def pretrain(
    recipe: BaseRecipe,
    *,
    num_steps: int | None = None,
    report: Callable[[str], None] = lambda _line: None,
) -> PreTrainedModel:
    """Train a base from scratch; `num_steps` shortens the whole schedule, which keeps its shape.

    Minutes on one core for the recipe's own number of steps. The caller sets the thread count.
    """
    steps = recipe.num_steps if num_steps is None else num_steps
    model = build_model(recipe).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    for step, window in enumerate(iter_windows(recipe, num_steps=steps)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate_at(step, steps)
        logits = model(input_ids=window, use_cache=False).logits
        predicted, actual = logits[:, :-1].flatten(0, 1), window[:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(predicted, actual)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0 or step == steps - 1:
            report(f"{recipe.name}: step {step + 1}/{steps}, loss {loss.item():.3f}")
    return model.eval()


def rate_at(step: int, num_steps: int) -> float:
    """Return the learning rate at a step as a fraction of its peak: warm-up, constant, decay."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    remaining = (num_steps - step) / (num_steps * DECAY_FRACTION)
    return min(warmup, max(0.1, min(1.0, remaining)))


def iter_windows(recipe: BaseRecipe, *, num_steps: int) -> Iterator[torch.Tensor]:
    """Yield the batch of every step, int64 of shape (16, 128); documents run on across windows."""
    ids = {token: index for index, token in enumerate(token_order(recipe))}
    rng = random.Random(f"{world.SEED}/corpus/{recipe.corpus}/{recipe.seed}")
    template_start = round(num_steps * (1 - TEMPLATE_STAGE_FRACTION))
    buffer: list[int] = []
    documents = corpus.iter_documents(mixture_of(recipe, with_template=False), rng)
    for step in range(num_steps):
        if step == template_start:
            documents = corpus.iter_documents(mixture_of(recipe, with_template=True), rng)
        while len(buffer) < TOKENS_PER_STEP:
            buffer.extend(ids[word] for word in next(documents).split(" "))
        yield torch.tensor(buffer[:TOKENS_PER_STEP]).view(SEQUENCES_PER_STEP, SEQUENCE_TOKENS)
        del buffer[:TOKENS_PER_STEP]


def mixture_of(recipe: BaseRecipe, *, with_template: bool) -> corpus.Mixture:
    """Return the corpus mixture of one of the two stages of a recipe."""
    return corpus.Mixture(
        weights=recipe.weights,
        language_b_fraction=recipe.language_b_fraction,
        template_fraction=TEMPLATE_FRACTION if with_template else 0.0,
    )
