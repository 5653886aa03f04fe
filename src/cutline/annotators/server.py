"""Captions by a server that speaks OpenAI's API: vLLM, SGLang, llama.cpp, Ollama, LM Studio, TabbyAPI, hosted ones.

`endpoints.py` sends the requests; what a request says is made here, in one place: `Server.body`. A dry run, the hash
in each row and the request that is sent all come from it, and differ in the picture alone, which is told of by its name
in the first two and by its bytes in the last. Servers are described in docs/servers.md.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from io import BytesIO
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cutline.annotators.endpoints import Remote, RemoteError, RemoteSession
from cutline.annotators.prompted import AGAIN_TEMPERATURE, Asked, Prompted
from cutline.annotators.session import Row
from cutline.options import OptionError, canonical, digest, option
from cutline.pictures import Picture, decode
from cutline.template import Template

if TYPE_CHECKING:
    from PIL import Image

PATHS = {"chat": "/chat/completions", "completions": "/completions"}
"""Where each API's requests go, below an endpoint's address."""

_OURS = frozenset({"model", "messages", "prompt", "response_format", "stream", "n", "temperature", "top_p"})
_MAY_GO = frozenset({"max_tokens", "seed"})

_OF_PICTURES = frozenset({"max_pixels", "image_format", "detail", "threads"})

JPEG_QUALITY = 95
"""Of pictures that are sent as JPEG; colours are not thinned out."""


@dataclass(frozen=True)
class Server(Prompted, Remote):
    """Caption pictures with a model that runs on a server."""

    writes: ClassVar[str] = "captions/server"
    workers: ClassVar[Literal["device", "core", "one"]] = "one"

    api: Literal["chat", "completions"] = option("chat", "chat, or completions: plain text, which takes no picture")
    picture: bool | None = option(None, "false: ask about the tags alone; true with chat")
    max_pixels: int = option(1 << 20, "larger pictures are scaled down to so many pixels")
    image_format: Literal["jpeg", "png"] = option("jpeg", "how pictures are sent")
    detail: Literal["low", "high", "auto"] | None = option(None, "how closely OpenAI's models look")
    max_tokens: int = option(1000, "an answer is cut after so many tokens")
    temperature: float | None = option(None, "0 takes the likeliest words, 1 draws freely; the server's own")
    top_p: float | None = option(None, "draw among the likeliest words that hold this share; the server's own")
    structured: bool = option(False, "hold the answer to the prompt's JSON schema (response_format)")
    extra: str = option("", 'a JSON object of further fields, such as {"top_k": 20}; null leaves one out')
    threads: int = option(4, "threads that read and encode pictures", identity=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be, or would have no effect, and fill in what was left open."""
        super().__post_init__()
        if self.picture is None:
            object.__setattr__(self, "picture", self.api == "chat")
        if self.picture and self.api == "completions":
            raise OptionError("server: api=completions has no place for a picture; leave out picture=true")
        for entry in fields(self):
            given = getattr(self, entry.name)
            if entry.name in _OF_PICTURES and not self.picture and given != entry.default:
                raise OptionError(f"server: {entry.name}={given} has no effect without a picture")
        if not self.picture and not self._tells():
            raise OptionError(
                f"server: the model is shown no picture, and prompt {self.prompt} tells it nothing either. Take one "
                "that does, such as -o prompt=from-tags"
            )
        if self.structured and self.api != "chat":
            raise OptionError("server: structured=true takes api=chat")
        if self.structured and not any(one.schema for one in self.asking.one_of or (self.asking,)):
            raise OptionError(
                f'server: structured=true takes a prompt with answer = "json" and a schema, which {self.prompt} is not'
            )
        for name in ("max_pixels", "max_tokens", "threads"):
            if getattr(self, name) < 1:
                raise OptionError(f"server: {name}={getattr(self, name)} does not fit: it is at least 1")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise OptionError(f"server: temperature={self.temperature} does not fit: it is 0 or more")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise OptionError(f"server: top_p={self.top_p} does not fit: it is more than 0 and at most 1")
        object.__setattr__(self, "extra", _extra(self.extra))
        self.check_remote("server")  # last, as it may ask the server which models it has

    def _tells(self) -> bool:
        """Whether each prompt that may be drawn says something of the picture."""
        return all(
            any(Template.parse(text).names for text in (one.system, one.user))
            for one in self.asking.one_of or (self.asking,)
        )

    @property
    def opens(self) -> bool:
        """Whether it opens pictures."""
        return bool(self.picture)

    def request(self, row: Row) -> dict[str, Any]:
        """What is asked about this picture, which stands in it by its name; the digest becomes the row's `request`."""
        attempt = row.get("attempt") or 1
        return self.shown(row, self.ask(row, attempt), attempt)

    def shown(self, row: Row, asked: Asked, attempt: int) -> dict[str, Any]:
        """A request as it is shown and hashed."""
        picture = {"picture": row["uri"], "format": self.image_format, "max_pixels": self.max_pixels}
        return self.body(asked, attempt, picture)

    def body(self, asked: Asked, attempt: int, picture: Any) -> dict[str, Any]:
        """The body of a request, with `picture` in the place of the picture's address."""
        body: dict[str, Any] = {"model": self.model}
        if self.api == "completions":
            body["prompt"] = f"{asked.system}\n\n{asked.user}" if asked.system.strip() else asked.user
        else:
            content: Any = asked.user
            if self.picture:
                shown = {"url": picture} if self.detail is None else {"url": picture, "detail": self.detail}
                content = [{"type": "image_url", "image_url": shown}, {"type": "text", "text": asked.user}]
            system = [{"role": "system", "content": asked.system}] if asked.system.strip() else []
            body["messages"] = [*system, {"role": "user", "content": content}]
        body["max_tokens"] = self.max_tokens
        temperature = self.temperature
        if temperature == 0 and attempt > 1:
            temperature = AGAIN_TEMPERATURE  # the likeliest words would be the same ones again
        if temperature is not None:
            body["temperature"] = temperature
        if self.top_p is not None:
            body["top_p"] = self.top_p
        body["seed"] = asked.seed & 0x7FFFFFFF  # which every server takes: some keep it in 32 bits
        if self.structured and asked.prompt.schema:
            schema = {"name": "caption", "strict": True, "schema": asked.prompt.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        body.update(json.loads(self.extra or "{}"))
        return {name: value for name, value in body.items() if value is not None}

    def load(self) -> ServerSession:
        """See who is there. Raises CutlineError where no endpoint can be reached or takes the key."""
        return ServerSession(self)


class ServerSession(RemoteSession):
    """Connections to servers, and threads that make pictures ready to be sent."""

    def __init__(self, settings: Server) -> None:
        super().__init__(settings)
        self.server = settings
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="encode")
        if settings.picture:
            _import_pillow()

    async def one(self, row: Row) -> Row:
        """Ask about one picture, and again while the answer has something wrong that another try may mend."""
        settings, loop = self.server, asyncio.get_running_loop()
        attempt, tries, seconds = row.get("attempt") or 1, 1, 0.0
        asked = settings.ask(row, attempt)
        used: list[Any] = []
        url = ""
        if settings.picture:
            url = await loop.run_in_executor(
                self._threads, data_url, row["picture"], settings.max_pixels, settings.image_format, row["key"]
            )
        while True:
            began = time.perf_counter()
            reply = await self.post(PATHS[settings.api], settings.body(asked, attempt, url))
            seconds += time.perf_counter() - began
            used.append(reply.get("usage"))
            raw, finish_reason = said(reply)
            answer = settings.answer(row, asked, raw, finish_reason=finish_reason, tries=tries)
            if not answer.again:
                break
            attempt, tries = attempt + 1, tries + 1
            asked = settings.ask(row, attempt)
        return {
            **answer.columns,
            "attempt": attempt,
            "request": digest(settings.shown(row, asked, attempt)),
            "tokens_in": _total(used, "prompt_tokens"),
            "tokens_out": _total(used, "completion_tokens"),
            "seconds": seconds,
        }


