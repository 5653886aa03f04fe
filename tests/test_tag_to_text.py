"""Captions from tags: tiny LLaMAs here and a real server there, and what becomes of what they say."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import running
import tiny_tipo
from cutline.annotators.session import Row
from cutline.annotators.tag_to_text import TagToText
from cutline.dataset import Dataset
from cutline.engine.here import annotate
from cutline.engine.selection import Selection
from cutline.options import CutlineError, OptionError, digest, fill, identity
from cutline.prompts.tipo import MARKERS

LAYER = "tags/danbooru"
END = "\u2581"  # SentencePiece's mark of a word's beginning


def chain(*words: str) -> dict[str, list[str]]:
    """What `save_tipo` is told for a model that says these words, in this order, after a colon."""
    return {before: [after] for before, after in zip((":", *words), words, strict=False)}


def word(text: str) -> list[str]:
    return [f"{END}{one}" for one in text.split()]


@pytest.fixture(scope="module")
def tipo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tipo.save_tipo(tmp_path_factory.mktemp("tipo"))


def tag_row(general: str = "1girl long_hair smile", **more: Any) -> Row:
    lists = {"general": general.split(), "character": [], "copyright": [], "artist": [], "meta": [], "unsorted": None}
    return {**lists, "rating": "s", "score": 5, "fav_count": 50, "year": 2020, "error": None, **more}


def row(number: int = 0, tags: Row | None = None, **more: Any) -> Row:
    size = {"width": 600 + 10 * number, "height": 800}
    return {"key": f"p{number:02}.png", "uri": None, "picture": None, "attempt": 1, **size, LAYER: tags} | more


def rows(count: int = 12) -> list[Row]:
    words = ["solo", "red_hat", "rain", "2girls", "hair"]
    return [row(number, tag_row(" ".join(["1girl", *words[: number % 6]]))) for number in range(count)]


def made(folder: Path, **given: Any) -> TagToText:
    return TagToText(**{"model": str(folder), "tags": (LAYER,), "max_tokens": 24, **given})


def say(settings: TagToText, asked: list[Row]) -> dict[str, Row]:
    """Answer these rows: key -> row, without the time it took."""
    answers = list(settings.load()(iter(asked)))
    assert all(answer.pop("seconds") > 0 for answer in answers if not answer.get("error"))
    assert len(answers) == len(asked)
    return {answer["key"]: answer for answer in answers}


def only(settings: TagToText, asked: Row) -> Row:
    return say(settings, [asked])[asked["key"]]


# -- what is asked --------------------------------------------------------------------------------------------


def prompt_of(asked: Row, **given: Any) -> str:
    return str(TagToText(**{"tags": (LAYER,), **given}).request(asked)["prompt"])


FULL = tag_row(
    "long_hair 1girl ^_^ thighhighs",
    character=["saber_(fate)"],
    copyright=["fate/stay_night", "fate_(series)"],
    artist=["some_one"],
    meta=["highres"],
    rating="e",
)


def test_a_prompt_says_what_the_tags_say() -> None:
    assert prompt_of(row(0, FULL)) == (
        "rating: nsfw, explicit\nartist: some one\ncharacters: saber (fate)\n"
        "copyrights: fate/stay night, fate (series)\naspect ratio: 0.8\n"
        "target: <|long|> <|tag_to_long|>\ntag: 1girl, long hair, ^_^, thighhighs\nlong:"
    )


def test_metadata_lines_can_be_chosen_and_tags_left_out() -> None:
    assert prompt_of(row(0, FULL), metadata=("meta", "quality")) == (
        "meta: highres\nquality: normal quality\n"
        "target: <|long|> <|tag_to_long|>\ntag: 1girl, long hair, ^_^, thighhighs\nlong:"
    )
    # Whole tags: "hair" takes nothing from "long hair".
    asked = prompt_of(row(0, FULL), metadata=("artist", "characters"), blacklist=("hair", "Long Hair", "some_one"))
    assert asked == "characters: saber (fate)\ntarget: <|long|> <|tag_to_long|>\ntag: 1girl, ^_^, thighhighs\nlong:"
    assert prompt_of(row(0, tag_row(), width=None), metadata=("aspect_ratio",)).startswith("target:")


def test_tags_of_no_category_are_told_too() -> None:
    asked = row(0, tag_row("", unsorted=["cat", "1girl"]))
    assert "\ntag: 1girl, cat\n" in prompt_of(asked, length="very_short")
    assert "<|very_short|>" in prompt_of(asked, length="very_short")


SHORT = {"captions/s": {"texts": ["A girl."], "verdict": "good", "error": None}}


@pytest.mark.parametrize(
    ("task", "end"),
    [
        ("short_to_long", "target: <|short_to_long|>\nshort: A girl.\nlong:"),
        ("short_to_long_to_tag", "target: <|long|> <|short_to_long_to_tag|>\nshort: A girl.\nlong:"),
        (
            "short_to_tag_to_long",
            "target: <|long|> <|short_to_tag_to_long|>\nshort: A girl.\ntag: 1girl, long hair, smile\nlong:",
        ),
    ],
)
def test_tasks_that_begin_with_a_short_text_take_it_from_a_layer(task: str, end: str) -> None:
    assert prompt_of(row(0, tag_row(), **SHORT), task=task, short="captions/s").endswith(end)


def test_a_short_text_needs_no_tags() -> None:
    asked = prompt_of(row(0, None, **SHORT), task="short_to_tag_to_long", short="captions/s")
    assert asked.endswith("short: A girl.\ntag:")


def test_the_request_is_what_is_done_and_says_that_no_picture_is_seen(tipo_folder: Path) -> None:
    settings = made(tipo_folder, seed=7)
    asked = settings.request(row(0, tag_row()))
    assert asked["picture"] is None
    assert asked["generation"]["repetition_penalty"] == 1.0
    assert {"temperature": 0.35, "top_k": 60, "top_p": 0.95, "min_p": 0.1}.items() <= asked["sampling"].items()
    assert asked["stop"][0] == "\ntag:"
    again = settings.request(row(0, tag_row(), attempt=2))
    assert asked["sampling"]["seed"] != again["sampling"]["seed"]
    assert settings.request(row(0, tag_row()))["sampling"]["seed"] == asked["sampling"]["seed"]
    remote = TagToText(tags=(LAYER,), endpoints=("http://localhost:1/v1",), model="tipo", seed=7)
    sent = remote.request(row(0, tag_row()))
    assert (sent["picture"], sent["repetition_penalty"], sent["repeat_penalty"]) == (None, 1.0, 1.0)
    assert sent["prompt"] == asked["prompt"]
    assert sent["min_p"] == 0.1
    assert 0 <= sent["seed"] < 2**31


# -- here -----------------------------------------------------------------------------------------------------


def test_batch_and_order_change_nothing(tipo_folder: Path) -> None:
    one = made(tipo_folder, batch_size=1)
    alone = say(one, rows())
    assert say(dataclasses.replace(one, batch_size=8), rows()) == alone
    assert say(dataclasses.replace(one, batch_size=5, threads=1), rows()[::-1]) == alone
    assert len({answer["raw"] for answer in alone.values()}) > 6, "the model says different things of different tags"


def test_a_row_says_how_it_came_about(tipo_folder: Path) -> None:
    settings = made(tipo_folder)
    for asked, answer in zip(rows(), say(settings, rows()).values(), strict=True):
        assert answer["request"] == digest(settings.request({**asked, "attempt": answer["attempt"]}))
        assert answer["tokens_out"] == 24 or answer["finish_reason"] == "stop"
        assert answer["tokens_in"] > 30
        assert answer["texts"] == [] or answer["verdict"] in ("good", "repaired")


def test_a_draw_hangs_on_seed_and_key(tipo_folder: Path) -> None:
    settings = made(tipo_folder, temperature=2.0, attempts=1)
    a, b = row(1, tag_row(), width=600), row(2, tag_row(), width=600)
    first = say(settings, [a, b])
    assert settings.request(a)["prompt"] == settings.request(b)["prompt"]
    assert first[a["key"]]["raw"] != first[b["key"]]["raw"]
    assert only(settings, a)["raw"] == first[a["key"]]["raw"]
    assert only(settings, {**a, "attempt": 2})["raw"] != first[a["key"]]["raw"]
    assert only(dataclasses.replace(settings, seed=1), a)["raw"] != first[a["key"]]["raw"]


GIRL = word("A girl with long hair smiles")


def test_a_caption_is_what_stands_after_its_key(tmp_path: Path) -> None:
    folder = tiny_tipo.save_tipo(tmp_path, says=chain(*GIRL, "."))
    answer = only(made(folder), row(0, tag_row()))
    assert answer["texts"] == ["A girl with long hair smiles."]
    assert answer["raw"] == " A girl with long hair smiles.", "the space after the colon is the model's"
    assert (answer["verdict"], answer["finish_reason"], answer["attempt"]) == ("good", "stop", 1)
    assert answer["tokens_out"] == 8  # and the end


def test_it_ends_where_another_field_begins(tmp_path: Path) -> None:
    # From the colon on it begins anew: without a stop it would go on for ever.
    says = chain(*GIRL, ".", "<0x0A>", "tag") | {"tag": [":"]}
    answer = only(made(tiny_tipo.save_tipo(tmp_path, says=says), max_tokens=200), row(0, tag_row()))
    assert answer["raw"] == " A girl with long hair smiles."
    assert (answer["finish_reason"], answer["tokens_out"]) == ("stop", 10)


def test_a_batch_ends_with_its_longest_caption(tmp_path: Path) -> None:
    says = chain(*GIRL, ".", "<0x0A>", "tag") | {"tag": [":"]}
    session = made(tiny_tipo.save_tipo(tmp_path, says=says), max_tokens=500, batch_size=8).load()
    steps = []
    session.model.register_forward_hook(lambda *_: steps.append(1))  # type: ignore[attr-defined]
    assert len(list(session(iter(rows(8))))) == 8
    assert len(steps) == 10


def test_a_line_that_is_no_key_stays(tmp_path: Path) -> None:
    says = chain(*word("A girl"), "<0x0A>", *word("She has"))
    answer = only(made(tiny_tipo.save_tipo(tmp_path, says=says)), row(0, tag_row()))
    assert answer["texts"] == ["A girl\n She has"]


def test_two_fields_are_written_and_the_long_one_is_the_caption(tmp_path: Path) -> None:
    says = chain(*word("A girl"), "<0x0A>", "long") | {"long": [":"]}
    answer = only(made(tiny_tipo.save_tipo(tmp_path, says=says), task="tag_to_short_to_long"), row(0, tag_row()))
    assert answer["raw"] == " A girl\nlong: A girl", "and not once more"
    assert (answer["texts"], answer["finish_reason"]) == (["A girl"], "stop")


def test_an_endless_caption_is_asked_again_so_often_and_then_rejected(tmp_path: Path) -> None:
    endless = tiny_tipo.save_tipo(tmp_path, says=chain("\u2581A", "\u2581girl", "\u2581A"))
    for attempts in (1, 3):
        answer = only(made(endless, max_tokens=90, attempts=attempts), row(0, tag_row()))
        assert (answer["verdict"], answer["texts"], answer["attempt"]) == ("rejected", [], attempts)
        assert "loop" in answer["reason"]
    assert only(made(endless, max_tokens=90), row(0, tag_row(), attempt=4))["attempt"] == 6


def test_another_seed_mends_an_empty_caption(tmp_path: Path) -> None:
    says = {":": [*GIRL[:1], "</s>"], GIRL[0]: [GIRL[1]], GIRL[1]: ["."]}
    folder = tiny_tipo.save_tipo(tmp_path, says=says)
    once = say(made(folder, attempts=1), rows())
    assert {answer["verdict"] for answer in once.values()} == {"good", "rejected"}
    assert {answer["reason"] for answer in once.values()} == {None, "empty"}
    often = say(made(folder, attempts=20, batch_size=5), rows())
    assert {answer["texts"][0] for answer in often.values()} == {"A girl."}
    for key, answer in often.items():
        assert (answer["attempt"] == 1) == (once[key]["verdict"] == "good")


def test_a_caption_may_not_deny_its_tags(tmp_path: Path) -> None:
    settings = made(tiny_tipo.save_tipo(tmp_path, says=chain(*word("Two girls stand"), ".")), attempts=2)
    fine, wrong = row(0, tag_row("2girls")), row(1, tag_row("1girl solo"))
    answers = say(settings, [fine, wrong])
    assert (answers["p00.png"]["verdict"], answers["p00.png"]["attempt"]) == ("good", 1)
    assert answers["p00.png"]["checks"]["findings"] == []
    assert (answers["p01.png"]["verdict"], answers["p01.png"]["reason"]) == ("rejected", "count")
    assert answers["p01.png"]["attempt"] == 2
    assert answers["p01.png"]["checks"]["findings"] == ["count"]


def test_a_caption_has_to_tell_of_as_many_tags_as_is_asked(tmp_path: Path) -> None:
    settings = made(tiny_tipo.save_tipo(tmp_path, says=chain(*word("A girl smiles"), ".")), attempts=2)
    asked = row(0, tag_row("1girl smile thighhighs red_hat"))
    told = only(settings, asked)
    assert (told["verdict"], told["checks"]["coverage"]) == ("good", 0.5)
    for given in ({"blacklist": ("red hat", "thighhighs")}, {"blacklist": ("red_hat", "THIGHHIGHS")}):
        less = only(dataclasses.replace(settings, **given), asked)  # type: ignore[arg-type]
        assert less["checks"]["coverage"] == 1.0, "what it is not told it need not tell"
    strict = only(dataclasses.replace(settings, least_coverage=0.6), asked)
    assert (strict["verdict"], strict["reason"], strict["attempt"]) == ("rejected", "coverage", 2)


def test_a_caption_that_is_cut_loses_its_last_sentence_and_says_so(tmp_path: Path) -> None:
    folder = tiny_tipo.save_tipo(tmp_path, says=chain(*word("A girl smiles"), ".", *word("She has a red hat")))
    answer = only(made(folder, max_tokens=7), row(0, tag_row()))
    assert answer["raw"] == " A girl smiles. She has a"
    assert (answer["texts"], answer["verdict"]) == (["A girl smiles."], "repaired")
    assert (answer["reason"], answer["finish_reason"]) == ("cut", "length")
    whole = only(made(folder), row(0, tag_row()))
    assert (whole["texts"], whole["verdict"]) == (["A girl smiles. She has a red hat"], "good")


def test_a_context_that_is_full_ends_a_caption_whatever_the_batch(tmp_path: Path) -> None:
    folder = tiny_tipo.save_tipo(tmp_path, context=100)
    asked = [*rows(4), row(9, tag_row("1girl " + " ".join(["long_hair"] * 40)))]
    alone = say(made(folder, batch_size=1, max_tokens=90, attempts=1), asked)
    assert say(made(folder, batch_size=5, max_tokens=90, attempts=1), asked) == alone
    assert alone["p09.png"]["error"] == "too_long"
    for key in ("p00.png", "p03.png"):
        assert alone[key]["tokens_in"] + alone[key]["tokens_out"] <= 100


@pytest.mark.parametrize(
    ("asked", "given", "error"),
    [
        (row(0, None), {}, "no_tags"),
        (row(0, tag_row("", character=["someone"])), {}, "no_tags"),
        (row(0, tag_row("smile")), {"blacklist": ("smile",)}, "no_tags"),
        (row(0, tag_row(error="unreadable")), {}, "no_tags"),
        (row(0, tag_row("<|long|>")), {}, "unfit_text"),
        (row(0, tag_row(artist=["a\nb"])), {}, "unfit_text"),
        (row(0, tag_row()), {"task": "short_to_long", "short": "captions/s"}, "no_short"),
        (
            row(0, tag_row(), **{"captions/s": {"texts": ["A.\ntag: b"], "verdict": "good"}}),
            {"task": "short_to_long", "short": "captions/s"},
            "unfit_text",
        ),
        (
            row(0, tag_row(), **{"captions/s": {"texts": [], "verdict": "rejected"}}),
            {"task": "short_to_long", "short": "captions/s"},
            "no_short",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_a_typed_error_of_its_own_row(
    tipo_folder: Path, asked: Row, given: dict[str, Any], error: str
) -> None:
    fine = row(1, tag_row(), **SHORT)
    answers = say(made(tipo_folder, **given), [asked, fine])
    assert answers["p00.png"]["error"] == error
    assert answers["p00.png"]["detail"]
    assert not answers["p01.png"].get("error")


@pytest.mark.parametrize("lacking", [MARKERS[0], MARKERS[5], MARKERS[-1]])
def test_a_model_without_the_markers_is_refused(tmp_path: Path, lacking: str) -> None:
    folder = tiny_tipo.save_tipo(tmp_path, markers=[marker for marker in MARKERS if marker != lacking])
    (folder / "model.safetensors").unlink()  # before weights are loaded
    with pytest.raises(CutlineError, match="no TIPO model: the marker") as caught:
        made(folder).load()
    assert lacking in str(caught.value)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    import tiny

    with pytest.raises(CutlineError, match="no TIPO model"):
        made(tiny.save_blip(tmp_path)).load()
    with pytest.raises(CutlineError, match="-o model=FOLDER"):
        made(tmp_path / "none").load()


def test_the_start_is_there_once(tipo_folder: Path) -> None:
    session = made(tipo_folder).load()
    tokens = session.tokens(session.settings.ask(row(0, tag_row()), 1))  # type: ignore[attr-defined]
    assert session.tokenizer.convert_ids_to_tokens(tokens).count("<s>") == 1  # type: ignore[attr-defined]
    assert session.tokenizer.convert_ids_to_tokens(tokens[0]) == "<s>"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 3.0},
        {"top_p": 0.05, "temperature": 3.0},
        {"top_k": 1, "temperature": 3.0},
        {"min_p": 1.0, "temperature": 3.0},
        {"max_tokens": 5},
        {"seed": 1},
        {"length": "very_short"},
        {"metadata": ("rating",)},
        {"blacklist": ("solo",)},
        {"task": "tag_to_short_to_long"},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_every_setting_of_identity_changes_what_is_said(tipo_folder: Path, change: dict[str, Any]) -> None:
    base = {"temperature": 3.0} if {"top_p", "top_k", "min_p"} & set(change) else {}
    before, after = made(tipo_folder, attempts=1, **base), made(tipo_folder, attempts=1, **{**base, **change})
    assert [one["raw"] for one in say(before, rows(6)).values()] != [one["raw"] for one in say(after, rows(6)).values()]
    assert identity(before) != identity(after)


# -- options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"task": "tag_to_short"}, "no marker for it.*tag_to_long"),
        ({"task": "tag_to_long_to_short"}, "no marker for it"),
        ({"task": "long_to_tag"}, "writes tags from text.*tag_to_long"),
        ({"task": "short_to_tag"}, "writes tags from text"),
        ({"length": "longest"}, "does not fit"),
        ({"task": "short_to_long", "short": "captions/s", "length": "long"}, "no effect on task=short_to_long"),
        ({"task": "short_to_long"}, "-o short=captions/"),
        ({"short": "captions/s"}, "no effect on task=tag_to_long"),
        ({"tags": "captions/s"}, "no tag layer"),
        ({"metadata": "ratings"}, "does not fit"),
        ({"temperature": "0"}, "more than 0"),
        ({"temperature": "nan"}, "more than 0"),
        ({"top_p": "1.5"}, "at most 1"),
        ({"min_p": "0"}, "more than 0"),
        ({"top_k": "0"}, "at least 1"),
        ({"max_tokens": "0"}, "at least 1"),
        ({"attempts": "0"}, "at least 1"),
        ({"least_coverage": "2"}, "0 to 1"),
        ({"batch_size": "0"}, "at least 1"),
        ({"repetition_penalty": "1.17"}, "no option"),
        ({"in_flight": "8"}, "in_flight=8 has no effect without endpoints"),
        ({"key_env": "KEY"}, "key_env=KEY has no effect without endpoints"),
        ({"deadline": "5"}, "no effect without endpoints"),
        ({"endpoints": "http://localhost/v1", "dtype": "bfloat16"}, "dtype=bfloat16 has no effect with endpoints"),
        ({"endpoints": "http://localhost/v1", "quantize": "int8"}, "quantize=int8 has no effect with endpoints"),
        ({"endpoints": "http://localhost/v1", "batch_size": "8"}, "batch_size=8 has no effect with endpoints"),
        ({"endpoints": "http://localhost/v1", "device": "cpu"}, "device=cpu has no effect with endpoints"),
        ({"endpoints": "http://localhost/v1", "revision": "main"}, "revision=main has no effect with endpoints"),
        ({"endpoints": "localhost"}, "endpoint"),
    ],
    ids=str,
)
def test_options_that_would_have_no_effect_are_refused(options: dict[str, str], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        fill(TagToText, options)


def test_the_tag_layer_is_found_where_there_is_one() -> None:
    assert TagToText().fit(["pictures", "tags/a"]).reads == ("pictures", "tags/a")
    assert TagToText(tags=("tags/b",)).fit(["tags/a", "tags/b"]).tags == ("tags/b",)
    short = TagToText(task="short_to_long", short="captions/s")
    assert short.fit(["pictures", "captions/s"]).reads == ("pictures", "captions/s")
    for settings, layers, problem in [
        (TagToText(), ["pictures"], "sidecars=tags"),
        (TagToText(), ["tags/a", "tags/b"], "-o tags=tags/a"),
        (TagToText(tags=("tags/c",)), ["tags/a"], "no tags/c.*tags/a"),
        (short, ["captions/t"], "no captions/s.*captions/t"),
    ]:
        with pytest.raises(OptionError, match=problem):
            settings.fit(layers)


def test_open_options_are_filled_in_once() -> None:
    for settings in (TagToText(), TagToText(endpoints=("http://localhost:1/v1/",))):
        assert dataclasses.replace(settings, seed=0) == settings
    assert TagToText().length == "long"
    assert TagToText().model == TagToText(endpoints=("http://localhost:1/v1/",)).model == "KBlueLeaf/TIPO-500M-ft"


def test_settings_are_light() -> None:
    code = (
        "import sys; from cutline.annotators.tag_to_text import TagToText; TagToText();"
        "assert not {'torch', 'transformers', 'aiohttp'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- a server -------------------------------------------------------------------------------------------------

Said = Callable[[dict[str, Any]], tuple[str, str]]


@dataclasses.dataclass
class Server:
    """A server of completions on a port of its own."""

    says: Said
    tokens: Mapping[str, int] | None = None
    """How many tokens a text has; None where nobody can ask."""
    start: int = 1
    """How many tokens it puts before a prompt."""
    bodies: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    url: str = ""

    async def completions(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        text, reason = self.says(body)
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        return web.json_response({"choices": [{"text": text, "finish_reason": reason}], "usage": usage})

    async def tokenize(self, request: web.Request) -> web.Response:
        if self.tokens is None:
            raise web.HTTPNotFound
        body = await request.json()
        assert body["prompt"] == body["content"]
        assert body["add_special_tokens"] == body["add_special"]
        count = self.tokens.get(body["prompt"], 1)
        found = [*[0] * (self.start if body["add_special"] else 0), *range(1, count + 1)]
        return web.json_response({"tokens": found, "count": len(found)})

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tipo"}]})


@contextmanager
def serving(says: Said, **more: Any) -> Iterator[Server]:
    server = Server(says, **more)
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/v1/completions", server.completions)
        app.router.add_post("/tokenize", server.tokenize)
        app.router.add_get("/v1/models", server.models)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        return runner

    def serve() -> None:
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(30)
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def remote(server: Server, **given: Any) -> TagToText:
    return TagToText(**{"endpoints": (server.url,), "model": "tipo", "tags": (LAYER,), "max_tokens": 24, **given})


def test_a_server_writes_what_it_is_asked() -> None:
    with serving(lambda body: (" A girl.\nIn the back: a tree.", "stop"), tokens={}) as server:
        settings = remote(server, in_flight=3)
        answers = say(settings, rows())
    assert {answer["texts"][0] for answer in answers.values()} == {"A girl.\nIn the back: a tree."}
    requests = {asked["key"]: settings.request(asked) for asked in rows()}
    assert {key: answer["request"] for key, answer in answers.items()} == {
        key: digest(asked) for key, asked in requests.items()
    }
    sent = sorted(server.bodies, key=lambda body: str(body["seed"]))
    expected = [{name: value for name, value in asked.items() if name != "picture"} for asked in requests.values()]
    assert sent == sorted(expected, key=lambda body: str(body["seed"]))
    assert {(answer["tokens_in"], answer["tokens_out"]) for answer in answers.values()} == {(7, 3)}


def test_a_server_is_asked_again_with_another_seed() -> None:
    seen: set[str] = set()

    def says(body: dict[str, Any]) -> tuple[str, str]:
        first = body["prompt"] not in seen
        seen.add(body["prompt"])
        return ("", "stop") if first else (" A girl. She is c", "length")

    with serving(says, tokens={}) as server:
        answer = only(remote(server), row(0, tag_row()))
        assert len({body["seed"] for body in server.bodies}) == 2
        assert (answer["attempt"], answer["texts"], answer["verdict"]) == (2, ["A girl."], "repaired")
        assert answer["request"] == digest(remote(server).request(row(0, tag_row(), attempt=2)))
        assert only(remote(server), row(1, None))["error"] == "no_tags"


def test_a_server_can_be_looked_at_where_an_event_loop_runs_already() -> None:
    async def cell_of_a_notebook() -> object:
        return remote(server).load()

    with serving(lambda body: ("", "stop"), tokens={}) as server:
        assert asyncio.run(cell_of_a_notebook())


def test_a_server_without_a_text_is_a_typed_error() -> None:
    with serving(lambda body: (7, "stop"), tokens={}) as server:  # type: ignore[arg-type,return-value]
        assert only(remote(server), row(0, tag_row()))["error"] == "bad_reply"


def test_one_worker_asks_servers_however_many_devices_there_are() -> None:
    settings = TagToText(endpoints=("http://localhost:1/v1",))
    assert (settings.workers, TagToText().workers) == ("one", "device")
    assert settings.device != "auto", "which the engine would fill in"
    assert identity(settings) != identity(TagToText()), "a server draws other words"


def test_a_server_of_another_model_is_refused() -> None:
    fine: Said = lambda body: ("", "stop")  # noqa: E731
    with (
        serving(fine, tokens={"<|gen_meta|>": 7}) as server,
        pytest.raises(CutlineError, match=r"no TIPO model: the marker <\|gen_meta\|> is 7 tokens"),
    ):
        remote(server).load()
    for start in (0, 2):
        with (
            serving(fine, tokens={}, start=start) as server,
            pytest.raises(CutlineError, match=f"{start} tokens more than it has.*add_bos_token"),
        ):
            remote(server).load()


def test_a_server_that_cannot_be_asked_for_tokens_is_used_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda body: (" A girl.", "stop")) as server:
        assert only(remote(server), row(0, tag_row()))["verdict"] == "good"
    assert "does not say how it reads TIPO's markers" in capsys.readouterr().err


# -- whole runs -----------------------------------------------------------------------------------------------


CATEGORIES = ("general", "character", "copyright", "artist", "meta")


def tagged(folder: Path, count: int = 6) -> Dataset:
    """A dataset of which a booru's table alone tells: there is no picture file. The last one has no general tags."""
    folder.mkdir()
    lines = ["id,rating,score,image_width,image_height," + ",".join(f"tag_string_{name}" for name in CATEGORIES)]
    lines += [f"{number},s,5,600,800,1girl long_hair rain,{'saber' * (number % 2)},,," for number in range(count)]
    (folder.parent / "posts.csv").write_text("\n".join([*lines, "99,g,1,10,10,,saber,,,"]))
    running.cutline("add", folder, folder.parent / "posts.csv")
    return Dataset(folder)


