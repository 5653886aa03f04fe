"""A client of servers that speak OpenAI's API: many requests at once, to one endpoint or several, and no row lost.

Rows come in as a stream and answers go out as they come, from an event loop on a thread. What a server does wrong is
met in one of four ways, and every row is answered exactly once:

- it is busy (429, 503, 529): the endpoint rests as long as its Retry-After says, or for a random while that grows;
  half as many requests go to it at once, and one more for each round that went well (additive increase, multiplicative
  decrease: Chiu and Jain 1989). Answers that come three times as slowly as before also make it fewer;
- it fails (500, 502, a web page, no JSON, a hang, a dropped connection): the request is sent again after a random wait
  ("full jitter"), elsewhere if there is an elsewhere, `tries` times in all. Five fresh requests that fail one
  after another open the endpoint's circuit: it gets nothing but, now and then, one request to see whether it is back;
- it refuses one request (400, 413, 422): so does another, where there is one, and the row's error says why;
- it can answer none (401, no such model): it is left out, and where no endpoint is left the run stops and says why.

A row's `error` is one of `REASONS`. Neither the key nor a picture's bytes ever stand in an error or a log.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import json
import os
import queue
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from cutline.annotators.session import Halt, Row, RowError, failure
from cutline.options import CutlineError, OptionError, option

if TYPE_CHECKING:
    import aiohttp

REASONS = {
    "rate_limited": "the server said that it is busy (429, 503, 529) for as long as `patience` lasts",
    "server_error": "the server failed (5xx), broke off its answer, or did not know the model any more, each time",
    "bad_reply": "what came back is no answer: a web page, no JSON, no choices, or far too much",
    "timeout": "no answer within the `deadline`, each time",
    "connection": "the connection broke before the answer had come, each time",
    "unreachable": "no endpoint could be reached for as long as `patience` lasts",
    "refused_request": "the server does not take this request (4xx); its words are in `detail`",
    "unauthorized": "the server does not let this request through (403)",
    "too_large": "the request is larger than the server takes (413)",
    "filtered": "the server's content filter stopped the answer",
}
"""Why a row that was sent to servers has no answer: its `error`."""

Made = TypeVar("Made")

_BUSY = frozenset({429, 503, 529})
_COUNTED = frozenset({"server_error", "bad_reply", "timeout", "connection"})

FAILURES = 5
"""So many fresh requests that fail one after another open an endpoint's circuit."""
REST, LONGEST_REST = 1.0, 15.0
"""Seconds until an open circuit lets one request through; doubled each time that nobody answers, up to the second."""
BACKOFF, LONGEST_BACKOFF = 0.5, 30.0
"""Seconds: a wait is drawn from 0 to the first, doubled for each failure before it, up to the second."""
REFUSALS = 10
"""A request that was refused so many times, by servers that were busy, while others are served, waits no longer."""
SLOWER = 3.0
"""An endpoint whose answers take so many times as long as its own best is sent fewer at once."""
MOST_REPLY = 4 << 20
"""Bytes; a reply that is longer is a `bad_reply`. To judge a longer answer takes so long that others wait for it."""
MOST_DETAIL = 300
"""Characters of an error's detail."""
LOOK_SECONDS = 10.0
"""How long an endpoint may take at the start to list its models."""


class RemoteError(RowError):
    """A request that got no answer. `reason` is one of `REASONS`, the text is for people."""

    def __init__(self, reason: str, detail: str, *, sent: bool = True, after: float | None = None) -> None:
        super().__init__(reason, detail)
        self.detail = detail
        self.sent = sent
        """False where no connection was made: that can be no fault of the request's."""
        self.after = after
        """The seconds of Retry-After."""


class _Out(RemoteError):
    """An endpoint that will answer no request at all."""


