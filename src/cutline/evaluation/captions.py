"""How near captions come to references: BLEU-4, ROUGE-L, CIDEr-D, exact match, and meaning by an embedder.

Every score of a picture is kept (`Measured.each`), and what it adds to the corpus's, so that intervals and the
difference of two sets of captions come from resampling pictures, without measuring anything again.

Meaning is compared in phrases, after BERTScore (Zhang et al. 2020, arXiv 1904.09675), which compares words: each
phrase of a caption with the one of a reference that is most like it, which gives precision, and the other way round,
which gives recall. A reference without a word is none, and a caption without a word has 0 in everything.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cutline.evaluation.embedders import Embedder, FloatArray, Lexical
from cutline.evaluation.words import phrases, words
from cutline.options import CutlineError

Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

SCORES = ("exact", "bleu_4", "rouge_l", "cider_d", "semantic_precision", "semantic_recall", "semantic_f1")
"""Every score, in the order in which they are told. From 0 to 1; `cider_d` from 0 to 10."""

_MEANS = tuple(name for name in SCORES if name != "bleu_4")  # those that are means over pictures
_ORDER = 4  # n-grams of 1 to 4 words, for BLEU-4 and CIDEr-D alike
_BETA = 1.2  # recall counts so much more than precision in COCO's ROUGE-L
_SIGMA = 6.0  # words; how much a difference in length costs in CIDEr-D
_BLOCK = 256  # pictures whose phrases are embedded together


class Difference(NamedTuple):
    """By how much one score is above another, and between which differences 95 % of the resamples lie."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Measured:
    """What measuring some captions came to."""

    keys: tuple[str, ...]
    """The pictures that have a reference, in the order of the references given."""
    embedder: str
    """The name of the one by which meaning was compared."""
    table: Numbers
    """(pictures, 15): what each adds: n-grams found in a reference (4), n-grams (4), the words of the reference that is
    nearest in length, and its own scores in the order of `SCORES`, without BLEU."""

    @cached_property
    def scores(self) -> dict[str, float]:
        """Each of `SCORES` over all pictures."""
        return dict(zip(SCORES, _scores(self.table.sum(axis=0), len(self.keys)).tolist(), strict=True))

    @cached_property
    def each(self) -> dict[str, dict[str, float]]:
        """Key -> a picture's own scores. BLEU is none of them: it is made for many texts, and of one it is mostly 0."""
        rows = self.table[:, -len(_MEANS) :].tolist()
        return {key: dict(zip(_MEANS, row, strict=True)) for key, row in zip(self.keys, rows, strict=True)}

    def intervals(self, samples: int = 1000, seed: int = 0) -> dict[str, tuple[float, float]]:
        """Between which values 95 % of the scores lie when pictures are drawn again (percentile bootstrap).

        The frequencies by which CIDEr-D weighs words stay those of all references.
        """
        drawn = np.stack(list(self._resampled(samples, seed)))
        return {name: (float(low), float(high)) for name, (low, high) in zip(SCORES, _bounds(drawn), strict=True)}

    def _resampled(self, samples: int, seed: int) -> Iterator[Numbers]:
        """The scores of each resample; of equal seeds and equally many pictures the resamples are the same."""
        draw, count = np.random.default_rng(seed), len(self.keys)
        for _ in range(samples):
            times = np.bincount(draw.integers(0, count, count), minlength=count)
            yield _scores(times @ self.table, count)


def paired(a: Measured, b: Measured, samples: int = 1000, seed: int = 0) -> dict[str, Difference]:
    """By how much the captions of `a` score above those of `b`, each resample of pictures taken for both.

    The differences of two candidates on the same pictures vary less than either's scores do: an interval of them that
    leaves out 0 tells of a difference even where the intervals of the scores overlap.

    Raises:
        ValueError: they are not of the same pictures.
    """
    if a.keys != b.keys:
        raise ValueError("only captions that were measured over the same pictures can be compared in pairs")
    pairs = zip(a._resampled(samples, seed), b._resampled(samples, seed), strict=True)
    bounds = _bounds(np.stack([one - other for one, other in pairs]))
    return {
        name: Difference(a.scores[name] - b.scores[name], float(low), float(high))
        for name, (low, high) in zip(SCORES, bounds, strict=True)
    }


