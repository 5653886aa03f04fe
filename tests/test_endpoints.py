"""The client of servers: whatever a server does, every row is answered exactly once, and nothing that is secret leaks.

The server is real (`misbehaving.py`) and misbehaves by what it is asked, so that no test hangs on time or order.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from cutline.annotators import endpoints
from cutline.annotators.endpoints import REASONS, Remote, RemoteError, RemoteSession, retry_after, scrub
from cutline.annotators.session import Halt, Row
from cutline.options import CutlineError, OptionError, fill, identity
from misbehaving import MODEL, Misbehaving, counts, process

CERTIFICATE = Path(__file__).parent / "localhost.pem"
SECRET = "sk-very-secret-0123456789"
PAYLOAD = "data:image/png;base64," + "iVBORw0KGgo" * 400


@dataclass(frozen=True)
class Ask(Remote):
    """Settings of an annotator that sends a row's key and takes what comes."""

    def __post_init__(self) -> None:
        self.check_remote("ask")

    def load(self) -> Asking:
        return Asking(self)


class Asking(RemoteSession):
    async def one(self, row: Row) -> Row:
        reply = await self.post("/completions", {"model": MODEL, "prompt": row["key"], "payload": PAYLOAD})
        return {"texts": [reply["choices"][0]["text"]]}


def settings(*servers: Misbehaving | str, **given: Any) -> Ask:
    urls = tuple(server if isinstance(server, str) else server.url for server in servers)
    return Ask(**{"endpoints": urls, "model": MODEL, "deadline": 20.0, "patience": 20.0, **given})


def ask(asked: Ask, keys: list[str]) -> dict[str, Row]:
    """Answer rows with these keys. Each is answered once."""
    answers = list(asked.load()(iter([{"key": key} for key in keys])))
    assert sorted(row["key"] for row in answers) == sorted(keys)
    return {row["key"]: row for row in answers}


def numbers(count: int) -> list[str]:
    return [f"row {number}" for number in range(count)]


