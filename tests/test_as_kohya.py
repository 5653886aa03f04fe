"""A recipe in the words of kohya's trainers: what the imitated trainer draws is what compose says."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.compose.as_kohya import AsKohya
from cutline.compose.kohya import Subset
from cutline.compose.recipe import Recipe, RecipeError
from test_recipe import batch

DRAWS = 2000
SEEN = 500  # draws in which a text of one in eight is missed once in 10^28

BOTH = {"captions": {"first_of": ["captions/a"]}, "tags": {"first_of": ["tags/b"]}}


def trainer(recipe: Recipe, rows: pa.RecordBatch, row: int, draws: int = SEEN) -> Counter[str]:
    """What the trainer draws for one row."""
    said = AsKohya(recipe)
    entries, reasons = said.entries(recipe.make(rows, seed=0))
    assert not said.cannot
    assert not reasons[row], (reasons[row], entries[row])
    subset, rng = Subset(**said.options), random.Random(1)
    text = subset.load(entries[row].as_py())
    return Counter(subset.draw(text, rng) for _ in range(draws))


def composed(recipe: Recipe, rows: pa.RecordBatch, row: int, draws: int = SEEN) -> Counter[str]:
    """What compose says of one row; nothing to say and a dropped text are one to a trainer."""
    one = rows.slice(row, 1)
    many = pa.Table.from_batches([one] * draws).combine_chunks().to_batches()[0]
    many = many.set_column(0, "key", pa.array([f"{number}" for number in range(draws)]))
    return Counter(text or "" for text in recipe.compose(many, seed=5).to_pylist())


def same_distribution(found: Counter[str], expected: Counter[str]) -> bool:
    """Two samples of one size, by chi-square at one in a million; texts that are rare in both count as one."""
    from scipy.stats import chi2  # comes with scikit-learn

    rare = {text for text in {*found, *expected} if found[text] + expected[text] < 20}
    pairs = [(found[text], expected[text]) for text in {*found, *expected} - rare]
    pairs.append((sum(found[text] for text in rare), sum(expected[text] for text in rare)))
    pairs = [pair for pair in pairs if sum(pair)]
    statistic = sum((one - other) ** 2 / (one + other) for one, other in pairs)
    return len(pairs) < 2 or bool(chi2.sf(statistic, len(pairs) - 1) > 1e-6)


ROWS = batch(
    captions_a=[
        {"texts": ["A girl, standing. 1,000 {hats} | red", "Another {one|two}"]},
        {"texts": ["one\ntwo"]},
        None,
        {"texts": ["only a caption"]},
    ],
    tags_b=[
        {"character": ["miku", "rin"], "general": ["solo", "hat", "a_b"], "meta": ["highres"], "rating": "g"},
        {"general": ["x", "y"]},
        {"general": ["z"], "character": ["len"]},
        None,
    ],
)

ODD = ("a ||| b", "a;;;b", "c ⦅", " led by a space", "{a|{b|c}}", "{|a}", "{{a}} {b|c}")

RANDOM: dict[str, dict[str, Any]] = {
    "shuffle": {"tags": {"first_of": ["tags/b"], "shuffle": True}},
    "shuffle and captions": {**BOTH, "tags": {"first_of": ["tags/b"], "shuffle": True, "keep": ["character"]}},
    "kept at both ends": {
        **BOTH,
        "tags": {"first_of": ["tags/b"], "shuffle": True, "dropout": 0.3, "keep": ["character", "meta"]},
        "text": {"order": ["caption", "tags"], "prefix": "best", "suffix": "end, of it"},
    },
    "first tags kept": {"tags": {"first_of": ["tags/b"], "shuffle": True, "keep": 2, "dropout": 0.25}},
    "categories apart": {
        **BOTH,
        "tags": {"first_of": ["tags/b"], "shuffle": True, "keep": ["character", "meta"]},
        "text": {"order": ["tags.character", "caption", "tags.general"]},
    },
    "template": {
        **BOTH,
        "tags": {"first_of": ["tags/b"], "shuffle": True},
        "words": {"safety": {"g": "safe"}},
        "text": {"template": "[{caption}, ]{tags}[, it is {safety}]"},
    },
    "dropped text": {**BOTH, "text": {"dropout": 0.25}},
    "dropped caption": {"captions": {"first_of": ["captions/a"], "dropout": 0.25}, "tags": {"first_of": ["tags/b"]}},
    "either": {**BOTH, "text": {"either": [["tags"], ["caption"], ["caption", "tags"]], "weights": [1, 2.5, 0.5]}},
    "either, captions dropped": {
        "captions": {"first_of": ["captions/a"], "dropout": 0.5},
        "tags": {"first_of": ["tags/b"], "shuffle": True},
        "text": {"either": [["tags"], ["caption"]]},
    },
    "drawn texts": {"captions": {"first_of": ["captions/a"], "texts": "draw"}},
    "drawn lines": {"captions": {"first_of": ["captions/a"], "texts": "draw", "line_breaks": "draw"}},
    "lines and tags": {
        "captions": {"first_of": ["captions/a"], "line_breaks": "draw"},
        "tags": {"first_of": ["tags/b"], "shuffle": True, "dropout": 0.5},
    },
    "wildcards": {
        "captions": {"first_of": ["captions/a"]},
        "tags": {"first_of": ["tags/b"], "shuffle": True, "keep": ["character"]},
        "text": {"wildcards": True, "prefix": "{good|better|best}"},
    },
}


@pytest.mark.parametrize("name", RANDOM)
def test_the_trainer_draws_what_compose_draws(name: str) -> None:
    recipe = Recipe.parse(RANDOM[name])
    rows = recipe.make(ROWS, seed=0).batch
    reasons = AsKohya(recipe).entries(recipe.make(rows, seed=0))[1]
    looked_at = 0
    for row in range(len(rows)):
        expected = composed(recipe, rows, row, DRAWS)
        if set(expected) == {""} or reasons[row]:
            continue
        found = trainer(recipe, rows, row, DRAWS)
        assert same_distribution(found, expected), (found.most_common(9), expected.most_common(9))
        looked_at += 1
    assert looked_at >= 2


def test_what_the_trainer_would_misread_is_said() -> None:
    whole = Recipe.parse(BOTH)
    entries, reasons = AsKohya(whole).entries(whole.make(ROWS, seed=0))
    assert ["several lines" in reason for reason in reasons] == [False, True, False, False]
    assert entries.to_pylist() == whole.compose(ROWS, seed=0).to_pylist()
    odd = batch(
        captions_a=[{"texts": [text]} for text in ODD],
        tags_b=[{"general": ["t"]}] * 7,
    )
    moving = Recipe.parse({**BOTH, "tags": {"first_of": ["tags/b"], "shuffle": True}, "text": {"wildcards": True}})
    reasons = AsKohya(moving).entries(moving.make(odd, seed=0))[1]
    said = ("holds |||", "commas or spaces", "⦅", "commas or spaces", "wildcards hold", "leave nothing", "")
    for reason, part in zip(reasons, said, strict=True):
        assert part in reason
        assert bool(part) == bool(reason)
    tags = batch(tags_b=[{"general": ["a,b", "c"]}, {"general": ["a b", "c"]}])
    alone = Recipe.parse({"tags": {"first_of": ["tags/b"], "shuffle": True}})
    assert [bool(reason) for reason in AsKohya(alone).entries(alone.make(tags, seed=0))[1]] == [True, False]
    amid = Recipe.parse({"tags": {"first_of": ["tags/b"], "shuffle": True, "keep": ["general"]}})
    reasons = AsKohya(amid).entries(amid.make(ROWS, seed=0))[1]
    assert ["stand among" in reason for reason in reasons] == [True, False, False, False]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"tags": {"first_of": ["tags/b"], "separator": " ", "shuffle": True}}, "joins tags"),
        ({**BOTH, "tags": {"first_of": ["tags/b"], "shuffle": True}, "text": {"separator": ". "}}, "puts ', ' around"),
        (
            {"tags": {"first_of": ["tags/b"], "shuffle": True}, "text": {"order": ["tags.general", "tags.meta"]}},
            "stand in several",
        ),
        (
            {**BOTH, "tags": {"first_of": ["tags/b"], "dropout": 0.5}, "text": {"either": [["tags"], ["caption"]]}},
            "after it has drawn the order",
        ),
        ({"captions": {"first_of": ["captions/a"], "dropout": 0.123}}, "more than 64 lines"),
        ({**BOTH, "text": {"either": [["tags"], ["caption"]], "weights": [1, 99]}}, "more than 64 lines"),
        ({**BOTH, "text": {"wildcards": True, "prefix": "{a|{b|c}}"}}, "wildcards inside of wildcards"),
        ({"captions": {"all_of": ["captions/a"], "line_breaks": "draw"}}, "all_of"),
    ],
)
def test_what_the_trainer_cannot_be_told_is_said(said: dict[str, Any], reason: str) -> None:
    recipe = Recipe.parse(said)
    told = AsKohya(recipe)
    assert any(reason in one for one in told.cannot), told.cannot
    assert told.options == {}
    made = recipe.make(ROWS, seed=2, epoch=3)
    assert told.entries(made)[0].to_pylist() == recipe.compose(ROWS, seed=2, epoch=3).to_pylist()


WORDS = st.text(alphabet="ab {}|,;.⦅\n\r_\\(", max_size=9)


@given(
    captions=st.lists(WORDS, min_size=1, max_size=3),
    tags=st.lists(WORDS, max_size=4),
    shuffle=st.booleans(),
    dropout=st.sampled_from([0.0, 0.5]),
    wildcards=st.booleans(),
    texts=st.sampled_from(["first", "draw"]),
    lines=st.sampled_from(["keep", "space", "draw"]),
    order=st.sampled_from([["tags", "caption"], ["caption", "tags"], ["tags"], ["caption"]]),
)
def test_whatever_the_words_the_trainer_draws_only_what_compose_may_say(
    captions: list[str],
    tags: list[str],
    shuffle: bool,
    dropout: float,
    wildcards: bool,
    texts: str,
    lines: str,
    order: list[str],
) -> None:
    rows = batch(captions_a=[{"texts": [text for text in captions if text]}], tags_b=[{"general": tags}])
    recipe = Recipe.parse(
        {
            "captions": {"first_of": ["captions/a"], "texts": texts, "line_breaks": lines},
            "tags": {"first_of": ["tags/b"], "shuffle": shuffle, "dropout": dropout},
            "text": {"order": order, "wildcards": wildcards},
        }
    )
    told = AsKohya(recipe)
    entries, reasons = told.entries(recipe.make(rows, seed=0))
    if reasons[0] or entries[0].as_py() is None or told.cannot:
        return
    support = {*composed(recipe, rows, 0)}
    subset, rng = Subset(**told.options), random.Random(2)
    loaded = subset.load(entries[0].as_py())
    for _ in range(40):
        text = subset.draw(loaded, rng)
        assert text in support or len(support) > 100


@pytest.mark.parametrize(
    ("fields", "options", "what"),
    [
        ({"tags": "1girl, solo"}, {"enable_wildcard": True}, "lost"),
        ({"caption": "one\ntwo", "tags": "1girl, solo"}, {}, "lost"),
        ({"caption": "a cat", "tags": "1girl, solo"}, {"caption_separator": "\n"}, "lost"),
        ({"caption": "1girl, solo", "tags": "1girl, solo"}, {}, "doubled"),
        ({"caption": "solo ||| 1girl"}, {"keep_tokens_separator": "|||"}, "leaked"),
        ({"caption": "1girl, solo"}, {"caption_prefix": "best"}, "fused"),
    ],
)
def test_what_the_trainer_loses_doubles_or_leaks_a_recipe_does_not(
    fields: dict[str, str], options: dict[str, Any], what: str
) -> None:
    def faults(text: str) -> set[str]:
        said = [tag.strip() for tag in text.split(",")]
        found = {"lost" for tag in ("1girl", "solo") if tag not in text}
        found |= {"doubled" for tag in ("1girl", "solo") if said.count(tag) > 1}
        found |= {"leaked"} if "|||" in text else set()
        return found | ({"fused"} if "best 1girl" in text else set())

    subset = Subset(**options)
    assert what in faults(subset.draw(subset.load(**fields), random.Random(0)))
    rows = batch(
        captions_a=[
            {"texts": [fields["caption"].replace("||| 1girl", "")]} if what == "lost" and "caption" in fields else None
        ],
        tags_b=[{"general": ["1girl", "solo"]}],
    )
    recipe = Recipe.parse(
        {**BOTH, "captions": {"first_of": ["captions/a"], "line_breaks": "space"}, "text": {"prefix": "best"}}
    )
    (text,) = trainer(recipe, rows, 0, 20)
    assert text == recipe.compose(rows, seed=0)[0].as_py()
    assert not faults(text)


CAPTION_ROWS: list[dict[str, Any] | None] = [
    {"texts": ["A girl, standing"]},
    {"texts": ["one", "two {x|y}"]},
    {"texts": ["l1\nl2", ""]},
    {"texts": ["", "second"]},
    {"texts": ["r"], "verdict": "rejected"},
    {"texts": ["{a|b} c"]},
    {"texts": ["{|a} z"]},
    {"texts": ["{{a|b}}"]},
    None,
]
TAG_ROWS: list[dict[str, Any] | None] = [
    {"general": ["t", "u"], "artist": ["x"], "rating": "g"},
    {"general": ["t"], "meta": ["m"]},
    {"character": ["k(a)"], "rating": "e"},
    {"general": ["a_b", "B {q}", "a b"], "unsorted": ["w ⦅{"]},
    None,
]


def drawn_recipe(rng: random.Random) -> dict[str, Any]:
    """A recipe of any sort; some of them are refused."""

    def sometimes(chance: float, name: str, *values: Any) -> dict[str, Any]:
        return {name: rng.choice(values)} if rng.random() < chance else {}

    layers = rng.choice([("first_of", ["captions/a"]), ("first_of", ["captions/a", "captions/z"])])
    if rng.random() < 0.2:
        layers = ("all_of", ["captions/a", "captions/z"])
    captions = dict([layers]) | sometimes(0.4, "texts", "draw") | sometimes(0.6, "line_breaks", "space", "draw")
    captions |= sometimes(0.3, "dropout", 0.5, 1.0)
    tags: dict[str, Any] = {"first_of": ["tags/b"]} | sometimes(0.5, "shuffle", True)
    tags |= sometimes(0.4, "dropout", 0.25, 0.5, 1.0)
    if len(tags) > 1:
        tags |= sometimes(0.6, "keep", 1, 2, ["artist"], ["general"], ["character", "meta"])
    tags |= sometimes(0.3, "escape", True) | sometimes(0.3, "distinct", True)
    said: dict[str, Any] = {}
    which = rng.random()
    said |= {"captions": captions} if which < 0.75 else {}
    said |= {"tags": tags} if which > 0.25 else {}
    parts = [part for part, table in (("tags", "tags"), ("caption", "captions")) if table in said]
    if "tags" in said and rng.random() < 0.4:
        said["words"] = {"tags_safety": {"g": "safe", "e": ""}}
        parts.append("tags_safety")
    rng.shuffle(parts)
    gaps = [f"{{{part}}}" for part in parts]
    text: dict[str, Any] = rng.choice(
        [
            {},
            {"order": parts[: rng.randint(1, len(parts))]},
            {
                "either": [
                    *map(list, dict.fromkeys(tuple(rng.sample(parts, rng.randint(1, len(parts)))) for _ in "abc"))
                ]
            },
            {"template": ", ".join(gaps)},
            {"template": "".join(f"[{gap}, ]" for gap in gaps[1:]) + gaps[0]},
            {"template": f"[{gaps[0]}|no] {gaps[-1]}"},
            {"template": f"{gaps[0]}[, {gaps[-1]}]"},
            {"template": "{{a||b}}, " + gaps[0]},
        ]
    )
    text |= sometimes(0.3, "prefix", "best", "{a|b}", "a, b") | sometimes(0.3, "suffix", "end", "{a|b|b}")
    text |= sometimes(0.3, "wildcards", True) | sometimes(0.2, "dropout", 0.5)
    return said | {"text": text | sometimes(0.1, "separator", ". ", " ", "\n", " {x|y} ")}


@pytest.mark.parametrize("seed", range(8))
def test_any_recipe_is_drawn_as_composed_or_named_as_one_that_cannot_be(seed: int) -> None:
    rng = random.Random(seed)
    compared = 0
    while compared < 25:
        try:
            recipe = Recipe.parse(said := drawn_recipe(rng))
        except RecipeError:
            continue
        assert Recipe.parse(recipe.settings()) == recipe
        rows = batch(
            captions_a=[rng.choice(CAPTION_ROWS)],
            captions_z=[rng.choice([{"texts": ["zed"]}, None])],
            tags_b=[rng.choice(TAG_ROWS)],
        )
        told = AsKohya(recipe)
        entries, reasons = told.entries(recipe.make(rows, seed=0))
        if told.cannot or reasons[0]:
            continue
        expected = composed(recipe, rows, 0)
        if (entry := entries[0].as_py()) is None:
            assert set(expected) == {""}, said
            continue
        subset, draws = Subset(**told.options), random.Random(1)
        loaded = subset.load(entry)
        found = Counter(subset.draw(loaded, draws) for _ in range(SEEN))
        assert same_distribution(found, expected), (said, rows.to_pylist(), entry, found, expected)
        compared += 1


def test_tags_stay_with_their_pictures_where_a_row_counts_no_more() -> None:
    """A scan masks rows of replaced pictures; the lists behind them keep what they held."""
    whole = batch(tags_b=[{"general": ["a", "b"]}, {"general": ["lost", "too"]}, {"general": ["c"]}])
    struct = whole.column("tags/b")
    masked = pa.StructArray.from_arrays(struct.flatten(), fields=list(struct.type), mask=pa.array([False, True, False]))
    general = struct.field("general")
    hidden = pa.ListArray.from_arrays(general.offsets, general.values, mask=pa.array([False, True, False]))
    fields = [hidden if field.name == "general" else struct.field(field.name) for field in struct.type]
    for column in (masked, pa.StructArray.from_arrays(fields, fields=list(struct.type))):
        rows = whole.set_column(1, "tags/b", column)
        for rule in ({"distinct": True}, {"shuffle": True}, {}):
            recipe = Recipe.parse({"tags": {"first_of": ["tags/b"], **rule}})
            draw = recipe.make(rows, seed=0).draw()
            assert [sorted(tags) for tags in draw.tags.to_pylist()] == [["a", "b"], [], ["c"]]
            assert [sorted((text or "").split(", ")) for text in draw.texts.to_pylist()] == [["a", "b"], [""], ["c"]]


def test_more_pictures_than_fit_the_quick_sort_keep_their_tags() -> None:
    count = (1 << 20) + 3
    names = pa.array([f"{number}" for number in range(count)])
    places = pa.array(np.repeat(np.arange(count, dtype=np.int32), 2))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * 2), names.take(places))
    struct = pa.StructArray.from_arrays([lists, pa.nulls(count, pa.string())], names=["general", "error"])
    rows = pa.RecordBatch.from_arrays([names, struct], names=["key", "tags/b"])
    recipe = Recipe.parse({"tags": {"first_of": ["tags/b"], "order": ["general"], "shuffle": True}})
    texts = recipe.compose(rows, seed=0)
    assert texts.equals(pc.binary_join_element_wise(names, names, ", "))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"text": {"prefix": "best", "order": ["tags"]}, "tags": {"dropout": 0.5}}, "stand alone"),
        ({"text": {"template": "[photo, {tags}, ]{caption}"}, "tags": {"dropout": 0.5}}, "condition"),
        ({"text": {"template": "{tags}, {caption}, {tags}"}, "tags": {"shuffle": True}}, "stand twice"),
        (
            {"text": {"template": "{tags}, [{caption}|]"}, "captions": {"dropout": 0.5}, "tags": {"shuffle": True}},
            "stand",
        ),
        ({"text": {"template": "{{a||b}}, {tags}[, {caption}]"}, "captions": {"dropout": 0.5}}, "braces"),
        ({"text": {"separator": " {x|y} "}, "captions": {"dropout": 0.5}}, "braces"),
        ({"text": {"template": "[{caption}|no] {caption}", "wildcards": True}}, "twice"),
    ],
)
def test_what_cannot_be_told_is_named_where_it_is_seen_late(said: dict[str, Any], reason: str) -> None:
    recipe = Recipe.parse({**BOTH, **{name: {**BOTH.get(name, {}), **table} for name, table in said.items()}})
    told = AsKohya(recipe)
    rows = batch(captions_a=[{"texts": ["c"]}], tags_b=[{"general": ["t", "u"]}])
    named = [*told.cannot, *told.entries(recipe.make(rows, seed=0))[1]]
    assert any(reason in one for one in named), named


def test_no_rows_make_no_entries() -> None:
    recipe = Recipe.parse(
        {"captions": {"first_of": ["captions/a"], "texts": "draw"}, "tags": {"first_of": ["tags/b"], "shuffle": True}}
    )
    entries, reasons = AsKohya(recipe).entries(recipe.make(ROWS.slice(len(ROWS)), seed=0))
    assert (len(entries), reasons) == (0, [])
