"""A real server of OpenAI's API that misbehaves on script, and remembers what it was asked.

The script says, by what a request is about (its *subject*), how to behave each time that it is asked: the last
behaviour holds from then on. So nothing depends on time or order. The subject of a request with a picture is the
colour of the picture's first pixel as a number (as `running.picture` draws them); of one without, its prompt.

    with Misbehaving({"7": ["429", "good"], "9": ["hang"]}) as server:
        ...  # server.url, server.peak, server.times("7")

    python tests/misbehaving.py --slots 64 --seconds 0.2     a process of its own: prints its address; GET /counts
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from io import BytesIO
from types import TracebackType
from typing import Any
from urllib.request import urlopen

from aiohttp import web
from PIL import Image

MODEL = "tiny"
PAGE = "<!doctype html><html><head><title>Bad gateway</title></head><body>nginx</body></html>"
LOOP = "a cat on a mat, " * 60


@dataclass
class Asked:
    """One request, as the server saw it."""

    subject: str
    behaviour: str
    moment: float
    """Of `time.monotonic`, when it came."""
    body: dict[str, Any]
    headers: dict[str, str] = field(repr=False)


def completion(text: object, *, finish: str | None = "stop", chat: bool = True, **more: Any) -> dict[str, Any]:
    """A reply as servers give it."""
    said = {"message": {"role": "assistant", "content": text, **more}} if chat else {"text": text}
    return {
        "id": "x",
        "object": "chat.completion" if chat else "text_completion",
        "model": MODEL,
        "choices": [{"index": 0, "finish_reason": finish, **said}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16},
    }


def subject_of(body: Mapping[str, Any]) -> str:
    """What a request is about."""
    for picture in pictures_in(body):
        red, green, blue = Image.open(BytesIO(picture)).convert("RGB").getpixel((0, 0))  # type: ignore[misc]
        return str(red << 16 | green << 8 | blue)
    return prompt_of(body)


def prompt_of(body: Mapping[str, Any]) -> str:
    """The text of the last message, or the prompt."""
    if "messages" not in body:
        return str(body.get("prompt"))
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else "".join(piece.get("text", "") for piece in content)


def pictures_in(body: Mapping[str, Any]) -> list[bytes]:
    """The bytes of the pictures that were sent along."""
    pieces = [
        piece
        for message in body.get("messages", [])
        if isinstance(message["content"], list)
        for piece in message["content"]
        if piece["type"] == "image_url"
    ]
    return [base64.b64decode(piece["image_url"]["url"].partition(",")[2], validate=True) for piece in pieces]


class Misbehaving:
    """The server, on a thread of its own."""

    def __init__(
        self,
        script: Mapping[str, Sequence[str]] | None = None,
        *,
        says: str = "a picture of {subject}",
        seconds: float = 0.0,
        slots: int = 1000,
        retry_after: str = "1",
        models: Sequence[str] | None = (MODEL,),
        key: str = "",
        always: str = "",
        look: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.script = dict(script or {})
        self.says = says
        self.seconds = seconds
        self.slots = slots
        self.retry_after = retry_after
        self.models = models
        self.key = key
        self.always = always
        """A behaviour that comes before the script's."""
        self.look = look
        """Whether it looks into requests and keeps them; if not, they have no subject, and it takes little time."""
        self.tls = tls
        self.asked: list[Asked] = []
        self.seen: Counter[str] = Counter()
        self.now = 0
        self.peak = 0
        """The most requests that it had at once."""
        self.answered: Counter[str] = Counter()
        """How often it gave a good answer about a subject."""
        self.port = 0
        self._ready = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def times(self, subject: str) -> list[Asked]:
        """The requests about a subject, in their order."""
        return [asked for asked in self.asked if asked.subject == subject]

    def __enter__(self) -> Misbehaving:
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    async def serve(self, port: int = 0) -> None:
        """Serve until it is stopped; hanging requests are dropped then."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._free = asyncio.Semaphore(self.slots)
        app = web.Application(client_max_size=1 << 28)
        app.router.add_post("/v1/chat/completions", self._take)
        app.router.add_post("/v1/completions", self._take)
        app.router.add_get("/v1/models", self._list)
        app.router.add_get("/counts", self._counts)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024, ssl_context=self.tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _list(self, request: web.Request) -> web.StreamResponse:
        if not self._may(request):
            return web.json_response({"error": {"message": "Incorrect API key provided"}}, status=401)
        if self.models is None:
            return web.Response(status=404, text="404 page not found")
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _counts(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"asked": len(self.asked), "peak": self.peak, "answered": self.answered})

    def _may(self, request: web.Request) -> bool:
        return not self.key or request.headers.get("Authorization") == f"Bearer {self.key}"

    async def _take(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body: dict[str, Any] = json.loads(raw) if self.look else {"messages": []}
        subject = subject_of(body) if self.look else ""
        behaviours = self.script.get(subject, ["good"])
        behaviour = self.always or behaviours[min(self.seen[subject], len(behaviours) - 1)]
        if not self._may(request):
            behaviour = "401"
        self.seen[subject] += 1
        self.asked.append(Asked(subject, behaviour, time.monotonic(), body, dict(request.headers)))
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            async with self._free:
                await asyncio.sleep(self.seconds)
                reply = await self._behave(behaviour, subject, body, request)
                self.answered[subject] += reply.status == 200
                return reply
        finally:
            self.now -= 1

    async def _behave(
        self, behaviour: str, subject: str, body: dict[str, Any], request: web.Request
    ) -> web.StreamResponse:
        chat = request.path.endswith("/chat/completions")
        text = self.says.format(subject=subject)
        match behaviour:
            case "good":
                return web.json_response(completion(text, chat=chat))
            case "429":
                return web.json_response(
                    {"error": {"message": "Rate limit reached"}}, status=429, headers={"Retry-After": self.retry_after}
                )
            case "429 until":
                later = format_datetime(datetime.now(UTC) + timedelta(seconds=float(self.retry_after)), usegmt=True)
                return web.Response(status=429, headers={"Retry-After": later})
            case "429 bare":
                return web.Response(status=429)
            case "quota":
                words = {"message": "You exceeded your current quota", "code": "insufficient_quota"}
                return web.json_response({"error": words}, status=429)
            case "503":
                return web.json_response({"error": {"message": "Loading model"}}, status=503)
            case "500":
                return web.json_response({"error": {"message": "CUDA error", "code": 500}}, status=500)
            case "500 echo":  # as a debug page would: the whole request in the error
                return web.json_response({"error": {"message": f"cannot do {json.dumps(body)}"}}, status=500)
            case "502":
                return web.Response(status=502, text=PAGE, content_type="text/html")
            case "page":
                return web.Response(text=PAGE, content_type="text/html")
            case "hang":
                await asyncio.sleep(3600)
            case "half":  # headers and the beginning of a body, and then nothing
                response = web.StreamResponse(headers={"Content-Length": "1000"})
                await response.prepare(request)
                await response.write(b'{"choices": [')
                await asyncio.sleep(3600)
            case "reset":
                assert request.transport is not None
                request.transport.abort()
            case "cut":  # the connection ends in the middle of the body
                response = web.StreamResponse(headers={"Content-Length": "1000"})
                await response.prepare(request)
                await response.write(b'{"choices": [')
                assert request.transport is not None
                request.transport.abort()
            case "empty choices":
                return web.json_response({**completion("", chat=chat), "choices": []})
            case "invalid JSON":
                return web.Response(text='{"choices": [{"message": {"content": "a c', content_type="application/json")
            case "not UTF-8":
                return web.Response(body=b'{"choices": "\xff\xfe"}', content_type="application/json")
            case "a list":
                return web.json_response([1, 2, 3])
            case "huge":
                return web.Response(body=b" " * (17 << 20), content_type="application/json")
            case "deep":
                return web.Response(text="[" * 200_000, content_type="application/json")
            case "error in 200":
                return web.json_response({"error": {"message": "upstream is down", "code": 502}})
            case "broken off":  # OpenRouter's form
                reply = completion(text[:-1], finish="error", chat=chat)
                reply["choices"][0]["error"] = {"code": 502, "message": "the model is gone"}
                return web.json_response(reply)
            case "aborted":
                return web.json_response(completion(text[:-1], finish="abort", chat=chat))
            case "odd finish":
                return web.json_response(completion(text, finish="\ud800", chat=chat))
            case "key in words":  # so long that they are cut in the middle of the key
                return web.Response(status=400, text="x" * 50 + " y" * 20 + request.headers["Authorization"])
            case "400":
                return web.json_response({"error": {"message": f"cannot read {json.dumps(body)}"}}, status=400)
            case "422":
                detail = [{"loc": ["body", "messages"], "msg": "no such field", "input": body}]
                return web.json_response({"detail": detail}, status=422)
            case "401":
                key = request.headers.get("Authorization", "")
                return web.json_response({"error": {"message": f"Incorrect API key provided: {key}"}}, status=401)
            case "403":
                return web.json_response({"error": {"message": "not allowed"}}, status=403)
            case "404":
                return web.json_response(
                    {"error": {"message": f"The model {body.get('model')} does not exist"}}, status=404
                )
            case "413":
                return web.Response(status=413, text="Maximum request body size exceeded")
            case "redirect":
                return web.Response(status=307, headers={"Location": "http://127.0.0.1:9/v1/chat/completions"})
            # What a model says wrong; the server is well.
            case "length":
                return web.json_response(completion(text + ". And then the", finish="length", chat=chat))
            case "filter":
                return web.json_response(completion("", finish="content_filter", chat=chat))
            case "empty":
                return web.json_response(completion("", chat=chat))
            case "null":
                return web.json_response(completion(None, chat=chat))
            case "a number":
                return web.json_response(completion(7, chat=chat))
            case "thinking":
                return web.json_response(
                    completion("<think>The user wants a caption. Let me", finish="length", chat=chat)
                )
            case "thinking apart":
                more = {"reasoning_content": "The user wants a caption."}
                return web.json_response(completion(text, chat=chat, **more))
            case "only thinking apart":
                more = {"reasoning_content": "The user wants a caption."}
                return web.json_response(completion(None, finish="length", chat=chat, **more))
            case "pieces":
                return web.json_response(
                    completion([{"type": "text", "text": text[:4]}, {"type": "text", "text": text[4:]}])
                )
            case "refusal field":
                return web.json_response(completion(None, chat=chat, refusal="I can't help with that."))
            case "refusal":
                return web.json_response(completion("I'm sorry, but I can't help with that.", chat=chat))
            case "loop":
                return web.json_response(completion(LOOP, finish="length", chat=chat))
            case "odd usage":
                return web.json_response({**completion(text, chat=chat), "usage": {"prompt_tokens": "many"}})
            case "no usage":
                return web.json_response({**completion(text, chat=chat), "usage": None})
            case _ if behaviour.startswith("says "):
                return web.json_response(completion(behaviour.removeprefix("says "), chat=chat))
            case _:
                raise AssertionError(f"no behaviour is called {behaviour}")
        return web.Response()


@contextmanager
def process(**options: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server in a process of its own, which can be killed: its address and the process."""
    words = [piece for name, value in options.items() for piece in (f"--{name}", str(value))]
    started = subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    try:
        yield started.stdout.readline().strip(), started
    finally:
        started.kill()
        started.wait()


def counts(url: str) -> dict[str, Any]:
    """What a server in a process of its own has counted."""
    with urlopen(url.removesuffix("/v1") + "/counts", timeout=30) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--slots", type=int, default=1000, help="requests that it works on at once; others queue")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long each takes")
    chosen = parser.parse_args()
    server = Misbehaving(slots=chosen.slots, seconds=chosen.seconds, look=False)

    async def serve() -> None:
        serving = asyncio.create_task(server.serve(chosen.port))
        while not server._ready.is_set():
            await asyncio.sleep(0.01)
        print(server.url, flush=True)
        await serving

    asyncio.run(serve())


if __name__ == "__main__":
    main()
