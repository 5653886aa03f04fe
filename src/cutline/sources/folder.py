"""A folder of pictures, with captions or tags in text files beside them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cutline.dataset import Found
from cutline.formats import sidecar
from cutline.options import option
from cutline.sources.listing import SIDECARS, Listed, absolute, list_picture, walk
from cutline.sources.rows import Rows


@dataclass(frozen=True)
class Folder:
    """Pictures below a folder, and their `.txt` and `.caption` sidecars: `x.jpg` has its words in `x.txt`."""

    path: Path = option(help="the folder")
    sidecars: Literal["captions", "tags"] = option("captions", "what the text files beside the pictures hold")

    @property
    def covers(self) -> Path:
        """Every picture below this folder is listed."""
        return absolute(self.path)

    @property
    def layer(self) -> str:
        """Where the sidecars' words go."""
        return f"{self.sidecars}/sidecar"

    def read(self) -> Iterator[Found]:
        """Stream the pictures and their words."""
        rows = Rows("pictures", self.layer)
        for listed in walk(self.covers, rows):
            words, users = self._by_stem(listed, rows), dict[str, int]()
            for entry in listed.pictures:
                name = list_picture(listed, entry, rows)
                stem = os.path.splitext(entry.name)[0]
                users[stem] = users.get(stem, 0) + 1
                if stem in words:
                    self._read_words(name, words[stem], rows)
                yield from rows.full()
            for stem in words:
                if stem not in users:
                    rows.note("sidecar without a picture")
                elif users[stem] > 1:
                    rows.note("sidecar shared by pictures of one name")
        yield from rows.rest()

    def _by_stem(self, listed: Listed, rows: Rows) -> dict[str, os.DirEntry[str]]:
        """The one sidecar to read for each stem."""
        first = SIDECARS.index(".caption" if self.sidecars == "captions" else ".txt")
        # The preferred kind first; of x.txt and x.TXT the lower-case one.
        order = sorted(listed.sidecars, key=lambda entry: (self._kind(entry) != first, entry.name.swapcase()))
        words: dict[str, os.DirEntry[str]] = {}
        for entry in order:
            if words.setdefault(os.path.splitext(entry.name)[0], entry) is not entry:
                rows.note("sidecar not read, since the picture has another")
        return words

    @staticmethod
    def _kind(entry: os.DirEntry[str]) -> int:
        return SIDECARS.index(os.path.splitext(entry.name)[1].lower())

    def _read_words(self, name: str, entry: os.DirEntry[str], rows: Rows) -> None:
        try:
            with open(entry.path, "rb") as handle:
                found = sidecar.read(handle.read(sidecar.LARGEST + 1))
        except FileNotFoundError:
            found = sidecar.Text(error="vanished", detail=f"{entry.name} is a link that leads nowhere")
        except OSError as problem:
            found = sidecar.Text(error="permission", detail=f"{entry.name}: {problem.strerror}")
        if self.sidecars == "captions":
            rows.caption(self.layer, name, [found])
        else:
            rows.tags(self.layer, name, [found])
