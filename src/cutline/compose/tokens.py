"""What each text encoder of a model in training keeps of a text, and what falls off without a word.

A trainer is data, `presets/trainers/*.toml`: which encoders read the text, how many ids each takes, what is put before
the text. `find_trainer("kohya-sdxl", max_token_length=225)` gives its encoders; each counts the tokens of many texts
(`counts`) or shows those of one (`read`). The numbers are those of sd-scripts 0.10.1 (library/strategy_*.py) and of
diffusers' scripts (examples/text_to_image, examples/dreambooth); CLIP's rows are compared with those sd-scripts made.

Tokens are counted with the real tokenizer: CLIP's out of the package open_clip_torch, the others out of a file, or out
of what `hf download` left on this machine. Nothing is ever fetched, and where a tokenizer is not at hand nothing is
guessed: `Encoder.problem` says what to type.

CLIP's words are cut as the `CLIPTokenizer` of transformers 5 cuts them. That of transformers 4 puts a text through the
package ftfy first, where that is installed: curly quotes become straight and wide letters plain, so that such a text
may have some tokens fewer there.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from cutline import options, toml_files
from cutline.compose.kohya import TrainerError
from cutline.compose.weights import weighted as weighted
from cutline.compose.weights import weighted_pieces
from cutline.options import CutlineError, OptionError, option

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Counts = npt.NDArray[np.int64]

CHUNK = 75
"""Tokens of the text in one of CLIP's rows of 77 ids; the two others are its start and its end."""
START, END = 49406, 49407
"""CLIP's ids of `<|startoftext|>` and `<|endoftext|>`."""

_TOKENIZERS = ("clip", "t5xxl", "t5", "gemma2", "qwen")  # and the settings that name their files
_BATCH = 4096  # texts that are tokenised at a time, so that memory does not grow with their number
_QUOTES = (re.compile('"(.*?)"'), re.compile("‘(.*?)’"), re.compile("“(.*?)”"))  # looked for one after the other


def chunk_rows(
    ids: Sequence[int], *, bos: int, eos: int, pad: int, max_token_length: int | None = None
) -> list[list[int]]:
    """The rows of 77 ids that sd-scripts makes of a text's ids (library/strategy_base.py, `_get_input_ids`).

    Args:
        ids: the text's tokens, without start and end.
        bos: id of the start. Each row begins with it.
        eos: id of the end.
        pad: id that fills a row up: `eos` in SD1 and SDXL's first encoder, 0 in SD2 and SDXL's second. Where it is not
            `eos`, a real token of that id at the border of a row is taken for padding, as the trainer takes it.
        max_token_length: None, 75, 150 or 225 tokens are kept, in one, one, two or three rows.

    Raises:
        OptionError: for another max_token_length.
    """
    kept = _kept(max_token_length)
    line = [bos, *ids[:kept], eos]
    line += [pad] * (kept + 2 - len(line))
    if kept == CHUNK:
        return [line]
    rows = [[bos, *line[start : start + CHUNK], line[-1]] for start in range(1, kept, CHUNK)]
    if pad != eos:
        for row in rows:
            if row[-2] not in (eos, pad):
                row[-1] = eos
            if row[1] == pad:
                row[1] = eos
    return rows


def _kept(max_token_length: int | None) -> int:
    if max_token_length not in (None, 75, 150, 225):
        raise OptionError(f"max_token_length is 75, 150 or 225, or is left out (75), not {max_token_length}")
    return max_token_length or CHUNK


@dataclass(frozen=True, slots=True)
class Token:
    """A token, and where in the text it stands. Tokens that share a character (an emoji has several) share its span."""

    text: str
    start: int
    """In characters of the text."""
    end: int
    chunk: int
    """The row that it is in, from 0; -1 where it falls off."""