@dataclass(frozen=True)
class Remote:
    """Mix-in: the options of an annotator that asks servers. Call `check_remote` where the settings are checked."""

    endpoints: tuple[str, ...] = option(
        (), "servers' addresses, comma between, such as http://localhost:8000/v1", identity=False
    )
    model: str | None = option(None, "the model's name, as the server lists it")
    key_env: str = option("OPENAI_API_KEY", "the environment variable that holds the key, if any", identity=False)
    in_flight: int = option(64, "at most so many requests at once for each endpoint", identity=False)
    deadline: float = option(180.0, "seconds that one request may take", identity=False)
    tries: int = option(4, "how often a request that fails is sent", identity=False)
    patience: float = option(300.0, "seconds for which busy or unreachable servers are waited for", identity=False)

    def check_remote(self, name: str) -> None:
        """Bring the addresses into one form and refuse what cannot be meant. `name` is the annotator's, for errors."""
        if not self.endpoints:
            raise OptionError(f"{name}: which server? Give its address: -o endpoints=http://localhost:8000/v1")
        endpoints = tuple(_address(name, url) for url in self.endpoints)
        if len(set(endpoints)) < len(endpoints):
            raise OptionError(f"{name}: an address is given twice; to send it more at once, set -o in_flight higher")
        object.__setattr__(self, "endpoints", endpoints)
        for option_name in ("in_flight", "tries"):
            if getattr(self, option_name) < 1:
                raise OptionError(f"{name}: {option_name}={getattr(self, option_name)} does not fit: it is at least 1")
        for option_name in ("deadline", "patience"):
            if not 0 < getattr(self, option_name) < float("inf"):
                raise OptionError(f"{name}: {option_name}={getattr(self, option_name)} does not fit: more than 0")
        if not self.key_env:
            raise OptionError(f"{name}: key_env names an environment variable, such as OPENAI_API_KEY")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.key_env):
            # It is not repeated here: it may well be the key itself.
            raise OptionError(f"{name}: key_env is the *name* of an environment variable, such as OPENAI_API_KEY")
        if not self.model:
            listed = sorted({model for models in look(self).values() for model in models.names or ()})
            has = f" The server has: {', '.join(listed[:20])}" if listed else ""
            raise OptionError(f"{name}: which model? Give the name that the server knows it by: -o model=NAME.{has}")

    def key(self) -> str | None:
        """The key from the environment. Raises CutlineError where a named variable is not set or holds no key."""
        value = os.environ.get(self.key_env, "").strip()
        if not value:
            if self.key_env == "OPENAI_API_KEY":
                return None
            raise CutlineError(f"the environment variable {self.key_env} is not set: export {self.key_env}=… first")
        if not value.isascii() or not value.isprintable() or " " in value:
            raise CutlineError(f"the environment variable {self.key_env} holds no key: it has spaces or odd characters")
        return value


def _address(name: str, url: str) -> str:
    """The base address, without a slash at its end. What may be secret is never repeated in an error."""
    asks = f"{name}: an endpoint is an address such as http://localhost:8000/v1"
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # whether it can be looked up at all
    except ValueError:
        raise OptionError(f"{asks}; one of those given is none") from None
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise OptionError(f"{asks}, without a user or password in it. A key comes from the environment: -o key_env=…")
    if parts.query or parts.fragment or "?" in url or "#" in url:
        raise OptionError(f"{asks}, without ? or #. A key comes from the environment: -o key_env=NAME")
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\s\0-\x1f\x7f]", url):
        raise OptionError(f"{asks}, which {url!r:.100} is not")
    path = parts.path.rstrip("/")
    for tail in ("/chat/completions", "/completions", "/models"):
        if path.endswith(tail):
            raise OptionError(f"{asks}: leave out the {tail} at its end")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}{f':{port}' if port is not None else ''}{path}"


# -- one endpoint ----------------------------------------------------------------------------------------------------