def closed_port() -> str:
    """An address at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{bound.getsockname()[1]}/v1"


FATE = {
    "good": None,
    "500": "server_error",
    "500 echo": "server_error",
    "502": "server_error",
    "page": "bad_reply",
    "empty choices": "bad_reply",
    "invalid JSON": "bad_reply",
    "not UTF-8": "bad_reply",
    "a list": "bad_reply",
    "huge": "bad_reply",
    "deep": "bad_reply",
    "error in 200": "server_error",
    "broken off": "server_error",
    "aborted": "server_error",
    "hang": "timeout",
    "half": "timeout",
    "reset": "connection",
    "cut": "connection",
    "400": "refused_request",
    "422": "refused_request",
    "413": "too_large",
    "403": "unauthorized",
}


def test_every_misbehaviour_has_its_reason_and_stops_nothing() -> None:
    keys = [f"{behaviour} {number}" for behaviour in FATE for number in range(2)]
    script = {key: [key.rpartition(" ")[0]] for key in keys}
    with Misbehaving(script) as server:
        answers = ask(settings(server, deadline=0.6, tries=2), [*keys, *numbers(20)])
        for key in keys:
            wanted = FATE[key.rpartition(" ")[0]]
            answer = answers[key]
            assert answer.get("error") == wanted, answer
            tries = 2 if wanted in ("server_error", "bad_reply", "timeout", "connection") else 1
            assert len(server.times(key)) == tries, key
            if wanted is not None:
                assert wanted in REASONS
                assert answer["detail"]
                assert "iVBOR" not in answer["detail"], "no payload"
                assert len(answer["detail"]) <= endpoints.MOST_DETAIL
    assert all(answers[key]["texts"] == [f"a picture of {key}"] for key in numbers(20))


def test_the_words_of_the_server_are_kept_short() -> None:
    with Misbehaving({"a": ["400"], "b": ["422"], "c": ["502"], "d": ["500"], "e": ["413"]}) as server:
        answers = ask(settings(server, tries=1), list("abcde"))
    assert "said 400: cannot read" in answers["a"]["detail"]
    assert "['body', 'messages']: no such field" in answers["b"]["detail"]
    assert "a web page (Bad gateway)" in answers["c"]["detail"]
    assert "said 500: CUDA error" in answers["d"]["detail"]
    assert "Maximum request body size exceeded" in answers["e"]["detail"]


def test_what_fails_once_is_sent_again() -> None:
    passing = ["500", "502", "page", "empty choices", "invalid JSON", "hang", "reset", "cut", "error in 200"]
    with Misbehaving({name: [name, "good"] for name in passing}) as server:
        answers = ask(settings(server, deadline=1.0), passing)
        assert all(answers[name].get("texts") == [f"a picture of {name}"] for name in passing), answers
        assert all(len(server.times(name)) == 2 for name in passing)


@pytest.mark.parametrize("behaviour", ["429", "429 until"])
def test_retry_after_is_waited_for(behaviour: str) -> None:
    with Misbehaving({"row 0": [behaviour, "good"]}, retry_after="2") as server:
        answers = ask(settings(server, in_flight=1), numbers(3))
        refused, again = server.times("row 0")
        # A date has whole seconds, so that up to one of the two is lost.
        assert again.moment - refused.moment >= (2.0 if behaviour == "429" else 1.0)
        between = [asked for asked in server.asked if refused.moment < asked.moment < again.moment]
        assert between == [], "the endpoint rests, not the row alone"
    assert not any("error" in row for row in answers.values())


@pytest.mark.parametrize("behaviour", ["429 bare", "503"])
def test_a_busy_server_is_waited_for_without_a_word_how_long(behaviour: str) -> None:
    # More refusals than `tries`: being busy is no fault of the request.
    with Misbehaving({key: [behaviour] * 2 + ["good"] for key in numbers(3)}) as server:
        answers = ask(settings(server, tries=1, patience=60.0), numbers(3))
    assert not any("error" in row for row in answers.values())


def test_fewer_requests_at_once_after_refusals() -> None:
    keys = numbers(120)
    with Misbehaving({key: ["429", "good"] for key in keys[:16]}, seconds=0.02, retry_after="0") as server:
        ask(settings(server, in_flight=16), keys)
        peak, server.peak = server.peak, 0
        assert peak == 16
    session = settings("http://127.0.0.1:1/v1", in_flight=16)
    endpoint = endpoints._Endpoint("x", session.in_flight)
    endpoint.busy = 16
    for _ in range(16):  # refused together: that counts once
        endpoint.refused(0.0, started=1.0, now=2.0, longest=1.0)
    assert endpoint.limit == 8
    endpoint.refused(0.0, started=3.0, now=4.0, longest=1.0)
    assert endpoint.limit == 4
    for _ in range(4 + 5 + 6 + 7):
        endpoint.good(started=5.0, now=5.1)
    assert 7 < endpoint.limit <= 8.1, "one more for each round that goes well"
    for _ in range(1000):
        endpoint.good(started=5.0, now=5.1)
    assert endpoint.limit == 16, "and never more than in_flight"


def test_an_endpoint_that_becomes_slow_is_sent_fewer_and_later_its_share_again() -> None:
    endpoint = endpoints._Endpoint("x", 64)
    moment = 0.0

    def answers(count: int, seconds: float) -> None:
        nonlocal moment
        for _ in range(count):
            moment += seconds / endpoint.limit
            endpoint.good(started=moment, now=moment + seconds)

    answers(640, 0.2)
    assert endpoint.limit == 64
    endpoint.busy = 64
    answers(256, 2.0)
    assert endpoint.limit < 48
    answers(64 * 60, 2.0)
    assert endpoint.limit == 64, "slow for good is the new normal"


def test_a_server_that_is_always_busy_ends_the_run() -> None:
    keys = numbers(300)
    with Misbehaving(always="429", retry_after="3600") as server:
        started = time.monotonic()
        answers = ask(settings(server, patience=1.0, in_flight=8), keys)
        assert time.monotonic() - started < 30
        assert len(server.asked) < 100
    assert {row["error"] for row in answers.values()} == {"rate_limited"}


def test_a_request_that_is_always_too_much_does_not_wait_for_ever() -> None:
    script = {"row 3": ["429"]}
    with Misbehaving(script, retry_after="0.02", seconds=0.02) as server:
        answers = ask(settings(server, patience=0.5, in_flight=4), numbers(40))
        assert len(server.times("row 3")) >= endpoints.REFUSALS
    assert {key for key, row in answers.items() if "error" in row} == {"row 3"}
    assert answers["row 3"]["error"] == "rate_limited"


def test_a_server_that_goes_away_for_good_ends_the_run() -> None:
    with process(seconds=0.05) as (url, server):
        session = settings(url, patience=1.0, in_flight=4).load()
        answers = []
        for answer in session(iter([{"key": key} for key in numbers(400)])):
            answers.append(answer)
            if len(answers) == 20:
                server.kill()
    assert len(answers) == 400
    assert {row.get("error") for row in answers} <= {None, "connection", "unreachable"}
    assert sum(row.get("error") == "unreachable" for row in answers) > 300


@pytest.mark.slow
def test_a_server_that_comes_back_is_waited_for() -> None:
    with ExitStack() as stack:
        url, server = stack.enter_context(process(seconds=0.05))

        def come_back() -> None:
            time.sleep(1.5)
            stack.enter_context(process(seconds=0.01, port=url.rpartition(":")[2].partition("/")[0]))

        back = threading.Thread(target=come_back)
        answers = []
        session = settings(url, in_flight=4, patience=60.0, tries=8).load()
        for answer in session(iter([{"key": key} for key in numbers(60)])):
            answers.append(answer)
            if len(answers) == 10:
                server.kill()
                server.wait()
                back.start()
        back.join()
    assert [row.get("error") for row in answers] == [None] * 60


def test_two_servers_share_the_work_and_one_that_is_killed_loses_nothing() -> None:
    with process(seconds=0.05) as (first, killed), Misbehaving(seconds=0.05) as second:
        keys = numbers(200)
        answers = []
        for answer in settings(first, second, in_flight=8).load()(iter([{"key": key} for key in keys])):
            answers.append(answer)
            if len(answers) == 50:
                had = counts(first)["asked"]
                killed.kill()
    assert had >= 10
    assert sorted(row["key"] for row in answers) == sorted(keys)
    assert all("error" not in row for row in answers)
    assert max(second.answered.values()) == 1, "none was asked twice of the one that lives"


def test_two_servers_of_which_one_slows_ten_times() -> None:
    with Misbehaving(seconds=0.05) as slow, Misbehaving(seconds=0.05) as fast:
        keys = numbers(300)
        answers = []
        for answer in settings(slow, fast, in_flight=8).load()(iter([{"key": key} for key in keys])):
            answers.append(answer)
            if len(answers) == 40:
                slow.seconds = 0.5
        assert sorted(row["key"] for row in answers) == sorted(keys)
        assert all("error" not in row for row in answers)
        assert len(slow.asked) + len(fast.asked) == 300, "each was asked once"
        assert len(fast.asked) > 2 * len(slow.asked)


def test_one_of_two_servers_is_dead_from_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    with Misbehaving() as server:
        answers = ask(settings(closed_port(), server), numbers(40))
    assert not any("error" in row for row in answers.values())
    assert "no server answers at" in capsys.readouterr().err


def test_a_request_that_fails_at_one_server_goes_to_the_other() -> None:
    with Misbehaving(always="500") as bad, Misbehaving() as good:
        answers = ask(settings(bad, good, in_flight=2), numbers(60))
        assert len(bad.asked) < 30, "its circuit is open"
    assert not any("error" in row for row in answers.values())


@pytest.mark.parametrize("behaviour", ["404", "400", "403", "413"])
def test_a_server_that_begins_to_refuse_all_leaves_its_work_to_the_other(behaviour: str) -> None:
    script = {key: ["good"] for key in numbers(4)} | {key: [behaviour] for key in numbers(120)[4:]}
    with Misbehaving(script) as other_model, Misbehaving(seconds=0.01) as good:
        answers = ask(settings(other_model, good, in_flight=2), numbers(120))
        assert any(asked.behaviour == behaviour for asked in other_model.asked)
    assert not any("error" in row for row in answers.values())


def test_a_request_that_two_servers_refuse_is_refused() -> None:
    script = {"row 3": ["400"]}
    with ExitStack() as stack:
        servers = [stack.enter_context(Misbehaving(script)) for _ in range(3)]
        answers = ask(settings(*servers), numbers(10))
        assert sum(len(server.times("row 3")) for server in servers) == 2
    assert {key: row["error"] for key, row in answers.items() if "error" in row} == {"row 3": "refused_request"}


def test_a_server_that_has_another_model_now_is_waited_for() -> None:
    with Misbehaving(seconds=0.01) as server:

        def rows() -> Iterator[Row]:
            yield from ({"key": key} for key in numbers(5))
            while sum(server.answered.values()) < 5:
                time.sleep(0.01)
            server.always = "404"
            threading.Timer(1.0, lambda: setattr(server, "always", "")).start()
            yield from ({"key": key} for key in numbers(60)[5:])

        answers = list(settings(server, in_flight=2, tries=9).load()(rows()))
    assert len(answers) == 60
    assert not any("error" in row for row in answers)


def test_a_probe_that_an_older_answer_overtakes_is_not_waited_for_ever() -> None:
    async def overtaken() -> endpoints._Endpoint:
        endpoint = endpoints._Endpoint("http://x", 4)
        pool = endpoints._Pool([endpoint], 300.0)
        endpoint.shut(time.monotonic() - 60)
        await pool.take(0, set())
        endpoint.good(time.monotonic(), time.monotonic())
        pool.release(endpoint, probe=endpoint.open)
        endpoint.shut(time.monotonic() - 60)
        return endpoint

    assert asyncio.run(overtaken()).free(time.monotonic()), "it is looked after again"


def test_time_in_which_nothing_was_asked_is_no_time_of_trouble() -> None:
    gone = RemoteError("connection", "gone", sent=False)

    async def asked() -> None:
        endpoint = endpoints._Endpoint("http://x", 4)
        pool = endpoints._Pool([endpoint], 300.0)
        long_ago = time.monotonic() - 1000
        endpoint.shut(long_ago)
        pool.worse(gone, long_ago)
        first, second, third = [asyncio.create_task(pool.take(pool.begin(), set())) for _ in range(3)]
        await asyncio.sleep(0)
        assert first.done(), "one looks whether it is back"
        assert not second.done(), "and the others wait for that"
        pool.worse(gone, time.monotonic() - 301)
        pool.dispatch()
        found = await asyncio.gather(second, third, return_exceptions=True)
        assert [type(error) for error in found] == [RemoteError, RemoteError]
        pool.release(endpoint, probe=False)
        pool.begin()
        assert pool.trouble_since is not None, "once patience has ended, it does not begin anew for each row"

    asyncio.run(asked())


def test_nobody_there_is_said_before_any_row() -> None:
    with pytest.raises(CutlineError, match=r"no server answers at http://127.0.0.1:.*Start it first"):
        settings(closed_port()).load()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_that_nobody_knows_is_told_of() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    with Misbehaving(tls=context) as server:
        url = server.url.replace("http:", "https:")
        with pytest.raises(CutlineError, match=r"CERTIFICATE_VERIFY_FAILED.*export SSL_CERT_FILE"):
            settings(url).load()
        script = "import sys, test_endpoints as it; print(it.ask(it.settings(sys.argv[1]), ['a']))"
        trusting = {**os.environ, "SSL_CERT_FILE": str(CERTIFICATE), "PYTHONPATH": os.pathsep.join(sys.path)}
        asked = [sys.executable, "-c", script, url]
        done = subprocess.run(asked, capture_output=True, text=True, check=True, env=trusting)
    assert "a picture of a" in done.stdout


def test_a_server_that_hangs_for_all_leaves_its_work_to_the_other() -> None:
    with Misbehaving(always="hang") as hung, Misbehaving(seconds=0.01) as good:
        answers = ask(settings(hung, good, in_flight=4, deadline=0.5), numbers(80))
        assert len(hung.asked) < 40, "its circuit is open"
    assert not any("error" in row for row in answers.values())


@pytest.mark.slow
def test_whatever_happens_each_row_is_answered_once_and_rightly() -> None:
    random = Random(5)
    odd = ["500", "502", "page", "empty choices", "invalid JSON", "reset", "cut", "400", "error in 200"]
    keys = numbers(200)
    script = {key: [*random.choices(odd, k=random.choice((0, 0, 1, 2))), "good"] for key in keys}
    with Misbehaving(script, seconds=0.005) as first, Misbehaving(script, seconds=0.005) as second:
        answers = ask(settings(first, second, in_flight=8, tries=5), keys)
    for key in keys:
        # Each server goes through the script by itself, so that it is asked twice as often at most.
        if "400" not in script[key]:
            assert answers[key].get("texts") == [f"a picture of {key}"], (script[key], answers[key])
        else:
            assert answers[key].get("error", "refused_request") == "refused_request"


# -- keys, addresses, options ----------------------------------------------------------------------------------------


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    with Misbehaving({"bad": ["401"]}, key=SECRET) as server:
        asked = settings(server, key_env="MY_KEY")
        session = asked.load()
        answers = list(session(iter([{"key": "fine"}])))
        assert server.asked[0].headers["Authorization"] == f"Bearer {SECRET}"
        assert SECRET not in f"{asked} {session} {answers} {identity(asked)} {vars(asked)}"
    assert answers == [{"key": "fine", "texts": ["a picture of fine"]}]


@pytest.mark.parametrize("key", ["", "sk-wrong"])
def test_a_wrong_key_is_refused_before_any_row(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with Misbehaving(key=SECRET) as server, pytest.raises(CutlineError, match="export OPENAI_API_KEY=") as caught:
        settings(server).load()
    assert not key or key not in str(caught.value)
    assert server.asked == []


def test_no_part_of_the_key_is_left_where_words_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    with Misbehaving(always="key in words", key=SECRET) as server:
        detail = ask(settings(server, key_env="MY_KEY"), ["a"])["a"]["detail"]
    assert "Bearer ***" in detail
    assert SECRET[:6] not in detail


def test_a_key_that_is_refused_on_the_way_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with Misbehaving({key: ["401"] for key in numbers(1000)}, models=None) as server:
        session = settings(server, in_flight=4).load()
        with pytest.raises(Halt, match=r"said 401: Incorrect API key.*export OPENAI_API_KEY=") as caught:
            list(session(iter([{"key": key} for key in numbers(1000)])))
        assert len(server.asked) <= 4
    assert SECRET not in str(caught.value)
    assert "***" in str(caught.value)


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [("quota", "quota"), ("404", "tiny does not exist.*model's name"), ("redirect", "307"), ("403", "not allowed")],
)
def test_a_server_that_will_answer_nothing_stops_the_run(behaviour: str, says: str) -> None:
    with Misbehaving(always=behaviour) as server, pytest.raises(Halt, match=says):
        list(settings(server, in_flight=4).load()(iter([{"key": key} for key in numbers(1000)])))
    assert len(server.asked) <= 12


def test_a_server_without_the_key_leaves_its_work_to_the_other() -> None:
    with Misbehaving(always="401", models=None) as strict, Misbehaving() as open_:
        answers = ask(settings(strict, open_, in_flight=4), numbers(40))
        assert len(strict.asked) <= 4
    assert not any("error" in row for row in answers.values())


@pytest.mark.parametrize("value", ["two words", "kéy", "line\nbreak"])
def test_a_key_that_cannot_be_one(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(CutlineError, match="MY_KEY holds no key") as caught:
        settings(closed_port(), key_env="MY_KEY").load()
    assert value not in str(caught.value)


def test_a_named_key_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(CutlineError, match="MY_KEY is not set"):
        settings(closed_port(), key_env="MY_KEY").load()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"endpoints": ()}, "which server"),
        ({"endpoints": "localhost:8000"}, "is not"),
        ({"endpoints": "ftp://localhost/v1"}, "is not"),
        ({"endpoints": "http://[::1/v1"}, "one of those given is none"),
        ({"endpoints": "http://localhost:99999/v1"}, "one of those given is none"),
        ({"endpoints": "http://local..host/v1"}, "one of those given is none"),
        ({"endpoints": f"http://{'a' * 80}/v1"}, "one of those given is none"),
        ({"endpoints": "http://local\0host/v1"}, "is not"),
        ({"endpoints": f"http://user:{SECRET}@localhost/v1"}, "without a user or password"),
        ({"endpoints": f"http://{SECRET}@localhost/v1"}, "without a user or password"),
        ({"endpoints": f"http://localhost/v1?key={SECRET}"}, "comes from the environment"),
        ({"endpoints": "http://localhost/v1#x"}, "comes from the environment"),
        ({"endpoints": "http://localhost/v1/chat/completions"}, "leave out the /chat/completions"),
        ({"endpoints": "http://localhost/v1,http://localhost/v1/"}, "twice"),
        ({"in_flight": "0"}, "at least 1"),
        ({"tries": "0"}, "at least 1"),
        ({"deadline": "0"}, "more than 0"),
        ({"patience": "inf"}, "more than 0"),
        ({"patience": "nan"}, "more than 0"),
        ({"key_env": SECRET}, "the \\*name\\* of an environment variable"),
        ({"key_env": ""}, "names an environment variable"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says) as caught:
        fill(Ask, {"endpoints": "http://localhost:8000/v1", "model": MODEL, **given}, name="ask")
    assert SECRET not in str(caught.value)


def test_addresses_are_brought_into_one_form() -> None:
    made = Ask(endpoints=("http://localhost:8000/v1/", "https://[::1]:81/x/"), model=MODEL)
    assert made.endpoints == ("http://localhost:8000/v1", "https://[::1]:81/x")


def test_without_a_model_the_refusal_lists_those_of_the_server() -> None:
    with Misbehaving(models=["llava", "qwen"]) as server, pytest.raises(OptionError, match="has: llava, qwen"):
        Ask(endpoints=(server.url,))
    with pytest.raises(OptionError, match="which model"):
        Ask(endpoints=(closed_port(),))


@pytest.mark.parametrize("models", [None, [], ["other"], [MODEL, "other"]])
def test_a_model_that_the_server_does_not_list(models: list[str] | None, capsys: pytest.CaptureFixture[str]) -> None:
    with Misbehaving(models=models) as server:
        answers = ask(settings(server), ["a"])
    assert answers["a"]["texts"] == ["a picture of a"]
    warned = capsys.readouterr().err
    assert ("does not list the model tiny; it has: other" in warned) == (models == ["other"])


def test_only_the_model_is_identity() -> None:
    plain = settings("http://a/v1")
    other = settings("http://b/v1", "http://c/v1", in_flight=3, tries=9, deadline=1.0, patience=2.0, key_env="X")
    assert identity(plain) == identity(other) == {"model": MODEL}
    assert identity(dataclasses.replace(plain, model="x")) != identity(plain)


def test_the_limit_on_requests_at_once_holds() -> None:
    with Misbehaving(seconds=0.05) as server:
        ask(settings(server, in_flight=7), numbers(60))
        assert server.peak == 7


# -- the stream ------------------------------------------------------------------------------------------------------


def test_rows_that_come_slowly_are_answered_as_they_come() -> None:
    """A row is answered though the next one never comes before it is."""
    answered = threading.Event()

    def rows() -> Iterator[Row]:
        yield {"key": "first"}
        assert answered.wait(20), "the second row is not there before the first is answered"
        yield {"key": "second"}

    with Misbehaving() as server:
        for answer in settings(server).load()(rows()):
            answered.set()
            assert "error" not in answer


def test_no_more_rows_are_pulled_than_fit() -> None:
    pulled = 0

    def rows() -> Iterator[Row]:
        nonlocal pulled
        for key in numbers(500):
            pulled += 1
            yield {"key": key}

    with Misbehaving(seconds=0.01) as server:
        stream = cast(Generator[Row, None, None], settings(server, in_flight=4).load()(rows()))
        next(stream)
        time.sleep(0.3)
        assert pulled <= 12
        stream.close()
        assert len(server.asked) <= 12


def test_what_a_row_raises_is_its_own_and_what_the_rows_raise_ends_the_call() -> None:
    class Odd(Asking):
        async def one(self, row: Row) -> Row:
            if row["key"] == "odd":
                raise ValueError(PAYLOAD)
            return await super().one(row)

    def rows() -> Iterator[Row]:
        yield {"key": "odd"}
        yield {"key": "even"}

    def broken() -> Iterator[Row]:
        yield {"key": "even"}
        raise OSError("the pipe is gone")

    with Misbehaving() as server:
        session = Odd(settings(server))
        answers = {row["key"]: row for row in session(rows())}
        assert answers["even"]["texts"]
        assert answers["odd"]["error"] == "failed"
        assert "iVBOR" not in answers["odd"]["detail"]
        with pytest.raises(OSError, match="the pipe is gone"):
            list(session(broken()))
        assert [row["key"] for row in session(iter([{"key": "again"}]))] == ["again"], "it serves another call"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), (" 0 ", 0.0), ("1.5", 1.5), (None, None), ("soon", None), ("-1", None), ("", None), ("9" * 30, None)],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds


def test_retry_after_as_a_date() -> None:
    for change in (5, 60):
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=change), usegmt=True)
        found = retry_after(date)
        assert found is not None
        assert change - 2 <= found <= change
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0


def test_scrub() -> None:
    assert scrub("a\n\tb\x00c") == "a b c"
    assert scrub(f"cannot read {PAYLOAD}!") == "cannot read [picture]!"
    assert scrub("x " + "QUJD" * 40 + " y") == "x […] y"
    slashed = "/".join(["QUJD" * 6] * 20)
    assert scrub("read data:image/jpeg;base64," + slashed.replace("/", "\\/")) == "read [picture]"
    assert scrub("read data:image/jpeg;base64 " + slashed.replace("/", "%2F")) == "read data:image/jpeg;base64 […]"
    assert len(scrub("many words " * 100)) == endpoints.MOST_DETAIL
    assert scrub("a path /v1/chat/completions stays") == "a path /v1/chat/completions stays"


def test_without_aiohttp_it_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from cutline.annotators.endpoints import Remote, RemoteSession\n"
        "from cutline.options import CutlineError\n"
        "try: RemoteSession(Remote(endpoints=('http://localhost:1/v1',), model='x'))\n"
        "except CutlineError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "pip install 'cutline[server]'" in done.stdout


def test_importing_it_imports_no_aiohttp() -> None:
    program = "import sys, cutline.annotators.endpoints; print('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