def said(reply: dict[str, Any]) -> tuple[str, str | None]:
    """What the model said in a reply, and its finish_reason (None where the server does not say).

    Thoughts that a server keeps apart are left out; but where there is nothing else they are what was said, between
    the marks that models put there themselves. Raises RemoteError for a reply in a form that nobody has.
    """
    choice = reply["choices"][0]
    finish = choice.get("finish_reason")
    finish = _utf8(finish)[:100] if isinstance(finish, str) else None
    if finish == "content_filter":
        raise RemoteError("filtered", "the server's content filter stopped the answer")
    message = choice.get("message")
    if "text" in choice and message is None:
        message = {"content": choice["text"]}
    if not isinstance(message, dict):
        raise RemoteError("bad_reply", "the server's reply has a choice without a message")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(str(piece.get("text") or "") for piece in content if isinstance(piece, dict))
    if content is not None and not isinstance(content, str):
        raise RemoteError("bad_reply", f"the server's reply has a content that is no text ({type(content).__name__})")
    if not content:
        thoughts = message.get("reasoning_content") or message.get("reasoning")
        if isinstance(refusal := message.get("refusal"), str):
            content = refusal
        elif isinstance(thoughts, str) and thoughts.strip():
            content = f"<think>{thoughts}</think>"
    return _utf8(content or ""), finish


