"""TIPO writes a caption from tags: a small language model that never sees the picture.

The models are KBlueLeaf's TIPO family (https://arxiv.org/abs/2411.08127); `cutline.prompts.tipo` has their format. They
were trained on tags and captions of the same pictures, so they put tags into sentences, and invent what tags leave
open: what they write is as right as the tags are, and no more. The weights are loaded here with transformers, or a
server that completes text (llama.cpp, vLLM) has them.

What is written of a picture depends on its tags, its key and the settings alone: words are drawn by chance, from a
generator for each row, whatever batch it is in.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import pyarrow as pa

from cutline import schemas
from cutline.annotators import endpoints, local, server
from cutline.annotators.prompted import Answer
from cutline.annotators.session import Row, RowError, Session, seed_number, seed_text
from cutline.checks import Policies, judge
from cutline.checks.findings import checked
from cutline.compose import scores
from cutline.options import CutlineError, OptionError, option
from cutline.prompts import tipo
from cutline.prompts.prompt import caption_of, tags_of
from cutline.tags import spaced

if TYPE_CHECKING:
    import torch

Metadata = Literal["meta", "rating", "artist", "characters", "copyrights", "quality", "aspect_ratio"]

RATINGS = {"g": "safe", "s": "sensitive", "q": "nsfw", "e": "nsfw, explicit"}
"""TIPO's words for a booru's ratings."""

QUALITY = "kohaku"
"""The score table with whose words TIPO was trained."""

CONTEXT = 1024
"""Tokens that TIPO was trained to read and write."""

PENALTY = 1.0
"""The repetition penalty: none. It would punish the words of the prompt too, which are the tags to be written about.
It is said nevertheless, since what generates has a default of its own (KGen's was 1.17)."""


NOWHERE = "nowhere"
"""The device where a server has the weights: one that the engine does not fill in."""


@dataclass(frozen=True)
class Asked:
    """What TIPO is asked about one picture."""

    prompt: tipo.TipoPrompt
    seed: int
    """For random draws: 0 to 2**63 - 1."""


@dataclass(frozen=True)
class TagToText(local.Local, endpoints.Remote):
    """Write captions from tags with TIPO, without looking at the pictures."""

    called: ClassVar[str] = "tag_to_text"
    base: ClassVar[str | None] = "KBlueLeaf/TIPO-500M-ft"
    writes: ClassVar[str] = "captions/tipo"
    opens: ClassVar[bool] = False
    api: ClassVar[str] = "completions"
    picture: ClassVar[bool] = False

    tags: tuple[str, ...] = option(
        (), "tag layers, of which the first that has tags for a picture counts; by default the dataset's only one"
    )
    task: str = option(
        "tag_to_long",
        "what is written from what: tag_to_long, tag_to_short_to_long, or from a short text (see short) short_to_long, "
        "short_to_tag_to_long, short_to_long_to_tag",
    )
    length: Literal["very_short", "short", "long", "very_long"] | None = option(
        None, "how much to write; long (short_to_long was trained without)"
    )
    short: str | None = option(None, "for tasks that begin with short: the caption layer that has the short texts")
    metadata: tuple[Metadata, ...] = option(
        ("rating", "artist", "characters", "copyrights", "aspect_ratio"),
        "what else TIPO is told; there are also meta and quality (by fav_count)",
    )
    blacklist: tuple[str, ...] = option((), "tags that it is not told; whole tags, with _ or spaces")
    temperature: float = option(0.35, "below 1 safer, above 1 wilder")
    top_p: float = option(0.95, "draw among the likeliest words that hold this share")
    top_k: int = option(60, "draw among this many of the likeliest words")
    min_p: float = option(0.1, "draw no word less likely than this share of the likeliest")
    max_tokens: int = option(512, "what is written is cut after so many tokens")
    seed: int = option(0, "another number, other captions")
    attempts: int = option(3, "how often a picture is asked at most, where its caption is empty, loops or denies a tag")
    least_coverage: float = option(0.0, "ask again where less than this share of the tags is in the caption")

    def __post_init__(self) -> None:
        """Fill in what was left open and refuse what is known to be wrong."""
        if self.endpoints:
            self._refuse(local.Local, "with endpoints: the server has the weights")
            self.check_remote(self.called)
        else:
            self._refuse(endpoints.Remote, "without endpoints: -o endpoints=http://localhost:8080/v1")
            super().__post_init__()
        try:
            tipo.check_task(self.task)
        except OptionError as error:
            raise OptionError(f"{self.called}: {error}") from None
        if not self.task.endswith("long") and self.task != "short_to_long_to_tag":
            raise OptionError(
                f"{self.called}: task={self.task} writes tags from text, and this writes captions: tag_to_long, "
                "tag_to_short_to_long, short_to_long, short_to_tag_to_long, short_to_long_to_tag"
            )
        if not tipo.has_length(self.task) and self.length is not None:
            raise OptionError(
                f"{self.called}: length={self.length} has no effect on task={self.task}, which was trained without"
            )
        if tipo.has_length(self.task) and self.length is None:
            object.__setattr__(self, "length", "long")
        if self._from_short and not (self.short or "").startswith("captions/"):
            raise OptionError(
                f"{self.called}: task={self.task} begins with a short text; say which layer has it: -o short=captions/…"
            )
        if not self._from_short and self.short is not None:
            raise OptionError(f"{self.called}: short={self.short} has no effect on task={self.task}")
        for layer in self.tags:
            if not layer.startswith("tags/"):
                raise OptionError(f"{self.called}: tags={layer} is no tag layer; one looks like tags/danbooru")
        for name in ("top_k", "max_tokens", "attempts"):
            if getattr(self, name) < 1:
                raise OptionError(f"{self.called}: {name}={getattr(self, name)} does not fit: it is at least 1")
        if not 0 < self.temperature < float("inf"):
            raise OptionError(f"{self.called}: temperature={self.temperature} does not fit: it is more than 0")
        for name in ("top_p", "min_p"):
            if not 0 < getattr(self, name) <= 1:
                raise OptionError(
                    f"{self.called}: {name}={getattr(self, name)} does not fit: it is more than 0 and at most 1"
                )
        if not 0 <= self.least_coverage <= 1:
            raise OptionError(f"{self.called}: least_coverage={self.least_coverage} does not fit: it is 0 to 1")

    def _refuse(self, kind: type[local.Local | endpoints.Remote], why: str) -> None:
        """Refuse options of the backend that is not used, and fill in the model."""
        for entry in fields(kind):
            given = getattr(self, entry.name)
            if entry.name != "model" and given not in (entry.default, NOWHERE):
                raise OptionError(f"{self.called}: {entry.name}={given} has no effect {why}")
        if kind is local.Local:
            object.__setattr__(self, "model", self.model or self.base)
            object.__setattr__(self, "device", NOWHERE)

    @property
    def workers(self) -> Literal["device", "one"]:
        """One for each device; one where a server has the weights."""
        return "one" if self.endpoints else "device"

    @property
    def _from_short(self) -> bool:
        return self.task.startswith("short")

    @property
    def reads(self) -> tuple[str, ...]:
        """The layers that it is given."""
        return ("pictures", *self.tags, *([self.short] if self.short else []))

    def fit(self, layers: Sequence[str]) -> Self:
        """Choose the tag layer where none is named. Raises OptionError for a layer that there is not."""
        for name in (*self.tags, *([self.short] if self.short else [])):
            if name not in layers:
                kind = name.partition("/")[0]
                there = ", ".join(found for found in layers if found.startswith(f"{kind}/")) or "none"
                raise OptionError(f"{self.called}: this dataset has no {name}; of its kind there is: {there}")
        found = tuple(name for name in layers if name.startswith("tags/"))
        if self.tags:
            return self
        if not found and self._from_short:
            return self
        if not found:
            raise OptionError(
                f"{self.called} writes from tags, and this dataset has none. Tags come with cutline add: a booru's "
                "table, or text files with -o sidecars=tags"
            )
        if len(found) > 1:
            raise OptionError(
                f"{self.called} writes from tags, and there are several layers of them: {', '.join(found)}. Say which: "
                f"-o tags={found[0]}"
            )
        return replace(self, tags=found)

    def identify(self, found: dict[str, Any]) -> dict[str, Any]:
        """The settings by which a layer is known; a server draws other words than are drawn here."""
        return {**found, "served": bool(self.endpoints)}

    def ask(self, row: Row, attempt: int) -> Asked:
        """What TIPO is asked about this picture at this attempt (from 1).

        Raises:
            RowError: no_tags, no_short, or unfit_text (see `tipo.UnfitText`).
        """
        given = self._given(row)
        tags = [*given["general"], *given["unsorted"]]
        short = self._short_of(row)
        if not tags and not self._from_short:
            raise RowError("no_tags", f"{', '.join(self.tags)}: no general tags that could be written about")
        if not short and self._from_short:
            raise RowError("no_short", f"{self.short} has no text for this picture")
        if self.task in ("short_to_long", "short_to_long_to_tag"):
            tags = []
        try:
            prompt = tipo.TipoPrompt(self.task, self.length, self._metadata_of(row, given), tags, short)
        except tipo.UnfitText as error:
            raise RowError("unfit_text", str(error)) from None
        return Asked(prompt, seed_number(seed_text(self.seed, row["key"], attempt)))

    def _given(self, row: Row) -> Row:
        """The picture's tags that are not on the blacklist, and its numbers."""
        found = tags_of(row, self.tags) or {}
        unwanted = {_plain(tag) for tag in self.blacklist}
        lists = {
            name: [tag for tag in found.get(name) or () if tag and _plain(tag) not in unwanted]
            for name in schemas.TAG_CATEGORIES
        }
        return {**found, **lists}

    def _short_of(self, row: Row) -> str | None:
        found = caption_of(row, self.short or "")
        return None if found is None else found.strip()

    def _metadata_of(self, row: Row, given: Row) -> dict[str, str]:
        lists = {"meta": "meta", "artist": "artist", "characters": "character", "copyrights": "copyright"}
        known: dict[str, str] = {}
        for name in self.metadata:
            if name in lists:
                known[name] = ", ".join(_words(given[lists[name]]))
            elif name == "rating":
                known[name] = RATINGS.get(given.get("rating") or "", "")
            elif name == "quality":
                known[name] = _quality(given)
            elif row.get("width") and row.get("height"):
                known["aspect ratio"] = f"{row['width'] / row['height']:.1f}"
        return known

    def request(self, row: Row) -> dict[str, Any]:
        """What is asked of the model for this row; its digest becomes the row's `request`."""
        attempt = row.get("attempt") or 1
        return self.shown(row, self.ask(row, attempt), attempt)

    def shown(self, row: Row, asked: Asked, attempt: int) -> dict[str, Any]:
        """A request as it is shown and hashed."""
        if self.endpoints:
            return {**self.body(asked, attempt), "picture": None}
        return {
            **self.weights(),
            "prompt": str(asked.prompt),
            "picture": None,
            "stop": list(asked.prompt.stops("long")),
            "sampling": {**self.sampling(attempt), "seed": asked.seed},
            "generation": self.generation(attempt),
        }

    def body(self, asked: Asked, attempt: int, picture: object = None) -> dict[str, Any]:
        """What is sent to a server's `/completions`. There is never a picture in it."""
        return {
            "model": self.model,
            "prompt": str(asked.prompt),
            "max_tokens": self.max_tokens,
            **self.sampling(attempt),
            "repetition_penalty": PENALTY,  # vLLM's name for it
            "repeat_penalty": PENALTY,  # llama.cpp's
            "seed": asked.seed & 0x7FFF_FFFF,  # llama.cpp keeps 32 bits, of which one value means: any
            "stop": list(asked.prompt.stops("long")),
        }

    def sampling(self, attempt: int = 1) -> dict[str, Any]:
        """How words are drawn, by the names of transformers and of servers; the same at every attempt."""
        return {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "min_p")}

    def generation(self, attempt: int = 1) -> dict[str, Any]:
        """The settings of the search, by transformers' names."""
        return {
            "do_sample": False,  # chance comes in by `local.Draw`
            "num_beams": 1,
            "max_new_tokens": self.max_tokens,
            "repetition_penalty": PENALTY,
        }

    def answer(self, row: Row, asked: Asked, raw: str, *, finish_reason: str | None, tries: int = 1) -> Answer:
        """Make a caption of what TIPO wrote, and say what is wrong with it.

        Args:
            row: the picture, and its rows in the layers that are read.
            asked: what `ask` gave.
            raw: what was written after the prompt.
            finish_reason: `stop`, or `length` where it was cut.
            tries: how often this picture has been asked in this run.
        """
        written = asked.prompt.read(raw, finish_reason=finish_reason)
        cut = "length" if written.cut == "long" else "stop"
        judged = judge(written.get("long"), policies=self.policies, finish_reason=cut, tags=self._evidence(row))
        texts = [judged.text] if judged.verdict != "rejected" else []
        columns = {
            "texts": texts,
            "raw": raw,
            "verdict": judged.verdict,
            "reason": judged.reason,
            "finish_reason": finish_reason,
            "checks": checked(judged.findings, judged.coverage, texts),
        }
        return Answer(columns, judged.again and tries < self.attempts)

    def _evidence(self, row: Row) -> dict[str, list[str]]:
        """All tags of the picture, to hold the caption against. Those that TIPO was not told it need not tell."""
        given = self._given(row)
        told = {"general": given["general"], "unsorted": given["unsorted"]}
        if "characters" in self.metadata:
            told["character"] = given["character"]
        known = tags_of(row, self.tags) or {}
        every = [tag for name in schemas.TAG_CATEGORIES for tag in known.get(name) or () if tag]
        names = {tag for tags in told.values() for tag in tags}
        return {**told, "meta": [tag for tag in every if tag not in names]}

    @property
    def policies(self) -> Policies:
        """What is done about a caption with something wrong. Made of tags alone, it may not deny them."""
        return Policies(
            count="again",
            coverage="again" if self.least_coverage else "keep",
            tries=self.attempts,
            least_coverage=self.least_coverage,
        )

    def load(self) -> Session:
        """Load the weights, or look at the server. Raises CutlineError where they are not there, or no TIPO model's."""
        return TagToTextRemote(self) if self.endpoints else TagToTextSession(self)


