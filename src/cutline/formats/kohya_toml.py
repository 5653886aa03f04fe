"""The dataset configs of kohya's trainers: which folders and metadata files to train on, and what is done to captions.

A config is TOML (or JSON) of three levels: `[general]`, `[[datasets]]` and in each of those `[[datasets.subsets]]`. A
setting is looked up in the subset, then its dataset, then `[general]`; an empty text that stands nearer hides what
stands farther. A subset names a folder of pictures with sidecars (`image_dir`), or a metadata file (`metadata_file`);
one dataset has subsets of one kind. Nothing unknown is allowed anywhere, and here each fault is named with its place.

What a trainer's command line says besides is not known here. It stands below `[general]`, so it never overrides.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cutline.options import CutlineError

Kind = Literal["folder", "metadata"]

LARGEST = 16 << 20
"""Bytes. A larger file is no config; perhaps it is the metadata that one names."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl")
"""What the trainers take for a picture, written so or in capitals; the last two where their plug-ins are installed."""

CAPTION_OPTIONS = (
    *("shuffle_caption", "caption_separator", "keep_tokens", "keep_tokens_separator", "secondary_separator"),
    *("enable_wildcard", "caption_prefix", "caption_suffix", "caption_dropout_rate", "caption_dropout_every_n_epochs"),
    *("caption_tag_dropout_rate", "token_warmup_min", "token_warmup_step"),
)
"""Settings that change what is done to a caption, in every kind of subset."""

SIDECAR_OPTIONS = ("caption_extension", "class_tokens")
"""Settings that change which caption is read; only folders have them."""


class Problem(NamedTuple):
    """Why a trainer refuses a config."""

    code: str
    """unknown_key, bad_value, missing_key, mixed_subsets or nothing_to_train."""
    where: str
    what: str
    """What is wrong, and what would be right."""


class ConfigError(CutlineError):
    """A config that the trainers refuse; its text names every problem."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        lines = "\n".join(f"  {problem.where}: {problem.what}" for problem in problems)
        super().__init__(f"kohya's trainers refuse {path}:\n{lines}")
        self.problems = tuple(problems)


@dataclass(frozen=True)
class SubsetConfig:
    """Pictures with their words, and what is done to those."""

    kind: Kind
    where: str
    """For people: `dataset 1, subset 2`."""
    image_dir: str | None = None
    """As written. A relative path begins at the folder that the trainer is started in."""
    metadata_file: str | None = None
    """As `image_dir`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the config says, at any level, of `CAPTION_OPTIONS` and, for a folder, of `SIDECAR_OPTIONS`."""
    others: Mapping[str, Any] = field(default_factory=dict)
    """What else it says of the subset: num_repeats, cache_info, is_reg, flip_aug and the like."""

    @property
    def treats_as_tags(self) -> bool:
        """Whether its texts are cut at their separators, reordered or dropped in part."""
        said = self.options.get
        return bool(
            said("shuffle_caption") or said("token_warmup_step", 0) > 0 or said("caption_tag_dropout_rate", 0) > 0
        )

    @property
    def separator(self) -> str:
        """What stands between two tags."""
        return str(self.options.get("caption_separator", ","))

    @property
    def wildcards(self) -> bool:
        """Whether a line of several, and `{one|of|these}`, are drawn."""
        return bool(self.options.get("enable_wildcard"))

    @property
    def extension(self) -> str:
        """The suffix of its sidecars, with the dot that may be left out."""
        said = str(self.options.get("caption_extension", ".caption"))
        return said if said.startswith(".") else f".{said}"


@dataclass(frozen=True)
class DatasetConfig:
    """Subsets that share batches, sizes and a validation split."""

    subsets: tuple[SubsetConfig, ...]
    where: str
    resolution: tuple[int, int] | None = None
    """Width and height in pixels; None where only the command line can say."""
    batch_size: int = 1
    enable_bucket: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    bucket_reso_steps: int = 64
    bucket_no_upscale: bool = False
    validation_split: float = 0.0
    validation_seed: int | None = None


@dataclass(frozen=True)
class Config:
    """All that a trainer is told of its data."""

    datasets: tuple[DatasetConfig, ...]
    path: Path
    """The config file, or the folder."""
    idle: tuple[str, ...] = ()
    """Where something stands that is allowed there and has no effect."""


def read(path: Path) -> Config:
    """Read a config file as the trainers do.

    Raises:
        ConfigError: naming every problem for which a trainer refuses it.
        CutlineError: it cannot be read at all.
    """
    config, problems = check(path)
    if problems:
        raise ConfigError(path, problems)
    return config


def check(path: Path) -> tuple[Config, tuple[Problem, ...]]:
    """Read what can be read of a config file, and say for what a trainer refuses it.

    Raises:
        CutlineError: there is no such file, or it is neither TOML nor JSON.
    """
    return _Reading(path, _load(path)).config()


def folder_config(path: Path, caption_extension: str = "") -> Config:
    """What `--train_data_dir` makes of a folder, or `image_dir` of one without folders named `10_sks girl` below it.

    Raises:
        CutlineError: there is no such folder.
    """
    try:
        with os.scandir(path) as found:
            names = sorted(entry.name for entry in found if entry.is_dir())
    except OSError as error:
        raise CutlineError(f"cannot read {path}: {error.strerror}") from None
    subsets = [
        _numbered(os.path.join(path, name), name, place) for place, name in enumerate(filter(_repeats, names), 1)
    ]
    if not subsets:
        subsets = [SubsetConfig("folder", str(path), str(path))]
    if caption_extension:
        said = {"caption_extension": caption_extension}
        subsets = [replace(subset, options={**subset.options, **said}) for subset in subsets]
    return Config((DatasetConfig(tuple(subsets), str(path)),), path)


def located(given: str, config: Path) -> tuple[str, bool]:
    """Where a path of a config leads, and whether that is what the trainers find.

    They begin a relative one at the folder that they are started in. Where nothing is there, and something is beside
    the config, that is given, with False.
    """
    beside = os.path.join(config if config.is_dir() else config.parent, given)
    return (beside, False) if not os.path.exists(given) and os.path.exists(beside) else (given, True)


def sidecar_of(picture: str, extension: str, start: str = "") -> tuple[str, bool] | None:
    """The file that the trainers read for a picture, and whether it is that of another name; None without one.

    Of a picture without one they drop the last four parts between underscores, since a face that was cut out of a
    picture is called NAME_x_y_width_height. They look for the underscores in the whole path, folders included.

    Args:
        picture: its path, which begins as the config has it.
        extension: of the sidecars, with its dot.
        start: the folder that a relative path begins at; by default the working directory.
    """
    stem = os.path.splitext(picture)[0]
    pieces = stem.split("_")
    for name in (stem, "_".join(pieces[:-4])) if len(pieces) >= 5 else (stem,):
        path = os.path.join(start, name + extension)
        if os.path.isfile(path):
            return path, name != stem
    return None


def is_picture(name: str) -> bool:
    """Whether a folder's file is one that the trainers read: `.jpg` and `.JPG`, and not `.Jpg`."""
    suffix = os.path.splitext(name)[1]
    return suffix.lower() in IMAGE_SUFFIXES and suffix in (suffix.lower(), suffix.upper())


