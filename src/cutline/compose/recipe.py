"""A recipe: how the layers of a picture become the one text that a trainer is given.

A recipe is a TOML file; `docs/recipes.md` says everything that one can say. Its tables are the classes below, whose
fields are its keys. What is left to chance (shuffling, dropout, one of several) depends on seed, epoch and the
picture's key, and on nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow as pa

from cutline import options, schemas, toml_files
from cutline.compose import cleaning, scores
from cutline.compose.cleaning import Cleaning
from cutline.compose.scores import ScoreTable
from cutline.layer import identifier
from cutline.options import CutlineError, OptionError, option
from cutline.tags import Aliases, Implications, Vocabulary
from cutline.template import Template

if TYPE_CHECKING:
    from cutline.compose.made import Made
    from cutline.dataset import Dataset

_LOOKED_AT = 100_000  # rows, by which it is judged whether a recipe fits a dataset

PARTS = ("tags", "caption")
"""What a text is made of, besides words and single categories of tags."""

T = TypeVar("T")


class RecipeError(CutlineError):
    """A recipe that says something which it cannot say."""


@dataclass(frozen=True)
class Captions:
    """Which caption a picture has: `[captions]`."""

    first_of: tuple[str, ...] = option((), "layers; the first that has a caption for the picture gives it")
    all_of: tuple[str, ...] = option((), "layers; all of them give what they have, one after the other")
    separator: str = option(" ", "stands between those of all_of")
    texts: Literal["first", "draw"] = option("first", "of several captions in one layer: the first, or any")
    line_breaks: Literal["keep", "space", "draw"] = option(
        "keep", "keep them, make each a space, or draw one of the lines"
    )
    clean: str = option("", "cleaning rules, by name or as a TOML file")
    dropout: float = option(0.0, "how often, from 0 to 1, the caption is left out")

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that are read."""
        return self.first_of or self.all_of


@dataclass(frozen=True)
class Tags:
    """Which tags a picture has, and how they are written: `[tags]`."""

    first_of: tuple[str, ...] = option((), "layers; the first that has tags for the picture gives them")
    all_of: tuple[str, ...] = option((), "layers; all of them give what they have, each tag once")
    order: tuple[str, ...] = option(schemas.TAG_CATEGORIES, "the categories that are wanted, in this order")
    separator: str = option(", ", "stands between tags")
    underscores: Literal["keep", "space"] = option("keep", "space writes them as spaces, save in faces such as ^_^")
    escape: bool = option(False, r"write parentheses as \( and \), for trainers that read weights in them")
    distinct: bool = option(False, "a tag said twice, however it is written, is said once")
    aliases: str = option("", "a table of other names of tags")
    implications: str = option("", "a table of tags that follow from others")
    implied: Literal["add", "drop"] = option("add", "add tags that follow from others, or drop them")
    vocabulary: str = option("", "a table of tags with their categories, for those that are unsorted")
    replace: dict[str, str] = option({}, "tags to write as something else, all at once")
    blacklist: tuple[str, ...] = option((), "tags to leave out; * stands for anything")
    clean: str = option("", "cleaning rules, by name or as a TOML file")
    shuffle: bool = option(False, "mix the tags that are not kept among each other")
    keep: int | tuple[str, ...] = option((), "so many first tags, or these categories, stay in place and are kept")
    dropout: float = option(0.0, "how often, from 0 to 1, each tag that is not kept is left out")

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that are read."""
        return self.first_of or self.all_of


@dataclass(frozen=True)
class Latents:
    """Which layers know the bucket that a trainer put the picture into: `[latents]`. No part of the text."""

    first_of: tuple[str, ...] = option((), "layers; the first that knows it gives it")


@dataclass(frozen=True)
class Text:
    """How the parts become one text: `[text]`, and each of `[outputs.NAME]`.

    Parts are `tags`, `caption`, single categories (`tags.artist`) and the words of `[words]`.
    """

    order: tuple[str, ...] = option((), "the parts, in this order; one that is missing goes with its separator")
    either: tuple[tuple[str, ...], ...] = option((), "several such orders, of which one is drawn for each text")
    weights: tuple[float, ...] = option((), "how often each of either is drawn, in proportion")
    template: str = option("", "in place of an order: a text with {parts} in it, and [conditions on {parts}]")
    separator: str = option(", ", "stands between the parts")
    prefix: str = option("", "stands before every text, with a separator")
    suffix: str = option("", "stands after every text, with a separator")
    wildcards: bool = option(False, "{a|b} in captions, prefix and suffix is drawn")
    dropout: float = option(0.0, "how often, from 0 to 1, the whole text is left empty")

    @property
    def orders(self) -> tuple[tuple[str, ...], ...]:
        """The orders of which one is drawn; none where there is a template."""
        return () if self.template else self.either or (self.order,)

    @functools.cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts that it names, in its template or its orders; one may stand in several of those."""
        return self.parsed.names if self.template else tuple(part for order in self.orders for part in order)

    @functools.cached_property
    def parsed(self) -> Template:
        """The template."""
        return Template.parse(self.template)


