"""What an annotator is, and the mix-in that gives most of them batches, decoding ahead and retries.

An annotator is two things. Its settings are a frozen dataclass: cheap, hashable, picklable. Its session,
made by `load()` once per worker, holds the weights or connections and turns a stream of rows into a
stream of answers, in any order, matched by key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, Literal, Protocol

import xxhash

from cutline.options import CutlineError
from cutline.pictures import PictureError

Row = dict[str, Any]
"""One picture on its way through a session.

In: `key`, the columns of the pictures layer, `picture` (a `Picture`), `attempt` (1 for the first try), and for each
layer that the annotator reads a dict (or None) under the layer's name. Out: `key` and the columns of the layer that
is written, and under `checks` what was found wrong with a caption; or `key`, `error` and `detail`. An `attempt` that is
not said is the one that came in.
"""


class Halt(CutlineError):
    """Raised by a session that can answer no row at all any more: the run ends, and says this. What is done is kept."""


class RowError(CutlineError):
    """What could not be done for one row, and the typed `reason`, which becomes its `error`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Session(Protocol):
    """Weights or connections, living in one worker.

    Where it has a method `stop()`, that is called, from another thread, when the run is being stopped: rows that were
    given and not begun may then be left without an answer.
    """

    def __call__(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Answer each row once, in any order.

        What it raises counts against all rows that it was given; `Halt` ends the run.
        """
        ...


class Annotator(Protocol):
    """The settings of something that turns pictures and rows into rows of one layer. A frozen dataclass.

    Where it has `opens`, and that is false, it opens no pictures, and is given those too that only metadata tells of
    (their `picture` is None).

    A `device` field that says "auto" is replaced by the worker's device ("cpu", "cuda:0", "mps"). A method
    `request(row) -> dict`, where there is one, renders what would be asked, for `--dry-run`. A method
    `fit(layers) -> Annotator` is told the layers that there are before a run, and may choose among them.
    """

    writes: ClassVar[str]
    """The layer it fills unless `--as` says otherwise."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The layers it is given."""
        ...

    @property
    def workers(self) -> Literal["device", "core", "one"]:
        """One worker per device (models), one per processor core (plain computation), or one (servers)."""
        ...

    def load(self) -> Session:
        """Make the session: the only place where weights appear."""
        ...


class Batched:
    """A session in batches: say how to `prepare` one row and how to answer a `batch`; the rest comes free.

    Rows are prepared on threads, a batch ahead of the model. A batch that runs out of memory is halved, and so are
    those after it. A batch that raises anything else is tried again one by one, so that an error is its own row's.
    """

    batch_size: int = 1
    threads: int = 2

    def prepare(self, row: Row) -> Any:
        """Do, off the model's thread, what one row needs; here: decode its picture to RGB on white."""
        return row["picture"].decode()

    def batch(self, rows: list[Row], prepared: list[Any]) -> list[Row]:
        """Answer these rows, in order: the layer's columns of each (the key is added)."""
        raise NotImplementedError

    def __call__(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Answer a stream of rows."""
        with ThreadPoolExecutor(self.threads, thread_name_prefix="prepare") as pool:
            window: deque[tuple[Row, Future[Any]]] = deque()
            for row in rows:
                window.append((row, pool.submit(self.prepare, row)))
                if len(window) >= 2 * self.batch_size:
                    yield from self._next(window)
            while window:
                yield from self._next(window)

    def _next(self, window: deque[tuple[Row, Future[Any]]]) -> Iterator[Row]:
        rows: list[Row] = []
        prepared: list[Any] = []
        while window and len(rows) < self.batch_size:
            row, future = window.popleft()
            try:
                prepared.append(future.result())
            except Exception as error:
                yield failure(row["key"], error)
            else:
                rows.append(row)
        yield from self._answer(rows, prepared)

    def _answer(self, rows: list[Row], prepared: list[Any]) -> Iterator[Row]:
        if not rows:
            return
        try:
            answers = self.batch(rows, prepared)
            if len(answers) != len(rows):
                raise ValueError(f"{len(rows)} rows were given and {len(answers)} answered")
        except Exception as error:
            if len(rows) == 1:
                yield failure(rows[0]["key"], error)
                return
            if _out_of_memory(error):
                self.batch_size = step = max(1, len(rows) // 2)
                _free_memory()
            else:
                step = 1
        else:
            for row, answer in zip(rows, answers, strict=True):
                yield {"key": row["key"], **answer}
            return
        for start in range(0, len(rows), step):
            yield from self._answer(rows[start : start + step], prepared[start : start + step])


def seed_text(seed: int, key: str, attempt: int) -> str:
    """What seeds a row's random draws: another text for each picture and each attempt (from 1)."""
    return f"{seed}/{key}" if attempt == 1 else f"{seed}.{attempt}/{key}"


def seed_number(text: str) -> int:
    """The number of such a text, 0 to 2**63 - 1: its xxh64 without the lowest bit, since generators and servers take
    signed numbers.
    """
    return xxhash.xxh64_intdigest(text.encode()) >> 1


def failure(key: str, error: BaseException) -> Row:
    """The row of a picture that could not be done: a typed `error` and its `detail`."""
    if isinstance(error, (PictureError, RowError)):
        return {"key": key, "error": error.reason, "detail": str(error)}
    if _out_of_memory(error):
        return {"key": key, "error": "out_of_memory", "detail": str(error).partition("\n")[0]}
    return {"key": key, "error": "failed", "detail": f"{type(error).__name__}: {error}"}


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _free_memory() -> None:
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