def measure(
    candidates: Mapping[str, str | None],
    references: Mapping[str, Sequence[str]],
    embedder: Embedder | None = None,
) -> Measured:
    """Measure captions against references.

    Args:
        candidates: key -> caption; a picture without one counts as one with an empty caption.
        references: key -> what is taken for true of the picture, in one or several ways.
        embedder: by what meaning is compared; `Lexical` by default.

    Raises:
        CutlineError: no picture has a reference.
    """
    embedder = embedder or Lexical()
    wanted = {key: [text for text in texts if text and words(text)] for key, texts in references.items()}
    wanted = {key: texts for key, texts in wanted.items() if texts}
    if not wanted:
        raise CutlineError("there is nothing to measure: no picture has a reference with a word in it")
    said = [candidates.get(key) or "" for key in wanted]
    true = list(wanted.values())
    said_words = [words(text) for text in said]
    true_words = [[words(text) for text in texts] for texts in true]
    bleu, cider = _n_grams(said_words, true_words)
    exact = [float(_plain(text) in map(_plain, texts)) for text, texts in zip(said, true, strict=True)]
    rouge = [_rouge_l(text, texts) for text, texts in zip(said_words, true_words, strict=True)]
    table = np.column_stack([bleu, exact, rouge, cider, _meaning(said, true, embedder)])
    return Measured(tuple(wanted), embedder.name, table)


