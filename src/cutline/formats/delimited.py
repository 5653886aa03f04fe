"""Large CSV and TSV files as Arrow tables, with the line of every row, and every row that cannot be read.

Where a record ends is found out here, a block of bytes at a time, and checked against the rules of quoting; only
records that keep them and have as many values as the header go on to Arrow's parser. In a block that breaks the rules,
lines with quotes are looked at one by one: a quote that nobody closes spoils its own line, and never those after it.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from cutline.formats.entries import opened
from cutline.options import CutlineError

BLOCK = 8 << 20
"""Bytes looked at together."""

LONGEST = 1 << 20
"""Bytes; a record that would be longer has a quote that nobody closed."""

_NEWLINE, _RETURN, _QUOTE = b'\n\r"'
_UNCLOSED = "a quote is opened and not closed"
_Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fault:
    """A row that cannot be read, and why."""

    line: int
    error: str
    detail: str


@dataclass(frozen=True)
class Rows:
    """Some rows of a file: the columns asked for, as text, and `line`, where each begins (from 1)."""

    table: pa.Table
    faults: list[Fault] = field(default_factory=list)


def header(path: Path) -> list[str]:
    """The names of a file's columns. Raises CutlineError where it cannot be read."""
    with _open(path) as handle:
        return _header(path, _first_line(path, handle))[0]


def read(path: Path, columns: Sequence[str], *, block: int = BLOCK) -> Iterator[Rows]:
    """Stream the rows of a file (`.csv` or `.tsv`, perhaps `.gz`), in bounded memory.

    Raises:
        CutlineError: there is no such file, or it cannot be unpacked.
    """
    with _open(path) as handle:
        names, delimiter = _header(path, _first_line(path, handle))
        line, rest = 2, b""
        while True:
            more = _more(path, handle, block)
            data = rest + more
            if not more and data and not data.endswith(b"\n"):
                data += b"\n"
            framed = _frame(data, delimiter, len(names), line, final=not more)
            if framed.end:
                yield _parse(framed, data, names, columns, delimiter)
            line += data.count(b"\n", 0, framed.end)
            rest = data[framed.end :]
            if not more:
                return


@dataclass(frozen=True)
class _Frame:
    """Where the good records of a block are."""

    starts: _Numbers
    ends: _Numbers
    lines: _Numbers
    faults: list[Fault]
    end: int
    """What stands behind this is for the next block."""


def _frame(data: bytes, delimiter: int, width: int, line: int, *, final: bool) -> _Frame:
    """Find the records, and count their values."""
    there = np.frombuffer(data, np.uint8)
    breaks = np.flatnonzero(there == _NEWLINE)
    quotes = np.flatnonzero(there == _QUOTE)
    first = np.concatenate([[0], breaks + 1])
    faults: list[Fault] = []
    well = _well_quoted(there, quotes, delimiter)
    if well:
        # A line break with an even number of quotes before it ends a record.
        ends = breaks[np.searchsorted(quotes, breaks) % 2 == 0] + 1
        end = int(ends[-1]) if len(ends) else 0
        starts = np.concatenate([[0], ends])[: len(ends)]
        marks = np.flatnonzero(there[:end] == delimiter)
        marks = marks[np.searchsorted(quotes, marks) % 2 == 0] if len(quotes) else marks
        values = np.bincount(np.searchsorted(ends, marks, side="right"), minlength=len(ends)) + 1
        torn = _holding(_lone_returns(there[:end], quotes), starts, ends)
        several = np.searchsorted(breaks, ends) - np.searchsorted(breaks, starts) > 1
        # A record of several lines that is none has swallowed others; so has one without an end.
        well = (
            not np.any(several & ((values != width) | torn))
            and len(data) - end < LONGEST
            and not (final and end < len(data))
        )
    if not well:
        starts, ends, values, end = _by_hand(data, breaks, quotes, delimiter, width, line, faults, final=final)
        torn = _holding(_lone_returns(there[:end], quotes[:0]), starts, ends) & ~_holding(quotes, starts, ends)
    lines = np.searchsorted(first, starts) + line
    blank = (ends - starts == 1) | ((ends - starts == 2) & (there[starts] == _RETURN))
    good = (values == width) & ~torn
    for at in np.flatnonzero(~good & ~blank):
        wrong = f"it has {values[at]} values, and the header {width}"
        faults.append(Fault(int(lines[at]), "bad_csv", "a line ends in it as on old Macs" if torn[at] else wrong))
    good &= ~blank
    return _Frame(starts[good], ends[good], lines[good], faults, end)