def _repeats(name: str) -> int:
    """How often a folder named for that is gone through; 0 for other folders, which are left out."""
    count = name.split("_", 1)[0]
    return int(count) if count.isdecimal() else 0


def _numbered(folder: str, name: str, place: int) -> SubsetConfig:
    count, _, words = name.partition("_")
    options = {"class_tokens": words} if words else {}
    return SubsetConfig("folder", f"folder {name}", folder, None, options, {"num_repeats": int(count)})


# -- what may stand where -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Type:
    """What a value must be, in words, and the test of it."""

    words: str
    fits: Callable[[Any], bool]


def _is(words: str, *types: type) -> _Type:
    return _Type(words, lambda value: isinstance(value, types))


def _pair(value: object, of: type) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, of) for item in value)


_TRUTH = _is("true or false", bool)
_WHOLE = _is("a whole number", int)  # true and false too, as in Python
_FLOAT = _is("a number with a point, such as 0.1", float)
_NUMBER = _is("a number", float, int)
_TEXT = _is("text", str)
_TABLE = _is("a table", dict)
_SIZE = _Type(
    "a whole number or a list of two, [width, height]", lambda value: isinstance(value, int) or _pair(value, int)
)
_RANGE = _Type("a list of two numbers with points", lambda value: _pair(value, float))

