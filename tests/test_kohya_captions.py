"""sd-scripts' captions, imitated: every recorded case of the real trainer, draw by draw, and what its rules imply."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.compose.kohya import Subset, TrainerError
from cutline.options import CutlineError, OptionError

ORACLE = Path(__file__).parent / "oracles" / "kohya" / "caption_processing.jsonl"
CASES = [json.loads(line) for line in ORACLE.read_text(encoding="utf-8").splitlines()]


def drawn(
    text: str, *, seed: int = 0, times: int = 1, state: dict[str, Any] | None = None, **options: Any
) -> list[str]:
    subset, rng = Subset(**options), random.Random(seed)
    return [subset.draw(text, rng, **(state or {})) for _ in range(times)]


def loaded(case: dict[str, Any], subset: Subset, root: Path) -> str:
    """The text of a recorded case, with its files written below `root`."""
    if "caption" in case:
        return str(case["caption"])
    if "metadata_entry" in case:
        return subset.load(case["metadata_entry"].get("caption"), case["metadata_entry"].get("tags"))
    image = root / case["image"]
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(b"")
    if "sidecar_bytes_hex" in case:
        image.with_suffix(case["sidecar_ext"]).write_bytes(bytes.fromhex(case["sidecar_bytes_hex"]))
    elif case["sidecar"] is not None:
        image.with_suffix(case["sidecar_ext"]).write_bytes(case["sidecar"].encode())
    for name, text in case.get("extra_files", {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text.encode())
    return subset.load_image(image)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_as_recorded(case: dict[str, Any], tmp_path: Path) -> None:
    # The recorder read ".txt" sidecars unless a case says otherwise; the trainer's own default is ".caption".
    extension = {"caption_extension": ".txt"} if "image" in case else {}
    subset = Subset(**(extension | case["options"]))
    if case["kind"] == "error":
        with pytest.raises(TrainerError) as error:
            loaded(case, subset, tmp_path)
        assert str(error.value).replace(str(tmp_path), "<root>") == case["error"]
        return
    text = loaded(case, subset, tmp_path)
    assert text == case.get("loaded_caption", text)
    assert subset.cached(text) == case["te_cached_text"]

    state = case.get("state", {"current_epoch": 1, "current_step": 0, "max_train_steps": 1000})
    rng = random.Random(case["seed"])
    draws = [
        subset.draw(
            text,
            rng,
            epoch=state["current_epoch"],
            step=state["current_step"],
            max_train_steps=state["max_train_steps"],
            replacements=case.get("replacements"),
        )
        for _ in range(case["n"])
    ]
    if case["kind"] == "exact":
        assert set(draws) == {case["exact"]}
    else:
        assert draws[:16] == case["first_draws"]
        assert len(set(draws)) == case["distinct"]
        assert Counter(draws) == case.get("counts", Counter(draws))


# -- options --------------------------------------------------------------------------------------------------


def test_unknown_options_are_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"no option 'shuffle_captions'\. It has: .*shuffle_caption"):
        Subset(shuffle_captions=True)


@pytest.mark.parametrize(
    "options", [{"keep_tokens": "2"}, {"caption_separator": 3}, {"shuffle_caption": "yes"}, {"keep_tokens": 1.0}]
)
def test_values_of_another_type_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=f"{next(iter(options))} = .* does not fit"):
        Subset(**options)


def test_every_option_of_the_trainer_is_taken() -> None:
    options = {
        "image_dir": "pictures", "num_repeats": 2, "is_reg": True, "alpha_mask": True, "cache_info": True,
        "color_aug": True, "flip_aug": True, "random_crop": True, "face_crop_aug_range": [1.0, 2.5],
        "custom_attributes": {"a": 1}, "caption_extension": ".txt", "class_tokens": "sks",
    }  # fmt: skip
    subset = Subset(**options)
    assert {name: getattr(subset, name) for name in options} == options
    assert subset.draw("1girl", random.Random(0)) == "1girl"


def test_none_never_overrides_and_an_empty_text_does() -> None:
    nothing = Subset(caption_separator=None, caption_dropout_rate=None, custom_attributes=None, caption_extension=None)
    assert nothing == Subset()
    assert Subset(caption_separator="").caption_separator == ""
    assert Subset().custom_attributes is not Subset().custom_attributes


# -- loading --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "caption", "tags", "text"),
    [
        ({}, None, None, ""),
        ({}, "", "a, b", "a, b"),
        ({}, " ", "a", " ,a"),  # white space is a caption
        ({"enable_wildcard": True}, None, "a, b", ""),  # the tags are lost
        ({"enable_wildcard": True}, " \n", "a, b", ""),
        ({"enable_wildcard": True}, " l1 \nl2\n", "a\nb", " l1 ,a,b\nl2,a,b"),
        ({"enable_wildcard": True, "caption_separator": "\n"}, "l1", "a, b", "l1\na, b"),
        ({"enable_wildcard": True, "caption_separator": "\n"}, "l1\nl2", "t", "l1\nt\nl2\nt"),
        ({"caption_separator": " ; "}, "l1", "a", "l1 ; a"),
        ({"caption_separator": ""}, "l1", "a", "l1a"),
        ({}, "a girl", [], "a girl"),  # nobody asks what has no length
    ],
)
def test_metadata_entries(options: dict[str, Any], caption: str | None, tags: Any, text: str) -> None:
    assert Subset(**options).load(caption, tags) == text


@pytest.mark.parametrize(
    ("options", "caption", "tags", "error"),
    [
        ({}, None, ["a"], 'TypeError: can only concatenate str (not "list") to str'),
        ({}, "a girl", 5, "TypeError: object of type 'int' has no len()"),
        ({}, ["a girl"], "1girl", 'TypeError: can only concatenate list (not "str") to list'),
        ({"enable_wildcard": True}, None, ["a"], "AttributeError: 'list' object has no attribute 'replace'"),
        ({"enable_wildcard": True}, ["a girl"], "a", "AttributeError: 'list' object has no attribute 'split'"),
    ],
)
def test_metadata_that_is_no_text_stops_the_trainer(
    options: dict[str, Any], caption: Any, tags: Any, error: str
) -> None:
    with pytest.raises(TrainerError) as raised:
        Subset(**options).load(caption, tags)
    assert str(raised.value) == error
    assert error == f"{raised.value.type}: {raised.value.text}"
    assert isinstance(raised.value, CutlineError)


def test_a_list_for_a_caption_stops_the_trainer_when_it_draws() -> None:
    subset = Subset()
    text = subset.load(["a girl"])
    with pytest.raises(TrainerError, match=r"^AttributeError: 'list' object has no attribute 'split'$"):
        subset.draw(text, random.Random(0))


def test_the_default_extension_is_that_of_taggers(tmp_path: Path) -> None:
    (tmp_path / "one.caption").write_text("from .caption", encoding="utf-8")
    (tmp_path / "one.txt").write_text("from .txt", encoding="utf-8")
    assert Subset().load_image(tmp_path / "one.png") == "from .txt"
    assert Subset(caption_extension=".caption").load_image(tmp_path / "one.png") == "from .caption"
    assert Subset(caption_extension="txt").load_image(str(tmp_path / "one.png")) == "from .txt"


@pytest.mark.parametrize(
    ("options", "content", "text"),
    [
        ({}, b" first \nsecond", "first"),
        ({}, b"\nsecond\n", ""),  # a blank first line is an empty caption
        ({}, b"one\rtwo", "one"),  # an old line break
        ({"enable_wildcard": True}, b" one \r\n\r\n\t\r\ntwo\r\n", "one\ntwo"),
        ({"enable_wildcard": True}, b"one", "one"),
        ({"enable_wildcard": True}, b"\xef\xbb\xbfone\ntwo", "\ufeffone\ntwo"),
        ({"class_tokens": "sks"}, b"\n", ""),  # a file without words is a file
    ],
)
def test_sidecars(tmp_path: Path, options: dict[str, Any], content: bytes, text: str) -> None:
    (tmp_path / "one.txt").write_bytes(content)
    assert Subset(caption_extension=".txt", **options).load_image(tmp_path / "one.png") == text


@pytest.mark.parametrize(
    ("image", "sidecar", "found"),
    [
        ("d/a_b_1_2_3_4.png", "d/a_b.txt", True),
        ("d/a_1_2_3.png", "d/a.txt", False),  # four fields and a name are needed, and underscores of folders count
        ("x_y/a_1_2_3.png", "x.txt", True),
        ("x_y/z_w/v_u/b.png", "x_y/z.txt", False),
        ("x_y/z_w/v_u/s_b.png", "x.txt", True),
        ("p/q_r_s_t_u/i.tar.png", "p/q.txt", True),
        ("p/i.1.png", "p/i.1.txt", True),  # only the last dot begins an extension
        ("p/i.1.png", "p/i.txt", False),
    ],
)
def test_underscores_of_the_whole_path_count(tmp_path: Path, image: str, sidecar: str, found: bool) -> None:
    root = tmp_path / "root"  # what is above it has underscores too, before the last four that count
    for name in (image, sidecar):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / sidecar).write_text("found", encoding="utf-8")
    assert Subset(caption_extension=".txt").load_image(root / image) == ("found" if found else "")


def test_the_own_sidecar_comes_before_the_shared_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("shared", encoding="utf-8")
    (tmp_path / "a_1_2_3_4.txt").write_text("own", encoding="utf-8")
    assert Subset(caption_extension=".txt").load_image(tmp_path / "a_1_2_3_4.png") == "own"


def test_a_sidecar_that_is_not_utf8_stops_the_trainer(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_bytes(b"1girl\xff, solo")
    with pytest.raises(TrainerError) as raised:
        Subset(caption_extension=".txt").load_image(tmp_path / "one.png")
    assert raised.value.type == "UnicodeDecodeError"
    assert raised.value.text == "'utf-8' codec can't decode byte 0xff in position 5: invalid start byte"


# -- drawing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text", "drawing"),
    [
        # The prefix stands before the first line, the suffix after the last.
        ({"caption_suffix": "Z"}, "one\ntwo", {"one"}),
        ({"caption_prefix": "A,", "caption_suffix": ", Z", "enable_wildcard": True}, "1\n2\n3", {"A, 1", "2", "3 , Z"}),
        ({"caption_prefix": "{A|B}", "enable_wildcard": True}, "x", {"A x", "B x"}),
        ({"caption_prefix": "A\nB"}, "x", {"A"}),
        # Braces.
        ({"enable_wildcard": True}, "{{{a|b}}}", {"{a", "{b}"}),
        ({"enable_wildcard": True}, "{{{{a|b}}}}", {"{{a|b}}"}),
        ({"enable_wildcard": True}, "{a|b", {"{a|b"}),
        ({"enable_wildcard": True}, "{2::a|b}", {"2::a", "b"}),
        ({"enable_wildcard": True}, "__hair__ {|}", {"__hair__ "}),
        ({"enable_wildcard": True}, "⦆ {{y}}", {"⦆ {y}"}),
        ({"enable_wildcard": True}, "⦅⦅ {{y}} ⦆", {"⦅⦅ {y} ⦆"}),
        ({}, "{a|b} {{c}}", {"{a|b} {{c}}"}),
        # Lines.
        ({"enable_wildcard": True}, "a\n \n", {"a", " ", ""}),
        ({"enable_wildcard": True}, "{a\nb}", {"{a", "b}"}),
        ({"enable_wildcard": True}, "a\r\nb", {"a\r", "b"}),
        # What stays in front, and at the end.
        ({"keep_tokens_separator": "|||", "caption_tag_dropout_rate": 1}, "a, b ||| c", {"a, b"}),
        ({"keep_tokens_separator": "|||", "caption_tag_dropout_rate": 1}, "||| a |||", {""}),
        ({"keep_tokens_separator": "|||", "caption_tag_dropout_rate": 1}, "||||||a", {"a"}),
        ({"keep_tokens_separator": "|||", "keep_tokens": 2, "caption_tag_dropout_rate": 1}, "a ||| b, c", {"a"}),
        ({"keep_tokens_separator": "|||", "keep_tokens": 1, "caption_tag_dropout_rate": 1}, "a, b", {"a"}),
        # A group is cut at the bars of a separator inside it, before the separator is looked for.
        ({"keep_tokens_separator": "|||", "enable_wildcard": True, "shuffle_caption": True}, "{a|||b}", {"a", "", "b"}),
        (
            {"keep_tokens_separator": "|||", "enable_wildcard": True, "caption_tag_dropout_rate": 1},
            "{a|b} ||| c\nd ||| e ||| f",
            {"a", "b", "d, f"},
        ),
        ({"caption_suffix": "|| z", "keep_tokens_separator": "||", "caption_tag_dropout_rate": 1}, "a || b", {"a, z"}),
        ({"keep_tokens": -1, "caption_tag_dropout_rate": 1}, "a, b", {""}),
        # Separators.
        ({"caption_tag_dropout_rate": 1e-12, "caption_separator": ";"}, "a; b,c ;", {"a, b,c, "}),
        ({"caption_tag_dropout_rate": 1e-12, "caption_separator": ", "}, "a, b, ", {"a, b,"}),
        ({"caption_tag_dropout_rate": 1e-12}, "", {""}),
        ({"secondary_separator": ";;;"}, "a;;;b;;; c", {"a,b, c"}),
        ({"secondary_separator": ";;;", "enable_wildcard": True}, "{a;;;b|c}", {"a,b", "c"}),
        ({"secondary_separator": ";;;", "caption_prefix": "p;;;q", "shuffle_caption": True}, "x", {"p,q x"}),
        ({"secondary_separator": "|", "keep_tokens_separator": "|||"}, "a ||| b", {"a ,,, b"}),
        ({"secondary_separator": ""}, "a;;;b", {"a;;;b"}),
    ],
)  # fmt: skip
def test_all_that_can_be_drawn(options: dict[str, Any], text: str, drawing: set[str]) -> None:
    assert set(drawn(text, times=200, **options)) == drawing


def test_an_empty_separator_stops_the_trainer_where_it_splits() -> None:
    assert drawn("a, b", caption_separator="") == ["a, b"]
    with pytest.raises(TrainerError, match=r"^ValueError: empty separator$"):
        drawn("a, b", caption_separator="", shuffle_caption=True)


@pytest.mark.parametrize(("epoch", "text"), [(0, ""), (1, "x"), (2, "x"), (3, "")])
def test_epoch_0_drops_too(epoch: int, text: str) -> None:
    assert drawn("x", state={"epoch": epoch}, caption_dropout_every_n_epochs=3) == [text]
    assert drawn("x", state={"epoch": epoch}) == ["x"]


def test_what_is_dropped_has_nothing_added() -> None:
    state = {"replacements": {"": "a photo"}}
    options: dict[str, Any] = {"caption_prefix": "P", "keep_tokens_separator": "|||", "caption_dropout_rate": 1}
    assert drawn("a ||| b", state=state, **options) == [""]


@pytest.mark.parametrize(
    ("replacements", "text"),
    [
        ({"a": "b", "b": "c", "c": "a"}, "a a a"),
        ({"c": "a", "b": "c", "a": "b"}, "b c b"),
        ({"": "sks b", "sks": "S1 S2"}, "S1 S2 b"),
        ({"sks": "x", "": "whole"}, "whole"),
        ({"a": ""}, " b c"),
        ({}, "a b c"),
    ],
)
def test_replacements_follow_each_other(replacements: dict[str, str], text: str) -> None:
    assert drawn("a b c", state={"replacements": replacements}) == [text]


def test_the_whole_text_is_drawn_from_a_list() -> None:
    texts = ["a photo", "a picture", "a {print|poster}"]
    draws = drawn("x", seed=3, times=50, enable_wildcard=True, state={"replacements": {"": texts}})
    rng = random.Random(3)
    assert draws == [rng.choice(texts) for _ in range(50)]  # the braces stay: they come too late


@pytest.mark.parametrize(
    ("replacements", "error"),
    [
        ({"a": ["x"]}, "TypeError: replace() argument 2 must be str, not list"),
        ({"": []}, "IndexError: Cannot choose from an empty sequence"),
    ],
)
def test_replacements_that_stop_the_trainer(replacements: dict[str, Any], error: str) -> None:
    with pytest.raises(TrainerError) as raised:
        drawn("a", state={"replacements": replacements})
    assert str(raised.value) == error


@pytest.mark.parametrize(
    ("step", "options", "text"),
    [
        (0, {"token_warmup_step": 4}, "a"),
        (1, {"token_warmup_step": 4}, "a, b"),
        (3, {"token_warmup_step": 4}, "a, b, c, d"),
        (4, {"token_warmup_step": 4}, "a, b, c, d, e"),
        (0, {"token_warmup_step": 4, "keep_tokens": 2}, "a, b, c"),  # only what may move is counted
        (2, {"token_warmup_step": 4, "token_warmup_min": 0}, "a, b"),
        (2, {"token_warmup_step": 4, "token_warmup_min": 9}, "a, b, c, d, e"),
        (0, {"token_warmup_step": 4, "token_warmup_min": -1}, "a, b, c, d"),  # counted from the end, as Python does
    ],
)
def test_warmup(step: int, options: dict[str, Any], text: str) -> None:
    assert drawn("a, b, c, d, e", state={"step": step, "max_train_steps": 100}, **options) == [text]


def test_a_fraction_becomes_steps_at_the_first_draw_and_stays_so() -> None:
    subset, rng = Subset(token_warmup_step=0.25), random.Random(0)
    assert subset.draw("a, b, c", rng, step=5, max_train_steps=40) == "a, b"
    assert subset.token_warmup_step == 10
    assert subset.draw("a, b, c", rng, step=5, max_train_steps=4000) == "a, b"


def test_a_fraction_of_nothing_is_no_warmup() -> None:
    subset, rng = Subset(token_warmup_step=0.25), random.Random(0)
    assert subset.draw("a,b,,c", rng) == "a, b, , c"  # split and joined once,
    assert subset.token_warmup_step == 0
    assert subset.draw("a,b,,c", rng) == "a,b,,c"  # and never again


def test_a_dropped_text_leaves_the_fraction_alone() -> None:
    subset = Subset(token_warmup_step=0.25, caption_dropout_every_n_epochs=1)
    assert subset.draw("a", random.Random(0), max_train_steps=40) == ""
    assert subset.token_warmup_step == 0.25


def test_draws_come_in_the_trainers_order() -> None:
    options: dict[str, Any] = {
        "caption_dropout_rate": 0.1, "enable_wildcard": True, "shuffle_caption": True, "caption_tag_dropout_rate": 0.3,
    }  # fmt: skip
    rng = random.Random(7)

    def by_hand() -> str:
        if rng.random() < 0.1:
            return ""
        line = rng.choice(["x", "{a|b}, {c|d}, e"])
        tags = ["x"] if line == "x" else [rng.choice("ab"), rng.choice("cd"), "e"]
        rng.shuffle(tags)
        return ", ".join(tag for tag in tags if rng.random() >= 0.3)

    assert drawn("x\n{a|b}, {c|d}, e", seed=7, times=100, **options) == [by_hand() for _ in range(100)]


@given(st.text("ab,{}|\n ", max_size=12), st.integers(0, 99), st.booleans())
def test_options_that_do_nothing_draw_nothing(text: str, seed: int, flip: bool) -> None:
    rng = random.Random(seed)
    Subset(flip_aug=flip, keep_tokens=1, secondary_separator=";", caption_prefix="p").draw(text, rng, epoch=2)
    assert rng.random() == random.Random(seed).random()