@dataclass(frozen=True)
class Reading:
    """What an encoder reads of one text."""

    tokens: list[Token]
    """Those of the text itself, without what the trainer puts around it."""
    count: int
    """How many there are before any cut, as `Encoder.counts` counts."""
    limit: int
    """How many are kept."""
    kept: str
    """What is kept of the text, verbatim. With `lost` it is the whole text; of a quoted encoder all quotations, in the
    order in which it reads them."""
    lost: str
    """What falls off, verbatim: from the first character on that is not kept whole."""
    rows: list[list[int]]
    """The ids as the encoder gets them, in rows of 77, where it is a CLIP; else empty."""


class _Coder(Protocol):
    """A tokenizer, without special tokens."""

    def lengths(self, texts: Sequence[str]) -> Counts: ...

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]: ...


@dataclass(frozen=True)
class _Words:
    """A tokenizer of the library `tokenizers`."""

    tokenizer: Tokenizer

    def lengths(self, texts: Sequence[str]) -> Counts:
        found = np.empty(len(texts), np.int64)
        for start in range(0, len(texts), _BATCH):
            made = self.tokenizer.encode_batch_fast(list(texts[start : start + _BATCH]), add_special_tokens=False)
            found[start : start + len(made)] = [len(encoding) for encoding in made]
        return found

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        made = self.tokenizer.encode(text, add_special_tokens=False)
        return made.ids, made.offsets


@dataclass(frozen=True)
class _Bytes:
    """ByT5's tokenizer: a token is a byte of UTF-8, its id is the byte plus 3."""

    def lengths(self, texts: Sequence[str]) -> Counts:
        return np.array([len(text.encode()) for text in texts], np.int64)

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        places = [(place, place + 1) for place, letter in enumerate(text) for _ in letter.encode()]
        return [byte + 3 for byte in text.encode()], places


