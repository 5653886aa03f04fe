"""What would go wrong in a training run of kohya's, found before it: in a dataset config, or in a folder of pictures.

The trainers say little. A config, a metadata file or a sidecar that they do not like stops them, often after hours of
caching; worse is what they accept and get wrong: tags behind a line break, a caption of another picture, a validation
set that is trained on. Each such fault is a rule here. A rule that is met is one finding, with the number of its cases
and some of them, and with the way out. Beside the findings stands how many pictures fall into each bucket.

Metadata is streamed; of a folder only the names are kept.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutline import tags
from cutline.formats import kohya, kohya_toml
from cutline.formats.kohya_toml import Config, DatasetConfig, SubsetConfig
from cutline.options import CutlineError, OptionError
from cutline.preview import several
from cutline.preview.lint_rules import Finding, Notes

if TYPE_CHECKING:
    from cutline.compose.buckets import Buckets
    from cutline.compose.kohya import Subset

Size = tuple[int, int]
"""Width and height in pixels."""

Placed = Callable[[str, Size, Size], None]
"""Called with a picture, its size, and the bucket that it falls into."""


@dataclass(frozen=True)
class BucketCount:
    """How many pictures of a dataset fall into a bucket."""

    dataset: str
    width: int
    height: int
    pictures: int


@dataclass(frozen=True)
class Lint:
    """What was found."""

    findings: tuple[Finding, ...]
    """Those first by which something is lost."""
    pictures: int
    """Pictures, or entries, that the trainers would load."""
    buckets: tuple[BucketCount, ...]
    """By size. Empty for a dataset whose resolution is not known."""

    @property
    def lost(self) -> bool:
        """Whether any finding says that something is lost."""
        return any(finding.lost for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def lint(
    path: Path,
    *,
    cache_text: bool = False,
    cache_latents: bool = False,
    workers: int = 1,
    max_token_length: int | None = None,
    resolution: Size | None = None,
    caption_extension: str = "",
    each: Placed | None = None,
) -> Lint:
    """Look for faults in a dataset config (TOML or JSON), or in a folder as `--train_data_dir` takes it.

    Args:
        path: the config or the folder. Relative paths in a config begin at the working directory, as for the trainers.
        cache_text: the run will have `--cache_text_encoder_outputs`.
        cache_latents: the run will have `--cache_latents`.
        workers: its `--max_data_loader_n_workers`.
        max_token_length: its `--max_token_length`.
        resolution: its `--resolution`, width and height in pixels, for datasets that say none.
        caption_extension: its `--caption_extension`, for a folder; `.caption` where it does not say.
        each: called for every picture whose bucket can be told.

    Raises:
        CutlineError: there is no such file or folder, or it is neither TOML nor JSON.
    """
    linting = _Linting(cache_text, cache_latents, workers, resolution, each)
    if max_token_length not in (None, 150, 225):
        linting.notes.add("max_token_length", "the command line", given=max_token_length)
    if path.is_dir():
        config = kohya_toml.folder_config(path, caption_extension)
        linting.folder(config)
    elif caption_extension:
        raise OptionError(f"caption_extension is for a folder; {path} says it for itself: caption_extension = …")
    else:
        config, problems = kohya_toml.check(path)
        for code, where, what in problems:
            linting.notes.plain(Finding(code, where, what, "mend it in the config: the trainers refuse it so", True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd pictures; the trainers go on too
        linting.config(config)
    return linting.lint()


# -- looking --------------------------------------------------------------------------------------------------

_LATENTS = re.compile(r"(.+)_0*(\d+)x0*(\d+)(_\w+)?\.npz")
"""The latents of a picture, by its stem: `7866720_1024x0960_sdxl.npz`."""

_ANY_SIZE_LATENTS = ("_sd", "_sdxl", None)
"""Latents that the trainers survive in the place of a picture."""

_TEXT_CACHE = re.compile(r"(.+)_(?:te_outputs|(?:sd3|flux|lumina2|hi|anima)_te)\.npz")
"""A text-encoder cache, by its picture's stem: `7866720_te_outputs.npz`, `7866720_flux_te.npz`."""

