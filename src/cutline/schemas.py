"""The columns of every kind of layer: the one table that readers and writers share.

A layer's kind is the first part of its name: `captions/florence-2` is of kind `captions`. Every row has
a `key` (which picture) and three columns that carry the rules of the store:

- `content`: what the picture was when the row was made (see `Dataset`); null where nobody knows;
- `error`: a typed reason why there is no answer, with `detail` for people;
- `deleted`: forget what earlier parts say about this key. With an `error`, that error then is what is known.
- `rank`: null in a part as it was first written. A row that was folded or compacted keeps here the rank of
  the part that it came from, so that merging parts never changes which row wins.
"""

from __future__ import annotations

import pyarrow as pa

from cutline.options import CutlineError

_TEXTS = pa.list_(pa.string())

_KINDS: dict[str, list[tuple[str, pa.DataType]]] = {
    "pictures": [
        ("uri", pa.string()),  # where its bytes are: a path relative to the dataset, or an absolute one; null where
        # only metadata tells of it. A picture in an archive: `shards/0001.tar/cat.jpg`, as if that were a folder
        ("offset", pa.int64()),  # where its bytes begin in its archive; null for a file of its own
        ("size", pa.int64()),  # bytes
        ("mtime_ns", pa.int64()),
        ("width", pa.int32()),  # pixels, as a viewer shows it (EXIF orientation applied)
        ("height", pa.int32()),
        ("format", pa.string()),  # Pillow's name: JPEG, PNG, WEBP …
        ("orientation", pa.int32()),  # EXIF's, 1 to 8; from 5 on a reader that ignores it sees width and height swapped
    ],
    "tags": [
        ("general", _TEXTS),
        ("character", _TEXTS),
        ("copyright", _TEXTS),
        ("artist", _TEXTS),
        ("meta", _TEXTS),
        ("unsorted", _TEXTS),  # tags whose category nobody said
        ("rating", pa.string()),  # g, s, q or e
        ("score", pa.int64()),
        ("fav_count", pa.int64()),
        ("year", pa.int32()),  # in which it was posted
    ],
    "latents": [
        ("width", pa.int32()),  # pixels of the bucket that a trainer scaled the picture to (train_resolution)
        ("height", pa.int32()),
        ("uri", pa.string()),  # the .npz file, where there is one; as in pictures
    ],
    "captions": [
        ("texts", _TEXTS),  # one or more captions; the first is *the* caption
        ("raw", pa.string()),  # what the model or file said before anything was done to it
        ("verdict", pa.string()),  # good, repaired, rejected
        ("reason", pa.string()),  # why it was repaired or rejected
        ("request", pa.string()),  # hash of the request that made it
        ("attempt", pa.int32()),  # 1 for the first try
        ("finish_reason", pa.string()),  # stop or length
        ("tokens_in", pa.int32()),  # a server's of all tries
        ("tokens_out", pa.int32()),
        ("seconds", pa.float64()),
        ("mended", pa.string()),  # by what it was changed since it was made or added: check or reparse
    ],
    "checks": [  # of the captions layer of the same name
        ("findings", _TEXTS),  # kinds of what is wrong (cutline.checks.KINDS)
        ("details", _TEXTS),  # a sentence on each, for people
        ("coverage", pa.float64()),  # share of the picture's tags that the caption covers, 0 to 1
        ("caption", pa.string()),  # hash of the texts that were looked at: see whether they still are the present ones
    ],
    "facts": [
        ("sha256", pa.string()),  # of the file's bytes
        ("pixels", pa.string()),  # sha256 of the decoded pixels: equal for equal pictures in whatever file format
        ("phash", pa.uint64()),  # 64-bit perceptual hash; near pictures differ in few bits
        ("sharpness", pa.float64()),
        ("brightness", pa.float64()),  # 0 to 1
        ("contrast", pa.float64()),  # 0 to 0.5
        ("colourfulness", pa.float64()),
        ("tags", _TEXTS),  # booru tags that are plain facts: greyscale, highres …
    ],
}

_COMMON_HEAD = [("key", pa.string())]
_COMMON_TAIL = [
    ("content", pa.string()),
    ("error", pa.string()),
    ("detail", pa.string()),
    ("deleted", pa.bool_()),
    ("rank", pa.int64()),
]

BOOKKEEPING = ("deleted", "rank")
"""Columns that serve the store alone; views and scans leave them out."""

TAG_CATEGORIES = ("character", "copyright", "artist", "general", "meta", "unsorted")
"""The list columns of a tag layer, in the order in which a recipe puts them unless it says otherwise."""


def kind(layer: str) -> str:
    """The kind of a layer by its name: `captions/florence-2` -> `captions`. Raises CutlineError for an unknown one."""
    found = layer.partition("/")[0]
    if found not in _KINDS:
        raise CutlineError(f"'{layer}' is of no known kind; a layer's name starts with one of: {', '.join(_KINDS)}")
    return found


def columns(layer: str) -> tuple[str, ...]:
    """What a row of this layer says, without its key, content, error and the store's own columns."""
    return tuple(name for name, _ in _KINDS[kind(layer)])


def schema(layer: str) -> pa.Schema:
    """The Arrow schema of this layer's parts."""
    return pa.schema([*_COMMON_HEAD, *_KINDS[kind(layer)], *_COMMON_TAIL])