_SUBSET = {
    **dict.fromkeys(("shuffle_caption", "enable_wildcard", "color_aug", "flip_aug", "random_crop"), _TRUTH),
    **dict.fromkeys(("caption_separator", "keep_tokens_separator", "secondary_separator"), _TEXT),
    **dict.fromkeys(("caption_prefix", "caption_suffix", "resize_interpolation"), _TEXT),
    **dict.fromkeys(("caption_dropout_rate", "caption_tag_dropout_rate", "token_warmup_step"), _NUMBER),
    **dict.fromkeys(("num_repeats", "keep_tokens", "token_warmup_min", "caption_dropout_every_n_epochs"), _WHOLE),
    "face_crop_aug_range": _RANGE,
    "custom_attributes": _TABLE,
}
_SIDECARS = {"caption_extension": _TEXT, "class_tokens": _TEXT, "cache_info": _TRUTH}
_DATASET = {
    **dict.fromkeys(("batch_size", "bucket_reso_steps", "max_bucket_reso", "min_bucket_reso"), _WHOLE),
    **dict.fromkeys(("bucket_no_upscale", "enable_bucket"), _TRUTH),
    **dict.fromkeys(("network_multiplier", "validation_split"), _FLOAT),
    **dict.fromkeys(("resolution", "skip_image_resolution"), _SIZE),
    "validation_seed": _WHOLE,
}
_OWN: dict[Kind, dict[str, _Type]] = {
    "folder": {**_SIDECARS, "image_dir": _TEXT, "is_reg": _TRUTH, "alpha_mask": _TRUTH},
    "metadata": {"metadata_file": _TEXT, "image_dir": _TEXT, "alpha_mask": _TRUTH},
}
_NOT_CONTROLLED = ("class_tokens", "is_reg")
"""What may not stand beside a conditioning_data_dir."""
_REQUIRED: dict[Kind, str] = {"folder": "image_dir", "metadata": "metadata_file"}
_EVERYWHERE = {**_DATASET, **_SUBSET, **_OWN["folder"], **_OWN["metadata"], "conditioning_data_dir": _TEXT}