class TagToTextSession(local.LocalSession):
    """TIPO's weights on one device. Shapes: B rows, L tokens so far."""

    def __init__(self, settings: TagToText) -> None:
        self.settings: TagToText = settings
        self.threads = settings.threads
        transformers = local.find_libraries(settings)
        config = local.load_config(settings)
        self.tokenizer = local.load_part(settings, transformers.AutoTokenizer)
        _check_markers(settings, self.tokenizer)
        self.start, self.end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        self.context: int = getattr(config, "max_position_embeddings", None) or CONTEXT
        self.colons = _with_a_colon(self.tokenizer)
        self.device = local.find_device(settings)
        self.model = local.load_weights(settings, transformers.AutoModelForCausalLM, self.device, config)
        self.batch_size = local.choose_batch_size(settings, self.device, self._probe)

    def prepare(self, row: Row) -> Any:
        """See whether there is something to ask. Raises RowError as `ask` does, and `too_long`."""
        prompt = self.tokens(self.settings.ask(row, row.get("attempt") or 1))
        if len(prompt) >= self.context:
            raise RowError("too_long", f"its prompt is {len(prompt)} tokens long, and {self.context} are the most")

    def say(self, asked: list[Asked], pictures: object, attempt: int) -> list[local.Said]:  # type: ignore[override]
        """Let the model write on from each prompt."""
        ending = _Ending(self, asked)
        processors = local.drawing(self.settings.sampling(attempt), [one.seed for one in asked])
        self._generate(ending.prompts, logits_processor=processors, stopping_criteria=[ending])
        return [ending.said[place] for place in range(len(asked))]

    def tokens(self, asked: Asked) -> list[int]:
        """A prompt's tokens. The start is put there here, so it is there once, whatever the tokenizer would do."""
        return [self.start, *self.tokenizer(str(asked.prompt), add_special_tokens=False).input_ids]

    def text(self, before: int, new: list[int]) -> str:
        """The text of tokens as it follows on a token. Alone, a tokenizer would drop the space that they begin with."""
        start, whole = (
            str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
            for tokens in ([before], [before, *new])
        )
        return whole.removeprefix(start)

    def _generate(self, prompts: list[list[int]], **more: Any) -> None:
        import torch

        width = max(map(len, prompts))
        filled = [[self.end] * (width - len(tokens)) + tokens for tokens in prompts]  # on the left: all end together
        mask = [[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in prompts]
        with torch.inference_mode():
            self.model.generate(
                input_ids=torch.tensor(filled, device=self.device),  # (B, L)
                attention_mask=torch.tensor(mask, device=self.device),
                eos_token_id=self.end,
                pad_token_id=self.end,
                **self.settings.generation(),
                **more,
            )

    def _probe(self) -> None:
        """Answer one row of the greatest length: as many tags as TIPO was given at most, and all of `max_tokens`."""
        prompt = self.tokens(Asked(tipo.TipoPrompt(tags=["long hair"] * 72), 0))
        self._generate([prompt], min_new_tokens=self.settings.max_tokens)


class _Ending:
    """Tells `generate` which rows have ended: at the end token, at a key that is not wanted, or by their length.

    A row that has ended costs the others nothing but its place, and once all have, the batch ends. Keys are looked for
    only after a token with a colon in it, since all end so.
    """

    def __init__(self, session: TagToTextSession, asked: list[Asked]) -> None:
        self.session = session
        self.asked = asked
        self.prompts = [session.tokens(one) for one in asked]
        self.width = max(map(len, self.prompts))
        self.limits = [min(session.settings.max_tokens, session.context - len(tokens)) for tokens in self.prompts]
        self.said: dict[int, local.Said] = {}

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        """Which of the rows of `input_ids` (B, L) have ended: bool (B,)."""
        import torch

        for place, last in enumerate(input_ids[:, -1].tolist()):
            if place not in self.said:
                self._look(place, last, input_ids)
        return torch.tensor([place in self.said for place in range(len(self.asked))], device=input_ids.device)

    def _look(self, place: int, last: int, input_ids: torch.Tensor) -> None:
        count = input_ids.shape[1] - self.width
        over, full = last == self.session.end, count >= self.limits[place]
        if not over and not full and last not in self.session.colons:
            return
        tokens, new = self.prompts[place], input_ids[place, self.width :].tolist()
        text = self.session.text(tokens[-1], new[:-1] if over else new)
        end = self.asked[place].prompt.end(text, "long")
        if over or full or end is not None:
            reason = "stop" if over or end is not None else "length"
            self.said[place] = local.Said(text[:end], reason, len(tokens), count)


class TagToTextRemote(server.ServerSession):
    """Servers that complete text with TIPO's weights."""

    def __init__(self, settings: TagToText) -> None:
        super().__init__(settings)  # type: ignore[arg-type]  # it has all that is asked of it
        _check_servers(settings)


def _check_servers(settings: TagToText) -> None:
    """Ask each server how it reads the markers and a prompt's start, where it can be asked (vLLM, llama.cpp)."""
    import aiohttp

    key = settings.key()
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    async def tokens(http: aiohttp.ClientSession, url: str, text: str, *, special: bool) -> list[int] | None:
        # vLLM's names and llama.cpp's, in one: each passes over what it does not know.
        body = {"model": settings.model, "prompt": text, "add_special_tokens": special}
        body |= {"content": text, "add_special": special, "parse_special": True}
        with suppress(aiohttp.ClientError, OSError, ValueError, TimeoutError, RecursionError):
            async with http.post(f"{url.removesuffix('/v1')}/tokenize", json=body, allow_redirects=False) as reply:
                said = await reply.json(content_type=None) if reply.status == 200 else None
                found = said.get("tokens") if isinstance(said, dict) else None
                return found if isinstance(found, list) and found else None
        return None

    async def check(http: aiohttp.ClientSession, url: str) -> None:
        bare, whole = [await tokens(http, url, "target:", special=special) for special in (False, True)]
        if bare is None or whole is None:
            print(
                f"note: {url} does not say how it reads TIPO's markers, so nothing shows that it has a TIPO model",
                file=sys.stderr,
            )
            return
        for marker in tipo.MARKERS:
            if len(found := await tokens(http, url, marker, special=False) or []) != 1:
                raise _no_tipo(settings, marker, len(found), at=url)
        if whole[1:] != bare or whole[0] in bare:
            raise CutlineError(
                f"{settings.called}: {url} reads a prompt with {len(whole) - len(bare)} tokens more than it has, where "
                "TIPO has one, the start. See to it that the server adds the start token (llama.cpp: "
                "--override-kv tokenizer.ggml.add_bos_token=bool:true)"
            )

    async def check_all() -> None:
        timeout = aiohttp.ClientTimeout(total=min(endpoints.LOOK_SECONDS, settings.deadline))
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, trust_env=False) as http:
            await asyncio.gather(*(check(http, url) for url in settings.endpoints))

    endpoints.run_apart(check_all)


