"""JSON files larger than memory, read value by value.

A metadata file may be one object of millions of entries. Its names and lists are gone through here one by one; each
value in them is parsed by Python's own C scanner, out of a buffer that holds little more than that value.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

LARGEST = 64 << 20
"""Characters. A single value that is longer is taken for a broken one, whose end is missing."""

_CHUNK = 1 << 20  # bytes

_SPACE = re.compile(r"[ \t\n\r]*")
_NEXT_NAME = re.compile(r'[ \t\n\r]*,[ \t\n\r]*"([^"\\\x00-\x1f]*)"[ \t\n\r]*:[ \t\n\r]*')

_CUT_OFF = 16  # characters: an error nearer to the end of the buffer may only mean that the rest is not read yet


class BrokenJson(ValueError):
    """What is wrong with the JSON."""


class Stream:
    """A position in a JSON file: look at what is next (`peek`), and read it (`value`, `pairs`, `items`)."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._bytes = 0
        self._ended = False
        self._bad = ""

    def peek(self) -> str:
        """The next character that is no space; none at the end."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it always matches
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def value(self) -> Any:
        """Read one value, whatever it is. Raises BrokenJson."""
        if self._text[self._at : self._at + 1] in " \t\n\r":  # or at the end of the buffer
            self.peek()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                self._read_on(error)
            except RecursionError:
                raise BrokenJson("it is nested too deeply") from None
            else:
                # Only a number may go on.
                if end < len(self._text) or self._text[end - 1] in '}]"' or not self._more():
                    self._at = end
                    return value

    def _read_on(self, error: json.JSONDecodeError) -> None:
        """Read more of a value that is not whole yet. Raises BrokenJson for one that never will be."""
        waiting = len(self._text) - self._at
        cut_off = error.pos >= len(self._text) - _CUT_OFF or error.msg.startswith("Unterminated")
        if cut_off and waiting > LARGEST:
            raise BrokenJson(f"what follows is longer than {LARGEST >> 20} MiB")
        if not cut_off or not self._more(waiting):
            there = self._text[error.pos : error.pos + 20]
            ends = not there or error.msg.startswith("Unterminated")
            raise BrokenJson("the file ends in the middle" if ends else f"{error.msg}: {there!r}")

    def pairs(self) -> Iterator[str]:
        """Go through an object: its names, one by one. The value of each is to be read before the next is asked for."""
        self._expect("{")
        if self.peek() == "}":
            self._at += 1
            return
        while True:
            if self.peek() != '"':
                raise self._unexpected("a name in quotation marks")
            name = self.value()
            self._expect(":")
            yield name
            while plain := _NEXT_NAME.match(self._text, self._at):  # the usual case, at one go
                self._at = plain.end()
                yield plain[1]
            if self.peek() == "}":
                self._at += 1
                return
            self._expect(",")

    def items(self) -> Iterator[Any]:
        """Go through a list: its values, one by one."""
        self._expect("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self.peek() == "]":
                self._at += 1
                return
            self._expect(",")

    def end(self) -> None:
        """Raise BrokenJson where anything follows."""
        if self.peek():
            raise self._unexpected("the end")

    def _expect(self, character: str) -> None:
        if self.peek() != character:
            raise self._unexpected(repr(character))
        self._at += 1

    def _unexpected(self, what: str) -> BrokenJson:
        there = self._text[self._at : self._at + 20]
        return BrokenJson(f"{what} should follow, not {there!r}" if there else "the file ends in the middle")

    def _more(self, size: int = 0) -> bool:
        """Read on; whether there was more. What stands before bytes that are no UTF-8 comes before their error."""
        while not self._ended:
            data = self._handle.read(max(size, _CHUNK))
            self._bytes += len(data)
            try:
                text = self._decoder.decode(data, not data)
            except UnicodeDecodeError as error:
                text = error.object[: error.start].decode("utf-8")
                self._bad = f"byte {self._bytes - len(error.object) + error.start} is not UTF-8"
                self._ended = True
            else:
                self._ended = not data
            if text:
                self._text, self._at = self._text[self._at :] + text, 0
                return True
        if self._bad:
            raise BrokenJson(self._bad)
        return False
