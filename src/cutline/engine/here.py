"""Run an annotator on this machine: a parent that reads and writes, and workers that only compute.

The parent streams the pictures that the layer lacks to one worker process per device (or core), takes their answers
and publishes them every ten seconds. Nothing else records progress: what is published is done. A worker that
dies is started again and the pictures that it had in hand are tried in halves; one that kills it twice by itself
becomes a row with the error `crashed_worker`.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from cutline import schemas
from cutline.annotators.session import Annotator, Row
from cutline.engine.selection import Selection
from cutline.engine.worker import work
from cutline.layer import LayerWriter
from cutline.options import CutlineError, OptionError

KILLS = 2
"""A picture that has killed its worker this often, alone in hand, is not tried again in this run."""
STARTS = 3
"""A worker that dies this often with nothing in hand, and no answer in between, is not started again."""

Events = Callable[[dict[str, Any]], None]


class EngineError(CutlineError):
    """The run cannot go on; what was published stays."""


@dataclass
class Report:
    """What a run did."""

    todo: int = 0
    good: int = 0
    repaired: int = 0
    rejected: int = 0
    failed: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """Failed pictures by typed error."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Rejected ones by reason."""
    seconds: float = 0.0
    """From the first worker's being ready to the last row's being published."""
    interrupted: bool = False

    @property
    def done(self) -> int:
        """Pictures that have a row now."""
        return self.good + self.repaired + self.rejected + self.failed


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    device: str
    ready: bool = False
    alive: bool = True
    call: int = 0
    """The call of the session that rows go to; a call ends when the parent has nothing more for the time being."""
    open: bool = False
    hungry: bool = False
    """Its session waits for more rows than it has: some want a window full before they answer."""
    depth: int = 4
    """Rows to have in hand: four batches, so that it never waits for its parent."""
    hand: dict[str, tuple[int, Row]] = field(default_factory=dict)
    """Rows given and not answered: key -> (call, row)."""


def annotate(selection: Selection, *, workers: int | None = None, events: Events | None = None) -> Report:
    """Do what the selection's layer lacks.

    Args:
        selection: which pictures, which annotator, which layer.
        workers: how many processes; without it one per device, or per core for an annotator that wants cores.
        events: told of the start, the progress (twice a second), dead workers and the end, as dicts.

    Raises:
        IdentityError: the layer was made with other settings.
        OptionError: more workers than one for an annotator that has one: each would send as much at once.
        EngineError: the session cannot be loaded, or workers cannot be started.
        StorageError: a write was refused.
    """
    if (workers or 1) > 1 and selection.annotator.workers == "one":
        raise OptionError(
            f"{selection.name} does all from one process: leave out --workers={workers}. How many requests it sends "
            "at once is -o in_flight"
        )
    report = Report(todo=selection.count())  # what refuses does so before it makes a layer
    with selection.writer() as writer, selection.checks() as checks:  # checks are on disk before what they are about
        tell = events or (lambda event: None)
        tell({"event": "start", "layer": selection.layer, "todo": report.todo})
        if report.todo:
            with _stoppable() as stopping:
                _Run(selection, writer, checks, report, tell, stopping).go(workers)
        tell({"event": "end", **_counts(report), "errors": report.errors, "interrupted": report.interrupted})
    return report