@dataclass(frozen=True, eq=False)
class Encoder:
    """One text encoder of a trainer, and what it does to a text."""

    name: str
    limit: int
    """Tokens of a text that it keeps, without special tokens and without what the trainer puts before the text."""
    chunk: int | None
    """Tokens of a row where it reads in several rows (75); None where it reads in one."""
    problem: str
    """Why its tokenizer is not at hand, and what to type: then nothing is counted. Else empty."""
    pooled: bool
    """Whether its first row alone makes a vector that the model reads, too."""
    weighted: bool
    """Whether the text is parsed for weights first (`--weighted_captions`), each piece being tokenised on its own."""
    quoted: bool
    """Whether it reads what stands in quotation marks, and nothing else."""
    note: str
    """What people should know of it, or empty."""
    before: str
    """What the trainer puts before the text."""
    coder: _Coder | None = dataclasses.field(repr=False)
    pad: int | None
    """CLIP's id of padding; None in another encoder."""

    def counts(self, texts: Sequence[str]) -> Counts:
        """How many tokens each text has before any cut; -1 where the trainer would stop at it (`weighted`).

        In a `quoted` encoder the words that the trainer puts around the quotations are counted, too.

        Raises:
            CutlineError: its tokenizer is not at hand.
        """
        coder = self._ready()
        if not self.weighted and not self.quoted:
            if not self.before:
                return coder.lengths(texts)
            return coder.lengths([self.before + text for text in texts]) - self._before_count
        pieces: list[str] = []
        owners: list[int] = []
        stops: list[int] = []
        for number, text in enumerate(texts):
            try:
                mine = [piece for piece, _ in self._pieces(text)]
            except TrainerError:
                stops.append(number)
                continue
            pieces += mine
            owners += [number] * len(mine)
        found = np.zeros(len(texts), np.int64)
        np.add.at(found, owners, coder.lengths(pieces))
        found[stops] = -1
        return found

    def counts_as(self, other: Encoder) -> bool:
        """Whether both count every text alike, so that one count serves both: the two encoders of SDXL."""
        mine, theirs = ((one.coder, one.before, one.weighted, one.quoted) for one in (self, other))
        return self.coder is not None and mine == theirs

    def keeps_as(self, other: Encoder) -> bool:
        """Whether both keep the same of every text."""
        return self.counts_as(other) and (self.limit, self.chunk) == (other.limit, other.chunk)

    def read(self, text: str) -> Reading:
        """What it reads of this text.

        Raises:
            CutlineError: its tokenizer is not at hand.
            TrainerError: the trainer would stop at this text (`weighted`).
        """
        coder = self._ready()
        pieces = self._pieces(text)
        ids: list[int] = []
        tokens: list[Token] = []
        room = self.limit + self._before_count
        whole = len(pieces[0][1])  # of the first piece's characters, those before the first that falls off
        for piece, places in pieces:
            for id, (first, last) in zip(*coder.encode(piece), strict=True):
                chunk = -1 if len(ids) >= room else len(ids) // (self.chunk or room)
                mine = [place for place in places[first : max(last, first + 1)] if place >= 0]
                if mine:
                    start, end = mine[0], mine[-1] + 1 if last > first else mine[0]
                    tokens.append(Token(text[start:end], start, end, chunk))
                    whole = min(whole, first) if chunk < 0 else whole
                ids.append(id)
        cut = next((token.start for token in tokens if token.chunk < 0), len(text))
        kept, lost = text[:cut], text[cut:]
        if self.quoted:
            kept, lost = _cut(_quotations(text), sum(place >= 0 for place in pieces[0][1][:whole]))
        rows: list[list[int]] = []
        if self.pad is not None:
            rows = chunk_rows(ids, bos=START, eos=END, pad=self.pad, max_token_length=self.limit)
        return Reading(tokens, len(ids) - self._before_count, self.limit, kept, lost, rows)

    def _ready(self) -> _Coder:
        if self.coder is None:
            raise CutlineError(self.problem)
        return self.coder

    @functools.cached_property
    def _before_count(self) -> int:
        return int(self.coder.lengths([self.before])[0]) if self.coder and self.before else 0

    def _pieces(self, text: str) -> list[tuple[str, list[int]]]:
        """What is tokenised, each on its own: its characters, and the place in the text of each (-1: not of it)."""
        if self.weighted:
            return [(piece, places) for piece, _, places in weighted_pieces(text)]
        if self.quoted:
            return [_glyphs(text)]
        return [(self.before + text, [-1] * len(self.before) + list(range(len(text))))]


def _quotations(text: str) -> list[re.Match[str]]:
    """What stands in quotation marks, in the trainer's order: by the kind of mark. One may stand within another."""
    return [found for quotes in _QUOTES for found in quotes.finditer(text)]


def _glyphs(text: str) -> tuple[str, list[int]]:
    """What HunyuanImage's glyph encoder is given, `Text "OPEN". Text "SHUT". `, and the place of each character."""
    given, places = "", list[int]()
    for found in _quotations(text):
        given += f'Text "{found[1]}". '
        places += [*[-1] * len('Text "'), *range(*found.span(1)), *[-1] * len('". ')]
    return given, places


def _cut(quotations: Sequence[re.Match[str]], characters: int) -> tuple[str, str]:
    """What is kept of quotations, with their marks, and what falls off, where so many characters within are kept."""
    for number, found in enumerate(quotations):
        if characters < len(found[1]):
            before, after = (
                "".join(one[0] for one in some) for some in (quotations[:number], quotations[number + 1 :])
            )
            place = characters + 1 if characters else 0
            return before + found[0][:place], found[0][place:] + after
        characters -= len(found[1])
    return "".join(found[0] for found in quotations), ""


# Trainers.


