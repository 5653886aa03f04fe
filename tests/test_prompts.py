"""What a model is asked: prompts and their templates, presets among them, and who may say what."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cutline import options, toml_files
from cutline.annotators.prompted import Prompted
from cutline.annotators.session import RowError
from cutline.options import OptionError
from cutline.prompts.prompt import Prompt, PromptError, find_prompt

ORACLE = Path(__file__).parent / "oracles" / "kohya" / "structured_caption_parse.json"


def row(key: str = "42.webp", *, layer: str = "tags/danbooru", **said: Any) -> dict[str, Any]:
    tags: dict[str, Any] = {name: [] for name in ("general", "character", "copyright", "artist", "meta", "unsorted")}
    known = {**tags, "rating": None, "year": None, "error": None, **said} if said else None
    return {"key": key, "uri": key, "width": 640, "height": 480, "attempt": 1, layer: known}


def asked(prompt: str, picture: dict[str, Any], **given: Any) -> str:
    settings = Prompted(prompt=prompt, tags=("tags/danbooru",), **given)
    return settings.ask(picture, 1).user


def test_toriigate_is_asked_as_the_seed_asks_it() -> None:
    cases = json.loads(ORACLE.read_text())["user_prompts"]
    compared = 0
    for case in cases:
        if not case.get("tag_string_general"):
            continue  # grounding tags that are none: the seed writes <tags></tags>, and here the sentence goes
        said = {name: case[f"tag_string_{name}"].split() for name in ("general", "character", "artist")}
        assert asked("toriigate-json", row(**said)) == case["prompt"]
        compared += 1
    assert compared == 2


def test_a_picture_without_tags_is_asked_without_them() -> None:
    wanted = "Describe the picture in structured json-like format. Do not use names for characters."
    assert asked("toriigate-json", row()) == wanted
    assert asked("toriigate-json", row(artist=["x"])) == wanted


@pytest.mark.parametrize("name", toml_files.presets("prompts"))
def test_every_preset_asks_something(name: str) -> None:
    full = row(general=["1girl", "long_hair"], character=["hatsune_miku"], artist=["some_artist"], rating="s")
    settings = Prompted(prompt=name, tags=("tags/danbooru",))
    found = settings.ask(full, 1)
    assert len(found.user) > 5
    assert not {"{", "}", "[", "]"} & set(found.user + found.system)
    assert toml_files.text("prompts", name).startswith("# ")


def test_gaps_are_filled_with_what_is_known() -> None:
    template = (
        "{key} {width}x{height}: {tags.general}; {tags.rating}; {tags.year}; all {tags}[; before: {captions.sidecar}]"
    )
    picture = {
        **row(general=["long_hair", "^_^"], character=["miku_(vocaloid)"], rating="q", year=2019),
        "captions/sidecar": {"texts": ["A girl.", "Another."], "error": None, "verdict": "good"},
    }
    assert asked("plain", picture, user=template) == (
        "42.webp 640x480: long hair, ^_^; questionable; 2019; all miku (vocaloid), long hair, ^_^; before: A girl."
    )
    rejected = {**picture, "captions/sidecar": {"texts": ["no"], "error": None, "verdict": "rejected"}}
    assert "before" not in asked("plain", rejected, user=template)


def test_the_first_layer_with_tags_counts() -> None:
    settings = Prompted(user="Tags: {tags}", tags=("tags/human", "tags/danbooru"))
    picture = row(general=["dog"])
    assert settings.ask({**picture, "tags/human": None}, 1).user == "Tags: dog"
    empty = {**row(layer="tags/human", rating="g")["tags/human"]}
    assert settings.ask({**picture, "tags/human": empty}, 1).user == "Tags: dog"
    assert settings.ask({**picture, "tags/human": {**empty, "general": ["cat"]}}, 1).user == "Tags: cat"


def test_one_of_several_is_drawn_by_weight_and_key() -> None:
    prompt = Prompt.parse({"one_of": [{"user": "a", "weight": 3}, {"user": "b", "weight": 1}]})
    drawn = Counter(prompt.draw(f"0/{number}").user for number in range(4000))
    assert abs(drawn["a"] - 3000) < 120  # four standard deviations: 4 * sqrt(4000 * 3/4 * 1/4) = 110
    assert [prompt.draw(f"0/{number}") for number in range(9)] == [prompt.draw(f"0/{number}") for number in range(9)]
    first = [Prompted(prompt="varied", seed=0).ask(row(str(n)), 1).user for n in range(50)]
    assert first == [Prompted(prompt="varied", seed=0).ask(row(str(n)), 2).user for n in range(50)]
    assert first != [Prompted(prompt="varied", seed=1).ask(row(str(n)), 1).user for n in range(50)]


def test_another_attempt_has_another_seed() -> None:
    settings = Prompted(seed=7)
    seeds = [settings.ask(row(key), attempt).seed for key in ("a", "b") for attempt in (1, 2, 3)]
    assert len(set(seeds)) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [settings.ask(row(key), attempt).seed for key in ("a", "b") for attempt in (1, 2, 3)]


def test_a_prompt_that_comes_to_nothing_is_not_asked() -> None:
    with pytest.raises(RowError) as raised:
        asked("from-tags", row())
    assert raised.value.reason == "no_prompt"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "asks nothing"),
        ({"user": " "}, "asks nothing"),
        ({"user": "{tags.species}"}, "{tags.species}"),
        ({"user": "{answer}"}, "{answer}"),
        ({"user": "{captions.}"}, "{captions.}"),
        ({"user": "a [b"}, "character 3"),
        ({"user": "a", "around": "x"}, "around"),
        ({"user": "a", "around": "{answer} {nothing}"}, "{nothing}"),
        ({"user": "a", "answer": "yaml"}, "answer"),
        ({"user": "a", "schema": {"type": "object"}}, "schema"),
        ({"user": "a", "underscores": "drop"}, "underscores"),
        ({"user": "a", "colour": "red"}, "no option 'colour'"),
        ({"user": "a", "weight": 2}, "weight"),
        ({"one_of": [{"user": "a", "weight": 0}]}, "weight"),
        ({"one_of": [{"user": "a"}, {"system": "b"}]}, "asks nothing"),
        ({"one_of": [{"user": "a", "checks": {}}]}, "[[one_of]]"),
        ({"one_of": [{"user": "a"}], "user": "b"}, "user at the top has no effect"),
        ({"one_of": {"user": "a"}}, "list of tables"),
        ({"user": "a", "checks": 3}, "[checks]"),
        ({"user": "a", "checks": {"loop": "mend"}}, "loop"),
        ({"user": "a", "checks": {"luck": "again"}}, "luck"),
        ({"user": "a", "checks": {"tries": 0}}, "tries"),
    ],
)
def test_a_bad_prompt_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(PromptError) as raised:
        Prompt.parse(values)
    assert says in str(raised.value)


def test_bad_options_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("user = 3")
    for given, says in (
        ({"prompt": "nothing-like-it"}, "toriigate-json"),
        ({"prompt": str(tmp_path / "mine.toml")}, "mine.toml"),
        ({"prompt": str(tmp_path / "gone.toml")}, "gone.toml"),
        ({"tags": "captions/x"}, "tags/danbooru"),
        ({"user": "{nobody}"}, "{nobody}"),
        ({"prompt": "varied", "user": "a"}, "one of several"),
    ):
        with pytest.raises(options.CutlineError) as raised:
            options.fill(Prompted, given)
        assert says in str(raised.value)


def test_a_prompt_is_known_by_what_it_says(tmp_path: Path) -> None:
    copy = tmp_path / "copy.toml"
    copy.write_text(toml_files.text("prompts", "grounded"))
    same = options.identity(Prompted(prompt="grounded"))
    assert options.identity(Prompted(prompt=str(copy))) == same
    copy.write_text(toml_files.text("prompts", "grounded").replace("few", "couple of"))
    assert options.identity(Prompted(prompt=str(copy))) != same
    plain = find_prompt("plain")
    assert options.identity(Prompted(user=plain.user)) == options.identity(Prompted())


def test_the_tag_layer_is_found_or_asked_for() -> None:
    assert Prompted(prompt="grounded").fit(["pictures", "tags/a"]).reads == ("pictures", "tags/a")
    assert Prompted(prompt="grounded").fit(["pictures"]).reads == ("pictures",)
    with pytest.raises(OptionError, match=r"-o tags=tags/a"):
        Prompted(prompt="grounded").fit(["pictures", "tags/a", "tags/b"])
    assert Prompted(prompt="plain").fit(["pictures", "tags/a", "tags/b"]).reads == ("pictures",)
    with pytest.raises(OptionError, match="tags/c"):
        Prompted(tags=("tags/c",)).fit(["pictures", "tags/a"])
    with pytest.raises(OptionError, match="captions/sidecar"):
        Prompted(user="{captions.sidecar}").fit(["pictures", "captions/blip"])


def test_tags_that_come_later_do_not_make_it_another_layer() -> None:
    before, after = (Prompted(prompt="plain").fit(layers) for layers in (["pictures"], ["pictures", "tags/a"]))
    assert after.reads == ("pictures", "tags/a")
    assert options.identity(before) == options.identity(after)
    grounded = [Prompted(prompt="grounded").fit(layers) for layers in (["pictures"], ["pictures", "tags/a"])]
    assert options.identity(grounded[0]) != options.identity(grounded[1])


def answered(prompted: Prompted, picture: dict[str, Any], raw: str) -> tuple[str, str | None, list[str]]:
    answer = prompted.answer(picture, prompted.ask(picture, 1), raw, finish_reason=None, tries=3)
    return answer.columns["verdict"], answer.columns["reason"], answer.columns["checks"]["findings"]


def test_a_reason_for_rejecting_is_of_a_few_kinds() -> None:
    loop = '{"a": "' + "The sky is blue. " * 5 + '", "b": "None", "c": "x'
    assert answered(Prompted(prompt="toriigate-json"), row(), loop) == ("rejected", "loop", ["loop"])


def test_a_caption_that_was_shown_may_be_said_again(tmp_path: Path) -> None:
    caption = "A girl with long blue hair in a school uniform sits on a bench beneath the cherry blossoms."
    picture = {**row(), "captions/sidecar": {"texts": [caption], "verdict": "good"}}
    prompted = Prompted(user="Mend the spelling of this caption, and say no more than that: {captions.sidecar}")
    assert answered(prompted, picture, caption + " She smiles.") == ("good", None, [])
    echo = "Mend the spelling of this caption, and say no more than that: a girl."
    assert answered(prompted, picture, echo)[2] == ["prompt_echo"]


@pytest.mark.parametrize(("policy", "verdict"), [("trim", "repaired"), ("reject", "rejected"), ("again", "rejected")])
def test_thoughts_before_json_are_thoughts(tmp_path: Path, policy: str, verdict: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'user = "Say it as JSON."\nanswer = "json"\n[checks]\nthinking = "{policy}"\n')
    found = answered(Prompted(prompt=str(path)), row(), '<think>Hm.</think>{"a": "A girl."}')
    assert found == (verdict, "thinking", ["thinking"])
