"""A sidecar: a small text file beside a picture that holds its caption or tags. And what counts as a text at all.

The rule for texts (`clean`) is the same for every file format that Cutline reads: text is Unicode without NUL and lone
surrogates, its lines end in LF, and nothing but words stands at its ends. Whatever that changes is reported, with the
original, save the one line break that ends a file. Only LF, CR LF and CR end a line: U+2028, U+0085 and their like are
characters of the text.
"""

from __future__ import annotations

from dataclasses import dataclass

LARGEST = 16_000_000
"""Bytes. A larger file is no caption."""


@dataclass(frozen=True)
class Text:
    """One text of someone's file, after the rule."""

    text: str | None = None
    """Null where there is no text: it was empty, or there is an error."""
    reason: str = ""
    """What was changed, comma-separated: bom, crlf, outer_space."""
    raw: str | None = None
    """The original, where something was changed."""
    error: str | None = None
    detail: str | None = None

    @property
    def verdict(self) -> str:
        """As in a caption layer: good, or repaired."""
        return "repaired" if self.reason else "good"


def read(data: bytes) -> Text:
    """The text of a sidecar's bytes. Without an error and without text, it is empty."""
    if len(data) > LARGEST:
        return Text(error="too_large", detail=f"{len(data):,} bytes are no caption")
    try:
        return clean(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            return Text(error="not_utf8", detail="it is UTF-16; save it as UTF-8")
        return Text(error="not_utf8", detail=f"byte {error.start} is not UTF-8; save the file as UTF-8")


def write(text: str) -> bytes:
    """The bytes of a sidecar that `read` returns unchanged: no line end is added."""
    return text.encode("utf-8")


def is_clean(raw: str) -> bool:
    """Whether a text is quickly seen to be one that `clean` leaves as it is."""
    if not raw or raw.strip() != raw or "\0" in raw or "\r" in raw or raw[0] == "\ufeff":
        return False
    try:
        return raw.isascii() or bool(raw.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def clean(raw: str) -> Text:
    """Apply the rule to a text. `clean` of what it returns changes nothing."""
    text = raw.removesuffix("\n").removesuffix("\r")  # a line break at the end is how files end, and no fault
    if is_clean(text):
        return Text(text)
    if "\0" in raw:
        return Text(error="not_utf8", detail=f"character {raw.index(chr(0))} is NUL, which no text may hold")
    try:
        raw.encode("utf-8")
    except UnicodeEncodeError as error:
        return Text(error="not_utf8", detail=f"character {error.start} is half of a surrogate pair")
    reasons = []
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        reasons.append("crlf")
    # A byte-order mark may hide white space, and white space another mark.
    while (bare := text.strip().lstrip("\ufeff")) != text:
        if text.strip() != text:
            reasons.append("outer_space")
        if bare != text.strip():
            reasons.append("bom")
        text = bare
    changed = [reason for reason in ("bom", "crlf", "outer_space") if reason in reasons]
    return Text(text or None, ", ".join(changed), raw if changed else None)