def _well_quoted(there: npt.NDArray[np.uint8], quotes: _Numbers, delimiter: int) -> bool:
    """Whether quotes open only where a value begins and close only where one ends (or are doubled)."""
    before = there[quotes[0::2] - 1][quotes[0::2] > 0]
    after = there[quotes[1::2] + 1 - (quotes[1::2] + 1 == len(there))]
    opening = np.isin(before, [delimiter, _NEWLINE, _QUOTE])
    closing = np.isin(after, [delimiter, _NEWLINE, _RETURN, _QUOTE])
    return bool(opening.all() and closing.all())


def _lone_returns(there: npt.NDArray[np.uint8], quotes: _Numbers) -> _Numbers:
    """Carriage returns without a line feed, outside of these quotes: Arrow would end a record there."""
    returns = np.flatnonzero(there == _RETURN)
    returns = returns[there[returns + 1] != _NEWLINE]
    lone: _Numbers = returns[np.searchsorted(quotes, returns) % 2 == 0]
    return lone


def _holding(places: _Numbers, starts: _Numbers, ends: _Numbers) -> npt.NDArray[np.bool_]:
    """Which records hold one of these places."""
    return np.searchsorted(places, starts) < np.searchsorted(places, ends)


def _by_hand(
    data: bytes,
    breaks: _Numbers,
    quotes: _Numbers,
    delimiter: int,
    width: int,
    line: int,
    faults: list[Fault],
    *,
    final: bool,
) -> tuple[_Numbers, _Numbers, _Numbers, int]:
    """Starts, ends and numbers of values of the records of a block whose quotes cannot be trusted, and its end."""
    first = np.concatenate([[0], breaks + 1])
    quoted = np.bincount(np.searchsorted(breaks, quotes), minlength=len(breaks))[: len(breaks)]
    plain = np.ones(len(breaks), bool)  # lines that are a record by themselves, without a quote
    records: list[tuple[int, int, int]] = []
    lines = len(breaks)
    at, todo = 0, np.flatnonzero(quoted)
    for number in todo.tolist():
        if number < at:
            continue
        last, values, problem = _record(data, first, quoted, number, delimiter, width)
        if last == lines and not final and len(data) - first[number] < LONGEST:
            lines = number  # it may go on in the next block
            break
        plain[number : (number if problem else last) + 1] = False
        if problem:
            faults.append(Fault(line + number, "bad_csv", problem))
            at = number + 1
        else:
            records.append((int(first[number]), int(first[last + 1]), values))
            at = last + 1
    alone = np.flatnonzero(plain[:lines])
    there = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero(there == delimiter)
    counts = np.searchsorted(marks, first[alone + 1]) - np.searchsorted(marks, first[alone]) + 1
    found = np.array(records, np.int64).reshape(-1, 3)
    starts = np.concatenate([first[alone], found[:, 0]])
    order = np.argsort(starts)
    ends = np.concatenate([first[alone + 1], found[:, 1]])[order]
    return starts[order], ends, np.concatenate([counts, found[:, 2]])[order], int(first[lines])