@dataclass(frozen=True)
class Settings:
    """What can be said of a trainer, in its own names. Each trainer takes some of it."""

    max_token_length: int | None = option(None, "75 (as if left out), 150 or 225 tokens")
    weighted_captions: bool = option(False, "whether (a:1.2) and [b] in a caption are weights")
    t5xxl_max_token_length: int | None = option(None, "ids that T5 takes, its end included")
    gemma2_max_token_length: int | None = option(None, "ids that Gemma takes, its start included")
    qwen3_max_token_length: int | None = option(None, "ids that Qwen takes")
    t5_max_token_length: int | None = option(None, "ids of T5, its end included")
    max_sequence_length: int | None = option(None, "ids that T5 takes, its end included")
    system_prompt: str = option("", "what Lumina is told before each caption")
    clip: str = option("", "CLIP's tokenizer: a tokenizer.json, a folder that has it, or a name on Hugging Face")
    t5xxl: str = option("", "T5's tokenizer, as clip")
    t5: str = option("", "T5's tokenizer, as clip")
    gemma2: str = option("", "Gemma's tokenizer, as clip")
    qwen: str = option("", "Qwen's tokenizer, as clip")

    def __post_init__(self) -> None:
        _kept(self.max_token_length)


@dataclass(frozen=True)
class Trainer:
    """A trainer and the text encoders that read what it is given."""

    name: str
    encoders: tuple[Encoder, ...]


@dataclass(frozen=True)
class _Row:
    """An encoder as presets/trainers/*.toml has it; kohya-sd1.toml explains the keys."""

    name: str
    tokenizer: str
    length: int
    specials: int
    repositories: list[str] = dataclasses.field(default_factory=list)
    pad: int | None = None
    chunked: bool = False
    option: str = ""
    before: str = ""
    dropped: int = 0
    quoted: bool = False
    pooled: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        known = Settings.__dataclass_fields__
        if self.tokenizer not in {*_TOKENIZERS, "bytes"}:
            raise OptionError(f"there is no tokenizer '{self.tokenizer}'; there are: {', '.join(_TOKENIZERS)}, bytes")
        if self.option and self.option not in known:
            raise OptionError(f"there is no option '{self.option}'; there are: {', '.join(known)}")
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise OptionError(f"name = {self.name!r}: letters, digits and . _ - alone, since files are named after it")
        if not 0 <= self.specials < self.length:
            raise OptionError(f"{self.name}: of length = {self.length} ids, specials = {self.specials} leaves no text")
        if (self.chunked or self.pad is not None) and (self.length, self.specials) != (CHUNK + 2, 2):
            raise OptionError(f"{self.name}: chunked and pad are for CLIP's rows: length = {CHUNK + 2}, specials = 2")

    @property
    def takes(self) -> list[str]:
        """The settings that it can be given."""
        return [
            *(["max_token_length", "weighted_captions"] if self.chunked else []),
            *([self.option] if self.option else []),
            *(["system_prompt"] if "{system_prompt}" in self.before else []),
            *([self.tokenizer] if self.tokenizer != "bytes" else []),
        ]


def trainers() -> list[str]:
    """The names of all trainers, sorted."""
    return toml_files.presets("trainers")


def find_trainer(name: str, **settings: Any) -> Trainer:
    """A trainer by name, with its encoders as these settings make them. Tokenizers are loaded here.

    Args:
        name: one of `trainers()`, or a TOML file of one's own like those.
        settings: fields of `Settings`, as values or as text; a trainer takes those only that change something in it.

    Raises:
        OptionError: an unknown trainer; a setting that it does not take, or that does not fit.
    """
    rows = _rows(name)
    known = list(dict.fromkeys(setting for row in rows for setting in row.takes))
    for setting in settings:
        if setting not in known:
            ignored = setting in Settings.__dataclass_fields__
            problem = f"does nothing with {setting}" if ignored else f"has no option '{setting}'"
            raise OptionError(f"trainer {name} {problem}. It has: {', '.join(known)}.")
    made = options.fill(Settings, settings)
    return Trainer(name, tuple(_encoder(row, made) for row in rows))


