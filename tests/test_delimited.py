"""CSV files with every fault: a good row is never lost, and a bad one is named by its line."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline.formats import delimited
from cutline.options import CutlineError

HEAD = b"id,rating,tags\n"


def read(path: Path, data: bytes, *columns: str, block: int = 64) -> tuple[list[tuple[object, ...]], dict[int, str]]:
    """The rows, each with its line, and the faults' errors by line."""
    path.write_bytes(data)
    rows, faults = [], {}
    for found in delimited.read(path, columns or ("id", "tags"), block=block):
        rows += [tuple(row.values()) for row in found.table.to_pylist()]
        faults.update({fault.line: fault.error for fault in found.faults})
    return rows, faults


@pytest.mark.parametrize("block", [16, 64, 1 << 20])
def test_faults_spoil_only_their_own_row(tmp_path: Path, block: int) -> None:
    data = b"\n".join(
        [
            b"\xef\xbb\xbfid,rating,tags",
            b'1,g,"1girl solo"',
            b"2,s",  # line 3
            b"3,s,a,b",  # line 4
            b"4,g,caf\xe9",  # line 5
            b'5,g,"two',
            b'lines"',
            b"6,g,nul\x00",  # line 8
            b'7,g,don\'t_say_"lazy"',
            b'8,g,"don\'t_say_""lazy"""',
            b'9,g,"a" b',  # line 11
            b'10,g,"open',  # line 12
            b"11,g,a",
            b'12,g,"b"',
            b'13,g,""',
            b"",
            b'14,g,"open again',  # line 17
            b"\xff15,g,\xff",  # line 18
            b"16,q,last",
        ]
    )
    rows, faults = read(tmp_path / "x.csv", data, block=block)
    assert rows == [
        ("1", "1girl solo", 2),
        ("5", "two\nlines", 6),
        ("7", 'don\'t_say_"lazy"', 9),
        ("8", 'don\'t_say_"lazy"', 10),
        ("11", "a", 13),
        ("12", "b", 14),
        ("13", "", 15),
        ("16", "last", 19),
    ]
    assert faults == {
        **dict.fromkeys([3, 4, 11, 12, 17], "bad_csv"),
        **dict.fromkeys([5, 8, 18], "not_utf8"),
    }


def test_a_quote_that_nobody_closes_costs_one_row(tmp_path: Path) -> None:
    lines = [b'%d,g,"a b"\n' % number if number % 2 else b"%d,g,a\n" % number for number in range(60_000)]
    lines[5_000] = b'5000,g,"open\n'
    lines[9_000] = b'9000,g,"open\n'
    rows, faults = read(tmp_path / "x.csv", HEAD + b"".join(lines), "id", block=1 << 18)
    assert faults == {5_002: "bad_csv", 9_002: "bad_csv"}
    assert [row[0] for row in rows] == [str(number) for number in range(60_000) if number not in (5_000, 9_000)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.text(st.sampled_from('a ,"\né'), max_size=6), min_size=3, max_size=3), max_size=12),
    st.integers(1, 40),
)
def test_what_csv_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, end: str, rows: list[list[str]], block: int
) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=end).writerows(rows)
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    found, faults = read(path, HEAD + out.getvalue().encode(), "id", "rating", "tags", block=block)
    assert [list(row[:3]) for row in found] == rows
    assert not faults


def test_tabs_and_gzip(tmp_path: Path) -> None:
    assert read(tmp_path / "x.tsv", b'id\ttags\n1\ta,b\n2\t"c\td"\n') == ([("1", "a,b", 2), ("2", "c\td", 3)], {})
    packed = gzip.compress(HEAD + b"1,g,a\n")
    assert read(tmp_path / "x.csv.gz", packed) == ([("1", "a", 2)], {})
    with pytest.raises(CutlineError, match="cannot read"):
        read(tmp_path / "x.csv.gz", packed[:-9])


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(CutlineError, match="UTF-16"):
        read(tmp_path / "x.csv", "id,tags\n".encode("utf-16"))
    with pytest.raises(CutlineError, match="cannot read"):
        delimited.header(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_bytes(b"")
    assert delimited.header(tmp_path / "empty.csv") == []
    old_mac = read(tmp_path / "x.csv", HEAD + b"1,g,a\r2,g,b\n3,g,c\n")
    assert old_mac == ([("3", "c", 3)], {2: "bad_csv"})


_GOOD = "{n},g,a b"
_ODD = ['{n},g,"a ""q"" b"', '{n},g,"two\nlines"', "", '{n},g,"open', '{n},g,a"b', '"', "{n},g\r,a", "x,,,"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([_GOOD, *_ODD]), max_size=14), st.sampled_from(["\n", "\r\n"]), st.integers(1, 80))
def test_faulty_files_lose_no_good_row_wherever_blocks_end(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], end: str, block: int
) -> None:
    text = end.join(piece.format(n=number) for number, piece in enumerate(pieces))
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    rows, faults = read(path, HEAD + text.encode(), block=block)
    assert read(path, HEAD + text.encode(), block=1 << 20) == (rows, faults)
    told = {str(row[0]) for row in rows}
    inside = " ".join(map(str, rows))  # what two open quotes have between them may be one text
    for number, piece in enumerate(pieces):
        assert str(number) in told or f"{number},g," in inside or piece != _GOOD