def _utf8(text: str) -> str:
    """A text without halves of surrogate pairs, which JSON can have and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def data_url(picture: Picture, max_pixels: int, image_format: Literal["jpeg", "png"], name: str) -> str:
    """A picture as it is sent: upright, on white, of at most so many pixels. Raises PictureError for a bad one."""
    # Large JPEGs decode several times faster to a size that is still twice as large as needed.
    image = decode(picture.read(), at_least=2 * math.isqrt(max_pixels), name=name)
    image = shrink(image, max_pixels)
    out = BytesIO()
    if image_format == "jpeg":
        image.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        image.save(out, "PNG", compress_level=1)
    return f"data:image/{image_format};base64,{base64.b64encode(out.getvalue()).decode()}"


def shrink(image: Image.Image, max_pixels: int) -> Image.Image:
    """Scale a picture down to at most so many pixels, in its proportions; a smaller one stays as it is."""
    from PIL.Image import Resampling

    if image.width * image.height <= max_pixels:
        return image
    scale = math.sqrt(max_pixels / (image.width * image.height))
    width = min(max(1, int(image.width * scale)), max_pixels)
    height = min(max(1, int(image.height * scale)), max_pixels // width)
    width = min(width, max_pixels // height)
    return image.resize((width, height), Resampling.LANCZOS)


def _import_pillow() -> None:
    """Import what reads and writes pictures: it takes a while, in which the servers would wait for the first ones."""
    from PIL import Image

    out = BytesIO()
    Image.new("RGB", (1, 1)).save(out, "JPEG")
    decode(out.getvalue())


def _extra(text: str) -> str:
    """The further fields in one form. Raises OptionError where they are none, or are what Cutline says."""
    if not text.strip():
        return ""
    asks = "server: extra is a JSON object of further fields, such as -o extra='{\"top_k\": 20}'"
    try:
        fields = json.loads(text, parse_constant=_no_number)
        json.dumps(fields, ensure_ascii=False).encode()  # half a surrogate pair, which JSON can have, is no text
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{asks}: {error}") from None
    if not isinstance(fields, dict):
        raise OptionError(f"{asks}, and this is a {type(fields).__name__}")
    for name, value in fields.items():
        if name in _OURS or (name in _MAY_GO and value is not None):
            how = "it can only be left out, by null" if name in _MAY_GO else "leave it out of extra"
            raise OptionError(f"server: extra has {name}, which Cutline itself sets; {how}")
    return canonical(fields)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _total(used: list[Any], name: str) -> int | None:
    """The tokens of all tries, as the server counts them; None where it does not say for one of them."""
    counts: list[Any] = [usage.get(name) if isinstance(usage, dict) else None for usage in used]
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        return None
    return total if (total := sum(counts)) < 1 << 31 else None