def stored(dataset: Dataset) -> dict[str, Row]:
    found = [row for batch in dataset.scan("captions/tipo", "checks/tipo") for row in batch.to_pylist()]
    return {row["key"]: {**(row["captions/tipo"] or {}), "checks": row["checks/tipo"], "seconds": 0} for row in found}


@pytest.mark.slow
def test_a_run_writes_what_pictures_lack_and_needs_no_pictures(tmp_path: Path, tipo_folder: Path) -> None:
    settings = TagToText(model=str(tipo_folder), max_tokens=24, batch_size=4, device="cpu")
    whole, parts = tagged(tmp_path / "whole"), tagged(tmp_path / "parts")
    report = annotate(Selection(whole, settings, "captions/tipo"))
    assert (report.todo, report.errors) == (7, {"no_tags": 1})
    for limit in (2, 3, None):
        annotate(Selection(parts, settings, "captions/tipo", limit=limit))
    assert annotate(Selection(parts, settings, "captions/tipo")).todo == 0
    assert stored(parts) == stored(whole)
    for key, row in stored(whole).items():
        if key != "99":
            assert row["raw"]
            assert row["checks"]["findings"] is not None


@pytest.mark.slow
def test_from_tags_to_an_exported_sidecar(tmp_path: Path) -> None:
    folder = tiny_tipo.save_tipo(tmp_path / "tipo", says=chain(*GIRL, ".", "<0x0A>", "tag") | {"tag": [":"]})
    photos = tmp_path / "photos"
    names = running.make_pictures(photos, 5)
    for name in names[:4]:
        (photos / name).with_suffix(".txt").write_text("long_hair, 1girl, smile")
    running.cutline("add", photos, "-o", "sidecars=tags")
    command = ("annotate", photos, "tag_to_text", "-o", f"model={folder}")
    dry = json.loads(running.cutline(*command, "--dry-run").stdout.partition("\n")[2])
    assert dry["request"]["prompt"].endswith("\ntag: 1girl, long hair, smile\nlong:")
    assert dry["request"]["picture"] is None
    done = running.cutline(*command, code=3)
    assert "no_tags" in done.stderr
    assert stored(Dataset(photos))[names[0]]["request"] == dry["hash"]
    (tmp_path / "recipe.toml").write_text('[captions]\nfirst_of = ["captions/tipo"]\n')
    running.cutline("export", photos, "sidecar", tmp_path / "out", "--recipe", tmp_path / "recipe.toml")
    for name in names[:4]:
        said = (tmp_path / "out" / name).with_suffix(".txt").read_text()
        assert said == "A girl with long hair smiles."
    assert len(list((tmp_path / "out").iterdir())) == 4