class _Reading:
    """One config on its way in, with the problems met."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = values
        self.problems: list[Problem] = []

    def config(self) -> tuple[Config, tuple[Problem, ...]]:
        for key in self.values:
            if key not in ("general", "datasets"):
                self._unknown("the top of the file", key, ("general", "datasets"))
        general = self._table(self.values.get("general", {}), "[general]")
        general = self._checked(general, "[general]", {**_DATASET, **_SUBSET, **_SIDECARS})
        datasets = [
            made
            for place, given in enumerate(self._list(self.values.get("datasets", []), "datasets"), 1)
            if (made := self._dataset(given, f"dataset {place}", general)) is not None
        ]
        if not datasets and not self.problems:
            self._add("nothing_to_train", "the top of the file", "it has no [[datasets]]: add one, with its subsets")
        idle: tuple[str, ...] = ()
        if not any(subset.kind == "folder" for made in datasets for subset in made.subsets):
            idle = tuple(f"{key} in [general]" for key in _SIDECARS if key in general)
        return Config(tuple(datasets), self.path, idle), tuple(self.problems)

    def _dataset(self, given: object, where: str, general: Mapping[str, Any]) -> DatasetConfig | None:
        values = self._table(given, where)
        listed = [
            (self._table(one, f"{where}, subset {place}"), f"{where}, subset {place}")
            for place, one in enumerate(self._list(values.get("subsets", []), f"{where}, subsets"), 1)
        ]
        kinds: list[Kind] = ["metadata" if "metadata_file" in one else "folder" for one, _ in listed]
        if not listed:
            self._add("nothing_to_train", where, "it has no subsets: add [[datasets.subsets]] with an image_dir")
        if len(set(kinds)) > 1:
            self._add(
                "mixed_subsets",
                where,
                "some of its subsets have a metadata_file and some have none; make two [[datasets]] of them",
            )
        controlled = bool(listed) and all("conditioning_data_dir" in one for one, _ in listed)
        sidecars = _SIDECARS if kinds and kinds[0] == "folder" and len(set(kinds)) == 1 else {}
        known = _allowed({**_DATASET, **_SUBSET, **sidecars}, controlled)
        own = self._checked({key: value for key, value in values.items() if key != "subsets"}, where, known)
        subsets = [
            made
            for (one, place), kind in zip(listed, kinds, strict=True)
            if (made := self._subset(one, place, kind, (own, general), controlled)) is not None
        ]
        said = {key: value for key in _DATASET if (value := _lookup(key, own, general)) is not None}
        size = said.pop("resolution", None)
        for other in ("network_multiplier", "skip_image_resolution"):
            said.pop(other, None)
        resolution = (size, size) if isinstance(size, int) else tuple(size) if size else None
        return DatasetConfig(tuple(subsets), where, resolution, **said) if subsets else None

    def _subset(
        self, values: Mapping[str, Any], where: str, kind: Kind, above: Sequence[Mapping[str, Any]], controlled: bool
    ) -> SubsetConfig | None:
        controlled = controlled and kind == "folder"
        known = _allowed(
            {**_SUBSET, **_OWN[kind], **({"conditioning_data_dir": _TEXT} if controlled else {})}, controlled
        )
        own = self._checked(values, where, known)
        if (required := _REQUIRED[kind]) not in own:
            if required not in values:
                self._add("missing_key", where, f"it has no {required}")
            return None
        names = {*_SUBSET, *(_SIDECARS if kind == "folder" else ()), "is_reg", "alpha_mask"}
        names -= {*(_NOT_CONTROLLED if controlled else ())}
        said = {key: value for key in _EVERYWHERE if key in names and (value := _lookup(key, own, *above)) is not None}
        of_captions = CAPTION_OPTIONS if kind == "metadata" else (*CAPTION_OPTIONS, *SIDECAR_OPTIONS)
        return SubsetConfig(
            kind,
            where,
            own.get("image_dir"),
            own.get("metadata_file"),
            {key: said[key] for key in of_captions if key in said},
            {key: value for key, value in said.items() if key not in of_captions},
        )

    def _checked(self, values: Mapping[str, Any], where: str, known: Mapping[str, _Type]) -> dict[str, Any]:
        """Those values that may stand there and fit."""
        kept = {}
        for key, value in values.items():
            if key not in known:
                self._unknown(where, key, tuple(known))
            elif not known[key].fits(value):
                advice = f": write {float(value)}" if known[key] is _FLOAT and type(value) is int else ""
                shown = json.dumps(value, ensure_ascii=False, default=str)[:200]
                self._add("bad_value", where, f"{key} is {shown}, and must be {known[key].words}{advice}")
            else:
                kept[key] = value
        return kept

    def _unknown(self, where: str, key: str, known: Sequence[str]) -> None:
        if key == "max_token_length":
            advice = "; it is said on the command line: --max_token_length 150 or 225"
        elif key in _NOT_CONTROLLED and ("conditioning_data_dir" in known or {*_SIDECARS} - {*known} == {key}):
            advice = "; it may not stand beside a conditioning_data_dir"
        elif key in _SIDECARS and key not in known:
            advice = "; it has no meaning where a metadata_file says the captions"
        elif key in _EVERYWHERE:
            advice = f"; it may stand {_places(key)}"
        else:
            like = _nearest(key, known)
            advice = f"; do you mean {like}?" if like else ""
        self._add("unknown_key", where, f"'{key}' is not allowed there{advice}")

    def _table(self, value: object, where: str) -> Mapping[str, Any]:
        if isinstance(value, dict):
            return value
        self._add("bad_value", where, "it must be a table")
        return {}

    def _list(self, value: object, where: str) -> Iterator[object]:
        if isinstance(value, list):
            yield from value
        else:
            self._add("bad_value", where, "it must be a list of tables: write [[ ]] around its name")

    def _add(self, code: str, where: str, what: str) -> None:
        self.problems.append(Problem(code, where, what))


def _allowed(known: Mapping[str, _Type], controlled: bool) -> dict[str, _Type]:
    return {key: kind for key, kind in known.items() if not controlled or key not in _NOT_CONTROLLED}


def _lookup(key: str, *levels: Mapping[str, Any]) -> Any:
    return next((level[key] for level in levels if level.get(key) is not None), None)


def _places(key: str) -> str:
    if key in _DATASET:
        return "in [general] and [[datasets]]"
    if key in _SUBSET:
        return "in [general], [[datasets]] and [[datasets.subsets]]"
    kinds = [kind for kind in _OWN if key in _OWN[kind]] or ["folder"]
    of = "" if len(kinds) == 2 else " of pictures in folders" if kinds == ["folder"] else " of metadata"
    return f"in [[datasets.subsets]]{of}"


def _nearest(key: str, known: Sequence[str]) -> str:
    import difflib

    return next(iter(difflib.get_close_matches(key, known, 1, 0.75)), "")


def _load(path: Path) -> Mapping[str, Any]:
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json"):
        raise CutlineError(f"{path} is no dataset config: the trainers know it by its suffix, .toml or .json")
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise CutlineError(
                f"{path} has {size:,} bytes, which no dataset config has. "
                "If it is metadata, name it in a config: metadata_file = …"
            )
        data = path.read_bytes()
    except OSError as error:
        raise CutlineError(f"cannot read {path}: {error.strerror}") from None
    kind = suffix[1:].upper()
    try:
        text = data.decode("utf-8")
        values = tomllib.loads(text) if suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:  # of both parsers, and of text that is not UTF-8
        raise CutlineError(f"{path} is not {kind}: {error}") from None
    if not isinstance(values, dict):
        raise CutlineError(f"{path} is no dataset config: it is not a JSON object")
    return values
