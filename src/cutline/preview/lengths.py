"""How long texts are in tokens, and where an encoder's limit falls in them: many texts at a time.

CLIP's tokenizer cuts a text at every space before it does anything else, and what stands between two spaces has as many
tokens there as it has alone. So each distinct word is tokenised once, however many texts have it, and the length of a
text is the sum over its words: the same number, many times as fast. Of a tokenizer that is not known to cut at spaces
each text is tokenised as a whole, and so is one that is parsed for weights or has a prompt put before it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cutline.compose.tokens import Encoder

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

LIMITS = (75, 150, 225, 256, 512)
"""Tokens: those of CLIP in one, two and three rows, and those of T5 and its like."""

REMEMBERED = 1_000_000
"""Distinct words whose length is kept in mind; more are tokenised whenever they come."""

_ALTERNATIVES = {
    *(r"<\|startoftext\|>", r"<\|endoftext\|>", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"),
    *(r"\p{L}+", r"[\p{L}]+", r"\p{N}", r"[\p{N}]", r"[^\s\p{L}\p{N}]+"),
}
"""What CLIP takes for a word: none of them holds a space."""


@dataclass(eq=False)
class Counter:
    """Counts the texts of one encoder, whose tokenizer is at hand."""

    encoder: Encoder
    _words: dict[str, int] = field(default_factory=dict, repr=False)
    _needed: dict[tuple[str, int], int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.by_words = cuts_at_spaces(self.encoder)

    def measure(self, texts: pa.StringArray) -> Measured:
        """Count the tokens of each text. Null counts as empty."""
        if texts.null_count:
            texts = texts.fill_null("")
        if not self.by_words:
            return _Whole(self, texts)
        split = pc.split_pattern(texts, " ")
        return _ByWords(self, split.values, split.offsets.to_numpy().astype(np.int64))

    def counts(self, texts: pa.StringArray) -> Counts:
        """How many tokens each text has before any cut; -1 where the trainer would stop at it."""
        return self.measure(texts).counts

    def of_words(self, words: list[str]) -> Counts:
        """The lengths of words, each of which is here once."""
        known = self._words
        found = np.fromiter((known.get(word, -1) for word in words), np.int64, len(words))
        if len(new := np.flatnonzero(found < 0)):
            unknown = [words[place] for place in new]
            found[new] = self.encoder.counts(unknown)
            if len(known) < REMEMBERED:
                known.update(zip(unknown, found[new].tolist(), strict=True))
        return found

    def needed(self, word: str, end: int) -> int:
        """How many of a word's tokens have to be kept so that its first `end` bytes are kept whole."""
        if len(self._needed) > REMEMBERED:
            self._needed.clear()
        if (found := self._needed.get((word, end))) is None:
            characters = len(word.encode()[:end].decode(errors="ignore"))
            found = sum(token.start < characters for token in self.encoder.read(word).tokens)
            self._needed[word, end] = found
        return found


class Measured:
    """The lengths of some texts, and what of them is kept."""

    counts: Counts
    """Tokens of each text before any cut; -1 where the trainer would stop at it."""

    def keeps(self, rows: Counts, ends: Counts) -> Flags:
        """Whether a text is kept up to a place in it, for many places.

        Args:
            rows: the number of the text, of each place.
            ends: bytes of that text's UTF-8 before the place, at least one.
        """
        raise NotImplementedError


class _ByWords(Measured):
    def __init__(self, counter: Counter, words: pa.StringArray, offsets: Counts) -> None:
        coded = words.dictionary_encode()
        self.counter, self.words, self.offsets = counter, words, offsets
        self.tokens = counter.of_words(coded.dictionary.to_pylist())[coded.indices.to_numpy()]
        self.before = np.concatenate([[0], np.cumsum(self.tokens)])  # all words of all texts, one after the other
        self.counts = self.before[offsets[1:]] - self.before[offsets[:-1]]

    def keeps(self, rows: Counts, ends: Counts) -> Flags:
        bytes_each = pc.binary_length(self.words).to_numpy().astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(bytes_each + 1)])[:-1]  # of each word, as if the texts were one
        places = starts[self.offsets[rows]] + ends
        word = np.searchsorted(starts, places - 1, side="right") - 1
        before = self.before[word] - self.before[self.offsets[rows]]
        limit = self.counter.encoder.limit
        kept: Flags = before + self.tokens[word] <= limit
        across = np.flatnonzero(~kept & (before < limit))  # the limit falls within this word
        texts = self.words.take(pa.array(word[across])).to_pylist()
        for place, text, end in zip(across, texts, (places - starts[word])[across].tolist(), strict=True):
            kept[place] = before[place] + self.counter.needed(text, end) <= limit
        return kept


class _Whole(Measured):
    def __init__(self, counter: Counter, texts: pa.StringArray) -> None:
        self.encoder, self.texts = counter.encoder, texts
        self.counts = counter.encoder.counts(texts.to_pylist())

    def keeps(self, rows: Counts, ends: Counts) -> Flags:
        cuts = np.full(len(self.counts), np.iinfo(np.int64).max)
        cuts[self.counts < 0] = 0
        for row in np.unique(rows[self.counts[rows] > self.encoder.limit]).tolist():
            cuts[row] = len(self.encoder.read(self.texts[row].as_py()).kept.encode())
        kept: Flags = ends <= cuts[rows]
        return kept


def cuts_at_spaces(encoder: Encoder) -> bool:
    """Whether an encoder's tokenizer is known to cut a text at every space, whatever stands around it."""
    tokenizer = getattr(encoder.coder, "tokenizer", None)
    if tokenizer is None or encoder.weighted or encoder.quoted or encoder.before:
        return False
    if any(" " in added.content for added in tokenizer.get_added_tokens_decoder().values()):
        return False
    normal = all(
        step["type"] in ("NFC", "NFKC", "NFD", "NFKD", "Lowercase")
        or (step["type"] == "Replace" and step["pattern"] == {"Regex": r"\s+"} and step["content"] == " ")
        for step in _steps(tokenizer.normalizer, "normalizers")
    )
    first: dict[str, Any] = next(iter(_steps(tokenizer.pre_tokenizer, "pretokenizers")), {"type": ""})
    if first["type"] == "Split":
        words = re.split(r"(?<!\\)\|", first["pattern"].get("Regex", ""))
        apart = first["invert"] and first["behavior"] == "Removed" and set(words) <= _ALTERNATIVES
    else:
        apart = first["type"] in ("Whitespace", "WhitespaceSplit")
    return bool(normal and apart)


def _steps(component: Any, several: str) -> list[dict[str, Any]]:
    """What a normalizer or pre-tokenizer does, one step after the other, as tokenizer.json has it."""
    if component is None:
        return []
    state: dict[str, Any] = json.loads(component.__getstate__())
    found: list[dict[str, Any]] = state[several] if state["type"] == "Sequence" else [state]
    return found