def _check_markers(settings: TagToText, tokenizer: Any) -> None:
    for marker in tipo.MARKERS:
        tokens = tokenizer(marker, add_special_tokens=False).input_ids
        if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
            raise _no_tipo(settings, marker, len(tokens))
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise CutlineError(f"{settings.called}: {settings.model} has no token for the start or the end, as TIPO has")


def _no_tipo(settings: TagToText, marker: str, count: int, *, at: str = "") -> CutlineError:
    read = f"is {count} tokens" if count != 1 else "is unknown"
    return CutlineError(
        f"{settings.called}: {at or settings.model} has no TIPO model: the marker {marker} {read} to it, where TIPO "
        f"has one token for each of its 13 markers. Give one that is, such as {TagToText.base}"
    )


def _with_a_colon(tokenizer: Any) -> frozenset[int]:
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return frozenset(number for number, name in enumerate(names) if name and ":" in name)


def _quality(given: Row) -> str:
    columns = {
        "fav_count": pa.array([given.get("fav_count")], pa.int64()),
        "rating": pa.array([given.get("rating")], pa.string()),
    }
    return _table().words(columns)[0].as_py() or ""


_table = functools.cache(lambda: scores.find(QUALITY))


def _words(tags: Sequence[str]) -> list[str]:
    return spaced(pa.array(list(tags), pa.string())).to_pylist()  # type: ignore[no-any-return]


def _plain(tag: str) -> str:
    return tag.strip().replace("_", " ").lower()
