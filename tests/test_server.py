"""The annotator `server`, through the engine and the command line, against a real server that misbehaves on script."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from PIL import Image

from cutline.annotators.server import Server, data_url, said, shrink
from cutline.annotators.session import Row
from cutline.dataset import Dataset
from cutline.engine.here import EngineError, Report, annotate
from cutline.engine.selection import Selection
from cutline.options import OptionError, digest, fill, identity
from cutline.pictures import Picture
from misbehaving import LOOP, MODEL, Misbehaving, counts, pictures_in, process, prompt_of
from running import SOON, cutline, environment, events, make_pictures, picture, raw_rows
from test_booru import danbooru

LAYER = "captions/server"
SECRET = "sk-very-secret-0123456789"
NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def dataset_of(folder: Path, count: int) -> Dataset:
    """A dataset of pictures in as many colours."""
    make_pictures(folder, count)
    dataset = Dataset(folder)
    dataset.add(fill_source(folder))
    return dataset


def fill_source(folder: Path) -> Any:
    from cutline.sources.folder import Folder

    return Folder(path=folder)


def server(*servers: Misbehaving | str, **given: Any) -> Server:
    urls = ",".join(one if isinstance(one, str) else one.url for one in servers)
    exact = {} if _blind(given) else {"image_format": "png"}
    return fill(Server, {"endpoints": urls, "model": MODEL, "patience": 30, **exact, **given})


def _blind(given: dict[str, Any]) -> bool:
    return str(given.get("picture")).lower() == "false" or given.get("api") == "completions"


def run(dataset: Dataset, settings: Server, **narrow: Any) -> Report:
    return annotate(Selection(dataset, settings, LAYER, **narrow))


def rows_of(dataset: Dataset, layer: str = LAYER) -> dict[str, Row]:
    """The rows of the layer by the number of their picture."""
    found = dataset.sql(f'from "{layer}"').arrow().to_pylist()
    return {str(int(re.sub(r"\D", "", row["key"]))): row for row in found}


def typed(server: Misbehaving | str, **given: Any) -> list[str]:
    url = server if isinstance(server, str) else server.url
    exact = {} if _blind(given) else {"image_format": "png"}
    options = {"endpoints": url, "model": MODEL, **exact, **given}
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def row(path: Path | None = None, tags: dict[str, Any] | None = None, **more: Any) -> Row:
    """A row as the engine gives it."""
    known = {"key": "a.png", "uri": "a.png", "attempt": 1, "width": 8, "height": 6, "content": None, "tags/x": tags}
    return {**known, "picture": Picture(path) if path else None, **more}


FATES = {
    # behaviour: (error, verdict, reason, how often it is asked; `tries` is 2, and checks ask 3 times)
    "good": (None, "good", None, 1),
    "500": ("server_error", None, None, 2),
    "500 echo": ("server_error", None, None, 2),
    "502": ("server_error", None, None, 2),
    "page": ("bad_reply", None, None, 2),
    "hang": ("timeout", None, None, 2),
    "reset": ("connection", None, None, 2),
    "empty choices": ("bad_reply", None, None, 2),
    "invalid JSON": ("bad_reply", None, None, 2),
    "not UTF-8": ("bad_reply", None, None, 2),
    "400": ("refused_request", None, None, 1),
    "422": ("refused_request", None, None, 1),
    "413": ("too_large", None, None, 1),
    "filter": ("filtered", None, None, 1),
    "a number": ("bad_reply", None, None, 1),
    "length": (None, "repaired", "cut", 1),
    "empty": (None, "rejected", "empty", 3),
    "null": (None, "rejected", "empty", 3),
    "thinking": (None, "rejected", None, None),
    "only thinking apart": (None, "rejected", None, None),
    "thinking apart": (None, "good", None, 1),
    "pieces": (None, "good", None, 1),
    "refusal": (None, "rejected", "refusal", 3),
    "refusal field": (None, "rejected", "refusal", 3),
    "loop": (None, "rejected", None, 3),
    "odd usage": (None, "good", None, 1),
    "no usage": (None, "good", None, 1),
    "broken off": ("server_error", None, None, 2),
    "odd finish": (None, "good", None, 1),
}


def test_every_misbehaviour_ends_in_a_typed_row_and_nothing_leaks(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    dataset_of(photos, len(FATES) + 4)
    script = {str(number): [behaviour] for number, behaviour in enumerate(FATES)}
    script[str(len(FATES))] = ["429", "good"]
    with Misbehaving(script, key=SECRET) as tricky:
        words = ["annotate", photos, "server", *typed(tricky, deadline=1.5, tries=2, key_env="MY_KEY"), "--log-json"]
        done = cutline(*words, code=3, env=environment(MY_KEY=SECRET))
        asked = {behaviour: len(tricky.times(str(number))) for number, behaviour in enumerate(FATES)}
    rows = rows_of(Dataset(photos))
    assert len(rows) == len(FATES) + 4
    for number, (behaviour, (error, verdict, reason, times)) in enumerate(FATES.items()):
        found = rows[str(number)]
        assert (found["error"], found["verdict"]) == (error, verdict), (behaviour, found)
        assert times is None or asked[behaviour] == times, (behaviour, asked[behaviour])
        assert reason is None or found["reason"] == reason, (behaviour, found)
        if verdict == "rejected":
            assert found["reason"], behaviour
            assert found["texts"] == []
        if verdict == "good":
            assert found["texts"] == [f"a picture of {number}"]
    length = rows[str(list(FATES).index("length"))]
    assert length["texts"] == [f"a picture of {list(FATES).index('length')}."]
    assert length["finish_reason"] == "length"
    assert rows[str(list(FATES).index("loop"))]["raw"] == LOOP
    for number in range(len(FATES), len(FATES) + 4):
        assert rows[str(number)]["verdict"] == "good"
    # Nothing that was printed or is in the dataset holds a picture as it was sent, or the key.
    written = [file.read_bytes() for file in (photos / ".cutline").rglob("*") if file.is_file()]
    said_and_kept = json.dumps(list(rows.values()), default=str) + done.stdout + done.stderr
    assert not re.search(r"[A-Za-z0-9+/]{65,}", said_and_kept)
    for number in range(len(FATES)):
        assert base64.b64encode(picture(number)).decode()[:60] not in said_and_kept
    for text in (*written, said_and_kept.encode()):
        assert b"base64" not in text
        assert b"iVBORw0KGgo" not in text
        assert SECRET.encode() not in text
    assert events(done.stdout)[-1]["event"] == "end"


def test_a_row_says_how_it_came_about(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, 3)
    with Misbehaving({"1": ["no usage"], "2": ["odd usage"]}) as good:
        settings = server(good, system="You see.", temperature=0.5)
        report = run(dataset, settings)
    assert (report.good, report.done) == (3, 3)
    rows = rows_of(dataset)
    assert [(rows[n]["tokens_in"], rows[n]["tokens_out"]) for n in "012"] == [(11, 5), (None, None), (None, None)]
    for found in rows.values():
        assert found["finish_reason"] == "stop"
        assert found["seconds"] > 0
        assert found["attempt"] == 1
    key = rows["0"]["key"]
    assert rows["0"]["request"] == digest(settings.request(row(key=key, uri=key)))
    body = good.times("0")[0].body
    assert body["messages"][0] == {"role": "system", "content": "You see."}
    shown, text = body["messages"][1]["content"]
    assert shown["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "Describe this picture in a few plain sentences."}
    assert (body["model"], body["max_tokens"], body["temperature"]) == (MODEL, 1000, 0.5)
    # The body is the request with the picture in its place, and nothing else.
    asked = settings.request(row(key=key, uri=key))
    asked["messages"][1]["content"][0]["image_url"]["url"] = shown["image_url"]["url"]
    assert body == asked


def test_a_dry_run_asks_nobody_and_shows_the_request_of_the_row(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, 2)
    with Misbehaving() as good:
        shown = json.loads(cutline("annotate", tmp_path, "server", *typed(good), "--dry-run", "--log-json").stdout)
        assert good.asked == []
        run(dataset, server(good))
    first = rows_of(dataset)["0"]
    assert shown["first"]["hash"] == first["request"]
    assert shown["first"]["request"]["messages"][0]["content"][0]["image_url"]["url"]["picture"] == first["key"]


def test_a_bad_answer_is_asked_for_again_with_another_seed(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, 2)
    with Misbehaving({"0": ["empty", "good"], "1": ["loop", "refusal", "good"]}) as moody:
        settings = server(moody, temperature=0)
        run(dataset, settings)
        first, second = moody.times("0")
    rows = rows_of(dataset)
    assert [rows[n]["verdict"] for n in "01"] == ["good", "good"]
    assert [rows[n]["attempt"] for n in "01"] == [2, 3]
    assert [(rows[n]["tokens_in"], rows[n]["tokens_out"]) for n in "01"] == [(22, 10), (33, 15)], "all that were paid"
    assert first.body["seed"] != second.body["seed"]
    assert (first.body["temperature"], second.body["temperature"]) == (0, 0.7)
    for found in rows.values():
        asked = settings.request(row(key=found["key"], uri=found["key"], attempt=found["attempt"]))
        assert found["request"] == digest(asked)


@pytest.mark.slow
def test_retry_rejected_asks_those_again(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, 3)
    with Misbehaving({"1": ["refusal"] * 3 + ["good"]}) as moody:
        assert run(dataset, server(moody)).rejected == 1
        assert run(dataset, server(moody), retry="rejected").good == 1
        assert len({asked.body["seed"] for asked in moody.times("1")}) == 4
    assert rows_of(dataset)["1"]["attempt"] == 4


@pytest.mark.slow
def test_reparse_needs_no_server(tmp_path: Path) -> None:
    dataset_of(tmp_path, 2)
    with Misbehaving() as good:
        cutline("annotate", tmp_path, "server", *typed(good))
    told = cutline("annotate", tmp_path, "server", *typed(good), "--reparse")
    assert "2" in told.stdout
    assert all(len(good.times(number)) == 1 for number in "01")


def test_pictures_that_cannot_be_had_are_typed_rows(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, 3)
    (tmp_path / "p0001.png").unlink()
    (tmp_path / "p0002.png").write_bytes(picture(2)[:40])
    with Misbehaving() as good:
        run(dataset, server(good))
        assert len(good.asked) == 1
    rows = rows_of(dataset)
    assert [rows[n]["error"] for n in "01"] == [None, "vanished"]
    assert rows["2"]["error"] in ("changed", "truncated")


def test_two_servers_one_is_killed_and_one_slows_down(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "photos", 160)
    with (
        process(seconds=0.05) as (dying, killed),
        Misbehaving(seconds=0.02) as slow,
        process(seconds=0.05) as (well, _),
    ):
        finished = threading.Event()

        def trouble() -> None:
            while counts(dying)["asked"] < 12 and not finished.is_set():
                time.sleep(0.02)
            killed.kill()
            slow.seconds = 0.2

        teller = threading.Thread(target=trouble)
        teller.start()
        report = run(dataset, server(dying, slow, well, in_flight=4))
        finished.set()
        teller.join()
    assert (report.good, report.failed) == (160, 0)
    assert killed.wait() == -signal.SIGKILL
    rows = raw_rows(dataset, LAYER)
    assert Counter(found["key"] for found in rows).most_common(1)[0][1] == 1, "none twice"
    assert len(rows) == 160
    assert max(slow.answered.values()) == 1


@pytest.mark.slow
def test_all_servers_die_and_the_run_ends(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "photos", 120)
    with process(seconds=0.05) as (url, killed):
        threading.Timer(1.5, killed.kill).start()
        report = run(dataset, server(url, in_flight=2, patience=1))
    assert report.done == 120
    assert set(report.errors) <= {"unreachable", "connection"}
    assert report.errors["unreachable"] > 20


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "photos", 60)
    with Misbehaving(seconds=0.1) as good:
        words = ["annotate", str(dataset.root), "server", *typed(good, in_flight=4)]
        started = subprocess.Popen([*SOON, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        give_up = time.monotonic() + 60
        while len(raw_rows(dataset, LAYER) if LAYER in dataset.layers() else []) < 8 and time.monotonic() < give_up:
            time.sleep(0.02)
        started.kill()
        started.wait()
        had = len(rows_of(dataset))
        assert 8 <= had < 60
        before = len(good.asked)
        cutline(*words)
        assert len(good.asked) - before <= 60 - had, "what was published is not asked for again"
    assert [found["verdict"] for found in rows_of(dataset).values()] == ["good"] * 60


def test_ctrl_c_finishes_what_is_in_hand(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "photos", 200)
    with Misbehaving(seconds=0.2) as good:
        words = ["annotate", str(dataset.root), "server", *typed(good, in_flight=4)]
        started = subprocess.Popen([*SOON, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while len(good.asked) < 8 and started.poll() is None:
            time.sleep(0.02)
        started.send_signal(signal.SIGINT)
        _, told = started.communicate(timeout=60)
        assert started.returncode == 130, told
        rows = rows_of(dataset)
        assert {found["verdict"] for found in rows.values()} == {"good"}
        assert len(rows) == len(good.asked) < 60, "each that was asked is kept"


@pytest.mark.slow
def test_ctrl_c_begins_no_more_requests(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path / "photos", 60)
    with Misbehaving({str(number): ["empty"] for number in range(60)}, seconds=3) as slow:
        words = ["annotate", str(dataset.root), "server", *typed(slow, in_flight=4)]
        started = subprocess.Popen([*SOON, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while len(slow.asked) < 4 and started.poll() is None:
            time.sleep(0.02)
        started.send_signal(signal.SIGINT)
        _, told = started.communicate(timeout=60)
        assert started.returncode == 130, told
        assert "Ctrl-C again stops at once" in told
        assert len(slow.asked) == 4, "neither those that waited nor other tries of those in hand"


def test_a_key_that_stops_being_taken_ends_the_run_and_marks_no_picture(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, 40)
    script = {str(number): ["401"] for number in range(20, 40)}
    with Misbehaving(script) as strict:
        with pytest.raises(EngineError, match=r"cannot go on.*said 401.*export OPENAI_API_KEY=…"):
            run(dataset, server(strict, in_flight=2))
        assert len(strict.asked) < 30
    assert all(found["verdict"] == "good" for found in rows_of(dataset).values())
    assert len(rows_of(dataset)) >= 10


def test_nobody_there_is_said_and_no_picture_is_marked(tmp_path: Path) -> None:
    dataset_of(tmp_path, 2)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        told = cutline("annotate", tmp_path, "server", "-o", f"endpoints={url}", "-o", f"model={MODEL}", code=1).stderr
    assert f"no server answers at {url}" in told
    assert raw_rows(Dataset(tmp_path), LAYER) == []


def test_one_process_asks(tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, 30)
    told = cutline("annotate", tmp_path, "server", *typed("http://127.0.0.1:9/v1"), "--workers", 3, code=2).stderr
    assert "leave out --workers=3" in told
    assert LAYER not in dataset.layers()
    with Misbehaving(seconds=0.05) as good:
        run(dataset, server(good, in_flight=3))
        assert good.peak == 3


# -- what is sent ----------------------------------------------------------------------------------------------------


def test_pictures_are_sent_upright_on_white_and_no_larger_than_wanted(tmp_path: Path) -> None:
    def sent(path: Path, max_pixels: int = 1 << 20, image_format: Any = "png") -> Image.Image:
        url = data_url(Picture(path), max_pixels, image_format, "x")
        kind, _, data = url.partition(";base64,")
        assert kind == f"data:image/{image_format}"
        image = Image.open(BytesIO(base64.b64decode(data, validate=True)))
        assert image.format == image_format.upper()
        assert not image.getexif()
        return image

    turned = Image.new("RGB", (40, 20), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert sent(tmp_path / "turned.jpg").size == (20, 40)
    Image.new("RGBA", (9, 7), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert sent(tmp_path / "clear.png").getpixel((3, 3)) == (255, 255, 255)
    Image.radial_gradient("L").resize((3000, 2000)).save(tmp_path / "large.jpg")
    small = sent(tmp_path / "large.jpg", 60_000)
    assert small.size == (300, 200)
    assert sent(tmp_path / "large.jpg", 60_000, "jpeg").size == (300, 200)
    assert sent(tmp_path / "large.jpg", 6_000_000).size == (3000, 2000)


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1), (3, 7), (100, 100), (333, 101), (2, 2)])
@pytest.mark.parametrize("most", [1, 2, 6, 1000, 10_000])
def test_shrink(size: tuple[int, int], most: int) -> None:
    image = shrink(Image.new("L", size), most)
    assert 1 <= image.width * image.height <= most or image.size == size
    if size[0] * size[1] <= most:
        assert image.size == size


def bodies(tmp_path: Path, **given: Any) -> dict[str, Any]:
    """The body that is sent for a picture."""
    (tmp_path / "a.png").write_bytes(picture(7))
    with Misbehaving() as good:
        settings = server(good, **given)
        answers = list(settings.load()(iter([row(tmp_path / "a.png")])))
        assert "error" not in answers[0], answers
        return good.asked[0].body


def test_what_each_option_puts_into_a_request(tmp_path: Path) -> None:
    plain = bodies(tmp_path)
    assert set(plain) == {"model", "messages", "max_tokens", "seed"}
    assert pictures_in(plain)[0].startswith(b"\x89PNG")
    assert 0 <= plain["seed"] < 1 << 31
    assert bodies(tmp_path, seed=1)["seed"] != plain["seed"]
    assert bodies(tmp_path, max_tokens=7)["max_tokens"] == 7
    assert bodies(tmp_path, temperature=0.25)["temperature"] == 0.25
    assert bodies(tmp_path, top_p=0.5)["top_p"] == 0.5
    assert bodies(tmp_path, model="other")["model"] == "other"
    assert bodies(tmp_path, detail="low")["messages"][0]["content"][0]["image_url"]["detail"] == "low"
    assert pictures_in(bodies(tmp_path, image_format="jpeg"))[0].startswith(b"\xff\xd8")
    assert Image.open(BytesIO(pictures_in(bodies(tmp_path, max_pixels=12))[0])).size == (4, 3)
    assert bodies(tmp_path, extra='{"top_k": 20, "chat_template_kwargs": {"enable_thinking": false}}') == {
        **plain,
        "top_k": 20,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    modern = bodies(tmp_path, extra='{"max_tokens": null, "seed": null, "max_completion_tokens": 9}')
    assert set(modern) == {"model", "messages", "max_completion_tokens"}


def test_structured_output_is_asked_for_where_the_prompt_has_a_schema(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"caption": {"type": "string"}}, "required": ["caption"]}
    prompt = tmp_path / "mine.toml"
    prompt.write_text(f'user = "Describe."\nanswer = "json"\n[schema]\n{toml(schema)}')
    (tmp_path / "a.png").write_bytes(picture(7))
    with Misbehaving(always='says {"caption": "a cat"}') as good:
        settings = server(good, prompt=str(prompt), structured=True)
        (answer,) = settings.load()(iter([row(tmp_path / "a.png")]))
        wanted = {"name": "caption", "strict": True, "schema": schema}
        assert good.asked[0].body["response_format"] == {"type": "json_schema", "json_schema": wanted}
        assert (answer["texts"], answer["verdict"]) == (["a cat"], "good")
        list(server(good, prompt=str(prompt)).load()(iter([row(tmp_path / "a.png")])))
        assert "response_format" not in good.asked[1].body


def toml(values: dict[str, Any]) -> str:
    """A dict of the kinds that a schema has, as TOML."""

    def inline(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key} = {inline(one)}" for key, one in value.items()) + "}"
        return json.dumps(value)

    return "\n".join(f"{key} = {inline(value)}" for key, value in values.items())


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_from_tags_alone_no_picture_is_opened(tmp_path: Path, api: str) -> None:
    tags = {"general": ["cat", "red_hat"], "character": None, "error": None}
    given = {"prompt": "from-tags", "tags": "tags/x", "api": api, "picture": False}
    with Misbehaving(says="a cat in a red hat") as good:
        settings = server(good, **given)
        assert not settings.opens
        answers = list(settings.load()(iter([row(tags=tags), row(key="b.png")])))
        (body,) = (asked.body for asked in good.asked)
    assert "cat, red hat" in prompt_of(body)
    assert ("prompt" in body) == (api == "completions")
    assert pictures_in(body) == []
    assert {one["key"]: one.get("error") for one in answers} == {"a.png": None, "b.png": "no_prompt"}


@pytest.mark.slow
def test_pictures_that_only_metadata_tells_of_are_asked_about_by_their_tags(tmp_path: Path) -> None:
    (tmp_path / "posts").mkdir()
    said = [{"id": 1, "tag_string_general": "cat hat"}, {"id": 2, "tag_string_general": "dog"}]
    posts = danbooru(tmp_path / "posts.parquet", *said)
    cutline("add", tmp_path / "posts", posts)
    with Misbehaving(says="a dog") as good:
        cutline("annotate", tmp_path / "posts", "server", *typed(good, api="completions", prompt="from-tags"))
        assert len(good.asked) == 2
        assert any("cat, hat" in asked.subject for asked in good.asked)
        told = cutline("annotate", tmp_path / "posts", "server", *typed(good), "--as", "captions/seen").stderr
        assert "known from metadata only" in told
        assert len(good.asked) == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"endpoints": ""}, "which server"),
        ({"api": "completions"}, "tells it nothing"),
        ({"picture": "false"}, "from-tags"),
        ({"picture": "true", "api": "completions"}, "no place for a picture"),
        ({"picture": "false", "prompt": "from-tags", "detail": "low"}, "no effect without a picture"),
        ({"picture": "false", "prompt": "from-tags", "max_pixels": "5"}, "max_pixels=5 has no effect without"),
        ({"api": "completions", "prompt": "from-tags", "image_format": "png"}, "no effect without a picture"),
        ({"api": "words"}, "api"),
        ({"structured": "true"}, "a schema"),
        ({"structured": "true", "api": "completions", "prompt": "from-tags"}, "api=chat"),
        ({"max_pixels": "0"}, "at least 1"),
        ({"max_tokens": "0"}, "at least 1"),
        ({"threads": "0"}, "at least 1"),
        ({"temperature": "-1"}, "0 or more"),
        ({"temperature": "nan"}, "0 or more"),
        ({"top_p": "0"}, "at most 1"),
        ({"top_p": "nan"}, "at most 1"),
        ({"image_format": "webp"}, "image_format"),
        ({"detail": "very"}, "detail"),
        ({"extra": "top_k=20"}, "JSON object"),
        ({"model": "m\udcff"}, "no UTF-8 text"),
        ({"user": "\udcff {tags}"}, "no UTF-8 text"),
        ({"tags": "tags/\udcff"}, "no UTF-8 text"),
        ({"extra": "[1]"}, "is a list"),
        ({"extra": '{"messages": []}'}, "messages, which Cutline itself sets"),
        ({"extra": '{"model": null}'}, "model, which Cutline itself sets"),
        ({"extra": '{"max_tokens": 5}'}, "left out, by null"),
        ({"extra": '{"stream": true}'}, "stream"),
        ({"extra": "[" * 5000}, "JSON object"),
        ({"extra": '{"top_k": NaN}'}, "NaN is no number of JSON"),
        ({"extra": '{"name": "\\ud83d"}'}, "surrogates not allowed"),
        ({"prompt": "no-such"}, "no-such"),
        ({"endpoints": f"http://me:{SECRET}@localhost/v1"}, "without a user or password"),
        ({"key_env": SECRET}, "name"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_before_anything_is_asked(given: dict[str, str], says: str) -> None:
    with pytest.raises(OptionError, match=re.escape(says)) as caught:
        fill(Server, {"endpoints": NOWHERE, "model": MODEL, **given})
    assert SECRET not in str(caught.value)


def test_what_is_identity() -> None:
    plain = server(NOWHERE)
    same = server("http://other:1/v1", in_flight=1, deadline=2, tries=1, patience=1, threads=1, key_env="X")
    assert identity(plain) == identity(same)
    changes: list[dict[str, Any]] = [
        {"model": "x"},
        {"prompt": "grounded"},
        {"user": "What?"},
        {"system": "You."},
        {"seed": 1},
        {"max_pixels": 5},
        {"image_format": "jpeg"},
        {"detail": "low"},
        {"max_tokens": 3},
        {"temperature": 0},
        {"top_p": 0.5},
        {"extra": '{"top_k": 1}'},
        {"api": "completions", "prompt": "from-tags"},
        {"picture": False, "prompt": "from-tags"},
    ]
    found = [json.dumps(identity(server(NOWHERE, **change)), sort_keys=True) for change in [{}, *changes]]
    assert len(set(found)) == len(found)
    # The order and the spaces in which extra is written are nothing.
    one, other = (server(NOWHERE, extra=text) for text in ('{"a": 1, "b": 2}', '{"b":2,"a":1}'))
    assert identity(one) == identity(other)


def test_said() -> None:
    def reply(**message: Any) -> dict[str, Any]:
        return {"choices": [{"finish_reason": "stop", "message": message}]}

    assert said(reply(content="a cat")) == ("a cat", "stop")
    assert said({"choices": [{"text": "a cat", "finish_reason": None}]}) == ("a cat", None)
    assert said(reply(content=None, reasoning="Hm.")) == ("<think>Hm.</think>", "stop")
    assert said(reply(content="a \ud83d cat")) == ("a ? cat", "stop")
    assert said({"choices": [{"message": {"content": "a"}, "finish_reason": 7}]}) == ("a", None)
    assert said({"choices": [{"message": {"content": "a"}, "finish_reason": "\ud83d"}]}) == ("a", "?")


# -- a server of someone else's --------------------------------------------------------------------------------------


@contextlib.contextmanager
def transformers_serve(model: Path, home: Path) -> Iterator[str]:
    """`transformers serve` on a port of its own, once it answers."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    (home / "hub").mkdir(parents=True)
    command = [Path(sys.executable).with_name("transformers"), "serve", str(model)]
    log = home / "log.txt"
    with log.open("w") as out:
        started = subprocess.Popen(
            [*map(str, command), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment(HF_HOME=home),
            start_new_session=True,
        )
    try:
        give_up = time.monotonic() + 120
        while time.monotonic() < give_up:
            assert started.poll() is None, log.read_text()
            with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()


@pytest.mark.slow
def test_transformers_serve_captions_photographs(tmp_path: Path) -> None:
    import skimage

    import tiny

    photos = tmp_path / "photos"
    photos.mkdir()
    samples = Path(skimage.__file__).parent / "data"
    names = ["chelsea.png", "coffee.png", "moon.png", "rocket.jpg", "astronaut.png"]
    for name in names:
        if (samples / name).exists():
            shutil.copy(samples / name, photos / name)
    (photos / "broken.jpg").write_bytes((photos / "rocket.jpg").read_bytes()[:5000])
    count = len(list(photos.iterdir())) - 1
    model = tiny.save_llava(tmp_path / "llava")
    config = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps({**config, "min_new_tokens": 12}))
    cutline("add", photos, code=3)
    with transformers_serve(model, tmp_path / "hf") as url:
        given = {"endpoints": url, "model": model, "max_tokens": 12, "in_flight": 2, "deadline": 60}
        words = [word for name, value in given.items() for word in ("-o", f"{name}={value}")]
        done = cutline("annotate", photos, "server", *words, code=3, env=environment(HF_HOME=tmp_path / "hf"))
    rows = raw_rows(Dataset(photos), LAYER)
    assert len(rows) == count, done.stdout + done.stderr
    for found in rows:
        assert found["error"] is None, found
        assert found["raw"]
        assert found["tokens_out"] >= 1
        assert found["finish_reason"] in ("stop", "length")
    assert len({found["raw"] for found in rows}) > 1, "it saw different pictures"
