"""The metadata files of kohya's trainers: one JSON object `{picture: {"caption", "tags", …}}`, or JSON lines.

Today's trainers read `caption` and `tags`, which must be text, and `image_size`; a picture is named by an absolute
path, or by one relative to their `image_dir`, with its extension. Older tools name it by its bare stem; the trainers
can no longer load that, and Cutline reads it.

A list of what is missing, `{"caption": ["7866720", …], "tags": […]}`, is what scripts around them keep of such ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cutline.formats.entries import Entry, json_lines, kind, named, opened
from cutline.formats.stream import BrokenJson, Stream
from cutline.options import CutlineError

FIELDS = ("caption", "tags", "image_size", "train_resolution", "latents")
"""What entries of such a file hold; the last two by older tools."""

LISTS = ("caption", "tags", "latent", "latents")
"""What a list of missing things may list."""

LACKS = "lacks"
"""The one field of an entry out of such a list: which list it stood in."""


def read(path: Path) -> Iterator[Entry]:
    """Stream the entries of a metadata file, by its suffix JSON lines or one object, in bounded memory.

    Raises:
        CutlineError: there is no such file, or it is not a JSON object, saying where it breaks.
    """
    if path.suffix.lower() == ".jsonl":
        return json_lines(path, "image_path")
    return _read_object(path)


def _read_object(path: Path) -> Iterator[Entry]:
    with opened(path) as handle:
        count, last, file = 0, "its start", path.name
        stream = Stream(handle)
        try:
            if (first := stream.peek()) != "{":
                raise CutlineError(f"{path} is not a JSON object of pictures: it starts with {first!r}")
            for name in stream.pairs():
                if name in LISTS and stream.peek() == "[":
                    for value in stream.items():
                        count += 1
                        last = str(value)
                        yield _listed(name, value, file)
                    continue
                value = stream.value()
                count += 1
                last = name
                where = f"{name!r} in {file}"
                if type(value) is dict:
                    yield named(where, name, value)
                else:
                    yield Entry(where, name, error="bad_value", detail=f"it is {kind(value)}, not an object")
            stream.end()
        except BrokenJson as error:
            place = f"entry {count}, {last!r}" if count else last
            raise CutlineError(
                f"{path} is broken JSON after {place}: {error}. Mend it there, or make it anew, and add it again."
            ) from None


def _listed(name: str, value: object, file: str) -> Entry:
    """The entry of an id in a list."""
    where = f"{value!r} in {name!r} of {file}"
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and value:
        return named(where, value, {LACKS: name})
    return Entry(where, error="bad_name", detail=f"it is {kind(value)}, not an id")
