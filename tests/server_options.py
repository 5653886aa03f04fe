"""What can be seen of each option of the annotator `server`: for the walk in test_options.py.

Most change the request that a real server gets; the rest change how often, how many at once, or how long it is asked.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cutline.annotators.server import Server
from cutline.annotators.session import Row
from cutline.options import CutlineError, fill
from cutline.pictures import Picture
from misbehaving import MODEL, Misbehaving

REQUIRED = {"endpoints": "http://127.0.0.1:9/v1", "model": MODEL}


class World(Protocol):
    folder: Path

    def rows(self) -> list[Row]: ...


def ask(world: World, server: Misbehaving, rows: list[Row] | None = None, **given: Any) -> list[Row]:
    """The answers about the world's pictures."""
    settings = fill(Server, {**REQUIRED, "endpoints": server.url, "tags": "tags/x", **given})
    tagged = [{**row, "tags/x": {"general": ["cat"]}, "tags/y": {"general": ["dog"]}} for row in world.rows()]
    return list(settings.load()(iter(rows or tagged)))


def bodies(world: World, **given: Any) -> list[str]:
    """What the server is asked, in a fixed order."""
    with Misbehaving() as server:
        ask(world, server, **given)
        return sorted(str(asked.body) for asked in server.asked)


def changes(world: World, **given: Any) -> bool:
    """Whether these settings change what is asked."""
    return bodies(world) != bodies(world, **given)


def structured(world: World) -> bool:
    prompt = world.folder / "json.toml"
    prompt.write_text('user = "Describe."\nanswer = "json"\n[schema]\ntype = "object"\n')
    given = {"prompt": str(prompt)}
    return bodies(world, **given) != bodies(world, **given, structured=True)


def endpoints(world: World) -> bool:
    with Misbehaving(seconds=0.1) as first, Misbehaving(seconds=0.1) as second:
        ask(world, first, endpoints=f"{first.url},{second.url}", in_flight=2)
        return len(first.asked) == len(second.asked) == 2


def key_env(world: World) -> bool:
    os.environ["CUTLINE_TEST_KEY"] = "abc"
    try:
        with Misbehaving(key="abc") as server:
            return all("error" not in row for row in ask(world, server, key_env="CUTLINE_TEST_KEY"))
    finally:
        del os.environ["CUTLINE_TEST_KEY"]


def in_flight(world: World) -> bool:
    def peak(limit: int) -> int:
        with Misbehaving(seconds=0.3) as server:
            ask(world, server, in_flight=limit)
            return server.peak

    return peak(1) == 1 and peak(3) == 3


def deadline(world: World) -> bool:
    with Misbehaving(always="hang") as server:
        return {row["error"] for row in ask(world, server, deadline=0.3, tries=1)} == {"timeout"}


def tries(world: World) -> bool:
    def asked(count: int) -> int:
        with Misbehaving(always="500") as server:
            ask(world, server, world.rows()[:1], tries=count)
            return len(server.asked)

    return (asked(1), asked(3)) == (1, 3)


def patience(world: World) -> bool:
    with Misbehaving(always="429", retry_after="600") as server:
        started = time.monotonic()
        errors = {row["error"] for row in ask(world, server, patience=0.5)}
        return errors == {"rate_limited"} and time.monotonic() - started < 30


def threads(world: World) -> bool:
    barrier = threading.Barrier(2)

    @dataclass(frozen=True)
    class Together(Picture):
        """A picture that can only be read while another one is."""

        def read(self, *, verify: bool = False) -> bytes:
            barrier.wait(1)
            return super().read(verify=verify)

    def fail(count: int) -> int:
        barrier.reset()
        with Misbehaving() as server:
            rows = [{**row, "picture": Together(row["picture"].path)} for row in world.rows()]
            return sum("error" in row for row in ask(world, server, rows, threads=count))

    return fail(2) == 0 and fail(1) > 0


def refused(world: World, **given: Any) -> bool:
    try:
        bodies(world, **given)
    except CutlineError:
        return True
    return False


SEEN: dict[str, Callable[[Any], bool]] = {
    "annotators server endpoints": endpoints,
    "annotators server model": lambda w: changes(w, model="other"),
    "annotators server key_env": key_env,
    "annotators server in_flight": in_flight,
    "annotators server deadline": deadline,
    "annotators server tries": tries,
    "annotators server patience": patience,
    "annotators server prompt": lambda w: changes(w, prompt="grounded"),
    "annotators server user": lambda w: changes(w, user="What is this?"),
    "annotators server system": lambda w: changes(w, system="You see."),
    "annotators server tags": lambda w: bodies(w, prompt="grounded") != bodies(w, prompt="grounded", tags="tags/y"),
    "annotators server seed": lambda w: changes(w, seed=1),
    "annotators server api": lambda w: (
        bodies(w, prompt="from-tags", picture=False) != bodies(w, prompt="from-tags", api="completions")
    ),
    "annotators server picture": lambda w: (
        bodies(w, prompt="from-tags") != bodies(w, prompt="from-tags", picture=False) and refused(w, picture=False)
    ),
    "annotators server max_pixels": lambda w: changes(w, max_pixels=100),
    "annotators server image_format": lambda w: changes(w, image_format="png"),
    "annotators server detail": lambda w: changes(w, detail="low"),
    "annotators server max_tokens": lambda w: changes(w, max_tokens=5),
    "annotators server temperature": lambda w: changes(w, temperature=0),
    "annotators server top_p": lambda w: changes(w, top_p=0.5),
    "annotators server structured": structured,
    "annotators server extra": lambda w: changes(w, extra='{"top_k": 5}'),
    "annotators server threads": threads,
}