def _record(
    data: bytes, first: _Numbers, quoted: _Numbers, number: int, delimiter: int, width: int
) -> tuple[int, int, str]:
    """The last line of the record that begins in a line, how many values it has, and what is wrong with it."""
    start, total = int(first[number]), 0
    for last in range(number, len(quoted)):
        total += int(quoted[last])
        end = int(first[last + 1])
        if end - start > LONGEST:
            return last, 0, _UNCLOSED
        if last > number and (total % 2 or not quoted[last]):
            continue
        text = data[start:end].decode("latin-1")
        try:
            found = list(csv.reader(io.StringIO(text, newline=""), delimiter=chr(delimiter), strict=True))
        except csv.Error as error:
            if "unexpected end" in str(error):
                continue
            return last, 0, _UNCLOSED if last > number else "there is text behind a closing quote"
        if len(found) == 1 and (last == number or len(found[0]) == width):
            return last, len(found[0]), ""
        return last, 0, _UNCLOSED
    return len(quoted), 0, _UNCLOSED


def _parse(framed: _Frame, data: bytes, names: list[str], columns: Sequence[str], delimiter: int) -> Rows:
    schema = pa.schema([*((name, pa.string()) for name in columns), ("line", pa.int64())])
    if not len(framed.starts):
        return Rows(schema.empty_table(), framed.faults)
    gaps = np.flatnonzero(framed.starts[1:] != framed.ends[:-1])
    begins = framed.starts[np.concatenate([[0], gaps + 1])]
    stops = framed.ends[np.concatenate([gaps, [len(framed.ends) - 1]])]
    good = b"".join(data[begin:stop] for begin, stop in zip(begins.tolist(), stops.tolist(), strict=True))
    table = arrow_csv.read_csv(
        io.BytesIO(good),
        arrow_csv.ReadOptions(column_names=names, block_size=max(len(good), 1)),
        arrow_csv.ParseOptions(delimiter=chr(delimiter), newlines_in_values=True),
        arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.binary()), include_columns=columns, strings_can_be_null=False
        ),
    )
    table = table.append_column("line", pa.array(framed.lines))
    faults = framed.faults
    if b"\0" in good or not _decodes(good):
        table, bad = _without_broken_text(table, columns)
        faults = [*faults, *bad]
    return Rows(table.cast(schema), faults)


def _without_broken_text(table: pa.Table, columns: Sequence[str]) -> tuple[pa.Table, list[Fault]]:
    """The rows whose columns can be read as text, and the others as faults."""
    broken: dict[int, str] = {}
    for name in columns:
        for place in pc.indices_nonzero(pc.match_substring(table[name], b"\0")).to_pylist():
            broken.setdefault(place, f"there is a NUL in its {name}")
        values = table[name].to_pylist()
        for place in (place for place, value in enumerate(values) if not _decodes(value)):
            broken.setdefault(place, f"its {name} is not UTF-8")
    kept = np.ones(table.num_rows, bool)
    kept[list(broken)] = False
    lines = table["line"]
    faults = [Fault(lines[place].as_py(), "not_utf8", detail) for place, detail in sorted(broken.items())]
    return table.filter(pa.array(kept)), faults


def _decodes(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _open(path: Path) -> IO[bytes]:
    handle = opened(path)
    return gzip.open(handle) if path.suffix.lower() == ".gz" else handle  # type: ignore[return-value]


def _more(path: Path, handle: IO[bytes], size: int) -> bytes:
    try:
        return handle.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise CutlineError(f"cannot read {path}: {error}") from None


def _first_line(path: Path, handle: IO[bytes]) -> bytes:
    try:
        return handle.readline(LONGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise CutlineError(f"cannot read {path}: {error}") from None


def _header(path: Path, line: bytes) -> tuple[list[str], int]:
    """The names in a file's first line, and its delimiter."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise CutlineError(f"{path} is UTF-16. Write it again as UTF-8: iconv -f utf-16 -t utf-8")
    text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    delimiter = "\t" if "\t" in text and "," not in text else ","
    names = next(csv.reader([text], delimiter=delimiter), [])
    return [name.strip() for name in names], ord(delimiter)
