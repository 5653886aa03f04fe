"""The dataset configs of kohya's trainers: the pictures and words of all their subsets, and recipes that say the rest.

A subset is a folder of pictures with sidecars, or a metadata file. Texts that the trainer treats as tags (it shuffles
them, drops some or warms them up) become tags, all others captions. What is done to them becomes a recipe, one for all
subsets that agree, kept with the dataset; at its head stands what a recipe cannot say.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cutline import toml_files
from cutline.dataset import Found, KeyRule
from cutline.formats import kohya_toml, sidecar
from cutline.formats.kohya_toml import Config, SubsetConfig
from cutline.formats.sidecar import Text
from cutline.options import CutlineError, option
from cutline.sources.kohya import Kohya
from cutline.sources.listing import absolute, list_picture, printable, walk
from cutline.sources.rows import Rows


@dataclass(frozen=True)
class KohyaToml:
    """The pictures and words that a dataset config names, and its settings as a recipe.

    Of a text of several lines the trainer reads the first, or draws one with `enable_wildcard`. Without it the lines
    become several captions, of which a recipe takes the first.
    """

    path: Path = option(help="the config, TOML or JSON")
    relative_to: Path | None = option(
        None, "where the trainer is started, so where the config's relative paths begin; by default here"
    )
    layer: str = option("kohya", "the words go to captions/<layer> and tags/<layer>")

    @cached_property
    def config(self) -> Config:
        """The config, as the trainers read it."""
        return kohya_toml.read(Path(os.path.abspath(self.path.expanduser())))

    @property
    def base(self) -> Path | None:
        """The nearest folder that all folders of the config are in, which names are relative to."""
        folders = [str(absolute(Path(self._located(one.image_dir)))) for one in self._subsets if one.image_dir]
        return Path(os.path.commonpath(folders)) if folders else None

    @property
    def rule(self) -> KeyRule:
        """That of the metadata, where nothing says where its pictures are."""
        return KeyRule() if self.base else next((self._metadata(subset).rule for subset in self._subsets), KeyRule())

    @property
    def recipes(self) -> Mapping[str, str]:
        """Name -> TOML text of the recipes that do what the trainer does. They are known once all has been read."""
        places: dict[str, list[str]] = {}
        for subset in self._subsets:
            if has := self._given.get(subset.where):
                places.setdefault(_recipe(subset, self.layer, has), []).append(subset.where)
        stem = self.config.path.stem
        names = [stem] if len(places) == 1 else [f"{stem}-{number}" for number in range(1, len(places) + 1)]
        return {
            name: f"# What kohya's trainers do to the texts of {self.config.path.name!r}, {'; '.join(where)}.\n{text}"
            for name, (text, where) in zip(names, places.items(), strict=True)
        }

    def read(self) -> Iterator[Found]:
        """Stream the pictures and words of one subset after the other."""
        self._given.clear()
        done: dict[tuple[str, str, bool], set[str]] = {}
        for subset in self._subsets:
            # Datasets of several resolutions name the same folder again and again.
            named = self._located(subset.metadata_file or subset.image_dir or "")
            read_as = (named, subset.extension, subset.treats_as_tags)
            listed = named in {path for path, _, _ in done}
            kinds = self._given.setdefault(subset.where, done.get(read_as, set()))
            if read_as in done:
                continue
            done[read_as] = kinds
            found = self._read_metadata(subset) if subset.kind == "metadata" else self._read_folder(subset, listed)
            last: Found | None = None
            several = 0
            for batch in found:
                if last is not None:
                    yield last
                if len(batch.batch) and (kind := batch.layer.partition("/")[0]) in _PARTS.values():
                    kinds.add(kind)
                kinds |= {_BLANK} & {*batch.notes}
                if subset.kind == "metadata" and kind == "captions" and not subset.wildcards:
                    several += _count(pc.match_substring(batch.batch.column("texts").flatten(), "\n"))
                last = _as_drawn(batch, subset)
            if last is not None:
                if several and "tags" in kinds:
                    kinds.add(_NO_TAGS)
                    last = dataclasses.replace(last, notes={**last.notes, _NO_TAGS: several})
                unsaid = {f"not in the recipe: {what}": 1 for what in _unsaid(subset, kinds)}
                yield dataclasses.replace(last, notes={**last.notes, **unsaid})

    @cached_property
    def _given(self) -> dict[str, set[str]]:
        """Which kinds of layers each subset gave rows to; and those notes that a recipe has to repeat."""
        return {}

    @property
    def _subsets(self) -> list[SubsetConfig]:
        return [subset for dataset in self.config.datasets for subset in dataset.subsets]

    def _located(self, given: str) -> str:
        """Where a path of the config leads. Raises CutlineError where that is not where the trainer would look."""
        if self.relative_to is not None:
            return os.path.abspath(os.path.join(self.relative_to.expanduser(), given))
        path, as_trainers = kohya_toml.located(given, self.config.path)
        if not as_trainers:
            raise CutlineError(
                f"there is no {given} here, and relative paths begin where the trainer is started. There is one beside "
                f"the config: -o relative_to={self.config.path.parent}"
            )
        return os.path.abspath(path)

    def _prefix(self, folder: str) -> str:
        """What stands before the names of the pictures in a folder, so that they are relative to `base`."""
        below = os.path.relpath(folder, self.base)
        return "" if below == "." else f"{below}/"

    # -- metadata

    def _metadata(self, subset: SubsetConfig) -> Kohya:
        folder = Path(self._located(subset.image_dir)) if subset.image_dir else None
        return Kohya(path=Path(self._located(subset.metadata_file or "")), image_dir=folder, layer=self.layer)

    def _read_metadata(self, subset: SubsetConfig) -> Iterator[Found]:
        prefix = printable(self._prefix(self._located(subset.image_dir))) if subset.image_dir else ""
        for found in self._metadata(subset).read():
            names = found.batch.column("name")
            if prefix and len(names):
                names = pc.if_else(pc.starts_with(names, "/"), names, pc.binary_join_element_wise(prefix, names, ""))
            notes = dict(found.notes)
            read = found.layer.startswith("captions/") and not subset.wildcards
            if read and (blank := _count(pc.match_substring_regex(found.batch.column("raw"), _BLANK_FIRST.pattern))):
                notes[_BLANK] = blank
            yield dataclasses.replace(found, batch=found.batch.set_column(0, "name", names), notes=notes)

    # -- folders

    def _read_folder(self, subset: SubsetConfig, listed_before: bool) -> Iterator[Found]:
        folder = absolute(Path(self._located(subset.image_dir or "")))
        captions = [f"captions/{self.layer}"] if subset.wildcards or not subset.treats_as_tags else []
        rows = Rows("pictures", *captions, *([f"tags/{self.layer}"] if subset.treats_as_tags else []))
        listed = dataclasses.replace(next(walk(folder, rows)), prefix=self._prefix(str(folder)))
        for entry in listed.pictures:
            if not kohya_toml.is_picture(entry.name):
                rows.note("picture of a kind that kohya's trainers do not see, so not read")
                continue
            name = printable(listed.name(entry))
            if not listed_before:
                list_picture(listed, entry, rows)
            self._read_words(name, self._words(entry.name, subset, rows), subset, rows)
            yield from rows.full()
        yield from rows.rest()

    def _words(self, picture: str, subset: SubsetConfig, rows: Rows) -> Text:
        """The text of a picture's sidecar, or what stands in for it."""
        start = str(self.relative_to.expanduser()) if self.relative_to is not None else ""
        found = kohya_toml.sidecar_of(os.path.join(subset.image_dir or "", picture), subset.extension, start)
        if found is not None:
            try:
                with open(found[0], "rb") as handle:
                    return sidecar.read(handle.read(sidecar.LARGEST + 1))
            except OSError as problem:
                return Text(error="permission", detail=f"{os.path.basename(found[0])}: {problem.strerror}")
        if words := subset.options.get("class_tokens"):
            return sidecar.clean(words)
        rows.note(f"picture without a {subset.extension} file and without class_tokens")
        return Text()

    def _read_words(self, name: str, found: Text, subset: SubsetConfig, rows: Rows) -> None:
        captions, tags = f"captions/{self.layer}", f"tags/{self.layer}"
        lines = [line.strip() for line in (found.text or "").split("\n") if line.strip()]
        if lines and not subset.wildcards and _BLANK_FIRST.match(found.raw or ""):
            rows.note(_BLANK)
        several = subset.wildcards and (len(lines) > 1 or "{" in (found.text or ""))
        if subset.treats_as_tags and not several:
            if len(lines) > 1:
                rows.note("text of tags in several lines, of which kohya's trainers read the first", 1)
            mark, separator = subset.options.get("keep_tokens_separator") or "", subset.separator
            first = lines[0] if lines else ""
            pieces = (first.replace(mark, separator) if mark else first).split(separator or ",")
            rows.tags(tags, name, [dataclasses.replace(found, text=", ".join(map(str.strip, pieces)) or None)])
        elif subset.wildcards or found.error or not lines:
            rows.caption(captions, name, [dataclasses.replace(found, text="\n".join(lines) or None)])
        else:
            rows.caption(captions, name, [dataclasses.replace(found, text=lines[0]), *map(Text, lines[1:])])


