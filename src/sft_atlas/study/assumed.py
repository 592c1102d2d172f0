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
        *_measured(model),
        *named_assumptions(model.profile.measured_values),
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
            value=f"{device.name}: {model.peak_flops / 1e12:.4g} TFLOP/s, "
            f"{device.bandwidth / 1e12:.4g} TB/s, {device.memory_bytes / 1e9:,.1f} GB",
            source=device.source,
        ),
        Assumption(
            name="FLOPs per trained token",
            value="6N full, 4N LoRA, and attention; the output head at supervised tokens alone",
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


def _measured(model: CostModel) -> list[Assumption]:
    """Return what this device and finished runs on it said."""
    found = []
    for speed in model.profile.speeds:
        value = (
            f"{speed.tokens_per_second:,.0f} tokens/s in passes of {speed.pass_tokens:,}; "
            f"{1e3 * speed.pass_seconds:.3g} ms for a pass of almost no tokens"
        )
        if speed.work != "score":
            value += f", {1e3 * speed.update_seconds:.3g} ms for the optimizer"
        name = f"speed of {speed.name}, {speed.work}"
        found.append(
            Assumption(name=name, value=value, source=f"measured on this device, {speed.date}")
        )
    for skipped in model.profile.skipped:
        value = "not measured; as base models that were"
        name = f"speed of {skipped.name}"
        found.append(Assumption(name=name, value=value, source=skipped.reason))
    num_runs = len(model.trainings.compared())
    if num_runs:
        factors = [
            f"{name} {work} {factor.likely:.2f} ({factor.low:.2f} to {factor.high:.2f})"
            for (name, work), factor in model.correction.factors.items()
        ]
        if model.correction.other is not None:
            other = model.correction.other
            factors.append(f"others {other.likely:.2f} ({other.low:.2f} to {other.high:.2f})")
        source = f"{num_runs} finished runs of this study (docs/plan.md)"
        name = "correction: time of optimizer steps, relative to the prediction"
        found.append(Assumption(name=name, value=", ".join(factors), source=source))
    return found


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
        found += _measured_samples(model, d.spec.name)
    return found


def _measured_samples(model: CostModel, dataset: str) -> list[Assumption]:
    shapes = [shape for (_, name), shape in model.known.samples.items() if name == dataset]
    if not shapes:
        return []
    tokens = sorted(shape.tokens for shape in shapes)
    fractions = sorted(shape.supervised_fraction for shape in shapes)
    value = f"{tokens[0]:.3g} to {tokens[-1]:.3g} tokens"
    value += f", {fractions[0]:.0%} to {fractions[-1]:.0%} of them supervised"
    source = f"counted in this store for {len(shapes)} of {len(model.study.models)} base models"
    return [Assumption(name=f"samples of {dataset}, in training", value=value, source=source)]


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
