"""WebDataset: tars of pictures with their texts, as trainers stream them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import pyarrow as pa
import xxhash

from cutline.exports.manifest import Manifest
from cutline.exports.writing import (
    columns,
    make_folder,
    outputs,
    place,
    refuse,
    refuse_collisions,
    shortened,
    spooled,
)
from cutline.files import storage_error, whole_file
from cutline.formats.webdataset import safe_key
from cutline.options import CutlineError, OptionError, option
from cutline.pictures import EXTENSIONS, FOREIGN, Picture, PictureError

_INDEX = "manifest.json"
_TAR = re.compile(r"\d{5,}\.tar")
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class _Sample:
    """What becomes of one picture."""

    name: str
    """Without the ending that tells its files apart."""
    ending: str
    picture: Picture
    text: str | None
    record: bytes
    outputs: tuple[tuple[str, str], ...] = ()
    """Name and text of each other output that it has."""

    @property
    def texts(self) -> list[tuple[str, bytes]]:
        """Ending and content of each text."""
        said = [("txt", self.text or ""), *self.outputs]
        return [(f".{name}", text.encode("utf-8")) for name, text in said if text]


@dataclass
class _Shard:
    """One tar that is to stand there."""

    name: str
    samples: list[_Sample] = field(default_factory=list)
    size: int = 0

    def digest(self) -> str:
        """Of all that decides its bytes."""
        total = hashlib.sha256()
        for sample in self.samples:
            known = sample.picture.content or [sample.picture.size, sample.picture.mtime_ns]
            said = [sample.name, sample.ending, known, sample.text, sample.record.decode(), *sample.outputs]
            total.update(json.dumps(said).encode() + b"\n")
        return total.hexdigest()


@dataclass(frozen=True)
class WebDataset:
    """Tars `00000.tar` … of every picture that has a text: its own bytes, the text as `.txt`, the rest as `.json`.

    Each of the recipe's `[outputs.NAME]` is a file `.NAME` of its own. The same pictures and texts always make the same
    tars, bit for bit. `manifest.json` beside them says what each holds; by it an export that was interrupted goes on
    where it stopped.
    """

    files: ClassVar[bool] = True

    count: int = option(10_000, "pictures in one tar, at most")
    size: int = option(1 << 30, "bytes in one tar, at most; a picture that is larger has a tar of its own")
    names: Literal["path", "flat", "number"] = option(
        "path",
        "what samples are called: path, with folders; flat, with _ for each slash; number, counted in order of keys",
    )

    def __post_init__(self) -> None:
        if self.count < 1 or self.size < 1:
            raise OptionError("webdataset: count and size are at least 1")

    def write(self, rows: Iterator[pa.RecordBatch], out: Path, *, dry_run: bool = False) -> Manifest:
        """Write the tars, each whole or not at all; one that stands there already as it should be is left untouched."""
        out = Path(os.path.abspath(out.expanduser()))
        index = _read_index(out)
        counts = Counter(written=0, unchanged=0, without_text=0)
        diff: list[str] = []
        made: dict[str, dict[str, Any]] = {}
        with spooled(rows) as again:
            self._check(out, index, again)
            if not dry_run:
                make_folder(out)
                for left in out.glob(".cutline-*.tmp"):  # by an export that was killed
                    left.unlink(missing_ok=True)
            for shard in self._shards(again, counts):
                entry = index.get(shard.name, {})
                digest = shard.digest()
                if entry.get("made_of") == digest and not entry["left_out"] and _stands(out / shard.name, entry):
                    counts["unchanged"] += len(shard.samples)
                    made[shard.name] = entry
                    continue
                made[shard.name] = self._write_shard(out, shard, digest, {**index, **made}, dry_run)
                counts["written"] += made[shard.name]["samples"]
                counts.update(made[shard.name]["left_out"])
                if dry_run and len(diff) <= 1000:
                    diff += [
                        f"+ {shard.name}: {sample.name}{ending.removesuffix('.txt')}: {text.decode()}"
                        for sample in shard.samples
                        for ending, text in sample.texts
                    ]
            stale = sorted(index.keys() - made.keys())
            diff += [f"- {name}" for name in stale]
            if not dry_run and made != index:
                for name in stale:
                    (out / name).unlink(missing_ok=True)
                _write_index(out, made)
        total = xxhash.xxh3_128()
        for name, entry in sorted(made.items()):
            total.update(f"{entry['sha256']}  {name}\n".encode())
        return Manifest("webdataset", out, dict(counts), total.hexdigest(), diff=shortened(diff))

    def _check(self, out: Path, index: dict[str, Any], again: Callable[[], Iterator[pa.RecordBatch]]) -> None:
        if out.exists() and not out.is_dir():
            raise OptionError(f"webdataset writes a folder of tars, and {out} is a file")
        there = sorted(path.name for path in out.glob("*.tar") if _TAR.fullmatch(path.name))
        refuse(
            [name for name in there if name not in index],
            f"tars that no export of Cutline's wrote stand in {out}",
            "Choose an empty folder.",
        )
        if self.names != "number":
            refuse_collisions(
                lambda: (
                    (self._name(0, key, uri), key)
                    for key, uri, *texts in columns(again(), "key", "uri", "text", *_outputs(again))
                    if any(texts)
                ),
                "these pictures would share a name (in a tar, one ends at the first dot)",
                "Rename one of each, or give them numbers: -o names=number",
            )

    def _name(self, number: int, key: str, uri: str) -> str:
        if self.names == "number":
            return f"{number:09d}"
        name = safe_key(place(key, uri))
        return name.replace("/", "_") if self.names == "flat" else name

    def _shards(self, again: Callable[[], Iterator[pa.RecordBatch]], counts: Counter[str]) -> Iterator[_Shard]:
        """Which pictures go into which tar. Only what is known of them decides, so that every export cuts alike."""
        shard, number = _Shard("00000.tar"), 0
        wanted = ("key", "uri", "path", "offset", "size", "mtime_ns", "content")
        said = ("width", "height", "caption", "tags")
        others = _outputs(again)
        for key, uri, path, offset, size, mtime_ns, content, *rest in columns(again(), *wanted, *said, "text", *others):
            record = dict(zip(said, rest, strict=False))
            text, *texts = rest[len(said) :]
            more = tuple((name, other) for name, other in zip(others.values(), texts, strict=True) if other)
            if not text and not more:
                counts["without_text"] += 1
                continue
            data = json.dumps({"key": key, **record}, ensure_ascii=False, sort_keys=True).encode("utf-8")
            picture = Picture(Path(path), size, mtime_ns, content, offset)
            ending = os.path.splitext(uri)[1].lower() or ".bin"
            sample = _Sample(self._name(number, key, uri), ending, picture, text or None, data, more)
            lengths = (size or 0, len(data), *(len(content) for _, content in sample.texts))
            room = sum(_BLOCK + -(-length // _BLOCK) * _BLOCK for length in lengths)
            if shard.samples and (len(shard.samples) >= self.count or shard.size + room > self.size):
                yield shard
                shard = _Shard(f"{int(shard.name[:-4]) + 1:05d}.tar")
            shard.samples.append(sample)
            shard.size += room
            number += 1
        if shard.samples:
            yield shard

    def _write_shard(
        self, out: Path, shard: _Shard, digest: str, index: dict[str, Any], dry_run: bool
    ) -> dict[str, Any]:
        """Write one tar, and what it holds into the index just before it appears."""
        left_out: Counter[str] = Counter()
        if dry_run:
            sink = _Sink(None)
            _fill(sink, shard, left_out)
        else:
            with whole_file(out / shard.name) as handle:
                sink = _Sink(handle)
                _fill(sink, shard, left_out)
                entry = _entry(shard, digest, sink, left_out)
                _write_index(out, {**index, shard.name: entry})
        return _entry(shard, digest, sink, left_out)


class _Sink(io.RawIOBase):
    """Counts and hashes what is written, on its way into a file or nowhere."""

    def __init__(self, handle: IO[bytes] | None) -> None:
        self.handle = handle
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        """Take some bytes."""
        if self.handle is not None:
            self.handle.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        """How many bytes there were."""
        return self.size


def _fill(sink: _Sink, shard: _Shard, left_out: Counter[str]) -> None:
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for sample in shard.samples:
            try:
                data = sample.picture.read()
            except PictureError as error:
                left_out[error.reason] += 1
                continue
            files = ((sample.ending, data), (".json", sample.record), *sample.texts)
            for ending, content in files:
                info = tarfile.TarInfo(sample.name + ending)  # time, owner and group are 0
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _outputs(again: Callable[[], Iterator[pa.RecordBatch]]) -> dict[str, str]:
    """The column of each output, with its name."""
    taken = {".txt", ".json", ".bin", *EXTENSIONS, *FOREIGN}
    what = "an output's name becomes an ending in the tars, and something else has this one"
    names = outputs(again(), lambda name: f".{name}" in taken or name.startswith("__"), what)
    return {f"text.{name}": name for name in names}


def _entry(shard: _Shard, digest: str, sink: _Sink, left_out: Counter[str]) -> dict[str, Any]:
    return {
        "samples": len(shard.samples) - left_out.total(),
        "left_out": dict(left_out),
        "size": sink.size,
        "sha256": sink.sha256.hexdigest(),
        "made_of": digest,
    }


def _stands(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a tar is there, bit for bit as it was written."""
    try:
        if path.stat().st_size != entry["size"]:
            return False
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest() == str(entry["sha256"])
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(path, error) from error


def _read_index(out: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads((out / _INDEX).read_bytes())["tars"]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, KeyError, TypeError):
        raise CutlineError(f"{out / _INDEX} is not Cutline's. Choose an empty folder.") from None
    return {str(name): dict(entry) for name, entry in found.items()}


def _write_index(out: Path, tars: dict[str, dict[str, Any]]) -> None:
    data = json.dumps({"format": "webdataset", "tars": dict(sorted(tars.items()))}, indent=1)
    with whole_file(out / _INDEX, "w") as handle:
        handle.write(data + "\n")