class _Endpoint:
    """One server: how much it is sent at once, and whether anything at all. Times are of `time.monotonic`."""

    def __init__(self, url: str, most: int) -> None:
        self.url = url
        self.most = most
        self.limit = float(most)
        self.busy = 0
        self.out = ""
        """Why it will never answer; empty while it may."""
        self.answered_once = False
        self.paused_until = 0.0
        self.refusals = 0
        self.forbidden = 0
        self.cut_at = 0.0
        # The circuit.
        self.failures = 0
        self.open = False
        self.changed_at = 0.0
        self.probe_at = 0.0
        self.probing = False
        self.rest = REST
        # How fast it answers: the mean seconds of the window of answers that is being filled, and of those before.
        self.window: list[float] = []
        self.pace = 0.0
        self.best = 0.0

    def healthy(self, now: float) -> bool:
        """Whether it takes requests, now or as soon as one that it has is done."""
        return not self.out and not self.open and now >= self.paused_until

    def free(self, now: float) -> bool:
        """Whether one more request may be sent."""
        if self.out or now < self.paused_until:
            return False
        if self.open:
            return now >= self.probe_at and not self.probing
        return self.busy < int(self.limit)

    def wakes(self, now: float) -> float | None:
        """When, if no request ends before, it may become free."""
        times = [self.paused_until] + ([self.probe_at] if self.open and not self.probing else [])
        later = [moment for moment in times if moment > now]
        return min(later) if later and not self.out else None

    def wait(self) -> tuple[float, float]:
        """To choose among endpoints: roughly how long one more request would take, and how full it is."""
        full = (self.busy + 1) / self.limit
        return full * self.pace, full

    def good(self, started: float, now: float) -> None:
        """A request was answered."""
        self.answered_once = True
        self.failures = self.refusals = self.forbidden = 0
        self.close(now)
        self.window.append(now - started)
        if len(self.window) >= max(16, int(self.limit)):
            self.pace = sum(self.window) / len(self.window)
            self.window.clear()
            # What it can do at best is forgotten slowly: a server that is slower for good gets its full share again.
            self.best = min(self.pace, self.best * 1.1) if self.best else self.pace
            if self.pace > SLOWER * self.best:
                self._cut(0.7, started, now, least=max(1.0, self.most / 8))
        self.limit = min(float(self.most), self.limit + 1 / self.limit)

    def refused(self, after: float | None, started: float, now: float, longest: float) -> None:
        """It is busy."""
        if started >= self.cut_at:  # those that were refused together count once
            self.refusals += 1
        pause = after or _backoff(max(1, self.refusals))  # not at once, though it may say 0
        self.paused_until = max(self.paused_until, now + min(pause, longest))
        self._cut(0.5, started, now)

    def failed(self, error: RemoteError, *, fresh: bool, started: float, now: float) -> None:
        """A request failed. Only one that was not tried before tells of the server; another may be to blame itself."""
        if error.reason == "timeout":
            self._cut(0.5, started, now)
        if not (fresh or not error.sent) or started < self.changed_at:
            return
        self.failures += 1
        if self.open:
            if error.reason in ("timeout", "connection"):  # with other failures somebody is there
                self.rest = min(2 * self.rest, LONGEST_REST)
            self.probe_at = now + self.rest * random.uniform(0.5, 1.0)
        elif self.failures >= FAILURES:
            self.shut(now)

    def shut(self, now: float) -> None:
        """Open the circuit."""
        self.open, self.changed_at, self.rest = True, now, REST
        self.probe_at = now + REST * random.uniform(0.5, 1.0)

    def close(self, now: float) -> None:
        """Close the circuit, if it is open: somebody is there. A probe that is on its way is one no more."""
        if self.open:
            self.open, self.probing, self.rest, self.changed_at = False, False, REST, now

    def _cut(self, factor: float, started: float, now: float, least: float = 1.0) -> None:
        """Send fewer at once; a request that was on its way when that was last done says nothing new."""
        if started >= self.cut_at:
            self.limit = max(least, min(self.limit, max(1.0, float(self.busy))) * factor, 1.0)
            self.cut_at = now


def _backoff(failures: int) -> float:
    """Seconds to wait after so many failures: full jitter, which keeps those who failed together apart."""
    return random.uniform(0, min(LONGEST_BACKOFF, BACKOFF * 2 ** min(failures - 1, 10)))


# -- all endpoints ---------------------------------------------------------------------------------------------------


@dataclass(order=True)
class _Waiter:
    number: int
    avoid: set[str] = field(compare=False)
    future: asyncio.Future[_Endpoint] = field(compare=False)


class _Stopped(Exception):
    """The run is being stopped, and this request was not begun."""