def devices() -> list[str]:
    """The devices of this machine as torch names them, found without importing torch."""
    from importlib.metadata import PackageNotFoundError, version

    with suppress(PackageNotFoundError):
        if "+cpu" in version("torch"):
            return ["cpu"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    else:
        count = sum(bool(re.fullmatch(r"nvidia\d+", name)) for name in os.listdir("/dev"))
    return [f"cuda:{index}" for index in range(count)] or ["cpu"]


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that Ctrl-C (or a scheduler's SIGTERM) sets; a second Ctrl-C stops at once."""
    stopping = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if stopping.is_set() and number == signal.SIGINT:  # SIGTERM may come twice: timeout(1) sends it so
            raise KeyboardInterrupt
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Run:
    def __init__(
        self,
        selection: Selection,
        writer: LayerWriter,
        checks: LayerWriter,
        report: Report,
        tell: Events,
        stopping: threading.Event,
    ) -> None:
        self.selection = selection
        self.writer = writer
        self.checks = checks
        self.report = report
        self.tell = tell
        self.stopping = stopping
        self.source = selection.rows()
        self.exhausted = False
        self.suspects: deque[list[Row]] = deque()
        self.kills: Counter[str] = Counter()
        self.starts = 0
        self.workers: list[_Worker] = []
        self.keeps_attempts = "attempt" in schemas.columns(selection.layer)
        self.began = 0.0
        self.told = 0.0

    def go(self, workers: int | None) -> None:
        wanted = self.selection.annotator.workers
        where = devices() if wanted == "device" else ["cpu"] * (1 if wanted == "one" else os.cpu_count() or 1)
        count = min(workers or len(where), self.report.todo)
        try:
            for index in range(count):
                self.workers.append(self._start(where[index % len(where)]))
            while self._busy():
                self._step()
            self._finish()
            self.checks.flush()
            self.writer.flush()
        finally:
            if self.began:
                self.report.seconds = time.monotonic() - self.began
            for worker in self.workers:
                worker.process.kill()
                worker.process.join()
                worker.pipe.close()

    def _start(self, device: str) -> _Worker:
        annotator: Annotator = self.selection.annotator
        names = {entry.name for entry in fields(annotator)}  # type: ignore[arg-type]
        if "device" in names and getattr(annotator, "device", None) == "auto":
            annotator = replace(annotator, device=device)  # type: ignore[type-var]
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, annotator, Path(self.selection.dataset.root)), daemon=True)
        with _deaf_children():
            process.start()
        theirs.close()
        return _Worker(process, ours, device)

    # -- the loop -----------------------------------------------------------------------------------------------

    def _busy(self) -> bool:
        if self.stopping.is_set():
            return False
        return not self.exhausted or bool(self.suspects) or any(worker.hand for worker in self.workers)

    def _step(self) -> None:
        for worker in self.workers:
            if worker.alive and worker.ready:
                self._feed(worker)
        self._listen(0.5)
        self.checks.tick()
        self.writer.tick()
        self._progress()

    def _feed(self, worker: _Worker) -> None:
        """Keep a worker's hands full; one that comes back from the dead first tries what may have killed it."""
        if self.suspects and not worker.hand:
            self._give(worker, self.suspects.popleft())
            self._end(worker)
            return
        if worker.hand and not worker.open:
            return  # it finishes its call first
        if not self.exhausted:
            self._fill(worker)
        if self.exhausted:
            self._end(worker)

    def _fill(self, worker: _Worker) -> None:
        """Give rows up to four batches, or its share where fewer are left: none holds what another could do."""
        share = max(1, (self.report.todo - self.report.done) // len(self.workers))
        target = min(worker.depth, share)
        room = target - len(worker.hand)
        if worker.hungry:
            room = max(room, target)
        elif room <= target // 2:
            return
        rows = list(islice(self.source, room))
        self.exhausted = len(rows) < room
        if rows:
            worker.hungry = False
            self._give(worker, rows)

    def _give(self, worker: _Worker, rows: list[Row]) -> None:
        if not worker.open:
            worker.open = True
            worker.call += 1
        for row in rows:
            worker.hand[row["key"]] = (worker.call, row)
        with suppress(OSError):  # it died: the sentinel tells
            worker.pipe.send(("rows", worker.call, rows))

    def _end(self, worker: _Worker) -> None:
        if worker.open:
            worker.open = False
            with suppress(OSError):
                worker.pipe.send(("end", worker.call))

    def _listen(self, seconds: float) -> None:
        """Take what has come from the workers, waiting for a first message that long."""
        living = [worker for worker in self.workers if worker.alive]
        found = wait([*(worker.pipe for worker in living), *(worker.process.sentinel for worker in living)], seconds)
        for worker in living:
            ended = worker.process.exitcode is not None  # a process that it forked may hold pipe and sentinel open
            if worker.pipe in found or worker.process.sentinel in found or ended:
                try:
                    while worker.pipe.poll():
                        self._take(worker, worker.pipe.recv())
                    if ended:
                        raise EOFError
                except (EOFError, OSError):
                    self._died(worker)

    def _take(self, worker: _Worker, message: tuple[Any, ...]) -> None:
        match message:
            case ("ready", batch_size):
                worker.ready = True
                worker.depth = 4 * batch_size
                self.began = self.began or time.monotonic()
            case ("hungry",):
                worker.hungry = True
            case ("row", answer):
                if not isinstance(answer, dict) or "key" not in answer:
                    raise EngineError(f"{self.selection.name} gave {answer!r:.200}, which is no row with a key")
                self.starts = 0
                _, row = worker.hand.pop(answer["key"], (0, None))
                if row is None:
                    raise EngineError(f"{self.selection.name} answered for {answer['key']!r}, which it was not asked")
                self._add(row, answer)
            case ("raised", call, text):
                self._left(worker, call, {"error": "failed", "detail": text}, early=True)
            case ("idle", call) if not self.stopping.is_set():
                silent = {"error": "no_answer", "detail": f"{self.selection.name} gave no answer"}
                self._left(worker, call, silent, early=worker.open and worker.call == call)
            case ("broken", text):
                raise EngineError(f"{self.selection.name} cannot start: {text}")
            case ("halt", text):
                raise EngineError(f"{self.selection.name} cannot go on (what is done is kept): {text}")

    def _left(self, worker: _Worker, call: int, answer: Row, *, early: bool) -> None:
        """A call is over: rows without an answer get this one; but each alone, where it ended before its rows did."""
        if worker.call == call:
            worker.open = False
        rows = [row for number, row in worker.hand.values() if number <= call]
        for row in rows:
            del worker.hand[row["key"]]
        if early and len(rows) > 1:
            self.suspects.extend([row] for row in rows)
            return
        for row in rows:
            self._add(row, answer)

    def _add(self, row: Row, answer: Row) -> None:
        known = {"key": row["key"], "content": row["content"]}
        made = {**answer, **known}
        if self.keeps_attempts:
            made.setdefault("attempt", row["attempt"])
        if (found := made.pop("checks", None)) is not None:
            self.checks.add({**found, **known})
        self.writer.add(made)
        if (error := made.get("error")) is not None:
            self.report.failed += 1
            self.report.errors[error] = self.report.errors.get(error, 0) + 1
        else:
            verdict = made.get("verdict")
            verdict = verdict if verdict in ("repaired", "rejected") else "good"
            if verdict == "rejected":
                reason = (made.get("reason") or "rejected").partition(";")[0]
                self.report.reasons[reason] = self.report.reasons.get(reason, 0) + 1
            setattr(self.report, verdict, getattr(self.report, verdict) + 1)

    def _died(self, worker: _Worker) -> None:
        worker.alive = False
        worker.pipe.close()
        worker.process.join()
        if self.stopping.is_set():
            return
        code = worker.process.exitcode
        names = {number.value: number.name for number in signal.Signals}
        how = names.get(-code, f"signal {-code}") if code is not None and code < 0 else f"exit code {code}"
        rows = [row for _, row in worker.hand.values()]
        self.tell({"event": "worker_died", "how": how, "in_hand": len(rows)})
        if not rows:
            self.starts += 1
            if self.starts >= STARTS:
                raise EngineError(
                    f"a worker for {self.selection.name} died {STARTS} times with no picture in hand ({how}). "
                    "Is there enough memory for the model? Published rows are kept."
                )
        if len(rows) == 1:
            key = rows[0]["key"]
            self.kills[key] += 1
            if self.kills[key] >= KILLS:
                detail = f"the worker ended by {how} each of {KILLS} times that it had this picture alone in hand"
                self._add(rows[0], {"error": "crashed_worker", "detail": detail})
            else:
                self.suspects.append(rows)
        elif rows:
            middle = len(rows) // 2
            self.suspects.extend([rows[:middle], rows[middle:]])
        self.workers[self.workers.index(worker)] = self._start(worker.device)

    # -- the end ------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """After a stop: let each worker finish the batch in hand."""
        if not self.stopping.is_set():
            return
        self.report.interrupted = True
        self.tell({"event": "stopping"})
        for worker in self.workers:
            with suppress(OSError):
                worker.pipe.send(("end", worker.call))
                worker.pipe.send(("stop",))
        waiting = [worker for worker in self.workers if worker.alive and worker.ready]
        while any(worker.alive for worker in waiting):
            self._listen(0.2)
            self._progress()

    def _progress(self) -> None:
        if self.began and time.monotonic() - self.told >= 0.5:
            self.told = time.monotonic()
            self.report.seconds = time.monotonic() - self.began
            self.tell({"event": "progress", **_counts(self.report)})


def _counts(report: Report) -> dict[str, Any]:
    rate = report.done / report.seconds if report.seconds else 0.0
    return {
        "todo": report.todo,
        "done": report.done,
        "good": report.good,
        "repaired": report.repaired,
        "rejected": report.rejected,
        "failed": report.failed,
        "seconds": round(report.seconds, 3),
        "per_second": round(rate, 3),
        "eta_seconds": round((report.todo - report.done) / rate) if rate else None,
    }


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started here ignore Ctrl-C from their first moment: their parent hears it for them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
