"""How near completions come to reference texts: exact match, token F1, ROUGE and BLEU. The table METRICS has them.

ROUGE and BLEU are computed by the packages that papers use (rouge-score, sacrebleu), which are installed only where
they are wanted. Knows nothing about models, rewards or runs.
"""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from rlft.errors import UserError
from rlft.samples import Group, Prompt

KEY = "evaluation.reference_column"
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ROUGE_TOKEN = re.compile(r"[a-z0-9]")  # what rouge-score's own tokenizer keeps of lower-case text

References = Sequence[Sequence[str]]  # for each completion one text or more, of which the best counts


class Metric(NamedTuple):
    """A metric over all completions."""

    compute: Callable[[Sequence[str], References], float]
    counts: Callable[[str], bool]  # whether anything of a reference is left once the metric has prepared it
    left: str  # what the metric leaves of a text, for messages
    package: tuple[str, str] | None = None  # the module that it needs, and what to install for it


def normalize(text: str) -> str:
    """As in SQuAD (Rajpurkar et al. 2016): lower case, without punctuation and the articles a, an, the; one space
    between words."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def is_match(completion: str, reference: str) -> float:
    """1 when both are the same once normalised, else 0."""
    return float(normalize(completion) == normalize(reference))


def token_f1(completion: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the normalised texts' words, each counted as often as it is in both."""
    said, wanted = normalize(completion).split(), normalize(reference).split()
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def _best_mean(
    one: Callable[[str, str], float], counts: Callable[[str], bool], texts: Sequence[str], references: References
) -> float:
    """Mean over completions of the best value that `one` gives with any of its references that `counts`."""
    best = [max(one(t, r) for r in refs if counts(r)) for t, refs in zip(texts, references, strict=True)]
    return sum(best) / len(best)


def _rouge(kind: str, texts: Sequence[str], references: References) -> float:
    """Mean F-measure, in [0, 1], with rouge-score's own tokenizer and no stemming (Lin 2004)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind])
    return _best_mean(lambda text, ref: float(scorer.score(ref, text)[kind].fmeasure), _has_rouge, texts, references)


def _bleu(texts: Sequence[str], references: References) -> float:
    """Of the corpus, in [0, 100] as papers report it, with sacrebleu's defaults: case counts, tokenizer 13a,
    exponential smoothing (Papineni et al. 2002; Post 2018)."""
    from sacrebleu.metrics.bleu import BLEU

    width = max(map(len, references))
    streams = [[refs[i] if i < len(refs) else None for refs in references] for i in range(width)]
    return float(BLEU().corpus_score(list(texts), streams).score)  # type: ignore[arg-type]  # None: this one has fewer


def _has_words(text: str) -> bool:
    return bool(normalize(text))


def _has_rouge(text: str) -> bool:
    return _ROUGE_TOKEN.search(text.lower()) is not None


_WORDS = "SQuAD's normalisation leaves no punctuation and no a, an, the"
_LATIN = "rouge-score's tokenizer leaves the letters a to z and digits only"
_ROUGE = ("rouge_score", "rouge-score")
METRICS: dict[str, Metric] = {
    "exact_match": Metric(partial(_best_mean, is_match, _has_words), _has_words, _WORDS),
    "f1": Metric(partial(_best_mean, token_f1, _has_words), _has_words, _WORDS),
    "rouge1": Metric(partial(_rouge, "rouge1"), _has_rouge, _LATIN, _ROUGE),
    "rouge2": Metric(partial(_rouge, "rouge2"), _has_rouge, _LATIN, _ROUGE),
    "rougeL": Metric(partial(_rouge, "rougeL"), _has_rouge, _LATIN, _ROUGE),
    "bleu": Metric(_bleu, lambda text: bool(text.strip()), "white space is nothing", ("sacrebleu", "sacrebleu")),
}


def check_installed(names: Sequence[str]) -> None:
    """For before anything starts: raise UserError when a metric's package is not installed here."""
    needed = [(name, *package) for name in names if (package := METRICS[name].package) is not None]
    missing = [(name, install) for name, module, install in needed if find_spec(module) is None]
    if missing:
        installs = list(dict.fromkeys(install for _, install in missing))
        raise UserError(
            f"evaluation.metrics: {', '.join(name for name, _ in missing)} cannot be computed, because "
            f"{' and '.join(installs)} {'is' if len(installs) == 1 else 'are'} not installed here. Install with pip "
            f"install 'rlft[eval]' or pip install {' '.join(installs)}, or take them out of evaluation.metrics."
        )


class TextMetrics:
    """The chosen metrics and the column that they compare with."""

    def __init__(self, names: Sequence[str], column: str, prompts: Sequence[Prompt]) -> None:
        """Look at all references of `prompts`, so that no evaluation fails half-way. Raises UserError for a missing
        package or column, and for a row whose reference is nothing once a metric has prepared it: every completion
        that is nothing too would equal it."""
        check_installed(names)
        self._names, self._column = names, column
        _check_column(column, prompts)
        for prompt in prompts:
            texts = references_of(prompt, column)
            for name in names:
                if not any(map(METRICS[name].counts, texts)):
                    raise UserError(
                        f"{prompt.id}: column {column!r} ({KEY}) holds {texts[0]!r}, of which {name} has nothing to "
                        f"compare with: {METRICS[name].left}. Mend the row, or take {name} out of evaluation.metrics."
                    )

    def __call__(self, groups: Sequence[Group]) -> dict[str, float]:
        """eval/<name> over all completions of `groups`; with several references the best counts (BLEU: all of them)."""
        pairs = [(s.own_text, references_of(g.prompt, self._column)) for g in groups for s in g.samples]
        texts, references = [text for text, _ in pairs], [refs for _, refs in pairs]
        return {f"eval/{name}": METRICS[name].compute(texts, references) for name in self._names}


def references_of(prompt: Prompt, column: str) -> list[str]:
    """The reference texts of a row: a text, a number, or a list of texts. Raises UserError for anything else."""
    value = prompt.columns.get(column)
    values = list(value) if isinstance(value, list | tuple) else [value]
    if values and all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in values):
        return [str(one) for one in values]
    found = "empty" if value is None or values == [] else _found(value)
    raise UserError(
        f"{prompt.id}: column {column!r} ({KEY}) is {found}. Expected a text or a list of texts: mend the row."
    )


def _found(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, list(value)[:4]))}"
    return f"{str(value)[:60]!r} (a {type(value).__name__})"


def _check_column(column: str, prompts: Sequence[Prompt]) -> None:
    columns = list(dict.fromkeys(name for prompt in prompts for name in prompt.columns))
    if column in columns:
        return
    near = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise UserError(f"{KEY}: the data has no column {column!r}.{hint} Columns there: {', '.join(columns) or 'none'}.")