_BLANK = "text whose first line is blank, so that kohya's trainers read nothing of it"
_NO_TAGS = "caption of several lines, of which kohya's trainers read the first, and no tags of its entry"
_BLANK_FIRST = re.compile(r"^[ \t]*[\r\n]")


def _count(flags: pa.BooleanArray) -> int:
    return int(pc.sum(flags).as_py() or 0)


def _as_drawn(found: Found, subset: SubsetConfig) -> Found:
    """The words without the trainer's own signs: lines apart, separators in the place of what stands for them."""
    kind = found.layer.partition("/")[0]
    column = {"captions": "texts", "tags": "unsorted"}.get(kind)
    if column is None:
        return found
    mark = (subset.options.get("keep_tokens_separator") or "") if subset.treats_as_tags else ""
    other = subset.options.get("secondary_separator") or ""
    lines = "\n" if kind == "captions" and not subset.wildcards else ""
    rows = found.batch.column(column)
    values = rows.flatten()
    if not any(pc.any(pc.match_substring(values, sign)).as_py() for sign in (mark, other, lines) if sign):
        return found

    def changed(text: str) -> Iterator[str]:
        for line in [one.strip() for one in text.split(lines) if one.strip()] if lines else [text]:
            pieces = [line]
            if mark and mark in line:
                cut = subset.separator or ","
                pieces = [piece.strip() for piece in line.replace(mark, cut).split(cut) if piece.strip()]
                pieces = [", ".join(pieces)] if kind == "captions" else pieces
            yield from (piece.replace(other, subset.separator) if other else piece for piece in pieces)

    made = [None if row is None else [one for text in row for one in changed(text)] for row in rows.to_pylist()]
    place = found.batch.schema.get_field_index(column)
    batch = found.batch.set_column(place, found.batch.schema.field(place), pa.array(made, rows.type))
    return dataclasses.replace(found, batch=batch)


