"""Name everything that one plan's estimate takes for granted, each with its value and source."""

from sft_atlas.study.asking import decodes
from sft_atlas.study.assumption import Assumption, named_assumptions
from sft_atlas.study.cost import UNKNOWN_PARAMETERS, UNKNOWN_SAMPLE_TOKENS, CostModel
from sft_atlas.study.passes import MICRO_BATCH_TOKENS
from sft_atlas.study.questions import (
    JUDGE_FRAME_TOKENS,
    JUDGEMENT_TOKENS,
    Questions,
    questions_of,
)
from sft_atlas.study.resolution import named_resolution_assumptions


def all_assumptions(model: CostModel) -> list[Assumption]:
    """Return what a study's estimate rests on: device, ways of working, sizes, lengths."""
    return [
        *_fixed(model),
        *named_assumptions(),
        *_sizes(model),
        *_questions(model),
        *(named_resolution_assumptions() if model.study.benchmarks else ()),
    ]


def _fixed(model: CostModel) -> list[Assumption]:
    device = model.device
    pass_tokens = MICRO_BATCH_TOKENS["cuda" if device.kind == "gpu" else "cpu"]
    return [
        Assumption(
            name="device",
            value=f"{device.name}: {model.peak_flops / 1e12:g} TFLOP/s, "
            f"{device.bandwidth / 1e12:g} TB/s, {device.memory_bytes / 1e9:,.1f} GB",
            source=device.source,
        ),
        Assumption(
            name="FLOPs per trained token",
            value="6N full, 4N LoRA, and attention",
            source="Kaplan et al. 2020, sec. 2.1; LoRA forms no weight gradients of the base",
        ),
        Assumption(
            name="passes",
            value=f"{pass_tokens} tokens in training, {model.machine.batch_tokens} in scoring",
            source="defaults of run",
        ),
        Assumption(
            name="adapters are merged before they are scored",
            value="yes: a LoRA cell costs as much to score as a full one",
            source="how evaluation works here",
        ),
        Assumption(
            name="solved examples, prompts of several options, exact matches",
            value="read once for all that begin with them; decided by one pass",
            source="how evaluation works here; docs/plan.md has what each of them saves",
        ),
    ]


def _sizes(model: CostModel) -> list[Assumption]:
    found = []
    for m in model.study.models:
        if m.card is None:
            value = f"{UNKNOWN_PARAMETERS:g} weights, a guess"
            source = "nothing states it; add `parameters:` to the model's entry in the study file"
            found.append(Assumption(name=f"size of {m.spec.name}", value=value, source=source))
    for d in model.study.datasets:
        is_stated = d.card is not None and d.card.tokens_per_sample > 0
        inferred = is_stated and d.card is not None and "tokens_per_sample" in d.card.inferred
        source = "card, inferred" if inferred else "card" if is_stated else "nothing states it"
        tokens = model.sample_tokens(d.spec)
        assert is_stated or tokens <= UNKNOWN_SAMPLE_TOKENS
        name = f"tokens per sample of {d.spec.name}"
        found.append(Assumption(name=name, value=f"{tokens:g}", source=source))
    return found


def _questions(model: CostModel) -> list[Assumption]:
    found = []
    for b in model.study.benchmarks:
        asked = questions_of(b)
        found.append(
            Assumption(
                name=f"questions of {b.name}",
                value=_asked_text(asked),
                source="card" if asked.is_known else "size of the items' file",
            )
        )
    if any(questions_of(b).num_judgements for b in model.study.benchmarks):
        found.append(
            Assumption(
                name="a judge's request",
                value=f"{JUDGE_FRAME_TOKENS:g} tokens of instructions, the question and the "
                f"answers; it writes {JUDGEMENT_TOKENS:g}",
                source="lengths of MT-Bench's prompts; a judge that only chooses writes one token",
            )
        )
    return found


def _asked_text(asked: Questions) -> str:
    parts = [f"{asked.num_items} of {asked.num_available} items"]
    if asked.num_turns > 1:
        parts.append(f"{asked.num_turns} turns")
    parts.append(f"{asked.prompt_tokens:g} prompt tokens")
    if asked.shown_tokens:
        parts.append(f"{asked.shown_tokens:g} of solved examples")
    if asked.max_new_tokens == 0:
        parts.append(f"{asked.num_options} options of {asked.answer_tokens:g}")
    elif decodes(asked):
        limit = asked.max_new_tokens
        parts.append(f"{asked.answer_tokens:g} decoded, at most {limit}")
    else:
        parts.append(f"an answer of {asked.answer_tokens:g}, not decoded")
    return ", ".join(parts)
