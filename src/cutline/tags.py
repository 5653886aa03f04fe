"""Tags as people and trainers write them: split out of one text, and joined into one.

Inside a dataset a tag is kept as it was typed. How it looks in a prompt is decided when a text is composed, here.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

_FACES = r"""
    ^_^ ^_~ ^_- -_- =_= >_< >_> <_< >_o o_o o_0 0_o 0_0 3_3 6_9 @_@ +_+ +_- *_* $_$ ._. ;_; t_t n_n u_u x_x
    |_| ||_|| (o)_(o) \(o\)_\(o\) <o>_<o> <|>_<|>
"""
EMOTICONS = frozenset(_FACES.split())
"""Tags, in lower case, whose underscore is part of a face and never stands for a space."""


def split(text: str) -> list[str]:
    """The tags of a comma-separated text, as typed; a line break separates too, and empty ones are dropped."""
    return [tag for piece in text.replace("\n", ",").split(",") if (tag := piece.strip())]


def tidied(text: str) -> str:
    """The tags of a comma-separated text in one text, with `, ` between them and nowhere else."""
    if (
        text.isascii()
        and text.count(",") == text.count(", ")
        and "  " not in text
        and " ," not in text
        and len(text.splitlines()) == 1
        and "\t" not in text
        and "\x1f" not in text
        and text[0] not in " ,"
        and text[-1] not in " ,"
    ):
        return text  # it is so already, as most are
    return ", ".join(split(text))


def spaced(tags: pa.StringArray) -> pa.StringArray:
    """Write `_` as a space, except in `EMOTICONS`: `long_hair` becomes `long hair`, `^_^` stays."""
    faces = pc.is_in(pc.ascii_lower(tags), value_set=pa.array(sorted(EMOTICONS)))
    return pc.if_else(faces, tags, pc.replace_substring(tags, "_", " "))


def joined(tags: pa.ListArray, separator: str) -> pa.StringArray:
    """Each row's tags as one text; null where it has none. Null and empty tags count for nothing."""
    values = tags.flatten()
    if values.null_count or pc.any(pc.equal(values, "")).as_py():
        tags = pa.array([row and [tag for tag in row if tag] for row in tags.to_pylist()], pa.list_(pa.string()))
    return pc.if_else(pc.greater(pc.list_value_length(tags), 0), pc.binary_join(tags, separator), None)
