"""Cleaning: rules that drop tags which say nothing, or nothing certain, and that even out the words of captions.

Rules are data: the TOML files in `presets/cleaning`, or one of your own. They see whole tags and whole words. What they
drop is named with the rule that did it, what they keep stays as it was typed, and cleaning what is clean changes
nothing. Tags are dropped by three kinds of rule, in this order: `ratings` always; a family (the colours of eyes, say)
where the tags count several people and two or more of the family stand there, since nothing then says whose they are;
`redundant` where another tag that is still there ends in the same words.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cutline import tags
from cutline.options import CutlineError, OptionError

Numbers = npt.NDArray[np.int64]

_TAG_KEYS = ("ratings", "redundant", "not_after", "several", "families")
_CAPTION_KEYS = ("dropped", "before", "words")


@dataclass(frozen=True)
class Cleaning:
    """Rules of cleaning. Made with `find`, `parse` or `read`."""

    ratings: tuple[str, ...] = ()
    """Tags to drop; `*` stands for anything, here and in families."""
    several: tuple[str, ...] = ()
    """Tags that count several people."""
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name of a family -> its tags. A tag that two families name is of the first."""
    redundant: bool = False
    not_after: tuple[str, ...] = ()
    """Words that turn what follows into its opposite."""
    words: Mapping[str, str] = field(default_factory=dict)
    """A word in captions -> the word written for it, both in lower case."""
    dropped: tuple[str, ...] = ()
    """Words that go out of captions"""
    before: tuple[str, ...] = ()
    """where they stand before one of these."""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Cleaning:
        """Make rules of TOML's tables. Raises OptionError for what is unknown, or would do nothing."""
        _known("a cleaning", values, ("tags", "captions"))
        of_tags, captions = _table(values, "tags", _TAG_KEYS), _table(values, "captions", _CAPTION_KEYS)
        if not of_tags and not captions:
            raise OptionError("a cleaning without rules does nothing: give it [tags] or [captions]")
        families = _table(of_tags, "families", None, "[tags.families]")
        words = _table(captions, "words", None, "[captions.words]")
        redundant = of_tags.get("redundant", False)
        if not isinstance(redundant, bool):
            raise OptionError(f"[tags] redundant is true or false, not {redundant!r}")
        found = cls(
            ratings=_strings("[tags] ratings", of_tags.get("ratings", ())),
            several=_strings("[tags] several", of_tags.get("several", ())),
            families={name: _strings(f"[tags.families] {name}", one) for name, one in families.items()},
            redundant=redundant,
            not_after=_strings("[tags] not_after", of_tags.get("not_after", ())),
            words=dict(zip(words, _strings("[captions.words]", list(words.values())), strict=True)),
            dropped=_strings("[captions] dropped", captions.get("dropped", ())),
            before=_strings("[captions] before", captions.get("before", ())),
        )
        found._check()
        return found

    @classmethod
    def read(cls, path: str | Path) -> Cleaning:
        """Read rules from a TOML file. Raises CutlineError, naming the file."""
        path = Path(path).expanduser()
        try:
            return cls.parse(tomllib.loads(path.read_text("utf-8")))
        except OSError as error:
            raise CutlineError(f"cannot read the cleaning {path}: {error.strerror}") from None
        except OptionError as error:
            raise OptionError(f"{path}: {error}") from None
        except ValueError as error:
            raise CutlineError(f"{path} is no TOML: {error}") from None

    @cached_property
    def rules(self) -> tuple[str, ...]:
        """The names of the rules for tags, in the order in which they are applied."""
        return (*(["ratings"] if self.ratings else []), *self.families, *(["redundant"] if self.redundant else []))

    # -- tags -------------------------------------------------------------------------------------------------

    def tags(self, names: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
        """The tags of one picture that are kept, and those that are dropped, each with the rule that did it."""
        rules = self.drops(list(names), np.zeros(len(names), np.int64), np.arange(len(names))).tolist()
        pairs = list(zip(names, rules, strict=True))
        kept = [name for name, rule in pairs if rule < 0]
        return kept, [(name, self.rules[rule]) for name, rule in pairs if rule >= 0]

    def drops(self, names: list[str], rows: Numbers, codes: Numbers) -> Numbers:
        """Of each tag of many pictures the rule that drops it, as a place in `rules`; -1 where it is kept.

        Args:
            names: tags as they are typed.
            rows: of each tag of each picture: which picture, from 0,
            codes: and which of `names`.
        """
        plain, spelled = _plain(names)
        rows, codes = np.asarray(rows, np.int64), spelled[codes]
        rule = self._rule_of_each(plain)[codes]
        if self.families:
            doubtful = np.flatnonzero(rule >= bool(self.ratings))
            clear = ~self._unclear(plain, rows, codes, rule, doubtful)
            rule[doubtful[clear]] = -1
        if self.redundant:
            left = np.flatnonzero(rule < 0)
            said = _said_by_others(plain.to_pylist(), rows[left], codes[left], self._nots)
            rule[left[said]] = len(self.rules) - 1
        return rule

    def _rule_of_each(self, plain: pa.StringArray) -> Numbers:
        """Of each tag the rule that may drop it, whatever stands beside it."""
        found = np.full(len(plain), -1)
        for place, pattern in reversed(list(enumerate(self._patterns))):  # of two, the first has the last word
            found[_matching(plain, pattern)] = place
        return found

    def _unclear(
        self, plain: pa.StringArray, rows: Numbers, codes: Numbers, rule: Numbers, doubtful: Numbers
    ) -> npt.NDArray[np.bool_]:
        """Which tags of families, at these places, stand beside another of theirs in a picture of several people."""
        crowd = np.zeros(rows.max(initial=-1) + 1, bool)
        crowd[rows[_matching(plain, self._several)[codes]]] = True
        in_crowd = crowd[rows[doubtful]]
        mine = doubtful[in_crowd]
        group = rows[mine] * len(self.rules) + rule[mine]
        once = np.unique(group * len(plain) + codes[mine]) // max(len(plain), 1)  # a tag said twice is one tag
        groups, sizes = np.unique(once, return_counts=True)
        unclear = np.zeros(len(doubtful), bool)
        unclear[in_crowd] = np.isin(group, groups[sizes >= 2])
        return unclear

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        return [_pattern(names) for names in ([self.ratings] if self.ratings else []) + list(self.families.values())]

    @cached_property
    def _several(self) -> re.Pattern[str]:
        return _pattern(self.several)

    @cached_property
    def _nots(self) -> frozenset[str]:
        return frozenset(word.lower() for word in self.not_after)

    # -- captions ---------------------------------------------------------------------------------------------

    def caption(self, text: str) -> tuple[str, list[str]]:
        """The caption by the rules for words, and what was done: `woman -> girl`, `- anime` for a word that went."""
        done: dict[str, None] = {}

        def cleaned(found: re.Match[str]) -> str:
            article, gap, before, noun, own = found.group("article", "gap", "before", "noun", "own")
            new = self.words.get(noun.lower(), noun.lower())
            gone = re.findall(r"\S+", before) if new in self.before else []
            if noun.lower() in self.words:
                done[f"{noun.lower()} -> {new}"] = None
                word = _in_case_of(noun, new)
                own = own[:1] if own and new.endswith("s") else own  # women's: girls'
            elif gone:
                word = noun
            else:
                return found[0]
            done.update(dict.fromkeys(f"- {one.lower()}" for one in gone))
            if gone:
                before = ""
                begins = gone[0][0].isupper() and not article
                word = word[0].upper() + word[1:] if begins else word
            if article and not before:
                article = article[0] + ("n" if new[0] in "aeiou" else "")
            return "".join(piece or "" for piece in (article, gap, before, word, own))

        cleaned_text = self._phrases.sub(cleaned, text) if self.words or self.dropped else text
        return cleaned_text, list(done)

    @cached_property
    def _phrases(self) -> re.Pattern[str]:
        """An article, words that may go, and a noun; none of them a part of a longer word."""
        nouns, going = (
            "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
            for words in ({*self.words, *self.before}, self.dropped)
        )
        space = r"[^\S\n]+"  # a line of a caption stays a line
        before = rf"(?:(?:{going}){space})*" if going else ""
        return re.compile(
            rf"(?<![\w-])(?:(?P<article>an?)(?P<gap>{space}))?(?P<before>{before})"
            rf"(?P<noun>{nouns})(?P<own>['’]s)?(?![\w-])",
            re.IGNORECASE,
        )

    def _check(self) -> None:
        """Refuse what would have no effect, and what a second cleaning would change again."""
        if bool(self.several) != bool(self.families):
            raise OptionError("[tags] several says where [tags.families] act: give both, or neither")
        if self.not_after and not self.redundant:
            raise OptionError("[tags] not_after holds back redundant: add redundant = true")
        if bool(self.dropped) != bool(self.before):
            raise OptionError("[captions] dropped go before the words of [captions] before: give both, or neither")
        if reserved := {"ratings", "redundant"} & set(self.families):
            raise OptionError(f"[tags.families] {min(reserved)} is the name of another rule; call the family otherwise")
        for word in (*self.words, *self.words.values(), *self.dropped, *self.before):
            if not re.fullmatch(r"\w[\w'’-]*", word) or word != word.lower():
                raise OptionError(f"[captions] {word!r} is not one word in lower case")
        for word in {*self.words.values(), *self.before, *self.dropped}:
            if word in self.words:
                raise OptionError(f"[captions] {word!r} is written {self.words[word]!r}: name that in its place")
        for word in {*self.words.values(), *self.before}:
            if word in self.dropped:
                raise OptionError(f"[captions] {word!r} is dropped, so nothing can stand for it or after it")


def presets() -> list[str]:
    """The names of the cleanings that come with Cutline."""
    folder = files("cutline") / "presets" / "cleaning"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def find(name: str) -> Cleaning:
    """Rules by their name, or by the path of a TOML file. Raises CutlineError where there are none."""
    if name in presets():
        text = (files("cutline") / "presets" / "cleaning" / f"{name}.toml").read_text("utf-8")
        return Cleaning.parse(tomllib.loads(text))
    if Path(name).suffix.lower() == ".toml":
        return Cleaning.read(name)
    raise OptionError(f"no cleaning is called '{name}'. There are: {', '.join(presets())}; or name a TOML file")


# -- tags in one spelling -------------------------------------------------------------------------------------


def _plain(names: Sequence[str]) -> tuple[pa.StringArray, Numbers]:
    """The tags in one spelling, with `_` between words and nowhere else but in faces; of each name which of them."""
    named = tags.canonical(pa.array(names, pa.string()))
    faces = pc.is_in(named, value_set=pa.array(sorted(tags.EMOTICONS)))
    single = pc.utf8_trim(pc.replace_substring_regex(named, "_+", "_"), "_")
    plain = pc.if_else(faces, named, single).dictionary_encode()
    return plain.dictionary, plain.indices.to_numpy().astype(np.int64)


def _pattern(names: Iterable[str]) -> re.Pattern[str]:
    plain, _ = _plain(list(names))
    return re.compile("|".join(re.escape(name).replace(r"\*", ".*") for name in plain.to_pylist()))


def _matching(plain: pa.StringArray, pattern: re.Pattern[str]) -> npt.NDArray[np.bool_]:
    flags = pc.match_substring_regex(plain, f"^(?:{pattern.pattern})$")
    found: npt.NDArray[np.bool_] = flags.to_numpy(zero_copy_only=False).astype(bool)
    return found


def _said_by_others(plain: list[str], rows: Numbers, codes: Numbers, nots: frozenset[str]) -> npt.NDArray[np.bool_]:
    """Which tags another tag of the same picture says more exactly."""
    known = {name: code for code, name in enumerate(plain)}
    longer: list[int] = []
    shorter: list[int] = []
    for code, name in enumerate(plain):
        end = name
        while "_" in end and name not in tags.EMOTICONS:
            word, _, end = end.partition("_")
            if word in nots:
                break
            if end in known:
                longer.append(code)
                shorter.append(known[end])
    if not shorter:
        return np.zeros(len(codes), bool)
    ends, numbers = np.unique(np.array(shorter, np.int64), return_inverse=True)
    # Of each tag those that it makes redundant lie side by side in `numbers`, since `longer` rises.
    counts = np.bincount(longer, minlength=len(plain))
    starts = np.cumsum(counts) - counts
    source = np.flatnonzero(counts[codes])
    lengths = counts[codes[source]]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    said = numbers[np.repeat(starts[codes[source]], lengths) + within]
    number = np.full(len(plain), -1)
    number[ends] = np.arange(len(ends))
    mine = np.flatnonzero(number[codes] >= 0)
    wanted = rows[mine] * len(ends) + number[codes[mine]]
    present = np.repeat(rows[source], lengths) * len(ends) + said
    small = (rows.max(initial=0) + 1) * len(ends) <= _TABLE
    redundant = np.zeros(len(codes), bool)
    redundant[mine] = np.isin(wanted, present, kind="table" if small else "sort")
    return redundant


_TABLE = 1 << 27  # bytes: looking up in a table is several times as fast as sorting, while it fits


# -- words in captions ----------------------------------------------------------------------------------------


def _in_case_of(old: str, new: str) -> str:
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[0].upper() + new[1:] if old[0].isupper() else new


# -- reading a TOML file --------------------------------------------------------------------------------------


def _known(where: str, values: Mapping[str, Any], known: Iterable[str]) -> None:
    for key in values:
        if key not in known:
            raise OptionError(f"{where} has no '{key}'; it has: {', '.join(known)}")


def _table(values: Mapping[str, Any], name: str, known: Iterable[str] | None, where: str = "") -> Mapping[str, Any]:
    where = where or f"[{name}]"
    table = values.get(name, {})
    if not isinstance(table, Mapping):
        raise OptionError(f"{where} is a table")
    if known is not None:
        _known(where, table, known)
    return table


def _strings(where: str, given: object) -> tuple[str, ...]:
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, str) and one.strip() for one in given):
        raise OptionError(f"{where} = {given!r} is no list of words")
    return tuple(given)
