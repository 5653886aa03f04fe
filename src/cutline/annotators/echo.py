"""An annotator without a model: it says what it was given. For trying things out, for tests and for documentation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from cutline.annotators.session import Row, failure
from cutline.options import OptionError, digest, option

_FIELDS = ("key", "uri", "width", "height", "format", "content", "attempt")


@dataclass(frozen=True)
class Echo:
    """Write a caption from a template over the picture's own row."""

    writes: ClassVar[str] = "captions/echo"
    reads: ClassVar[tuple[str, ...]] = ("pictures",)
    workers: ClassVar[Literal["device", "core"]] = "device"

    says: str = option("a picture called {key}", "the caption; {key} {uri} {width} {height} {format} are filled in")
    open: bool = option(True, "decode each picture first, as a model would", identity=False)
    seconds: float = option(0.0, "how long to take for each picture", identity=False)

    @property
    def opens(self) -> bool:
        """Whether it decodes pictures."""
        return self.open

    def __post_init__(self) -> None:
        try:
            self.says.format(**dict.fromkeys(_FIELDS, 0))
        except (KeyError, IndexError, ValueError) as error:
            known = " ".join(f"{{{name}}}" for name in _FIELDS)
            raise OptionError(f"echo: says={self.says!r} has something else than {known}: {error}") from None
        if self.seconds < 0:
            raise OptionError(f"echo: seconds={self.seconds} does not fit: it is 0 or more")

    def request(self, row: Row) -> dict[str, str]:
        """What it will say."""
        return {"says": self.says.format(**{name: row[name] for name in _FIELDS})}

    def load(self) -> EchoSession:
        """Nothing to load."""
        return EchoSession(self)


class EchoSession:
    """One picture at a time."""

    def __init__(self, settings: Echo) -> None:
        self.settings = settings

    def __call__(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Answer each row with its own words."""
        for row in rows:
            try:
                if self.settings.open:
                    row["picture"].decode()
            except Exception as error:
                yield failure(row["key"], error)
                continue
            time.sleep(self.settings.seconds)
            request = self.settings.request(row)
            yield {
                "key": row["key"],
                "texts": [request["says"]],
                "raw": request["says"],
                "verdict": "good" if request["says"] else "rejected",
                "reason": None if request["says"] else "empty",
                "request": digest(request),
            }
