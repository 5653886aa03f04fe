"""Working ahead: what is needed next is made while what came before is used."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], count: int = 2) -> Iterator[T]:
    """The same items, made by a thread of their own while those before are used; so many wait, at most."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield item  # type: ignore[misc]  # it is not the end
        finally:
            for unwanted in waiting:
                unwanted.cancel()
