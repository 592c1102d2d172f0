"""In which language is a text written?

In: texts. Out: ISO 639-1 codes (639-3 where there is none), or `und` where nothing is certain. The
classifier is py3langid's: byte n-grams, naive Bayes (Lui and Baldwin 2012), its model of 4.6 MB
inside the package, so that nothing is downloaded. It reads about 1 MB a second, so callers give it
the beginnings of long texts. Program code has no language of its own; it is called by the words
that are in it, often `en`.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Final

UNDETERMINED: Final = "und"
_MIN_CONFIDENCE: Final = 0.5
"""Probability by the classifier's own calibration below which a text is `und`."""


def iter_languages(texts: Iterable[str]) -> Iterator[str]:
    """Yield each text's language code."""
    identify = _identifier().classify
    for text in texts:
        yield identify(text)[0] if text.strip() else UNDETERMINED


@cache
def _identifier() -> Any:
    # It unpacks its model, most of a second: nothing but a description needs it.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(
        MODEL_FILE, norm_probs=True, min_confidence=_MIN_CONFIDENCE
    )
