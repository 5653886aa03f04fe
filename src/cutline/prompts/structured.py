"""Captions that were asked for as JSON: out of what the model said, one text, and an account of what did not get in.

What is good JSON is read by `json`. Everything else is read by a small reader of our own, which mends what models do
to JSON: words and code fences around it, a tail that was cut off anywhere, raw newlines and unescaped quotes within
strings, single quotes, Python's literals, stray commas, doubled braces. It reads first as if quotes were right, so that
the beginning of good JSON is read exactly; only where that fails does it guess which quotes end a string.

Then the tree is said as text, in the document's order: values one after the other, and what is written in the picture
in the seed's words, `There are speech bubbles with the text: "a" and "b"`. No string is dropped: one that is not in the
text is in `lost`. What is no string says nothing without its key, so numbers and `true` are not said but told in
`lost`, and null and false are silent; so is "None", which models write for nothing, but as a string it is told too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from cutline import sentences

DEEPEST = 64
"""Levels of nesting; nobody describes a picture in more."""


@dataclass(frozen=True)
class Parsed:
    """What an answer in JSON comes to."""

    text: str
    """The caption; empty where it was rejected."""
    verdict: Literal["good", "repaired", "rejected"]
    reason: str | None
    """What was mended, by name (`cut`, `code_fence` …), then after `lost: ` all of `lost`; None where there is neither.
    Rejected is `empty` (it says nothing), `not_json`, `cut` (nothing whole was left), `thinking`, `too_deep`."""
    lost: tuple[str, ...]
    """Every string, and number, of the answer that is not in the text, in order; and the words around the JSON."""


def parse(raw: str) -> Parsed:
    """Read an answer that was to be one JSON object. Never raises: what cannot be read is `rejected`."""
    text = raw.strip().lstrip("\ufeff").strip()
    if not text or _FENCE.sub("", text).strip().casefold() in ("", *_NOTHING):
        return Parsed("", "rejected", "empty", (_clean(text),) if text else ())
    try:
        read = _read(text)
    except (_TooDeep, RecursionError):
        return Parsed("", "rejected", "too_deep", tuple(_strings(text)))
    if read is None:
        reason = "thinking" if _THINKING.match(text) else "not_json"
        return Parsed("", "rejected", reason, (_clean(text),))
    said = _Said()
    pieces = [piece for value in read.values for piece in said.top(value)]
    caption = _joined(pieces)
    lost = tuple(part for part in (*said.lost, *map(_clean, read.lost)) if part)
    if not caption:
        reason = "cut" if "cut" in read.mended and lost else "not_json" if "words_around" in read.mended else "empty"
        return Parsed("", "rejected", reason, lost)
    told = "lost: " + "; ".join(json.dumps(part, ensure_ascii=False) for part in lost) if lost else ""
    why = "; ".join(part for part in (", ".join(read.mended), told) if part)
    return Parsed(caption, "repaired" if read.mended else "good", why or None, lost)


# Reading


class _Pairs(list[tuple[str, Any]]):
    """An object: its keys in order, each as often as it was written."""


class _Cut(str):
    """A string that the end of the answer broke off."""


class _Confused(Exception):
    """What was read is no JSON, if quotes are where they should be."""


class _TooDeep(Exception):
    pass


@dataclass
class _Read:
    """What was found in an answer."""

    values: list[Any] = field(default_factory=list)
    mended: dict[str, None] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


_THINKING = re.compile(r"<think(?:ing)?>(?P<thought>.*?)</think(?:ing)?>|<think(?:ing)?>", re.DOTALL)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[ \t]*\w*[ \t]*$", re.MULTILINE)
_OBJECT = re.compile(r"\{(?=\s*(?:[\"'“}{]|$|[\w \-]{1,40}:))")
_LIST = re.compile(r"^[ \t]*(\[(?=\s*(?:[\"'“{\[\]]|$|-?\d|true|false|null|True|False|None)))", re.MULTILINE)
_KEY = r"(?:\"(?:[^\"\\\n]|\\.){0,80}\"|'(?:[^'\\\n]|\\.){0,80}'|“[^”\n]{0,80}”)\s*:"
_FIRST_KEY = re.compile(rf"{_KEY}\s*[\"'“{{\[]")
_END = r"\s*(?:```\s*)?\Z"
_AFTER_VALUE = re.compile(rf"{_END}|\s*[}}\]]|\s*,\s*(?:{_KEY}|[}}\]]|\"[^\"]*\Z|'[^']*\Z)|\s*,{_END}|\s+{_KEY}")
_AFTER_ITEM = re.compile(rf"{_END}|\s*[}}\]]|\s*,\s*(?:[\"'“{{\[\]]|[-\d])|\s*,{_END}|\s*\n\s*[\"'“{{\[]")
_AFTER_KEY = re.compile(rf"{_END}|\s*:|\s*[,}}]")
_CLOSING = {'"': '"', "'": "'", "“": "”"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "/": "/", "\\": "\\", '"': '"', "'": "'"}
_LITERALS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_LITERAL = re.compile(r"(?:true|false|null|True|False|None|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)(?=[\s,\]}:]|\Z)")
_BARE_KEY = re.compile(r"[\w][\w \-]{0,79}?(?=\s*:)")
_NOISE = re.compile(r"(?://|#)[^\n]*|/\*.*?\*/|(?:\.\.\.|…)(?=\s*[,}\]\n]|\s*\Z)|;", re.DOTALL)
_JUNK = re.compile(r"[^,{}\[\]\n]+")


def _read(text: str) -> _Read | None:
    """The JSON in an answer, or None where there is none."""
    try:
        value = json.loads(text, object_pairs_hook=_Pairs)
    except ValueError:
        pass
    else:
        if isinstance(value, str) and value.strip()[:1] in ("{", "[") and (inside := _read(value.strip())):
            inside.mended["bare_string"] = None  # JSON that was written as a string of JSON
            return inside
        return _formed(_Read([value]))
    if _FIRST_KEY.match(text) and (inside := _read("{" + text)):
        inside.mended["missing_brace"] = None
        return inside
    thought = _THINKING.match(text)
    if thought is not None and thought["thought"] is None:
        return None
    start = thought.end() if thought else 0
    if text[0] not in '{["' and not thought and 0 <= (end := text.find("</think>")) < text.find("{"):
        start = end + len("</think>")
    for guess in (False, True):
        reader = _Reader(text, start, guess=guess)
        if start:
            reader.mend("thinking")
        try:
            return _formed(reader.read()) if reader.find() else None
        except _Confused:
            continue
    raise AssertionError("unreachable: one that guesses is never confused")


def _formed(read: _Read) -> _Read:
    """Note what is JSON, but not the one object that was asked for."""
    if len(read.values) > 1:
        read.mended["several_values"] = None
    elif isinstance(read.values[0], str):
        read.mended["bare_string"] = None
    elif not isinstance(read.values[0], _Pairs):
        read.mended["list_at_top"] = None
    return read


class _Reader:
    """Reads JSON, and what is nearly JSON, from left to right. With `guess` it goes on whatever comes."""

    def __init__(self, text: str, at: int, *, guess: bool) -> None:
        self.text, self.at, self.guess = text, at, guess
        self.found = _Read()
        self.objects = self.lists = True
        """Whether there may be more of them: what is not there is looked for once."""

    def mend(self, what: str) -> None:
        self.found.mended[what] = None

    def find(self) -> re.Match[str] | None:
        """Where the next value at the top begins."""
        if not self.found.values and self.text[self.at :].lstrip()[:1] == '"':
            return re.compile(r'\s*(")').match(self.text, self.at)
        an_object = _OBJECT.search(self.text, self.at) if self.objects else None
        before = an_object.end() if an_object else len(self.text)  # a list behind the object is for another time
        a_list = _LIST.search(self.text, self.at, before) if self.lists else None
        self.objects, self.lists = an_object is not None, bool(a_list or an_object)
        return a_list or an_object

    def read(self) -> _Read:
        """All values at the top, and the words between them."""
        while match := self.find():
            begin = match.end() - 1
            self.around(self.text[self.at : begin])
            self.at = begin
            if self.text[begin] == '"':
                self.bare_string()
                break
            self.found.values.append(self.value(_AFTER_VALUE, 0))
        self.around(self.text[self.at :])
        return self.found

    def bare_string(self) -> None:
        value = self.string(re.compile(_END))
        if self.text[self.at :].strip():  # the words go on: it was somebody's quote, and no JSON
            self.at = 0
            self.found.values.append("")
        else:
            self.found.values.append(value)

    def around(self, words: str) -> None:
        if _FENCE.search(words):
            self.mend("code_fence")
            words = _FENCE.sub("", words)
        if words.strip():
            self.mend("words_around")
            self.found.lost.append(words.strip())

    def skip(self, letters: str = "") -> str:
        """Go over white space and these letters; the next letter, or nothing at the end."""
        while self.at < len(self.text) and (self.text[self.at].isspace() or self.text[self.at] in letters):
            self.at += 1
        return self.text[self.at : self.at + 1]

    def separated(self) -> str:
        """Go over what stands between two values; the next letter."""
        begin = self.at
        letter = self.skip(",")
        while noise := _NOISE.match(self.text, self.at):
            self.mend("comment")
            self.found.lost.append(noise[0])
            self.at = noise.end()
            letter = self.skip(",")
        if letter and letter in "]}" and "," in self.text[begin : self.at]:
            self.mend("trailing_comma")
        return letter

    def value(self, after: re.Pattern[str], depth: int) -> Any:
        """The value that begins here; an empty string where none does."""
        if depth > DEEPEST:
            raise _TooDeep
        letter = self.skip()
        if letter == "{":
            return self.braces(depth)
        if letter == "[":
            return self.brackets(depth)
        if letter in _CLOSING:
            return self.string(after)
        if match := _LITERAL.match(self.text, self.at):
            self.at = match.end()
            if match[0] in ("True", "False", "None"):
                self.mend("python_literal")
            return _LITERALS[match[0]] if match[0] in _LITERALS else _number(match[0])
        if not letter:
            self.mend("cut")
            return None
        return self.bare()

    def bare(self) -> Any:
        """Words without quotes, up to the next mark of JSON."""
        match = _JUNK.match(self.text, self.at)
        if match and match.end() == len(self.text) and re.fullmatch(r"[-\w.+]+", match[0]):  # a literal that was cut
            self.at = match.end()
            self.mend("cut")
            return None
        if not self.guess:
            raise _Confused
        if match is None:  # `,` or a bracket: there is no value
            return None
        self.at = match.end()
        self.mend("bare_words")
        return match[0].strip()

    def braces(self, depth: int) -> _Pairs:
        opened = 0
        while self.skip() == "{" and opened < 2:
            opened += 1
            self.at += 1
        if opened == 2:
            self.mend("doubled_braces")
        found = _Pairs()
        while True:
            begin, letter = self.at, self.separated()
            if not letter:
                self.mend("cut")
                return found
            if letter == "}":
                for _ in range(opened):
                    if self.skip() == "}":
                        self.at += 1
                return found
            if letter == "]":
                if not self.guess:
                    raise _Confused
                self.mend("brackets")
                if depth:  # it closes the list that this object is in
                    return found
                self.at += 1
                continue
            if found and "," not in self.text[begin : self.at]:
                self.mend("missing_comma")
            self.pair(found, depth)

    def pair(self, found: _Pairs, depth: int) -> None:
        letter = self.text[self.at]
        if letter in _CLOSING:
            key = self.string(_AFTER_KEY)
        elif match := _BARE_KEY.match(self.text, self.at):
            key, self.at = match[0], match.end()
            self.mend("bare_key")
        else:
            if not self.guess and letter not in "{[":
                raise _Confused
            found.append(("", self.value(_AFTER_VALUE, depth + 1)))
            if self.text[self.at : self.at + 1] == letter and letter not in "{[":
                self.at += 1  # whatever it is, it is no JSON
            return
        following = self.skip()
        if following == ":":
            self.at += 1
            found.append((key, self.value(_AFTER_VALUE, depth + 1)))
        elif not following:
            self.mend("cut")
            self.found.lost.append(key)
        elif self.guess:
            self.mend("missing_key")
            found.append(("", key))
        else:
            raise _Confused

    def brackets(self, depth: int) -> list[Any]:
        self.at += 1
        found: list[Any] = []
        while True:
            begin, letter = self.at, self.separated()
            if not letter:
                self.mend("cut")
                return found
            if letter == "]":
                self.at += 1
                return found
            if letter == "}":  # it closes the object that this list is in
                if not self.guess:
                    raise _Confused
                self.mend("brackets")
                if not depth:
                    self.at += 1
                    continue
                return found
            if found and "," not in self.text[begin : self.at]:
                self.mend("missing_comma")
            if letter == ":":
                if not self.guess:
                    raise _Confused
                self.at += 1
                continue
            found.append(self.value(_AFTER_ITEM, depth + 1))

    def string(self, after: re.Pattern[str]) -> str:
        """The string whose quote is here. Guessing, it ends at a quote only where `after` follows."""
        quote = _CLOSING[self.text[self.at]]
        if quote != '"':
            self.mend("single_quotes" if quote == "'" else "curly_quotes")
        letters: list[str] = []
        at, text = self.at + 1, self.text
        while at < len(text):
            letter = text[at]
            if letter == "\\":
                escape = text[at + 1 : at + 2]
                if escape == "u":
                    if re.fullmatch("[0-9a-fA-F]{4}", text[at + 2 : at + 6]):
                        letters.append(chr(int(text[at + 2 : at + 6], 16)))
                        at += 6
                        continue
                    if len(text) <= at + 6 and re.fullmatch("[0-9a-fA-F]*", text[at + 2 :]):  # cut within it
                        break
                elif not escape:
                    break
                if escape not in _ESCAPES:
                    self.mend("bad_escape")
                letters.append(_ESCAPES.get(escape, escape))
                at += 2
                continue
            if letter == quote:
                if not self.guess or after.match(text, at + 1):
                    self.at = at + 1
                    return "".join(letters)
                self.mend("unescaped_quotes")
            elif letter == "\n":
                self.mend("raw_newline")
            letters.append(letter)
            at += 1
        self.at = len(text)
        self.mend("cut")
        return _Cut("".join(letters))


def _number(digits: str) -> float:
    return float(digits) if len(digits) > 1000 or not digits.lstrip("-").isdecimal() else int(digits)


def _strings(text: str) -> Iterator[str]:
    """Everything in quotes, of an answer that is not read further."""
    for match in re.finditer(r'"((?:[^"\\]|\\.)*)"', text, re.DOTALL):
        try:
            yield _clean(json.loads(match[0], strict=False))
        except ValueError:
            yield _clean(match[1])


# Saying

_NOTHING = ("none", "none.", "null", "n/a")
_BUBBLE = re.compile(r"(?:speech_?bubble|text)_?\d+", re.IGNORECASE)
_FRAME = re.compile(r"\w+_frame(?:_\d+)?|frame_?\d+", re.IGNORECASE)
_PANEL = re.compile(r"\w+_panel(?:_\d+)?|panel_?\d+", re.IGNORECASE)
_I18N = re.compile(r"\w+_text", re.IGNORECASE)
_NOT_WRITTEN = re.compile(
    r"character|person|people|girl|boy|woman|man|object|item|tag|colou?r|cloth|outfit|accessor|feature|detail|element|"
    r"background|animal|style|mood|theme|keyword|emotion|expression|pose|action|prop|subject|scene|light|composition|"
    r"description|name|hair|eye|texture|material|pattern|setting|weather|location|environment|plant|food|vehicle|"
    r"building|furniture|weapon|symbol|shape|effect|technique|medium|quality|attribute|trait|body|activit|genre|season",
    re.IGNORECASE,
)
"""Keys whose lists are no texts in the picture. Under any other key a list is, as the seed has it."""
_PLACES = ("position", "location")
_TRANSLATIONS = ("translation", "translated_text", "english_translation")


class _Said:
    """Says a tree, and keeps account of the strings that it does not say."""

    def __init__(self) -> None:
        self.lost: list[str] = []

    def top(self, value: Any) -> list[str]:
        """The pieces of a value at the top: those of each of its keys."""
        if isinstance(value, _Pairs):
            return [piece for key, inner in value for piece in self.value(inner, key)]
        if isinstance(value, list):
            return self.value(value, "description")  # nothing says that it is written in the picture
        return self.value(value, "")

    def value(self, value: Any, key: str) -> list[str]:
        if isinstance(value, _Pairs):
            return self.pairs(value, key)
        if isinstance(value, list):
            return self.items(value, key)
        if isinstance(value, str) and key.lower().startswith("bbox"):
            self.lost.append(_clean(value))
            return []
        if isinstance(value, str):
            return [said] if (said := self.leaf(value)) else []
        if value is True or (value and not isinstance(value, bool)):
            self.tell(key, value)
        return []

    def leaf(self, value: str) -> str:
        """A string as it is said; empty where it says nothing."""
        text = _clean(value)
        if isinstance(value, _Cut):
            kept = sentences.whole(text)
            if rest := text[len(kept) :].strip():
                self.lost.append(rest)
            return kept
        if text.casefold() in _NOTHING:
            self.lost.append(text)
            return ""
        return text

    def tell(self, key: str, value: Any) -> None:
        told = json.dumps(value, ensure_ascii=False)
        self.lost.append(f"{_clean(key)}: {told}" if key else told)

    def items(self, items: list[Any], key: str) -> list[str]:
        if items and all(isinstance(item, (int, float)) for item in items):
            self.tell(key, items)
            return []
        if _NOT_WRITTEN.search(key):
            return self.plain(items, key)
        pieces: list[str] = []
        for written, group in groupby(items, key=lambda item: _is_written(item)):
            if written:
                pieces += self.sentence("speech bubbles", [self.quoted(item) for item in group])
            else:
                pieces += [piece for item in group for piece in self.value(item, key)]
        return pieces

    def plain(self, items: list[Any], key: str) -> list[str]:
        """A list of things: words with commas between them, sentences with spaces."""
        pieces = [piece for item in items for piece in self.value(item, key)]
        words = all(isinstance(item, str) for item in items) and not any(sentences.ended(piece) for piece in pieces)
        return [", ".join(pieces)] if pieces and words else pieces

    def pairs(self, pairs: _Pairs, key: str) -> list[str]:
        """An object below the top: what is written in the picture in one sentence per kind, the rest in order."""
        names = {name for name, _ in pairs}
        if "text" in names and not _NOT_WRITTEN.search(key):
            return self.sentence("speech bubbles", [self.quoted(pairs)])
        pieces: list[str] = []
        for kind, group in groupby(pairs, key=lambda pair: _kind(pair[0])):
            if kind == "described" and {"name", "description"} <= names:
                described = sorted(group, key=lambda pair: pair[0] == "description")
                found = [" ".join(self.value(value, name)) for name, value in described]
                pieces += [", ".join(part for part in found if part)]
            elif kind == "title":
                titles = [said for name, value in group for said in self.value(value, "description")]
                pieces += [f'The title of the image is "{said}".' for said in titles]
            elif kind in ("frames", "panels"):
                placed = [(" ".join(self.value(value, "description")), name.replace("_", " ")) for name, value in group]
                pieces += self.sentence(kind, [f'"{said}" in {name}' for said, name in placed if said])
            elif kind in ("speech bubbles", "multilingual"):
                pieces += self.sentence(kind, [self.quoted(value) for _, value in group])
            else:
                pieces += [piece for name, value in group for piece in self.value(value, name)]
        return [piece for piece in pieces if piece]

    def sentence(self, what: str, quoted: list[str]) -> list[str]:
        """What is quoted, in one sentence; then what has no words in quotes, as it is."""
        said = " and ".join(item for item in quoted if item.startswith('"'))
        rest = [item for item in quoted if item and not item.startswith('"')]
        return [f"There are {what} with the text: {said}", *rest] if said else rest

    def quoted(self, item: Any) -> str:
        """One text of the picture: in quotes, then its translation, then where it is, then what else is said of it."""
        if not isinstance(item, _Pairs):
            said = " ".join(self.value(item, "description"))
            return f'"{said}"' if said else ""
        text, translations, places, rest = "", list[str](), list[str](), list[str]()
        names = {name for name, _ in item}
        main = next((name for name in ("text", "content") if name in names), "description")
        for name, value in item:
            said = " ".join(self.value(value, "description" if name != "bbox" else name))
            if not said:
                continue
            if name == main and not text:
                text = said
            elif name in _TRANSLATIONS:
                translations.append(said)
            elif name in _PLACES:
                places.append(said)
            else:
                rest.append(said)
        if not text and translations:
            text = translations.pop(0)
        if not text:  # nothing is written there, so where it is not says nothing
            self.lost += places
            return ", ".join(rest)
        about = [*(f'("{translation}")' for translation in translations), *(f"in {place}" for place in places)]
        return ", ".join([" ".join([f'"{text}"', *about]), *rest])


def _kind(key: str) -> str:
    if key in ("name", "description"):
        return "described"
    if key.lower() == "title":
        return "title"
    for kind, pattern in (("speech bubbles", _BUBBLE), ("frames", _FRAME), ("panels", _PANEL), ("multilingual", _I18N)):
        if pattern.fullmatch(key):
            return kind
    return ""


def _is_written(item: Any) -> bool:
    """Whether an item of a list is a text of the picture: a string, or an object with a text."""
    if isinstance(item, _Pairs):
        names = {name for name, _ in item}
        return "text" in names or ("description" in names and "name" not in names and names <= _DESCRIBED_TEXT)
    return isinstance(item, str)


_DESCRIBED_TEXT = {"description", "bbox", *_PLACES, *_TRANSLATIONS}


def _clean(text: str) -> str:
    """A string on one line, as Unicode."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of a pair join, others become �
    return " ".join(line for part in text.splitlines() if (line := part.strip()))


def _joined(pieces: list[str]) -> str:
    """The pieces with spaces between them. One that was said before, word for word, is not said again."""
    text = ""
    for piece in pieces:
        if not _said(piece, text, pieces):
            text = f"{text} {piece}" if text else piece
    return text


def _said(piece: str, text: str, pieces: list[str]) -> bool:
    at = text.find(piece)
    if at < 0 or not (sentences.ended(piece) or piece in pieces[: pieces.index(piece)]):
        return False
    before = text[:at].rstrip()
    return (not before or sentences.ended(before)) and text[at + len(piece) :][:1] in ("", " ")
