"""The worker's side: one process, one session, rows in and answers out over one pipe.

It writes nothing to the dataset. When its parent dies, the pipe ends and so does the worker.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cutline.annotators.session import Annotator, Halt, Row
from cutline.pictures import Picture


def work(pipe: Connection, annotator: Annotator, root: Path) -> None:
    """Serve a parent until it says stop.

    In: ("rows", call, rows), ("end", call), ("stop",). Out: ("ready", batch size), ("hungry",) when the session waits
    for more, ("row", answer), ("raised", call, text), ("idle", call), ("broken", text) where it cannot be loaded, or
    ("halt", text) where it can do no row at all any more.
    """
    # OpenMP threads that wait spin by default, and take the cores from those that decode. It must be set before torch
    # is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lock = threading.Lock()  # a session may pull rows on a thread of its own

    def send(*message: Any) -> None:
        with lock:
            pipe.send(message)

    inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
    stop = threading.Event()
    told: list[Callable[[], None]] = []
    threading.Thread(target=_receive, args=(pipe, inbox, stop, told), daemon=True).start()
    try:
        session = annotator.load()
    except Exception as error:
        send("broken", str(error) or type(error).__name__)
        return
    if hasattr(session, "stop"):
        told.append(session.stop)
    send("ready", int(getattr(session, "batch_size", 1)))
    call = 0
    while not stop.is_set():
        message = inbox.get()
        if message[0] != "rows" or message[1] <= call:  # of a call that ended early: its parent gives them again
            continue
        call = message[1]
        try:
            for answer in session(_rows(message, inbox, stop, root, send)):
                send("row", answer)
        except Halt as error:
            send("halt", str(error))
            return
        except Exception as error:
            send("raised", call, f"{type(error).__name__}: {error}")
        send("idle", call)


def _receive(
    pipe: Connection,
    inbox: queue.SimpleQueue[tuple[Any, ...]],
    stop: threading.Event,
    told: list[Callable[[], None]],
) -> None:
    try:
        while True:
            message = pipe.recv()
            if message[0] == "stop":
                stop.set()
                for tell in told:
                    tell()
            inbox.put(message)
    except (EOFError, OSError):
        os._exit(1)


def _rows(
    message: tuple[Any, ...],
    inbox: queue.SimpleQueue[tuple[Any, ...]],
    stop: threading.Event,
    root: Path,
    send: Callable[..., None],
) -> Iterator[Row]:
    """The rows of one call of the session, until its parent ends it."""
    while message[0] == "rows":
        for row in message[2]:
            if stop.is_set():
                return
            known = {name: row[name] for name in ("size", "mtime_ns", "content", "offset")}
            yield {**row, "picture": row["uri"] and Picture(root / row["uri"], **known)}
        if inbox.empty():
            send("hungry")
        message = inbox.get()