# -- the recipe -----------------------------------------------------------------------------------------------


def _recipe(subset: SubsetConfig, layer: str, has: Collection[str]) -> str:
    """The settings of a subset as the TOML text of a recipe, with what it cannot say in comments before it."""
    said = subset.options.get
    tables: dict[str, dict[str, Any]] = {}
    if "captions" in has:
        breaks = "draw" if subset.wildcards else "keep"
        tables["captions"] = {"first_of": [f"captions/{layer}"], "line_breaks": breaks}
    prefix, suffix, separator, fixed = _ends(subset)
    if "tags" in has:
        tags: dict[str, Any] = {"first_of": [f"tags/{layer}"]}
        if said("shuffle_caption"):
            tags["shuffle"] = True
        if rate := said("caption_tag_dropout_rate"):
            tags["dropout"] = rate
        keep = int(said("keep_tokens", 0)) - fixed
        if len(tags) > 1 and keep > 0 and not said("keep_tokens_separator"):
            tags["keep"] = keep
        tables["tags"] = tags
    text: dict[str, Any] = {"order": [part for part, kind in _PARTS.items() if kind in has], "separator": separator}
    if prefix:
        text["prefix"] = prefix
    if suffix:
        text["suffix"] = suffix
    if subset.wildcards:
        text["wildcards"] = True
    if rate := said("caption_dropout_rate"):
        text["dropout"] = rate
    tables["text"] = text
    lines = [f"# It cannot say: {unsaid}" for unsaid in _unsaid(subset, has)]
    if subset.others:
        others = ", ".join(f"{name} = {json.dumps(value, default=str)}" for name, value in subset.others.items())
        lines.append(f"# Not about texts: {others}")
    for name, table in tables.items():
        lines += ["", f"[{name}]", *toml_files.lines(table)]
    return "\n".join(lines).lstrip("\n") + "\n"