def _plain(text: str) -> str:
    """Letter for letter, but for how many spaces there are and how accents are encoded."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _scores(sums: Numbers, count: int) -> Numbers:
    """The scores in the order of `SCORES`, of the sums of a table of so many pictures."""
    found, n_grams, length = sums[:_ORDER], sums[_ORDER : 2 * _ORDER], sums[2 * _ORDER]
    bleu = 0.0
    if found.all():
        brevity = min(0.0, 1 - length / n_grams[0])
        bleu = float(np.exp(brevity + np.log(found / n_grams).mean()))
    means = sums[-len(_MEANS) :] / count
    return np.insert(means, SCORES.index("bleu_4"), bleu)


def _bounds(drawn: Numbers) -> Numbers:
    """(scores, 2): the ends of the middle 95 % of (samples, scores)."""
    bounds: Numbers = np.percentile(drawn, (2.5, 97.5), axis=0).T
    return bounds


def _rouge_l(said: list[str], references: list[list[str]]) -> float:
    """ROUGE-L (Lin 2004) as COCO's evaluation has it: of several references the greatest precision and recall."""
    if not said:
        return 0.0
    common = [_longest_common(said, reference) for reference in references]
    precision = max(common) / len(said)
    recall = max(length / len(reference) for length, reference in zip(common, references, strict=True))
    if not precision:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _longest_common(one: list[str], other: list[str]) -> int:
    """The length of the longest common subsequence, a bit for each word of `one` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for number, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << number
    whole = (1 << len(one)) - 1
    unmatched = whole
    for word in other:
        met = unmatched & places.get(word, 0)
        unmatched = (unmatched + met | unmatched - met) & whole
    return len(one) - unmatched.bit_count()


def _n_grams(said: list[list[str]], references: list[list[list[str]]]) -> tuple[Numbers, Numbers]:
    """What BLEU-4 and CIDEr-D count, for all pictures at once.

    BLEU-4 (Papineni et al. 2002): an n-gram counts as found as often as the reference that has it most often has it;
    of several references that are as near in length the shorter one counts, as in sacrebleu. CIDEr-D (Vedantam et al.
    2015, arXiv 1411.5726): n-grams weighed by how few pictures' references have them, clipped, and a Gaussian of the
    difference in length, which, as in the authors' program, is counted in pairs of words.

    Returns:
        (pictures, 9) for BLEU and (pictures,) for CIDEr-D. Text t below is a picture's caption where t < pictures, and
        else a reference.
    """
    count = len(said)
    texts = said + [reference for several in references for reference in several]
    owner = np.concatenate([np.arange(count), np.repeat(np.arange(count), [len(several) for several in references])])
    lengths = np.array([len(text) for text in texts])
    coded: dict[str, int] = {}
    word = np.array([coded.setdefault(word, len(coded)) for text in texts for word in text], np.int64)
    text_of = np.repeat(np.arange(len(texts)), lengths)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(word))  # words from here to the end of its text

    nearest = np.abs(lengths[count:] - lengths[owner[count:]])
    order = np.lexsort((lengths[count:], nearest, owner[count:]))
    firsts = np.unique(owner[count:][order], return_index=True)[1]
    bleu = np.zeros((count, 2 * _ORDER + 1))
    bleu[:, -1] = lengths[count:][order][firsts]

    likeness = np.zeros(len(texts) - count)  # of a reference and its caption
    places, gram = np.arange(len(word)), word
    for n in range(1, _ORDER + 1):
        if n > 1:  # an n-gram is the one that is shorter by a word, and a word
            kept = left[places] >= n
            places = places[kept]
            gram = np.unique(gram[kept] * len(coded) + word[places + n - 1], return_inverse=True)[1]
        kinds = int(gram.max(initial=0)) + 1
        pairs, times = np.unique(text_of[places] * kinds + gram, return_counts=True)
        texts_of, grams = pairs // kinds, pairs % kinds
        start = int(np.searchsorted(texts_of, count))  # where references begin
        had, most = _most(owner[texts_of[start:]] * kinds + grams[start:], times[start:])

        bleu[:, n - 1] = np.bincount(
            texts_of[:start], np.minimum(times[:start], _looked_up(pairs[:start], had, most)), minlength=count
        )
        bleu[:, _ORDER + n - 1] = np.maximum(lengths[:count] - n + 1, 0)

        pictures = np.bincount(had % kinds, minlength=kinds)
        weights = times * (np.log(count) - np.log(np.maximum(pictures, 1)))[grams]
        norms = np.sqrt(np.bincount(texts_of, weights**2, minlength=len(texts)))
        theirs = weights[start:]
        ours = _looked_up(owner[texts_of[start:]] * kinds + grams[start:], pairs[:start], weights[:start])
        dots = np.bincount(texts_of[start:] - count, np.minimum(ours, theirs) * theirs, minlength=len(likeness))
        scale = norms[count:] * norms[owner[count:]]
        likeness += np.divide(dots, scale, out=np.zeros(len(dots)), where=scale > 0)

    word_pairs = np.maximum(lengths - 1, 0)
    apart = word_pairs[owner[count:]] - word_pairs[count:]
    likeness *= np.exp(-(apart**2) / (2 * _SIGMA**2)) / _ORDER
    per_picture = np.bincount(owner[count:], likeness, minlength=count) / np.bincount(owner[count:], minlength=count)
    return bleu, 10 * per_picture


def _most(keys: Places, values: Places) -> tuple[Places, Places]:
    """Each key once, ascending, and the greatest of its values."""
    order = np.argsort(keys, kind="stable")
    found, firsts = np.unique(keys[order], return_index=True)
    return found, np.maximum.reduceat(values[order], firsts) if len(found) else values


def _looked_up(keys: Places, known: Places, values: npt.NDArray[np.generic]) -> Numbers:
    """The value of each key, 0 where it is not among the `known` ones, which ascend."""
    if not len(known):
        return np.zeros(len(keys))
    where = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    found: Numbers = np.where(known[where] == keys, values[where], 0).astype(np.float64)
    return found


def _meaning(said: list[str], references: list[list[str]], embedder: Embedder) -> Numbers:
    """(pictures, 3): precision, recall and F1 of phrases; of several references, those of the one of greatest F1."""
    found = np.zeros((len(said), 3))
    for start in range(0, len(said), _BLOCK):
        coded: dict[str, int] = {}

        def places(text: str, coded: dict[str, int] = coded) -> list[int]:
            return [coded.setdefault(phrase, len(coded)) for phrase in phrases(text)]

        ours = [places(text) for text in said[start : start + _BLOCK]]
        theirs = [[places(text) for text in texts] for texts in references[start : start + _BLOCK]]
        vectors = embedder.encode(list(coded))
        for number, (our, several) in enumerate(zip(ours, theirs, strict=True)):
            if our:
                found[start + number] = max((_matched(vectors, our, their) for their in several), key=lambda it: it[2])
    return found


def _matched(vectors: FloatArray, ours: list[int], theirs: list[int]) -> tuple[float, float, float]:
    """Precision, recall and F1 of some phrases, each with the most alike of the other side."""
    likeness = np.clip(vectors[ours] @ vectors[theirs].T, 0.0, 1.0)
    precision, recall = float(likeness.max(axis=1).mean()), float(likeness.max(axis=0).mean())
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0