_WORD_FILES = (".txt", ".caption", ".tags", ".cap")
"""Extensions that words are found under, where the config names another."""

_OTHER_PICTURES = (".gif", ".tif", ".tiff", ".jfif", ".jpe", ".heic", ".heif")
"""Pictures that the trainers do not list."""

_FACE = re.compile(r".*(_\d+){4}")
"""A picture that a face detector cut out: `img_10_20_30_40`, whose words are those of `img`."""

_PAIR_SECONDS = 0.87 / 8000**2
"""Measured: 8,000 entries against 8,000 .npz files take 0.87 s."""

_ENTRY_BYTES, _ENTRY_PEAK = 1191, 2139
"""Measured: what an entry of 60 words and 40 tags takes after loading, and while it is loaded."""


class _Linting:
    """One lint in progress."""

    def __init__(
        self,
        cache_text: bool,
        cache_latents: bool,
        workers: int,
        resolution: Size | None,
        each: Placed | None,
    ) -> None:
        self.cache_text, self.cache_latents, self.workers = cache_text, cache_latents, workers
        self.resolution, self.each = resolution, each
        self.notes = Notes()
        self.pictures = 0
        self.entries = 0
        self.buckets: dict[tuple[str, int, int], int] = {}

    def lint(self) -> Lint:
        if self.entries:
            given = f"{_bytes(self.entries * _ENTRY_BYTES)} (while loading {_bytes(self.entries * _ENTRY_PEAK)})"
            self.notes.add("memory", "metadata", count=self.entries, given=given)
        counts = (BucketCount(*place, count) for place, count in sorted(self.buckets.items()))
        return Lint(self.notes.findings(), self.pictures, tuple(counts))

    def folder(self, config: Config) -> None:
        """What `--train_data_dir` leaves out beside the folders that it reads."""
        numbered = {subset.image_dir for made in config.datasets for subset in made.subsets}
        if str(config.path) in numbered:
            return
        with os.scandir(config.path) as found:
            for entry in sorted(found, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    continue
                if entry.is_dir() and entry.path not in numbered and _has_picture(entry.path):
                    self.notes.add("subfolders", str(config.path), entry.name)
                elif not entry.is_dir() and kohya_toml.is_picture(entry.name):
                    self.notes.add("beside_numbered", str(config.path), entry.name)

    def config(self, config: Config) -> None:
        if config.idle:
            self.notes.add("idle_key", str(config.path), keys=", ".join(config.idle))
        for dataset in config.datasets:
            _Dataset(self, config, dataset).look()


class _Dataset:
    """One dataset of a config that is looked at."""

    def __init__(self, linting: _Linting, config: Config, dataset: DatasetConfig) -> None:
        self.linting, self.notes = linting, linting.notes
        self.config, self.dataset = config, dataset
        self.size = dataset.resolution or linting.resolution
        self.buckets = self._buckets()
        self.waiting: list[tuple[str, Size]] = []
        self.keys: dict[int, str] = {}

    def look(self) -> None:
        dataset = self.dataset
        split = dataset.validation_split > 0
        if not 0 <= dataset.validation_split < 1:
            self.notes.add("validation_share", dataset.where, given=dataset.validation_split)
        of_metadata = any(subset.kind == "metadata" for subset in dataset.subsets)
        if of_metadata and not self.linting.cache_latents:
            self.notes.add("no_latents_cache", dataset.where)
        if split and of_metadata:
            self.notes.add("validation_ignored", dataset.where)
        elif split and dataset.validation_seed is None:
            self.notes.add("validation_overlap", dataset.where)
        seen = set()
        for subset in dataset.subsets:
            named = subset.metadata_file or subset.image_dir
            if subset.others.get("num_repeats", 1) < 1:
                self.notes.add("no_repeats", subset.where)
            elif named in seen:
                self.notes.add("subset_twice", subset.where, str(named))
            else:
                seen.add(named)
                _look_at_options(subset, self.linting)
                self._look_at(subset)
        self.place()

    def _look_at(self, subset: SubsetConfig) -> None:
        if subset.kind == "metadata":
            if path := self._located(subset, subset.metadata_file, os.path.isfile, "missing_metadata"):
                count = _Metadata(self, subset, path).look()
                self.linting.entries += count
            else:
                return
        elif path := self._located(subset, subset.image_dir, os.path.isdir, "missing_folder"):
            count = _Folder(self, subset, path).look()
        else:
            return
        self.linting.pictures += count
        if not count:
            self.notes.add("no_pictures", subset.where, str(subset.metadata_file or subset.image_dir))

    def register(self, subset: SubsetConfig, key: str) -> None:
        """Count a picture that the trainers know by a name that another subset has used."""
        if len(self.dataset.subsets) > 1 and self.keys.setdefault(hash(key), subset.where) != subset.where:
            self.notes.add("same_picture", subset.where, key)

    def _located(
        self, subset: SubsetConfig, given: str | None, is_there: Callable[[str], bool], code: str
    ) -> str | None:
        if given is None:
            return None
        path, as_trainers = kohya_toml.located(given, self.config.path)
        if not is_there(path):
            self.notes.add(code, subset.where, given)
            return None
        if not as_trainers:
            self.notes.add("relative_path", subset.where, given)
        return path

    def image_dir(self, subset: SubsetConfig) -> str | None:
        """The folder that a metadata file's paths are relative to."""
        if subset.image_dir is None:
            return None
        return self._located(subset, subset.image_dir, os.path.isdir, "missing_folder") or subset.image_dir

    # -- buckets

    def _buckets(self) -> Buckets | None:
        """Those of the dataset; None without a resolution, or where the trainers stop, or make one bucket of it."""
        dataset, size = self.dataset, self.size
        if size is None:
            self.notes.add("no_resolution", dataset.where)
            return None
        if not dataset.enable_bucket:
            return None  # see `place`
        from cutline.compose.buckets import Buckets

        steps = max(dataset.bucket_reso_steps, 1)
        low, high = dataset.min_bucket_reso // steps * steps, -(-dataset.max_bucket_reso // steps) * steps
        shown = f"{size[0]} x {size[1]}"
        if not low <= min(size) or not max(size) <= high:
            self.notes.add("bucket_bounds", dataset.where, given=shown)
            return None
        try:
            return Buckets(size, max(low, 1), high, dataset.bucket_reso_steps, dataset.bucket_no_upscale)
        except OptionError as error:
            self.notes.add("bucket_bounds", dataset.where, str(error), given=shown)
            return None

    def put(self, name: str, size: Size | None) -> None:
        """Count a picture in its bucket."""
        if size is None or self.size is None:
            return
        if self.dataset.enable_bucket and self.buckets is None:
            return
        self.waiting.append((name, size))
        if len(self.waiting) == _AT_ONCE:
            self.place()

    def place(self) -> None:
        """Choose the buckets of the pictures that wait for theirs."""
        sizes = [size for _, size in self.waiting]
        if self.buckets is None or not sizes:
            across, up = self.size or (0, 0)
            chosen = [(across, up)] * len(sizes)  # without enable_bucket, all are cut to one size
            for name, (width, height) in self.waiting:
                if abs(width * up - height * across) > _SAME_SHAPE * max(width * up, height * across):
                    self.notes.add("no_buckets", self.dataset.where, name, given=f"{across} x {up}")
        else:
            widths, heights = self.buckets.choose_all(*zip(*sizes, strict=True))
            chosen = list(zip(widths.tolist(), heights.tolist(), strict=True))
        counts = self.linting.buckets
        for (name, size), bucket in zip(self.waiting, chosen, strict=True):
            if 0 in bucket:
                self.notes.add("no_bucket", self.dataset.where, f"{name} ({size[0]} x {size[1]})")
                continue
            key = (self.dataset.where, *bucket)
            counts[key] = counts.get(key, 0) + 1
            if self.linting.each is not None:
                self.linting.each(name, size, bucket)
        self.waiting.clear()


_AT_ONCE = 4096
_SAME_SHAPE = 0.02  # of a side: rounding
"""Pictures whose buckets are chosen together."""


# -- options --------------------------------------------------------------------------------------------------

_RANDOM = ("shuffle_caption", "enable_wildcard", "caption_dropout_rate", "caption_tag_dropout_rate")


def _look_at_options(subset: SubsetConfig, linting: _Linting) -> None:
    """What can be told of settings without a text."""
    said, notes, where = subset.options, linting.notes, subset.where
    separator = subset.separator
    if said.get("keep_tokens", 0) > 0 and not subset.treats_as_tags:
        notes.add("keep_tokens_idle", where)
    if said.get("keep_tokens", 0) > 0 and said.get("keep_tokens_separator") and subset.treats_as_tags:
        notes.add("keep_tokens_ignored", where)
    if said.get("caption_dropout_every_n_epochs", 0) > 0 and linting.workers > 0:
        notes.add("every_n_with_workers", where, workers=linting.workers)
    if linting.workers > 1 and any(said.get(name) for name in _RANDOM):
        notes.add("shared_random", where, workers=linting.workers)
    if separator == "":
        if subset.treats_as_tags:
            notes.add("separator_empty", where)
    elif separator == "\\n":
        notes.add("separator_backslash", where)
    elif separator.strip() != "," and subset.treats_as_tags:
        notes.add("separator_not_comma", where, given=json.dumps(separator, ensure_ascii=False))
    elif separator.strip() != ",":
        notes.add("separator_odd", where, given=json.dumps(separator, ensure_ascii=False))
    if not linting.cache_text:
        return
    from cutline.compose.kohya import NEVER_CACHED, NOT_IN_CACHE

    if refused := [name for name in NEVER_CACHED if said.get(name)]:
        notes.add("te_cache_refused", where, given=", ".join(refused))
    if ignored := [name for name in NOT_IN_CACHE if said.get(name)]:
        notes.add("te_cache_ignores", where, ", ".join(ignored))


# -- texts ----------------------------------------------------------------------------------------------------

_GROUPS = re.compile(r"\{[^}]+\}")
_OR_WORDS = re.compile(r"[^\W\d_]{2}")
_BRACES = re.compile(r"\{[^{},]*\w[^{}]*\||\{[^\W_]{2}|[^\W_]{2}\}|\w\s*[{}]\s*\w")
"""Braces of a choice. Those of the tags `:{`, `;}` and `{}` have no words beside them."""
_BREAKS = re.compile(r"\w[^\w\\/,]*(\\[nr])+[^\w\\/,]*\w")
"""A line break written as two characters. The tag `\\n/` is none."""


class _Texts:
    """What becomes of the loaded texts of a subset."""

    def __init__(self, linting: _Linting, subset: SubsetConfig) -> None:
        from cutline.compose.kohya import Subset

        self.notes, self.subset = linting.notes, subset
        self.cache_text = linting.cache_text
        self.trainer: Subset = Subset(**{"caption_extension": subset.extension, **subset.options})
        said = subset.options.get
        self.separator = subset.separator
        self.keep = said("keep_tokens_separator") or ""
        self.secondary = said("secondary_separator") or ""
        prefix, suffix = said("caption_prefix") or "", said("caption_suffix") or ""
        self.outer = bool(prefix or suffix)
        comma = self.separator.strip()
        self.fuses = [
            *([prefix] if prefix and not prefix.rstrip().endswith(comma) else []),
            *([suffix] if suffix and not suffix.lstrip().startswith(comma) else []),
        ]
        # Both are faults of the config whatever the texts are, and losses only where a text shows them.
        if self.keep and not subset.treats_as_tags:
            self._add("keep_separator_leaks", "", lost=False, count=0, given=json.dumps(self.keep, ensure_ascii=False))
        for outer in self.fuses:
            self._add("prefix_fuses", json.dumps(outer, ensure_ascii=False), lost=False, count=0)

    def look(self, name: str, text: str) -> None:
        """Count what is wrong with a text as `Subset.load` or `Subset.load_image` gives it."""
        wildcards = self.subset.wildcards
        seen = text if wildcards else text.split("\n", 1)[0]
        if not seen.strip():
            return  # nothing is left to look at; why, is told where it is known
        if "\n" in text:
            if self.cache_text:
                self._add("te_cache_lines", name)
            if wildcards and self.outer:
                self._add("prefix_first_line", name)
        if "\ufeff" in seen:
            self._add("bom", name)
        if self.keep and not self.subset.treats_as_tags and self.keep in seen:
            self._add("keep_separator_leaks", name, given=json.dumps(self.keep, ensure_ascii=False))
        if self.fuses and self.separator and self.separator in seen:
            self._add("prefix_fuses", name, lost=self.subset.treats_as_tags or _is_tags(seen, self.separator))
        if left := self._leftovers(seen):
            self._add("leftovers", f"{name} ({' '.join(left)})")

    def _leftovers(self, text: str) -> list[str]:
        """Signs of a markup that nothing reads."""
        for handled in filter(None, (self.keep, self.secondary)):
            text = text.replace(handled, self.separator)
        if self.subset.treats_as_tags:
            text = text.replace(self.separator, ", ")  # as the trainer does when it joins them again
        if self.subset.wildcards:
            text = _GROUPS.sub("", text.replace("{{", "").replace("}}", ""))
        found = [sign for sign in "{}" if sign in text] if _BRACES.search(text) else []
        found += [sign for sign in ("|||", ";;;") if sign in text]
        if "|" in text.replace("|||", ""):
            pieces = (piece.strip() for piece in text.replace("|||", "").split(","))
            odd = (piece for piece in pieces if "|" in piece and piece.lower() not in tags.EMOTICONS)
            if any(_OR_WORDS.search(piece) for piece in odd):  # `:|` is a face, `red|blue` a choice
                found.append("|")
        found += [match[1] for match in _BREAKS.finditer(text)]
        found += [r"\r"] if "\r" in text else []
        return list(dict.fromkeys(found))

    def _add(self, code: str, example: str, **values: Any) -> None:
        self.notes.add(code, self.subset.where, example, **values)


def _is_tags(text: str, separator: str) -> bool:
    """Whether a text is a list of tags, not a sentence: no piece of it has more than four words."""
    return all(len(piece.split()) <= 4 for piece in text.split(separator))


# -- folders --------------------------------------------------------------------------------------------------


class _Folder:
    """A subset of pictures with sidecars."""

    def __init__(self, dataset: _Dataset, subset: SubsetConfig, path: str) -> None:
        self.dataset, self.subset, self.path = dataset, subset, path
        self.notes, self.texts = dataset.notes, _Texts(dataset.linting, subset)

    def look(self) -> int:
        """Look at every picture; how many there are."""
        pictures = self._pictures()
        caches = _text_caches(self.names)
        cached = self._cached_words()
        for name in pictures:
            self._look_at(name, caches, cached)
        if cached is not None:
            for name in cached.keys() - set(pictures):
                self._add("cache_info_gone", name)
        self._split(len(pictures))
        return len(pictures)

    def _pictures(self) -> list[str]:
        """The names of those that the trainers find, sorted."""
        files: list[str] = []
        folders: list[str] = []
        with os.scandir(self.path) as found:
            for entry in found:
                (folders if entry.is_dir() else files).append(entry.name)
        self.names = set(files)
        for name in sorted(folders):
            if not name.startswith(".") and _has_picture(os.path.join(self.path, name)):
                self._add("subfolders", name)
        for name in sorted(files):
            suffix = os.path.splitext(name)[1].lower()
            if (suffix in kohya_toml.IMAGE_SUFFIXES and not kohya_toml.is_picture(name)) or suffix in _OTHER_PICTURES:
                self._add("missed_extension", name)
        return sorted(filter(kohya_toml.is_picture, files))

    def _look_at(self, name: str, caches: Mapping[str, list[str]], cached: Mapping[str, Any] | None) -> None:
        path = os.path.join(self.path, name)
        self.dataset.register(self.subset, os.path.join(self.subset.image_dir or "", name))
        sidecar = self._sidecar(name)
        text = self._text(path, name, sidecar)
        if text is not None:
            self.texts.look(name, text)
            if cached is not None and name in cached and cached[name] != text:
                self._add("cache_info_stale", name)
        if cached is not None and name not in cached:
            self._add("cache_info_part", name)
        files = caches.get(os.path.splitext(name)[0], [])
        _look_at_caches(self.notes, self.dataset.linting, self.subset, self.path, files, sidecar)
        size = _header(path)
        if size is None:
            self._add("unreadable_picture", name)
        self.dataset.put(path, size)

    def _sidecar(self, name: str) -> str | None:
        """The file that the trainers read for a picture; it is said where that is another's."""
        stem = os.path.splitext(name)[0]
        extension = self.subset.extension
        if found := kohya_toml.sidecar_of(os.path.join(self.path, name), extension):
            path, of_another = found
            if of_another:
                self._add("underscore_fallback", f"{name} <- {path}", lost=not _FACE.fullmatch(stem))
            return path
        if has_words := next((file for suffix in _WORD_FILES if (file := stem + suffix) in self.names), None):
            self._add("extension_mismatch", has_words, given=extension)
        elif not self.subset.options.get("class_tokens"):
            self._add("no_sidecar", name, given=extension)
        return None

    def _text(self, path: str, name: str, sidecar: str | None) -> str | None:
        """The text that the trainers load; None where they stop."""
        from cutline.compose.kohya import TrainerError

        try:
            text = self.texts.trainer.load_image(path)
        except TrainerError as error:
            code = "zero_byte" if error.type == "AssertionError" else "not_utf8"
            self._add(code, os.path.basename(sidecar or path))
            return None
        if sidecar is None:
            return text
        if not text.strip():
            self._add("empty_first_line", os.path.basename(sidecar))
        elif not self.subset.wildcards:
            with open(sidecar, encoding="utf-8") as handle:
                handle.readline()
                if any(line.strip() for line in handle):
                    self._add("lines_lost", os.path.basename(sidecar))
        return text

    def _cached_words(self) -> dict[str, Any] | None:
        """Picture -> text, of the metadata_cache.json that the trainers would use."""
        if not self.subset.others.get("cache_info"):
            return None
        if self.dataset.dataset.validation_split > 0 and not self.subset.others.get("is_reg"):
            self._add("cache_info_split", "metadata_cache.json is there already" if self._cache_file() else "")
        try:
            with open(os.path.join(self.path, "metadata_cache.json"), encoding="utf-8") as handle:
                found = json.load(handle)
            return {os.path.basename(path): entry.get("caption") for path, entry in found.items()}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, AttributeError) as error:
            self._add("broken_metadata", f"metadata_cache.json: {error}")
            return None

    def _cache_file(self) -> bool:
        return "metadata_cache.json" in self.names

    def _split(self, count: int) -> None:
        """Whether training and validation, each rounded by itself, share a picture."""
        share = self.dataset.dataset.validation_split
        if 0 < share < 1 and count and not self.subset.others.get("is_reg"):
            trained, validated = math.ceil(count * (1 - share)), round(count * share)
            example = f"{several(count, 'picture')}: {trained:,} trained on, {validated:,} validated"
            if trained + validated > count:
                self._add("validation_rounding", example)
            if not validated:
                self._add("validation_none", example)

    def _add(self, code: str, example: str = "", **values: Any) -> None:
        self.notes.add(code, self.subset.where, example, **values)