_PARTS = {"caption": "captions", "tags": "tags"}
"""Parts of a recipe's text in the trainer's order -> the kind of layer that they come from."""


def _ends(subset: SubsetConfig) -> tuple[str, str, str, int]:
    """Prefix, suffix and the separator to join them by; and how many of the tags that are kept the prefix is.

    The trainer puts a space there and, in texts treated as tags, writes every separator as `, `.
    """
    said, cut = subset.options.get, subset.separator or ","
    prefix, suffix = said("caption_prefix") or "", said("caption_suffix") or ""
    if subset.kind == "metadata":  # it joins caption and tags by the bare separator
        separator = ", " if subset.treats_as_tags else subset.separator
        return _bare(prefix, cut), _bare(suffix, cut), separator, 0
    if not subset.treats_as_tags:
        return prefix, suffix, " ", 0
    pieces = [piece.strip() for piece in prefix.split(cut) if piece.strip()]
    whole = not prefix or prefix.rstrip().endswith(cut)
    return ", ".join(pieces), _bare(suffix, cut), ", " if whole else " ", len(pieces) - (0 if whole else 1)


def _bare(text: str, separator: str) -> str:
    """Without the separators at its ends, which a recipe puts there."""
    cut = separator.strip()
    return text.strip().removeprefix(cut).removesuffix(cut).strip() if cut else text


def _unsaid(subset: SubsetConfig, has: Collection[str]) -> Iterator[str]:
    """What of a subset's settings a recipe cannot say, each as a line for people."""
    said, written = subset.options.get, toml_files.value
    prefix, suffix = said("caption_prefix"), said("caption_suffix")
    if _BLANK in has:
        yield "a text whose first line is blank is empty; here it is the first line that is not"
    if _NO_TAGS in has:
        yield "an entry whose caption has several lines loses its tags; here they stand behind the first line"
    if every := said("caption_dropout_every_n_epochs", 0):
        yield f"caption_dropout_every_n_epochs = {every}"
    if said("token_warmup_step", 0) > 0:
        yield f"token_warmup_step = {said('token_warmup_step')}, token_warmup_min = {said('token_warmup_min', 1)}"
    if (mark := said("keep_tokens_separator")) and subset.treats_as_tags:
        yield f"keep_tokens_separator = {written(mark)}: which tags stay differs from text to text; here none does"
    if other := said("secondary_separator"):
        yield f"secondary_separator = {written(other)}: the words themselves have {written(subset.separator)} there"
    if subset.treats_as_tags and "captions" in has:
        yield "the pieces of a caption between commas are shuffled, kept and dropped like tags; here it stays whole"
    if subset.wildcards and "tags" in has:
        yield "{a|b} in tags is drawn too, and an entry that has only tags loses them"
    if subset.separator == "\n" and subset.wildcards and {*_PARTS.values()} <= {*has}:
        yield "one is drawn of caption and tags; here both are there"
    elif subset.separator.strip() != ",":
        yield f"caption_separator = {written(subset.separator)}; tags are split at commas too"
    if subset.kind == "metadata" and (prefix or suffix):
        yield "caption_prefix and caption_suffix are joined by a space alone; here by the separator"
    if subset.treats_as_tags and suffix:
        yield "caption_suffix is shuffled and dropped like a tag; here it stays at the end"
    if subset.treats_as_tags and prefix and _ends(subset)[3] > int(said("keep_tokens", 0)):
        yield "caption_prefix is shuffled and dropped like a tag; here it stays in front"