Words = Mapping[str, str | Mapping[str, str]]
"""`[words]`: by the name of a part, the name of a score table (or its file), or a word for each rating."""


@dataclass(frozen=True)
class Recipe:
    """How layers become one text. Made with `from_toml`, `parse`, or of its tables."""

    captions: Captions = Captions()
    tags: Tags = Tags()
    words: Words = field(default_factory=dict)
    latents: Latents = Latents()
    text: Text = Text()
    outputs: Mapping[str, Text] = field(default_factory=dict)
    """More texts of each picture, by name."""
    fitted: Mapping[str, ScoreTable] = field(default_factory=dict, compare=False)
    """The score tables of `words` with their edges: see `fit`."""

    @classmethod
    def from_toml(cls, path: str | Path) -> Recipe:
        """Read a recipe file. Raises RecipeError, naming the file and what is wrong in it."""
        path = Path(path).expanduser()
        try:
            return cls.parse(toml_files.read(path, "recipe"), base=path.parent)
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None
        except CutlineError as error:
            raise RecipeError(str(error)) from None

    @classmethod
    def parse(cls, values: Mapping[str, Any], base: Path | None = None) -> Recipe:
        """Make a recipe of TOML's tables.

        Args:
            values: the tables.
            base: the folder that tables of aliases and the like are relative to; by default the working directory.

        Raises:
            RecipeError: for anything unknown or that does not fit, naming what would.
        """
        if unknown := [name for name in values if name not in TABLES]:
            raise RecipeError(f"the recipe has no '{unknown[0]}'; it has: {', '.join(TABLES)}")
        made: dict[str, Any] = {
            name: _table(name, kind, values[name], base) for name, kind in _TABLES.items() if name in values
        }
        outputs = _mapping("[outputs]", values.get("outputs", {}))
        texts = {name: _table(f"outputs.{name}", Text, table, base) for name, table in outputs.items()}
        words = {name: _word(name, given, base) for name, given in _mapping("[words]", values.get("words", {})).items()}
        return cls(**made, words=words, outputs=texts)._checked()

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that it reads."""
        return (*self.captions.layers, *self.tags.layers, *self.latents.first_of)

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns of those layers that it reads, for `Dataset.scan(*recipe.layers, fields=recipe.fields)`."""
        numbers = ("rating", "score", "fav_count", "year") if self.words else ()
        unsorted = ("unsorted",) if self.tags.vocabulary and "unsorted" not in self.tags.order else ()
        return ("texts", "verdict", *self.tags.order, *unsorted, *numbers, "width", "height")

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that a text may name, in the order that it has unless it says another."""
        layers = (self.tags.layers, self.captions.layers)
        return (*self.words, *(part for part, there in zip(PARTS, layers, strict=True) if there))

    @property
    def random(self) -> bool:
        """Whether anything of it is left to chance."""
        captions, tags, texts = self.captions, self.tags, [self.text, *self.outputs.values()]
        return (
            captions.texts == "draw"
            or captions.line_breaks == "draw"
            or captions.dropout + tags.dropout > 0
            or tags.shuffle
            or any(len(text.either) > 1 or text.wildcards or text.dropout > 0 for text in texts)
        )

    def narrowed(self, layer_names: Iterable[str]) -> Recipe:
        """The recipe without those layers that are not among these; a table that would have none keeps all of its."""
        known, tables = {*layer_names}, dict[str, Any]()
        for name in ("captions", "tags", "latents"):
            table = getattr(self, name)
            for which in ("first_of", "all_of"):
                if there := tuple(layer for layer in getattr(table, which, ()) if layer in known):
                    tables[name] = replace(table, **{which: there})
        return replace(self, **tables)

    @functools.cached_property
    def still(self) -> Recipe:
        """The recipe without what it leaves to chance: first texts, all lines, nothing shuffled or dropped."""
        breaks = self.captions.line_breaks
        captions = replace(
            self.captions, texts="first", line_breaks="keep" if breaks == "draw" else breaks, dropout=0.0
        )
        tags = replace(self.tags, shuffle=False, dropout=0.0, keep=())
        texts = {name: replace(text, dropout=0.0) for name, text in {"": self.text, **self.outputs}.items()}
        return replace(self, captions=captions, tags=tags, text=texts.pop(""), outputs=texts)

    def fit(self, dataset: Dataset) -> Recipe:
        """The recipe with its score tables fitted to the first layer of tags that has the numbers.

        Raises:
            CutlineError: no layer of tags has them.
        """
        fitted = {}
        for name, table in self.tables.items():
            there = [layer for layer in self.tags.layers if layer in dataset.layers()]
            if table.edges or not there:
                continue
            for layer in there:
                try:
                    fitted[name] = table.fit(dataset, layer)
                    break
                except CutlineError:
                    if layer == there[-1]:
                        raise
        return replace(self, fitted=fitted) if fitted else self

    def remarks(self, dataset: Dataset) -> list[str]:
        """What of the recipe finds nothing in a dataset, in sentences with what to type."""
        said, there = self.tags, dataset.layers()
        layers = [layer for layer in said.layers if layer in there]
        if not layers:
            return []
        named = {name: f"coalesce(len({name}), 0) > 0" for name in schemas.TAG_CATEGORIES}
        others = [name for name in named if name not in said.order and not (name == "unsorted" and said.vocabulary)]
        wanted = " or ".join(named[name] for name in said.order)
        kept = [] if isinstance(said.keep, int) else [named[name] for name in said.keep]
        counted = ", ".join(f"count(*) filter (({named[name]}) and not ({wanted}))" for name in others) or "0"
        rows = " union all ".join(f"select * from {identifier(layer)} where error is null" for layer in layers)
        mine = f"count(*) filter ({' or '.join(kept) or 'true'})"
        looked = dataset.sql(f"select {counted}, {mine} from (select * from ({rows}) limit {_LOOKED_AT})").fetchall()
        *alone, stay = looked[0]
        found = [
            f"there are pictures with no tags but {name} ones, which [tags] order leaves out: add {name!r} to it"
            for name, count in zip(others, alone, strict=False)
            if count
        ]
        if kept and not stay:
            found.append(f"[tags] keep keeps nothing: no picture has a tag in {' or '.join(said.keep)}")  # type: ignore[arg-type]
        return found

    @functools.cached_property
    def tables(self) -> dict[str, ScoreTable]:
        """The score tables of `words`, fitted where `fit` did so."""
        named = {name: scores.find(said) for name, said in self.words.items() if isinstance(said, str)}
        return named | dict(self.fitted)

    @functools.cached_property
    def aliases(self) -> Aliases | None:
        """What `[tags] aliases` names."""
        return Aliases.read(self.tags.aliases) if self.tags.aliases else None

    @functools.cached_property
    def implications(self) -> Implications | None:
        """What `[tags] implications` names."""
        return Implications.read(self.tags.implications) if self.tags.implications else None

    @functools.cached_property
    def vocabulary(self) -> Vocabulary | None:
        """What `[tags] vocabulary` names."""
        return Vocabulary.read(self.tags.vocabulary) if self.tags.vocabulary else None

    @functools.cached_property
    def tag_cleaning(self) -> Cleaning | None:
        """What `[tags] clean` names."""
        return cleaning.find(self.tags.clean) if self.tags.clean else None

    @functools.cached_property
    def caption_cleaning(self) -> Cleaning | None:
        """What `[captions] clean` names."""
        return cleaning.find(self.captions.clean) if self.captions.clean else None

    def settings(self) -> dict[str, dict[str, Any]]:
        """The recipe as the tables that `parse` reads back; what is as it is by default is left out."""
        tables = {name: _said(getattr(self, name)) for name in _TABLES}
        tables["words"] = {name: said if isinstance(said, str) else dict(said) for name, said in self.words.items()}
        tables |= {f"outputs.{name}": _said(text) for name, text in self.outputs.items()}
        nested: dict[str, dict[str, Any]] = {}
        for name, table in tables.items():
            if table:
                head, dot, tail = name.partition(".")
                nested.setdefault(head, {}).update({tail: table} if dot else table)
        return nested

    def toml(self) -> str:
        """The recipe as the text of a file that `from_toml` reads back."""
        tables = dict(self.settings())
        outputs = tables.pop("outputs", {})
        tables |= {f"outputs.{toml_files.value(name)}": table for name, table in outputs.items()}
        return "\n".join("\n".join([f"[{name}]", *toml_files.lines(table), ""]) for name, table in tables.items())

    def make(self, batch: pa.RecordBatch, *, seed: int, epoch: int = 0) -> Made:
        """Everything that the recipe makes of some rows: their parts and their texts.

        Args:
            batch: rows as `Dataset.scan(*recipe.layers, fields=recipe.fields)` gives them.
            seed: what random choices are drawn from, with epoch and key.
            epoch: as seed.
        """
        from cutline.compose.made import Made

        return Made(self, batch, seed, epoch)

    def compose(self, batch: pa.RecordBatch, *, seed: int, epoch: int = 0, output: str = "") -> pa.StringArray:
        """The text of each row; null where there is nothing to say, empty where it is dropped.

        Args:
            batch: as in `make`; so are seed and epoch.
            seed: as in `make`.
            epoch: as in `make`.
            output: which of `outputs`; by default `text`.
        """
        return self.make(batch, seed=seed, epoch=epoch).draw(output).texts

    def text_of(self, output: str) -> Text:
        """How an output is put together, its order spelt out. Raises RecipeError where there is none of that name."""
        if output and output not in self.outputs:
            raise RecipeError(f"the recipe has no output '{output}'. It has: {', '.join(self.outputs) or 'none'}")
        return self._spelt(self.outputs[output] if output else self.text)

    def _spelt(self, text: Text) -> Text:
        """A text with the order that it has unless it says another. Raises RecipeError where no layer is read."""
        if not any(part in PARTS for part in self.parts):
            raise RecipeError('it reads no layer. Name one: [captions] first_of = ["captions/…"]')
        return text if text.order or text.either or text.template else replace(text, order=self.parts)

    def _checked(self) -> Recipe:
        """The recipe with its orders spelt out. Raises RecipeError for what does not fit together."""
        for kind, table in (("captions", self.captions), ("tags", self.tags), ("latents", self.latents)):
            _check_layers(kind, table)
        if self.captions.separator != " " and not self.captions.all_of:
            raise RecipeError("[captions] separator stands between those of all_of, and there is none")
        if self.words and not self.tags.layers:
            raise RecipeError("[words] come from what layers of tags know of a post: name some in [tags]")
        for name in self.words:
            if not name.isidentifier() or name in PARTS:
                raise RecipeError(f"[words] {name} is no name for a part: choose one word, neither tags nor caption")
        _check_share("[captions]", self.captions)
        _check_share("[tags]", self.tags)
        _check_tags(self.tags)
        text = self._ordered("[text]", self.text)
        outputs = {name: self._ordered(f"[outputs.{name}]", one) for name, one in self.outputs.items()}
        for name in outputs:
            if not name.replace("-", "_").isidentifier():
                raise RecipeError(f"[outputs.{name}]: an output's name is one word, since it becomes an extension")
        checked = replace(self, text=text, outputs=outputs)
        checked._read()
        return checked

    def _read(self) -> None:
        """Read the tables that it names. Raises RecipeError, naming the key, where one cannot be read."""
        for key, name in _READ.items():
            try:
                getattr(self, name)
            except CutlineError as error:
                raise RecipeError(f"{key}: {error}") from None

    def _ordered(self, where: str, text: Text) -> Text:
        """A text with its default order spelt out, and checked."""
        _check_share(where, text)
        said = [name for name in ("order", "either", "template") if getattr(text, name)]
        if len(said) > 1:
            raise RecipeError(f"{where} has {' and '.join(said)}; it can do one of the two")
        text = self._spelt(text)
        known = (*self.parts, *(f"tags.{name}" for name in self.tags.order if self.tags.layers))
        try:
            parts = text.parts
        except OptionError as error:
            raise RecipeError(f"{where}: {error}") from None
        for part in parts:
            if part not in known:
                raise RecipeError(f"{where} names '{part}'; there are: {', '.join(known)}")
        for order in text.orders:
            if len(set(order)) < len(order) or not order:
                raise RecipeError(f"{where}: an order names each part once, and one at least, not {list(order)}")
            if "tags" in order and any(part.startswith("tags.") for part in order):
                raise RecipeError(f"{where}: 'tags' are all of them; beside it, single categories say them twice")
        if len(set(text.either)) < len(text.either):
            raise RecipeError(f"{where} either says an order twice: say it once, and how often in weights")
        weights = text.weights
        if weights and (len(weights) != len(text.either) or min(weights) < 0 or not 0 < sum(weights) < math.inf):
            raise RecipeError(
                f"{where} weights = {list(weights)}: one for each of either, finite, from 0 up, not all 0"
            )
        if text.template and text.separator != Text.separator and not (text.prefix or text.suffix):
            raise RecipeError(
                f"{where} separator does nothing: a template has its own, and there is no prefix or suffix"
            )
        return text


_TABLES: dict[str, type] = {"captions": Captions, "tags": Tags, "latents": Latents, "text": Text}
TABLES = (*_TABLES, "words", "outputs")
"""What a recipe may have at its top."""

_FILES = ("aliases", "implications", "vocabulary", "clean")
_READ = {
    "[captions] clean": "caption_cleaning",
    "[tags] clean": "tag_cleaning",
    "[tags] aliases": "aliases",
    "[tags] implications": "implications",
    "[tags] vocabulary": "vocabulary",
}


def default_recipe(layer_names: Iterable[str]) -> Recipe:
    """The recipe that needs no choosing: what people wrote first, then the only other layer, of captions and of tags.

    Raises:
        RecipeError: there are no words, or more than one layer to choose from: with a recipe ready to paste.
    """
    captions, unclear = _only(layer_names, "captions")
    tag_layers, unclear_tags = _only(layer_names, "tags")
    latents, unclear_latents = _only(layer_names, "latents")
    if not captions and not tag_layers:
        raise RecipeError("there are no captions and no tags. Add some (cutline add), or make some (cutline annotate)")
    recipe = Recipe(Captions(captions), Tags(tag_layers), latents=Latents(latents))._checked()
    several = {"captions": unclear, "tags": unclear_tags, "latents": unclear_latents}
    if any(several.values()):
        choice = " and ".join(kind for kind, more in several.items() if more)
        raise RecipeError(
            f"more than one layer has {choice}, and only you know which comes first. "
            f"Save this as recipe.toml, put its layers in your order, and add --recipe recipe.toml:\n\n{recipe.toml()}"
        )
    return recipe


def _only(layer_names: Iterable[str], kind: str) -> tuple[tuple[str, ...], bool]:
    """All layers of a kind, people's first, and whether their order is anyone's guess."""
    human = f"{kind}/human"
    # After people's come the words that lay beside the pictures; those of models may have been made by learning them.
    found = (name for name in layer_names if name.startswith(f"{kind}/"))
    layers = sorted(found, key=lambda name: (name != f"{kind}/sidecar", name))
    others = [name for name in layers if name != human]
    return (*(name for name in layers if name == human), *others), len(others) > 1


def find_recipe(dataset: Dataset, name: str) -> Recipe:
    """A recipe by path, by its name in the dataset's `recipes` folder, or a preset; without one, the obvious one.

    It is fitted to the dataset. Of the layers that a preset names, those that the dataset has are read; what people
    wrote themselves stays as it is, so that a name that they mistyped is not passed over.
    """
    dataset.key_rule  # noqa: B018  it says so where there is no dataset
    if not name:
        return default_recipe([layer for layer in dataset.layers() if dataset.layer(layer).parts()])
    for path in (Path(name).expanduser(), dataset.home / "recipes" / f"{name}.toml"):
        if os.path.isfile(path):  # unlike Path.is_file, not stopped by a name that is too long
            return Recipe.from_toml(path).fit(dataset)
    known = toml_files.presets("recipes")
    if name in known:
        return Recipe.parse(toml_files.preset("recipes", name)).narrowed(dataset.layers()).fit(dataset)
    raise CutlineError(
        f"there is no recipe {name}, neither as a file nor as {dataset.home}/recipes/{name}.toml. "
        f"Cutline brings: {', '.join(known)}"
    )


def check_layers(recipe: Recipe, dataset: Dataset) -> None:
    """Raises CutlineError where a recipe reads layers that a dataset has not, naming those that it has."""
    known = dataset.layers()
    if lacking := [name for name in recipe.layers if name not in known]:
        there = ", ".join(name for name in known if name != "pictures") or "none"
        raise CutlineError(
            f"the recipe reads {', '.join(lacking)}, which {dataset.root} does not have. It has: {there}"
        )


# Reading a TOML file.


def _table(name: str, kind: type[T], given: object, base: Path | None) -> T:
    table = dict(_mapping(f"[{name}]", given))
    for one in dataclasses.fields(kind):  # type: ignore[arg-type]
        if one.name in table and not _fits(one, said := table[one.name]):
            wanted = _KINDS.get(one.name) or _KINDS[type(one.default).__name__]
            raise RecipeError(f"[{name}] {one.name} is {wanted}, not {said!r}")
    for key in _FILES:
        if isinstance(said := table.get(key), str):
            table[key] = _at(base, said)
    try:
        return options.fill(kind, table, name=f"[{name}]")
    except OptionError as error:
        raise RecipeError(str(error)) from None


_KINDS = {
    "keep": "a number of tags, or a list of categories",
    "either": "a list of orders",
    "weights": "a list of numbers",
    "tuple": "a list of strings",
    "float": "a number",
    "bool": "true or false",
}
"""What a key is, by its name or else the type of its default."""


def _fits(one: dataclasses.Field[Any], said: object) -> bool:
    """Whether a key is said as what it is; `options.fill` alone takes text for lists and numbers, and true for 1."""
    if isinstance(one.default, bool):
        return isinstance(said, bool)
    every = said if one.name == "weights" and isinstance(said, list) else [said]
    return not (isinstance(one.default, (float, tuple)) and any(isinstance(value, (bool, str)) for value in every))


def _at(base: Path | None, said: str) -> str:
    """The file of that path in the recipe's folder, or what was said: a name, or a path from elsewhere."""
    return str(base / said) if base is not None and os.path.isfile(base / said) else said