def _has_picture(folder: str) -> bool:
    """Whether there is a picture anywhere below."""
    return any(kohya_toml.is_picture(name) for _, _, names in os.walk(folder) for name in names)


def _header(path: str) -> Size | None:
    """Width and height as the trainers see them, which ignore EXIF; None where the file cannot be opened."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _text_caches(names: Iterable[str]) -> dict[str, list[str]]:
    """The text-encoder caches among files, by the stem of their picture, which has one for each kind of model."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if match := _TEXT_CACHE.fullmatch(name):
            found.setdefault(match[1], []).append(name)
    return found


def _look_at_caches(
    notes: Notes, linting: _Linting, subset: SubsetConfig, folder: str, names: Sequence[str], words: str | None
) -> None:
    """Whether a picture's text-encoder caches may be of other words; one of them is named."""
    if not names:
        return
    try:
        written = os.stat(words).st_mtime_ns if words is not None else 0
        older = next((name for name in names if os.stat(os.path.join(folder, name)).st_mtime_ns < written), None)
    except OSError:
        return
    lost = None if linting.cache_text else False
    notes.add("te_cache_older" if older else "te_cache_unknown", subset.where, older or names[0], lost=lost)


# -- metadata -------------------------------------------------------------------------------------------------


class _Metadata:
    """A subset of a metadata file, read as the trainers read it."""

    def __init__(self, dataset: _Dataset, subset: SubsetConfig, path: str) -> None:
        self.dataset, self.subset, self.path = dataset, subset, path
        self.notes, self.texts = dataset.notes, _Texts(dataset.linting, subset)
        self.image_dir = dataset.image_dir(subset)
        self.unsized = 0
        self.listings: dict[str, tuple[dict[str, list[str]], dict[str, list[str]]]] = {}
        self.searched = {self.image_dir} if self.image_dir else set[str]()

    def look(self) -> int:
        """Look at every entry; how many there are."""
        count = 0
        with open(self.path, "rb") as handle:
            if handle.read(3) == b"\xef\xbb\xbf":
                self._add("metadata_bom", self.path)
        try:
            for entry in kohya.read(Path(self.path)):
                count += 1
                if entry.error or entry.name is None:
                    self._add("bad_entries", f"{entry.where}: {entry.detail}")
                elif kohya.LACKS in entry.fields:
                    self._add("bad_entries", f"{entry.where}: a list of what is missing is no metadata")
                else:
                    self._look_at(entry.name, entry.fields)
        except CutlineError as error:
            self._add("broken_metadata", str(error))
        if self.unsized:
            pairs = self.unsized * sum(sum(map(len, self._listing(folder)[0].values())) for folder in self.searched)
            self._add("no_image_size", "", count=self.unsized, given=_seconds(pairs * _PAIR_SECONDS))
        return count

    def _look_at(self, name: str, fields: Mapping[str, Any]) -> None:
        self.dataset.register(self.subset, name)
        caption, words = fields.get("caption"), fields.get("tags")
        if isinstance(caption, str | None) and isinstance(words, str | None):
            self._look_at_words(name, caption, words)
        else:
            self._add("not_text", name)
        if ignored := [key for key in fields if key in ("train_resolution", "latents")]:
            self._add("ignored_fields", name, given=", ".join(ignored))
        size = fields.get("image_size")
        sides = size if isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size) else None
        if size is not None and (sides is None or min(sides) < 1):
            self._add("bad_image_size", f"{name}: {json.dumps(size)[:80]}")
            sides = None
        self._look_at_picture(name, (sides[0], sides[1]) if sides else None)

    def _look_at_words(self, name: str, caption: str | None, words: str | None) -> None:
        text = self.texts.trainer.load(caption, words)
        self.texts.look(name, text)
        if not caption and not words:
            self._add("empty_entry", name)
        elif self.subset.wildcards:
            self._look_at_lines(name, caption or "", words, text)
        else:
            self._look_at_first_line(name, caption or "", words or "", text)
        if caption and words and tags.split(caption) == tags.split(words):
            self._add("doubled", name)

    def _look_at_lines(self, name: str, caption: str, words: str | None, text: str) -> None:
        """What enable_wildcard makes of it."""
        if words and not text:
            self._add("wildcard_tag_only", name)
        elif words == "":
            self._add("trailing_separator", name)
        elif words is None and not caption.strip():
            self._add("empty_first_line", name)
        elif words is None and not all(line.strip() for line in caption.split("\n")):
            self._add("blank_line_drawn", name)

    def _look_at_first_line(self, name: str, caption: str, words: str, text: str) -> None:
        """What is left of it without enable_wildcard."""
        first, _, rest = text.partition("\n")
        if words and caption and "\n" in caption + self.texts.separator:
            self._add("tags_after_newline", name)
        elif first.strip() and rest.strip():
            self._add("lines_lost", name)
        if not first.strip():
            self._add("empty_first_line", name)

    def _look_at_picture(self, name: str, size: Size | None) -> None:
        absolute = os.path.isabs(name)
        if not absolute and self.image_dir is None:
            self._add("no_image_dir", name)
            self.dataset.put(name, size)
            return
        path = name if absolute else os.path.join(self.image_dir or "", name)
        folder, file = os.path.split(path)
        stem = os.path.splitext(file)[0] if kohya_toml.is_picture(file) else file
        if absolute:
            self.searched.add(folder)
        of_pictures, of_texts = self._listing(folder)
        latents = of_pictures.get(stem, [])
        if size is None:
            self.unsized += 1
        if os.path.isfile(path):
            if size is None and latents and absolute:
                stopping = next((one for one in latents if not _survives(one)), None)
                code = "npz_opened_as_image" if stopping else "npz_replaces_picture"
                self._add(code, f"{name}: {stopping or latents[0]}")
            elif size is None and (size := _header(path)) is None:
                self._add("unreadable_picture", name)
        elif not (size and latents):
            self._add("missing_pictures" if kohya_toml.is_picture(file) else "stem_keys", name)
        _look_at_caches(self.notes, self.dataset.linting, self.subset, folder, of_texts.get(stem, []), self.path)
        if size is None and latents and (match := _LATENTS.fullmatch(latents[0])):
            size = (int(match[2]), int(match[3]))
        self.dataset.put(name, size)

    def _listing(self, folder: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The .npz files of a folder by their picture's stem: latents, and text-encoder caches."""
        if folder not in self.listings:
            names = sorted(name for name in _names(folder) if name.endswith(".npz"))
            latents: dict[str, list[str]] = {}
            for name in names:
                if not _TEXT_CACHE.fullmatch(name):
                    match = _LATENTS.fullmatch(name)
                    latents.setdefault(match[1] if match else name.removesuffix(".npz"), []).append(name)
            self.listings[folder] = latents, _text_caches(names)
        return self.listings[folder]

    def _add(self, code: str, example: str = "", **values: Any) -> None:
        self.notes.add(code, self.subset.where, example, **values)


def _survives(latents: str) -> bool:
    """Whether the trainers survive such latents in the place of a picture."""
    match = _LATENTS.fullmatch(latents)
    return match is None or match[4] in _ANY_SIZE_LATENTS


def _names(folder: str) -> Iterator[str]:
    """The names in a folder, none where there is none."""
    try:
        with os.scandir(folder) as found:
            yield from (entry.name for entry in found)
    except OSError:
        return


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} GB"


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return "less than a second"
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.0f} h"
