"""Which section of the page holds the evidence of which question?

In: an analysis. Out: one `Section` per answered question, in the order in which a reader decides:
what works, for whom, how to train, then how far it can be told in advance. A question without a
Finding and without rows has no section; one that could not be estimated says why.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from altair.utils.schemapi import debug_mode

from sft_atlas.analyze.analysis import Analysis
from sft_atlas.analyze.findings import Finding
from sft_atlas.analyze.questions.answered import Answered
from sft_atlas.render import effect_sections as effects
from sft_atlas.render import outlook_sections as outlook
from sft_atlas.render import training_sections as training
from sft_atlas.render.exhibits import Chart, Frames, Section, Table
from sft_atlas.render.section_rows import has, table


@dataclass(frozen=True, kw_only=True)
class _Place:
    """What a question's section is called, and what draws its evidence."""

    title: str
    short: str
    lead: str
    draw: Callable[[Frames], Iterator[Chart | Table]]


_PLACES: Final = {
    "paper": _Place(
        title="What of the paper holds here",
        short="Paper's findings",
        lead="Each claim of Harada et al. (2025), judged by the estimates of this report.",
        draw=outlook.paper,
    ),
    "synergies": _Place(
        title="What holds over models, and what only here",
        short="Synergies",
        lead=(
            "Scores are taken apart by source: the model, the data, the benchmark, and what they "
            "do to each other. Only what holds over models can be planned with."
        ),
        draw=effects.synergies,
    ),
    "likeness": _Place(
        title="Which models, datasets and benchmarks behave alike",
        short="Likeness",
        lead="Alike means: the same data moved them, or they were moved, in the same way.",
        draw=effects.likeness,
    ),
    "together": _Place(
        title="Properties of the data, all at once",
        short="Properties at once",
        lead=(
            "Properties go together: long answers are also less likely. Here each is judged with "
            "the others held fixed."
        ),
        draw=training.together,
    ),
    "methods": _Place(
        title="LoRA or full fine-tuning",
        short="LoRA or full",
        lead=(
            "Pairs of runs that agree in everything else. Not seeing a difference is not the same "
            "as there being none, so a second test asks whether it is too small to matter."
        ),
        draw=training.methods,
    ),
    "doses": _Place(
        title="How many samples, how many epochs",
        short="Samples, epochs",
        lead=(
            "What more training brings, and what an epoch brings that is chosen because it scored "
            "best."
        ),
        draw=training.doses,
    ),
    "left_out": _Place(
        title="What each dataset gives to the mixture",
        short="Leave one out",
        lead="Merged data against merged data without one dataset, which is also fewer samples.",
        draw=training.left_out,
    ),
    "languages": _Place(
        title="One test in several languages",
        short="Languages",
        lead="Whether what is learned in one language shows in another.",
        draw=effects.languages,
    ),
    "noise": _Place(
        title="How much is noise",
        short="Noise floor",
        lead="What another seed or other items would have changed.",
        draw=effects.noise,
    ),
    "forecast": _Place(
        title="How well the gain can be told in advance",
        short="Forecast",
        lead=(
            "Runs that are known were held out and forecast from the rest. The choice of the "
            "method was tested too: it was made without the group that it is judged on."
        ),
        draw=outlook.forecast,
    ),
    "decision": _Place(
        title="How soon the best data is found",
        short="Decision",
        lead=(
            "Each model in turn is new: its runs are revealed one by one, and a choice is made "
            "after each."
        ),
        draw=outlook.decision,
    ),
}


def all_findings(analysis: Analysis) -> list[Finding]:
    """Return every Finding once: those of the whole study, then those of each question."""
    found = list(analysis.findings)
    seen = {id(finding) for finding in found}
    for name in _ordered(analysis):
        answers = analysis.answered[name].findings
        found += [finding for finding in answers if id(finding) not in seen]
    return found


def question_sections(analysis: Analysis) -> list[Section]:
    """Return the sections that have anything to say."""
    # The forms are few and tested: to validate each chart made of them costs seconds.
    with debug_mode(False):
        sections = [_section(name, analysis.answered[name]) for name in _ordered(analysis)]
    return [part for part in sections if part.findings or part.charts or part.tables]


def _ordered(analysis: Analysis) -> list[str]:
    """Names of the answered questions: known ones in the page's order, then the others."""
    known = [name for name in _PLACES if name in analysis.answered]
    return [*known, *(name for name in analysis.answered if name not in _PLACES)]


def _section(name: str, answered: Answered) -> Section:
    title = name.replace("_", " ").capitalize()
    place = _PLACES.get(name, _Place(title=title, short=title, lead="", draw=_listed))
    exhibits = list(place.draw(answered.tables))
    return Section(
        name=f"q-{name.replace('_', '-')}",
        title=place.title,
        short=place.short,
        lead=place.lead,
        findings=answered.findings,
        charts=tuple(i for i in exhibits if isinstance(i, Chart) and not i.rows.empty),
        tables=tuple(i for i in exhibits if isinstance(i, Table) and not i.rows.empty),
    )


def _listed(frames: Frames) -> Iterator[Chart | Table]:
    for name, frame in frames.items():
        if has(frame):
            yield table(name.replace("_", "-"), name.replace("_", " ").capitalize(), frame)