class _Pool:
    """Who is sent what: requests wait in the order in which they came, and each goes where it is answered soonest."""

    def __init__(self, endpoints: list[_Endpoint], patience: float) -> None:
        self.endpoints = endpoints
        self.patience = patience
        self.numbers = itertools.count()
        self.waiting: list[_Waiter] = []
        self.trouble_since: float | None = None
        """Since when nothing but refusals and failures has come."""
        self.trouble = ("unreachable", "no endpoint could be reached")
        self.hopeless = False
        """Patience has ended, and nothing has been answered since."""
        self.timer: asyncio.TimerHandle | None = None
        self.stopped = False
        """No request is to be begun any more."""

    def begin(self) -> int:
        """The number of a new request. Time in which nobody asked for anything is no time of trouble."""
        idle = not self.waiting and not any(endpoint.busy for endpoint in self.endpoints)
        if idle and not self.hopeless:
            self.trouble_since = None
        return next(self.numbers)

    async def take(self, number: int, avoid: set[str]) -> _Endpoint:
        """Wait for an endpoint, best none of those to `avoid`.

        Raises RemoteError where none has answered for `patience` seconds, Halt where none ever will, and _Stopped.
        """
        if self.stopped:
            raise _Stopped
        waiter = _Waiter(number, avoid, asyncio.get_running_loop().create_future())
        bisect.insort(self.waiting, waiter)
        self.dispatch()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self.waiting = [other for other in self.waiting if other is not waiter]
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                given = waiter.future.result()
                self.release(given, probe=given.probing)
            raise

    def stop(self) -> None:
        """Begin no more requests."""
        self.stopped = True
        for waiter in self.waiting:
            if not waiter.future.done():
                waiter.future.set_exception(_Stopped())
        self.waiting.clear()

    def release(self, endpoint: _Endpoint, *, probe: bool) -> None:
        """A request to this endpoint is over."""
        endpoint.busy -= 1
        if probe:
            endpoint.probing = False

    def dispatch(self) -> None:
        """Give what is free to those who wait longest."""
        now = time.monotonic()
        self.waiting = [waiter for waiter in self.waiting if not waiter.future.done()]
        for waiter in list(self.waiting):
            free = [endpoint for endpoint in self.endpoints if endpoint.free(now)]
            if not free:
                break
            if elsewhere := [endpoint for endpoint in free if endpoint.url not in waiter.avoid]:
                free = elsewhere
            elif any(one.healthy(now) and one.url not in waiter.avoid for one in self.endpoints):
                continue
            chosen = min(free, key=_Endpoint.wait)
            chosen.busy += 1
            chosen.probing = chosen.probing or chosen.open
            self.waiting.remove(waiter)
            waiter.future.set_result(chosen)
        if self.waiting:
            self._give_up(now)
        self._wake(now)

    def well(self) -> None:
        """An endpoint has answered."""
        self.trouble_since, self.hopeless = None, False

    def worse(self, error: RemoteError, now: float) -> None:
        """An endpoint is busy, or cannot be reached."""
        if self.trouble_since is None:
            self.trouble_since = now
            if all(endpoint.open or endpoint.out for endpoint in self.endpoints):
                _warn(f"{error.detail}; it is waited for, up to {self.patience:g} s")
        reason = "rate_limited" if error.reason == "rate_limited" else "unreachable"
        self.trouble = (reason, error.detail)

    def given_up(self, now: float) -> bool:
        """Whether patience is at its end. While a healthy endpoint has something in hand there is hope."""
        if self.trouble_since is None or now - self.trouble_since < self.patience:
            return False
        return not any(endpoint.busy for endpoint in self.endpoints if endpoint.healthy(now))

    def _give_up(self, now: float) -> None:
        out = all(endpoint.out for endpoint in self.endpoints)
        if not out and not self.given_up(now):
            return
        self.hopeless = True
        why = " ".join(dict.fromkeys(endpoint.out for endpoint in self.endpoints))
        for waiter in self.waiting:
            waiter.future.set_exception(Halt(why) if out else RemoteError(*self.trouble))
        self.waiting.clear()

    def _wake(self, now: float) -> None:
        """Look again when an endpoint's pause, or patience, ends."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if not self.waiting:
            return
        times = [moment for endpoint in self.endpoints if (moment := endpoint.wakes(now)) is not None]
        if self.trouble_since is not None:
            times.append(max(self.trouble_since + self.patience, now + 0.05))
        if times:
            loop = asyncio.get_running_loop()
            self.timer = loop.call_later(max(0.0, min(times) - now) + 0.001, self.dispatch)


# -- the session -----------------------------------------------------------------------------------------------------


class RemoteSession:
    """Connections to servers. A subclass says how `one` row is answered, by as many requests as it likes.

    Where it is made it looks whether anyone answers. Raises CutlineError where no endpoint can be reached, where the
    key is refused, and where aiohttp is not installed.
    """

    def __init__(self, settings: Remote) -> None:
        _aiohttp()
        self.settings = settings
        self.batch_size = settings.in_flight * len(settings.endpoints)
        self._key = settings.key()
        self._endpoints = [_Endpoint(url, settings.in_flight) for url in settings.endpoints]
        self._look()
        self._run: _Stream | None = None
        self._pool: _Pool
        self._http: aiohttp.ClientSession

    async def one(self, row: Row) -> Row:
        """Answer a row: the layer's columns (the key is added). What it raises becomes the row's typed error."""
        raise NotImplementedError

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send one request, to whichever endpoint answers, and return its reply.

        Args:
            path: below the address, such as `/chat/completions`.
            body: plain JSON.

        Returns: the reply, whose `choices` is a list that begins with a dict.

        Raises:
            RemoteError: there is no answer, and why; after `tries` and `patience`.
            Halt: no endpoint will answer any request.
        """
        data = json.dumps(body).encode()
        number = self._pool.begin()
        tries = 0
        avoid: set[str] = set()
        waited_since: float | None = None
        refusals = 0
        refused = False
        while True:
            endpoint = await self._pool.take(number, avoid)
            try:
                return await self._send(endpoint, path, data, fresh=tries == 0)
            except _Out:
                continue  # another one will; or `take` says that there is none
            except RemoteError as error:
                now = time.monotonic()
                if error.reason in _COUNTED and error.sent:
                    tries += 1
                    if tries >= self.settings.tries:
                        raise
                    wait = _backoff(tries)
                elif error.reason == "rate_limited" or not error.sent:
                    waited_since, refusals = waited_since or now, refusals + 1
                    # Others may be served while this one is refused: it may be too much for a minute's ration.
                    alone = refusals >= REFUSALS and now - waited_since >= self.settings.patience
                    if alone or self._pool.given_up(now):
                        self._pool.hopeless = self._pool.hopeless or not alone
                        raise RemoteError(*self._pool.trouble) from None
                    wait = 0.0  # the endpoint rests, and not the request
                else:
                    others = [one for one in self._endpoints if one.url not in {*avoid, endpoint.url}]
                    if refused or not any(not (one.out or one.open) for one in others):
                        raise
                    refused, wait = True, 0.0  # what one of several refuses another may take; a second one is believed
                avoid.add(endpoint.url)
                if len(avoid) == len(self._endpoints):
                    avoid = {endpoint.url} if len(self._endpoints) > 1 else set()
            await asyncio.sleep(wait)

    def stop(self) -> None:
        """Begin no more requests: what is in hand is waited for, and other rows get no answer. From any thread."""
        if self._run is not None:
            self._run.call(lambda: self._pool.stop())

    def __call__(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Answer a stream of rows, many at a time, in the order in which the answers come."""
        run = self._run = _Stream(self, rows)
        thread = threading.Thread(target=run.run, name="requests", daemon=True)
        thread.start()
        try:
            while (answer := run.answers.get()) is not None:
                if isinstance(answer, BaseException):
                    raise answer
                run.room.release()
                yield answer
        finally:
            run.stop()
            thread.join()

    async def _send(self, endpoint: _Endpoint, path: str, data: bytes, *, fresh: bool) -> dict[str, Any]:
        """Send a request once, and note what it says of the endpoint."""
        started, probe = time.monotonic(), endpoint.open
        try:
            reply = await self._exchange(endpoint, path, data)
        except RemoteError as error:
            now = time.monotonic()
            if isinstance(error, _Out):
                if not endpoint.out and len(self._endpoints) > 1:
                    _warn(f"{endpoint.url} is left out: {error.detail}")
                endpoint.out = error.detail
            elif error.reason == "rate_limited":
                endpoint.refused(error.after, started, now, self.settings.patience)
                self._pool.worse(error, now)
            elif error.reason in _COUNTED:
                endpoint.failed(error, fresh=fresh, started=started, now=now)
                if endpoint.open:
                    self._pool.worse(error, now)
            else:  # it refuses this one, so it is there
                endpoint.failures = endpoint.refusals = 0
                endpoint.close(now)
                self._pool.well()
            raise
        else:
            endpoint.good(started, time.monotonic())
            self._pool.well()
            return reply
        finally:
            self._pool.release(endpoint, probe=probe)
            self._pool.dispatch()

    async def _exchange(self, endpoint: _Endpoint, path: str, data: bytes) -> dict[str, Any]:
        aiohttp = _aiohttp()
        where = endpoint.url
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        try:
            async with self._http.post(
                endpoint.url + path, data=BytesIO(data), headers=headers, allow_redirects=False
            ) as reply:
                raw = await _body(reply)
                status, after = reply.status, reply.headers.get("Retry-After")
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise RemoteError("connection", self._words(f"{where}: {error}"), sent=False) from None
        except TimeoutError:
            detail = f"{where} gave no answer within {self.settings.deadline:g} s (-o deadline)"
            raise RemoteError("timeout", detail) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            said = str(error) or type(error).__name__
            raise RemoteError("connection", self._words(f"{where} broke the connection off: {said}")) from None
        if raw is None:
            raise RemoteError("bad_reply", f"{where} replied with more than {MOST_REPLY >> 20} MiB")
        said = _parsed(raw)
        if status != 200:
            raise self._refusal(endpoint, status, after, raw, said)
        if not isinstance(said, dict):
            raise RemoteError("bad_reply", self._words(f"{where} replied with {_described(raw, said)}"))
        choices = said.get("choices")
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            problem = said.get("error")
            if isinstance(problem, dict) and isinstance(problem.get("code"), int) and problem["code"] >= 400:
                raise self._refusal(endpoint, problem["code"], after, raw, said)  # gateways hide errors in a 200
            raise RemoteError("bad_reply", self._words(f"{where} replied without choices: {_message(raw, said)}"))
        problem, ended = choices[0].get("error"), choices[0].get("finish_reason")
        if problem or ended in ("error", "abort"):  # OpenRouter's, vLLM's and SGLang's words: the answer has no end
            words = _message(raw, choices[0]) if problem else f"finish_reason {ended}"
            raise RemoteError("server_error", self._words(f"{where} broke off in the middle of an answer: {words}"))
        return said

    def _refusal(self, endpoint: _Endpoint, status: int, after: str | None, raw: bytes, said: Any) -> RemoteError:
        """What an HTTP status other than 200 means."""
        words = self._words(f"{endpoint.url} said {status}: {_message(raw, said)}")
        if status in (401, 402) or (status == 429 and b"insufficient_quota" in raw):
            key = self.settings.key_env
            how = f"Put a key that it takes into the environment: export {key}=…" if status == 401 else ""
            return _Out("unauthorized", f"{words} {how}".strip())
        if status in _BUSY:
            return RemoteError("rate_limited", words, after=retry_after(after))
        if status == 403:
            endpoint.forbidden += 1
            if endpoint.forbidden >= FAILURES and not endpoint.answered_once:
                return _Out("unauthorized", words)
            return RemoteError("unauthorized", words)
        if status == 408:
            return RemoteError("timeout", words)
        if status >= 500:
            return RemoteError("server_error", words)
        if status in (404, 405) or 300 <= status < 400:
            if not endpoint.answered_once:  # it is not about this picture
                return _Out("refused_request", f"{words} Is the address right (most end in /v1), and the model's name?")
            return RemoteError("server_error", words)  # it did before: another server is there, or another model
        if status < 300:
            return RemoteError("bad_reply", words)
        return RemoteError("too_large" if status == 413 else "refused_request", words)

    def _words(self, text: str) -> str:
        """Words of a server, or about it, fit to be kept: short, on one line, without the key and any payload."""
        if self._key:
            text = text.replace(self._key, "***")
        return scrub(text)

    def _look(self) -> None:
        """See who is there. One that does not say which models it has is fine."""
        found = look(self.settings)
        for endpoint in self._endpoints:
            if found[endpoint.url].unauthorized:
                said = self._words(found[endpoint.url].unauthorized)
                raise CutlineError(
                    f"{endpoint.url} does not take the key: {said} Set it by: export {self.settings.key_env}=…"
                )
        absent = [endpoint for endpoint in self._endpoints if found[endpoint.url].unreachable]
        for endpoint in absent:
            endpoint.shut(time.monotonic())
        if len(absent) == len(self._endpoints):
            said, mend = self._words(found[absent[0].url].unreachable), found[absent[0].url].mend
            raise CutlineError(f"no server answers at {', '.join(one.url for one in absent)}: {said} {mend}")
        for endpoint in absent:
            said = self._words(found[endpoint.url].unreachable)
            _warn(f"no server answers at {endpoint.url}: {said} The others go on without it until it is there")
        model = self.settings.model
        for endpoint in self._endpoints:
            names = found[endpoint.url].names
            if names and model not in names:
                listed = ", ".join(names[:20]) + (" …" if len(names) > 20 else "")
                _warn(self._words(f"{endpoint.url} does not list the model {model}; it has: {listed}"))


class _Stream:
    """One stream of rows through a session: a thread that pulls rows, and an event loop that answers them."""

    def __init__(self, session: RemoteSession, rows: Iterator[Row]) -> None:
        self.session = session
        self.rows = rows
        self.answers: queue.SimpleQueue[Row | BaseException | None] = queue.SimpleQueue()
        size = session.batch_size
        # Some more than are in flight, whose pictures are made ready in the meantime.
        self.room = threading.Semaphore(size + size // 4 + 4)
        self.stopped = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Answer everything; the thread's whole life."""
        try:
            asyncio.run(self._serve())
        except asyncio.CancelledError:
            pass
        except BaseExceptionGroup as group:  # of the tasks; the first one cancelled the others
            self.answers.put(group.exceptions[0])
        except BaseException as error:
            self.answers.put(error)
        finally:
            self.answers.put(None)

    def stop(self) -> None:
        """Break off, where anything is still going on."""
        self.stopped.set()
        self.room.release()
        if self.task is not None:
            self.call(self.task.cancel)

    def call(self, what: Callable[[], object]) -> None:
        """Have the event loop do something, while there is one."""
        with suppress(RuntimeError):  # it is closed already
            if self.loop is not None:
                self.loop.call_soon_threadsafe(what)

    async def _serve(self) -> None:
        aiohttp = _aiohttp()
        session, settings = self.session, self.session.settings
        self.loop, self.task = asyncio.get_running_loop(), asyncio.current_task()
        if self.stopped.is_set():
            return
        headers = {"Authorization": f"Bearer {session._key}"} if session._key else {}
        async with aiohttp.ClientSession(
            # Idle connections go before uvicorn closes them (after 5 s): a request must not meet a closing door.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4),
            timeout=aiohttp.ClientTimeout(total=settings.deadline, sock_connect=min(LOOK_SECONDS, settings.deadline)),
            headers=headers,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session._http:
            session._pool = _Pool(session._endpoints, settings.patience)
            inbox: asyncio.Queue[Row | BaseException | None] = asyncio.Queue()
            threading.Thread(target=self._pull, args=(inbox,), name="rows", daemon=True).start()
            async with asyncio.TaskGroup() as group:
                while (row := await inbox.get()) is not None:
                    if isinstance(row, BaseException):
                        raise row
                    group.create_task(self._answer(row))

    def _pull(self, inbox: asyncio.Queue[Row | BaseException | None]) -> None:
        """Pull rows, on a thread since the next may be long in coming, as long as there is room for them."""
        last: BaseException | None = None
        try:
            while not self.stopped.is_set():
                self.room.acquire()
                row = next(self.rows, None)
                if row is None:
                    break
                self._put(inbox, row)
        except BaseException as error:
            last = error
        self._put(inbox, last)

    def _put(self, inbox: asyncio.Queue[Row | BaseException | None], row: Row | BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
            if self.loop is not None:
                self.loop.call_soon_threadsafe(inbox.put_nowait, row)

    async def _answer(self, row: Row) -> None:
        try:
            answer = {"key": row["key"], **await self.session.one(row)}
        except Halt:
            raise
        except _Stopped:  # its row is missing, and so the next run does it
            self.room.release()
            return
        except Exception as error:
            answer = failure(row["key"], error)
            answer["detail"] = self.session._words(str(answer["detail"]))
        self.answers.put(answer)


# -- looking at servers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What an endpoint said when it was asked for its models."""

    names: tuple[str, ...] | None = None
    """The models that it lists; None where it lists none."""
    unreachable: str = ""
    """Why it cannot be reached; empty where it can."""
    mend: str = "Start it first"
    """What to do about that."""
    unauthorized: str = ""
    """What it says of the key; empty where it takes it."""


def look(settings: Remote) -> dict[str, Look]:
    """Ask each endpoint which models it has (GET /models). Nothing raises that a server does wrong."""
    aiohttp = _aiohttp()
    key = settings.key()

    async def ask(http: Any, url: str) -> Look:
        try:
            async with http.get(f"{url}/models", allow_redirects=False) as reply:
                raw, status = await _body(reply), reply.status
        except aiohttp.ClientSSLError as error:
            return Look(unreachable=f"{error}.", mend="A certificate of your own is trusted by: export SSL_CERT_FILE=…")
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return Look(unreachable=f"{error}.")
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError):
            return Look()
        said = _parsed(raw or b"")
        if status == 401:
            return Look(unauthorized=f"{_message(raw or b'', said)}.")
        listed = said.get("data") if status == 200 and isinstance(said, dict) else None
        if not isinstance(listed, list):
            return Look()
        return Look(tuple(str(model["id"]) for model in listed if isinstance(model, dict) and "id" in model) or None)

    async def all_of_them() -> dict[str, Look]:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = aiohttp.ClientTimeout(total=min(LOOK_SECONDS, settings.deadline))
        async with aiohttp.ClientSession(headers=headers, timeout=timeout, trust_env=False) as http:
            found = await asyncio.gather(*(ask(http, url) for url in settings.endpoints))
        return dict(zip(settings.endpoints, found, strict=True))

    return run_apart(all_of_them)


def run_apart(work: Callable[[], Coroutine[Any, Any, Made]]) -> Made:
    """Run this on a thread of its own, as this one may have an event loop already: notebooks do."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(work())).result()


# -- replies ---------------------------------------------------------------------------------------------------------


def retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, given as seconds or as a date; None where it says neither."""
    if value is None:
        return None
    value = value.strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, LookupError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def scrub(text: str) -> str:
    """Words of a server, on one line, at most `MOST_DETAIL` characters, without data URLs and long runs of base64."""
    # Some write / as \\/ or as %2F.
    text = re.sub(r"data:[^\s,;\"']*;base64,[A-Za-z0-9+/=_\-\\%]*", "[picture]", text[: 1 << 16])
    text = re.sub(r"[A-Za-z0-9+/=_\-\\%]{64,}", "[…]", text)
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return text if len(text) <= MOST_DETAIL else text[: MOST_DETAIL - 1] + "…"


async def _body(reply: aiohttp.ClientResponse) -> bytes | None:
    """The bytes of a reply, uncompressed; None where there are too many."""
    pieces, size = [], 0
    async for piece in reply.content.iter_chunked(1 << 16):
        size += len(piece)
        if size > MOST_REPLY:
            return None
        pieces.append(piece)
    return b"".join(pieces)


def _parsed(raw: bytes) -> Any:
    """The JSON of a reply; None where it is none."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _message(raw: bytes, said: Any) -> str:
    """What a server says of an error, in its own words."""
    if not isinstance(said, dict):
        return _described(raw, said)
    words = said.get("error", said.get("detail", said.get("message")))
    if isinstance(words, dict):
        words = words.get("message", words.get("type"))
    if isinstance(words, list):  # FastAPI's: what it says of each field also repeats the field, picture and all
        words = "; ".join(f"{one.get('loc')}: {one.get('msg')}" for one in words if isinstance(one, dict))
    return str(words) if words else "nothing"


def _described(raw: bytes, said: Any) -> str:
    """What came instead of a JSON object."""
    if said is not None:
        return f"JSON that is no object ({type(said).__name__})"
    text = raw[: 1 << 16].decode("utf-8", "replace")
    if not text.strip():
        return "nothing"
    if re.match(r"\s*<", text):
        title = re.search(r"<title>(.*?)</title>", text[:4096], re.DOTALL | re.IGNORECASE)
        return f"a web page{f' ({title[1].strip()})' if title else ''}"
    return f"no JSON: {text}"  # whole: the key and payloads are looked for before it is cut


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def _aiohttp() -> Any:
    try:
        import aiohttp
    except ImportError as error:
        raise CutlineError(
            f"to ask servers takes more than is installed here ({error}). Type: pip install 'cutline[server]'"
        ) from None
    return aiohttp