def _word(name: str, given: object, base: Path | None) -> str | dict[str, str]:
    if isinstance(given, str):
        path = _at(base, given)
        try:
            scores.find(path)
        except CutlineError as error:
            raise RecipeError(f"[words] {name}: {error}") from None
        return path
    if not isinstance(given, Mapping) or not all(isinstance(word, str) for word in given.values()):
        raise RecipeError(f"[words] {name} is a score table's name, or a word for each rating, not {given!r}")
    if strange := [rating for rating in given if rating not in ("g", "s", "q", "e")]:
        raise RecipeError(f"[words] {name} names rating '{strange[0]}'; there are: g, s, q, e")
    return dict(given)


def _mapping(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RecipeError(f"{where.strip('[]')} is a table: {where}")
    return value


def _check_layers(kind: str, table: Any) -> None:
    both = [which for which in ("first_of", "all_of") if getattr(table, which, ())]
    if len(both) > 1:
        raise RecipeError(f"[{kind}] has first_of and all_of; it can do one of the two")
    if not both and table != type(table)():
        raise RecipeError(f'[{kind}] needs first_of = ["{kind}/…"]')
    for which in both:
        layers = getattr(table, which)
        if len(set(layers)) < len(layers):
            raise RecipeError(f"[{kind}] {which} names something twice: {', '.join(layers)}")
        for layer in layers:
            if not layer.startswith(f"{kind}/"):
                raise RecipeError(f"[{kind}] {which} names '{layer}'; a layer that it can read starts with {kind}/")


def _check_share(where: str, table: Any) -> None:
    if not 0 <= table.dropout <= 1:
        raise RecipeError(f"{where} dropout = {table.dropout} is not between 0 and 1")


def _check_tags(tags: Tags) -> None:
    kept = () if isinstance(tags.keep, int) else tags.keep
    for where, names in (("order", tags.order), ("keep", kept)):
        for name in names:
            if name not in schemas.TAG_CATEGORIES:
                known = ", ".join(schemas.TAG_CATEGORIES)
                raise RecipeError(f"[tags] {where} names '{name}'; there are: {known}")
        if len(set(names)) < len(names):
            raise RecipeError(f"[tags] {where} names something twice: {', '.join(names)}")
    if away := [name for name in kept if name not in tags.order]:
        raise RecipeError(f"[tags] keep names '{away[0]}', which order leaves out")
    if any(not pattern.strip() for pattern in tags.blacklist):
        raise RecipeError("[tags] blacklist has an empty pattern; name a tag, with * for anything")
    if not tags.order:
        raise RecipeError(f"[tags] order is empty; there are: {', '.join(schemas.TAG_CATEGORIES)}")
    if tags.keep and not (tags.shuffle or tags.dropout):
        raise RecipeError("[tags] keep holds tags against shuffle and dropout, and there is neither")
    if isinstance(tags.keep, int) and tags.keep < 0:
        raise RecipeError(f"[tags] keep = {tags.keep}: a number of tags, or categories")
    if tags.implied == "drop" and not tags.implications:
        raise RecipeError("[tags] implied says what to do with implications: name their table")


# Writing one.


def _said(table: Any) -> dict[str, Any]:
    """What of a table is not as it is by default."""
    default, said = type(table)(), {}
    for one in dataclasses.fields(table):
        value = getattr(table, one.name)
        if value != getattr(default, one.name):
            said[one.name] = _lists(value)
    return said


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, tuple) else value