def _rows(name: str) -> list[_Row]:
    said = toml_files.find("trainers", name, "trainer")
    found = said.get("encoders")
    if list(said) != ["encoders"] or not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise OptionError(f"{name}: a trainer is a list of [[encoders]], and nothing else")
    try:
        rows = [options.fill(_Row, row) for row in found]
    except OptionError as error:
        raise OptionError(f"{name}: {str(error).replace('_row', 'an encoder')}") from None
    names = [row.name for row in rows]
    if twice := [one for one in names if names.count(one) > 1]:
        raise OptionError(f"{name}: two encoders are called {twice[0]}")
    return rows


def _encoder(row: _Row, settings: Settings) -> Encoder:
    length = getattr(settings, row.option) if row.option else None
    if length is not None and length <= row.specials:
        raise OptionError(f"{row.option}={length} leaves no room for a text: {row.specials + 1} is the least")
    prompted = "{system_prompt}" not in row.before or settings.system_prompt
    before = row.before.replace("{system_prompt}", settings.system_prompt) if prompted else ""
    coder, problem = _coder(row, settings)
    taken = int(coder.lengths([before])[0]) if coder and before else row.dropped
    room = _kept(settings.max_token_length) if row.chunked else (length or row.length) - row.specials
    return Encoder(
        name=row.name,
        limit=max(room - taken, 0),
        chunk=CHUNK if row.chunked else None,
        problem=problem,
        pooled=row.pooled,
        weighted=row.chunked and settings.weighted_captions,
        quoted=row.quoted,
        note=row.note,
        before=before,
        coder=coder,
        pad=row.pad,
    )


# Tokenizers.


def _coder(row: _Row, settings: Settings) -> tuple[_Coder | None, str]:
    """The tokenizer of an encoder; or None, and what to type."""
    if row.tokenizer == "bytes":
        return _Bytes(), ""
    given: str = getattr(settings, row.tokenizer)
    if given:
        path = _tokenizer_file(given)
        if path is None:
            fetch = f". Fetch it: hf download {given} tokenizer.json" if re.fullmatch(r"[\w.-]+/[\w.-]+", given) else ""
            raise OptionError(
                f"{row.tokenizer}={given}: there is no such tokenizer.json, no folder that has one, and none of that "
                f"name in the cache of Hugging Face{fetch}"
            )
        return _Words(_load(path)), ""
    if row.tokenizer == "clip":
        from cutline.compose import clip

        if packaged := clip.packaged():
            return _Words(packaged), ""
    for repository in row.repositories:
        if path := _cached(repository):
            return _Words(_load(path)), ""
    get = f"hf download {row.repositories[0]} tokenizer.json"
    if row.tokenizer == "clip":
        get = "pip install --no-deps open_clip_torch"
    return None, f"the tokenizer of {row.name} is not here. Get it: {get}; or name its file: -o {row.tokenizer}=PATH"


def _tokenizer_file(given: str) -> Path | None:
    """The tokenizer.json that a path or a name on Hugging Face means, where it is on this machine."""
    path = Path(given).expanduser()
    if path.is_file():
        return path
    if (path / "tokenizer.json").is_file():
        return path / "tokenizer.json"
    return _cached(given)


def _cached(repository: str) -> Path | None:
    """A repository's tokenizer.json in the local cache of Hugging Face: that of `main`, else the newest."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    folder = hub / f"models--{repository.replace('/', '--')}"
    try:
        main = folder / "snapshots" / (folder / "refs" / "main").read_text("utf-8").strip() / "tokenizer.json"
    except OSError:
        main = folder
    if main.is_file():
        return main
    found = [path for path in folder.glob("snapshots/*/tokenizer.json") if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


@functools.lru_cache(maxsize=8)
def _load(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise CutlineError(f"{path} is no tokenizer.json: {error}") from None
    tokenizer.no_truncation()  # a file may say both
    tokenizer.no_padding()
    return tokenizer
