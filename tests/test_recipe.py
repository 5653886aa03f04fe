"""A recipe says exactly one text for a picture: the same as a plain loop over its rows would."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline import schemas, tags
from cutline.compose.recipe import Recipe, RecipeError, default_recipe

FACES = ["^_^", "o_o", ">_<", "@_@", "=_=", "0_0", "u_u", "x_x", "|_|", "+_+", "||_||", "(o)_(o)", "<o>_<o>", "<|>_<|>"]
FACES += ["O_O"]  # in whatever case


def batch(**layers: list[dict[str, Any] | None]) -> pa.RecordBatch:
    """Rows as a scan gives them; `captions_blip` stands for captions/blip."""
    length = len(next(iter(layers.values())))
    columns: dict[str, pa.Array] = {"key": pa.array([f"{n:06}" for n in range(length)])}
    for given_name, rows in layers.items():
        name = given_name.replace("_", "/", 1)
        wanted = (*schemas.columns(name), "content", "error")
        columns[name] = pa.array(rows, pa.struct([field for field in schemas.schema(name) if field.name in wanted]))
    return pa.RecordBatch.from_pydict(columns)


def parse(text: str) -> Recipe:
    return Recipe.parse(tomllib.loads(text))


def test_first_caption_that_counts() -> None:
    rows = batch(
        captions_human=[
            {"texts": ["by hand"]},
            {"texts": ["by hand"], "error": "late"},
            {"texts": []},
            {"texts": None},
            {"texts": ["", "second"]},
            {"texts": ["refused"], "verdict": "rejected"},
            None,
            None,
            {"texts": ["mended"], "verdict": "repaired"},
        ],
        captions_blip=[{"texts": ["machine", "other"], "verdict": "good"}] * 7 + [None] * 2,
    )
    recipe = parse('[captions]\nfirst_of = ["captions/human", "captions/blip"]')
    texts = recipe.compose(rows, seed=0).to_pylist()
    assert texts == ["by hand", *["machine"] * 6, None, "mended"]
    assert recipe.layers == ("captions/human", "captions/blip")


def test_tags_in_order_and_faces_kept() -> None:
    rows = batch(
        tags_danbooru=[
            {"general": ["long_hair", "^_^"], "character": ["hatsune_miku"], "meta": ["highres"], "artist": []},
            {"general": ["solo"], "error": "lost"},
            None,
            {"general": [*FACES, "k-on!", "a_b_(c)"], "unsorted": ["", None, "x"]},
        ]
    )
    recipe = parse('[tags]\nfirst_of = ["tags/danbooru"]\nunderscores = "space"\nseparator = " | "')
    caption, found = recipe.parts(rows)
    assert caption.to_pylist() == [None] * 4
    faces = " | ".join(FACES)
    assert found.to_pylist() == [
        "hatsune miku | long hair | ^_^ | highres",
        None,
        None,
        f"{faces} | k-on! | a b (c) | x",
    ]
    some = parse('[tags]\nfirst_of = ["tags/danbooru"]\norder = ["meta", "general"]')
    assert some.compose(rows, seed=0).to_pylist()[0] == "highres, long_hair, ^_^"


def test_every_face_of_the_study_is_known() -> None:
    assert {face.lower() for face in FACES} <= tags.EMOTICONS
    assert tags.spaced(pa.array(["a_b", None, "", *FACES])).to_pylist() == ["a b", None, "", *FACES]


def test_what_is_missing_takes_its_separator_along() -> None:
    rows = batch(
        captions_a=[{"texts": ["c"]}, {"texts": ["c"]}, None, None],
        tags_b=[{"general": ["t"]}, None, {"general": ["t"]}, None],
    )
    both = '[captions]\nfirst_of = ["captions/a"]\n[tags]\nfirst_of = ["tags/b"]\n[text]\nseparator = "\\n"\n'
    assert parse(both).compose(rows, seed=0).to_pylist() == ["t\nc", "c", "t", None]
    assert parse(both + 'order = ["caption"]').compose(rows, seed=0).to_pylist() == ["c", "c", None, None]
    assert parse(both + 'order = ["caption", "tags"]').compose(rows, seed=3, epoch=9).to_pylist()[0] == "c\nt"


def test_layer_without_rows_is_a_column_of_nulls() -> None:
    rows = pa.RecordBatch.from_pydict({"key": ["a"], "captions/a": pa.nulls(1), "tags/b": pa.nulls(1, pa.int32())})
    recipe = parse('[captions]\nfirst_of = ["captions/a"]\n[tags]\nfirst_of = ["tags/b"]')
    assert recipe.compose(rows, seed=0).to_pylist() == [None]
    with pytest.raises(RecipeError, match="captions/a"):
        recipe.compose(rows.select(["key"]), seed=0)


WORDS = st.text(alphabet="ab_^,猫", max_size=4)
CAPTIONS = st.none() | st.fixed_dictionaries(
    {
        "texts": st.none() | st.lists(WORDS, max_size=2),
        "verdict": st.sampled_from([None, "good", "repaired", "rejected"]),
        "error": st.sampled_from([None, None, "late"]),
    }
)
TAGS = st.none() | st.fixed_dictionaries(
    {category: st.none() | st.lists(st.none() | WORDS, max_size=2) for category in ("general", "character", "meta")}
    | {"error": st.sampled_from([None, None, "late"])}
)


@given(
    rows=st.lists(st.tuples(CAPTIONS, CAPTIONS, TAGS, TAGS), min_size=1, max_size=6),
    order=st.sampled_from([("tags", "caption"), ("caption", "tags"), ("tags",)]),
    underscores=st.sampled_from(["keep", "space"]),
    start=st.integers(0, 3),
)
def test_compose_is_what_a_plain_loop_says(
    rows: list[tuple[Any, ...]], order: tuple[str, ...], underscores: str, start: int
) -> None:
    first, second, third, fourth = (list(column) for column in zip(*rows, strict=True))
    scanned = batch(captions_a=first, captions_b=second, tags_a=third, tags_b=fourth).slice(start)
    recipe = Recipe(
        ("captions/a", "captions/b"), ("tags/a", "tags/b"), underscores=underscores, order=order, separator="; "
    )
    assert recipe.compose(scanned, seed=1).to_pylist() == [plain(row, order, underscores) for row in rows[start:]]


def plain(row: tuple[Any, ...], order: tuple[str, ...], underscores: str) -> str | None:
    caption = next(
        (
            said["texts"][0]
            for said in row[:2]
            if said and not said["error"] and said["verdict"] != "rejected" and said["texts"] and said["texts"][0]
        ),
        None,
    )
    tag_text = None
    for said in row[2:]:
        if tag_text or not said or said["error"]:
            continue
        found = [tag for name in ("character", "general", "meta") for tag in said[name] or [] if tag]
        if underscores == "space":
            found = [tag if tag in tags.EMOTICONS else tag.replace("_", " ") for tag in found]
        tag_text = ", ".join(found) or None
    parts = {"caption": caption, "tags": tag_text}
    return "; ".join(parts[name] for name in order if parts[name]) or None  # type: ignore[misc]


def test_a_hundred_thousand_rows_take_no_time() -> None:
    count = 100_000
    row = {"general": [f"tag_{n}" for n in range(30)], "character": ["someone"]}
    scanned = batch(captions_a=[{"texts": ["a caption"]}] * count, tags_b=[row] * count)
    recipe = Recipe(("captions/a",), ("tags/b",), underscores="space")
    loop = time.perf_counter()
    for _ in range(count // 10):
        ", ".join(tag.replace("_", " ") for tag in [*row["character"], *row["general"]] if tag not in tags.EMOTICONS)
    loop = (time.perf_counter() - loop) * 10
    took = time.perf_counter()
    assert recipe.compose(scanned, seed=0).null_count == 0
    took = time.perf_counter() - took
    assert took < 2 * loop + 1, f"{took:.2f} s for {count:,} rows; a loop over Python values takes {loop:.2f} s"


# -- the file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "reads no layer"),
        ("[caption]\n", "has no 'caption'; it has: captions, tags, latents, text"),
        ('[captions]\nfirst_of = ["captions/a"]\nsecond_of = []', "has no 'second_of'; it has: first_of"),
        ("[captions]\n", r"needs first_of = \[\"captions/…\"\]"),
        ('[captions]\nfirst_of = "captions/a"', "is a list of strings"),
        ('[captions]\nfirst_of = ["tags/a"]', "starts with captions/"),
        ('[captions]\nfirst_of = ["captions/a", "captions/a"]', "twice"),
        ('[tags]\nfirst_of = ["tags/a"]\norder = ["general", "people"]', "'people'; there are: character, copyright"),
        ('[tags]\nfirst_of = ["tags/a"]\norder = []', "is empty"),
        ('[tags]\nfirst_of = ["tags/a"]\nunderscores = "drop"', "keep or space, not 'drop'"),
        ('[tags]\nfirst_of = ["tags/a"]\nseparator = 3', "is a string"),
        ('[tags]\nfirst_of = ["tags/a"]\n[text]\norder = ["caption"]', r"there is no \[captions\]"),
        ('text = "tags"\n[tags]\nfirst_of = ["tags/a"]', "text is a table"),
    ],
)
def test_recipe_refuses_what_it_does_not_know(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=message) as refusal:
        Recipe.from_toml(tmp_path / "r.toml")
    assert "r.toml" in str(refusal.value)


def test_recipe_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        Recipe.from_toml(tmp_path / "none.toml")
    (tmp_path / "r.toml").write_text("[captions\n")
    with pytest.raises(RecipeError, match="is not TOML"):
        Recipe.from_toml(tmp_path / "r.toml")
    recipe = Recipe(("captions/a",), ("tags/b", "tags/c"), ("meta",), '"\n\x7f', "space", ("caption",), "\\")
    (tmp_path / "r.toml").write_text(recipe.toml())
    assert Recipe.from_toml(tmp_path / "r.toml") == recipe == Recipe.parse(recipe.settings())


def test_default_recipe_guesses_nothing() -> None:
    assert default_recipe(["captions/blip", "facts", "pictures"]) == Recipe(("captions/blip",), order=("caption",))
    assert default_recipe(["captions/blip", "captions/human", "tags/danbooru"]) == Recipe(
        ("captions/human", "captions/blip"), ("tags/danbooru",)
    )
    assert default_recipe(["tags/danbooru"]).order == ("tags",)
    with pytest.raises(RecipeError, match="cutline add"):
        default_recipe(["pictures"])
    with pytest.raises(RecipeError, match="more than one layer has captions") as refusal:
        default_recipe(["captions/a", "captions/human", "captions/b", "tags/x"])
    pasted = parse(str(refusal.value).partition("\n\n")[2])
    assert pasted.layers == ("captions/human", "captions/a", "captions/b", "tags/x")
