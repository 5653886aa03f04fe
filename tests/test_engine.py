"""The engine: whatever kills, fills, stops or misuses a run, what was published stays and the next run goes on."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import secrets
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any

import pyarrow.parquet as pq
import pytest
import xxhash

from cutline.annotators.session import Batched, Row
from cutline.dataset import Dataset
from cutline.engine.here import Report, annotate
from cutline.engine.selection import Selection, Shard
from cutline.layer import IdentityError
from cutline.options import CutlineError, OptionError, digest, fill
from cutline.pictures import PictureError
from cutline.registry import load
from cutline.sources.folder import Folder
from running import (
    CUTLINE,
    ECHO,
    SOON,
    captions,
    clear_leftovers,
    cutline,
    echo,
    environment,
    events,
    leftovers,
    make_pictures,
    picture,
    raw_rows,
    sha256,
)

SAYS = ("-o", "says={content}")
ODD = "captions/odd"


def new(root: Path, count: int) -> Dataset:
    make_pictures(root, count)
    dataset = Dataset(root)
    dataset.add(Folder(root))
    return dataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "photos"


def start(*args: object, command: list[str] = SOON, **settings: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings
    )


def finish(child: subprocess.Popen[str], code: int = 0) -> str:
    out, err = child.communicate(timeout=120)
    assert child.returncode == code, f"exit code {child.returncode}\n{out}\n{err}"
    assert "Traceback" not in err, err
    return out + err


def complete(dataset: Dataset, layer: str = ECHO) -> None:
    """Every readable picture has exactly one row in the view, which is about its own bytes; no part is torn."""
    expected = {key: sha256(dataset.root / key) for (key,) in dataset.sql("select key from pictures").fetchall()}
    assert captions(dataset, layer) == expected
    rows = dataset.sql(f'select count(*), count(distinct key) from "{layer}"').fetchall()
    assert rows == [(len(expected), len(expected))]
    assert {row["key"] for row in raw_rows(dataset, layer)} == set(expected)


def published(dataset: Dataset, layer: str = ECHO) -> int:
    return sum(pq.read_metadata(part).num_rows for part in dataset.layer(layer).parts())


def wait_for(what: Callable[[], Any], seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < give_up, "it did not come"
        time.sleep(0.02)


def has_more_or_ended(dataset: Dataset, before: int, child: subprocess.Popen[str]) -> bool:
    return published(dataset) > before or child.poll() is not None


def processes_with(mark: str) -> list[int]:
    """The living processes that carry this mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (
                mark.encode() in (folder / "environ").read_bytes()
                and "Z" not in (folder / "stat").read_text().split()[2]
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


# -- killed, stopped, at once -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_loses_nothing(root: Path) -> None:
    count, kills = 500, 20
    dataset = new(root, count)
    chance = random.Random(20)
    mark = f"mark-{secrets.token_hex(8)}"
    seen: dict[str, Any] = {}
    killed = 0
    while killed < kills:
        child = start("annotate", root, "echo", *SAYS, "-o", "seconds=0.015", env=environment(CUTLINE_TEST=mark))
        before = published(dataset)
        if killed % 2:  # at a random moment, from the first of its life
            time.sleep(chance.random() * 1.5)
        else:  # around a publishing
            wait_for(partial(has_more_or_ended, dataset, before, child))
            time.sleep(chance.random() * 0.3)
        if child.poll() is not None:
            break
        child.send_signal(signal.SIGKILL)
        child.communicate()
        killed += 1
        rows = {row["key"]: row for row in raw_rows(dataset)}
        assert len(rows) == published(dataset), "what is published is not done again"
        for key, row in seen.items():
            assert rows[key] == row, "what was published is as it was"
        seen = rows
    wait_for(lambda: not processes_with(mark))  # its workers went with it
    assert killed == kills
    assert 0 < len(seen) < count
    cutline("annotate", root, "echo", *SAYS)
    rows = {row["key"]: row for row in raw_rows(dataset)}
    assert all(rows[key] == row for key, row in seen.items())
    assert published(dataset) == count
    complete(dataset)
    clear_leftovers(dataset)
    complete(dataset)
    assert "nothing to do" in cutline("annotate", root, "echo", *SAYS).stdout


@pytest.mark.slow
def test_a_plain_run_publishes_every_ten_seconds(root: Path) -> None:
    dataset = new(root, 60)
    child = start("annotate", root, "echo", *SAYS, "-o", "seconds=0.3", command=CUTLINE)
    began = time.monotonic()
    wait_for(lambda: published(dataset))
    assert time.monotonic() - began > 9
    first = published(dataset)
    assert 0 < first < 60
    child.send_signal(signal.SIGKILL)
    child.communicate()
    cutline("annotate", root, "echo", *SAYS)
    assert published(dataset) == 60
    complete(dataset)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_stopped_run_publishes_what_it_has_and_goes_on(root: Path, number: signal.Signals) -> None:
    dataset = new(root, 80)
    child = start(
        "annotate", root, "echo", *SAYS, "-o", "seconds=0.05", "--log-json", command=CUTLINE, start_new_session=True
    )
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line).get("done"):
            break
    time.sleep(0.3)
    if number == signal.SIGINT:
        os.killpg(child.pid, number)  # as a terminal does: to all of them
    else:
        child.send_signal(number)
    rest, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in said
    end = events(rest)[-1]
    assert end["event"] == "end"
    assert end["interrupted"] is True
    assert 0 < end["done"] < 80
    assert published(dataset) == end["done"], "all that was done is published"
    assert f"{end['done']} of 80 are done and kept. To go on, give the same command again" in said
    out = events(cutline("annotate", root, "echo", *SAYS, "--log-json").stdout)
    assert out[-1]["done"] == 80 - end["done"]
    complete(dataset)


@pytest.mark.slow
def test_ctrl_c_twice_stops_at_once(root: Path) -> None:
    dataset = new(root, 20)
    mark = f"mark-{secrets.token_hex(8)}"
    child = start(
        *("annotate", root, "echo", *SAYS, "-o", "seconds=30", "--log-json"),
        command=CUTLINE,
        start_new_session=True,
        env=environment(CUTLINE_TEST=mark),
    )
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["event"] == "start"
    wait_for(lambda: len(processes_with(mark)) >= 2)
    time.sleep(1)
    began = time.monotonic()
    os.killpg(child.pid, signal.SIGINT)
    time.sleep(0.3)
    os.killpg(child.pid, signal.SIGINT)
    assert finish(child, 130)
    assert time.monotonic() - began < 25, "the picture in hand takes thirty seconds"
    wait_for(lambda: not processes_with(mark))
    cutline("annotate", root, "echo", *SAYS)
    complete(dataset)


def test_two_runs_at_once(root: Path) -> None:
    dataset = new(root, 150)
    children = [start("annotate", root, "echo", *SAYS, "-o", "seconds=0.005") for _ in range(2)]
    for child in children:
        finish(child)
    complete(dataset)
    assert leftovers(root) == []
    dataset.compact()
    assert published(dataset) == 150
    complete(dataset)


@pytest.mark.slow
def test_two_runs_with_other_settings_at_once_do_not_mix(root: Path) -> None:
    dataset = new(root, 30)
    children = [start("annotate", root, "echo", "-o", f"says={number} " + "{content}") for number in range(2)]
    said = [child.communicate(timeout=60)[1] for child in children]
    assert sorted(child.returncode for child in children) == [0, 1]
    loser = next(number for number, child in enumerate(children) if child.returncode)
    assert "--as captions/echo-b" in said[loser]
    assert {text[:1] for text in captions(dataset).values() if text} == {str(1 - loser)}


def test_shards_are_disjoint_and_complete(root: Path) -> None:
    dataset = new(root, 100)
    children = [
        start("annotate", root, "echo", *SAYS, "--shard", f"{index}/2", "--log-json", command=CUTLINE)
        for index in range(2)
    ]
    done = [events(finish(child))[-1]["done"] for child in children]
    assert sum(done) == 100
    assert all(20 < count < 80 for count in done)
    assert published(dataset) == 100, "no picture was done twice"
    complete(dataset)


def test_the_shard_of_a_key_is_documented(root: Path) -> None:
    """xxh64 with seed 0 of the key's UTF-8, modulo the number of shards: any machine can tell."""
    for key in ("a.png", "猫.png", "trip/7866720.webp"):
        assert [Shard(index, 5).has(key) for index in range(5)].index(True) == xxhash.xxh64_intdigest(key.encode()) % 5
    assert Shard(xxhash.xxh64_intdigest(b"") % 7, 7).has("")
    assert xxhash.xxh64_intdigest(b"") == 0xEF46DB3751D8E999
    dataset = new(root, 12)
    for number in (2, 3, 12):  # the number may differ from run to run
        echo(dataset, shard=f"0/{number}")
    for number in range(12):
        echo(dataset, shard=f"{number}/12")
    complete(dataset)
    assert published(dataset) == 12
    for wrong in ("2/2", "x", "1", "-1/2", "0/0", "1/0", "0/2/3", "½/2"):
        with pytest.raises(OptionError, match="--shard"):
            Shard.parse(wrong)


@contextmanager
def compacting(dataset: Dataset) -> Iterator[list[int]]:
    """Another process that compacts without end; counted at the end."""
    loop = dedent("""
        import sys, time
        from cutline.dataset import Dataset
        while True:
            Dataset(sys.argv[1]).compact()
            print("compacted", flush=True)
            time.sleep(0.02)
        """)
    child = subprocess.Popen(
        [CUTLINE[0], "-c", loop, str(dataset.root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    counts: list[int] = []
    try:
        yield counts
        assert child.poll() is None, child.communicate()[1]
    finally:
        child.kill()
        out, err = child.communicate()
        counts.append(out.count("compacted"))
        assert err == ""


@pytest.mark.slow
def test_compacting_beside_a_run(root: Path) -> None:
    dataset = new(root, 200)
    with compacting(dataset) as counts:
        finish(start("annotate", root, "echo", *SAYS, "-o", "seconds=0.01"))
    assert counts[0] > 3
    complete(dataset)
    dataset.compact()
    assert published(dataset) == 200
    complete(dataset)


@pytest.mark.slow
def test_readers_beside_a_run_and_compacts_never_fail_nor_miscount(root: Path) -> None:
    dataset = new(root, 400)
    problems: list[str] = []
    reads: Counter[str] = Counter()
    stop = threading.Event()

    def watch(what: str, count: Callable[[Dataset], tuple[int, int]]) -> None:
        mine, last = Dataset(root), 0
        try:
            while not stop.is_set():
                total, words = count(mine)
                assert total == 400, f"{total} pictures"
                assert last <= words <= 400, f"{words} words, {last} before"
                last = words
                reads[what] += 1
        except Exception as error:
            problems.append(f"{what}: {type(error).__name__}: {error}")

    def by_sql(mine: Dataset) -> tuple[int, int]:
        if ECHO not in mine.layers():
            return 400, 0
        ((pictures, words, distinct),) = mine.sql(
            f'select (select count(*) from pictures), count(*), count(distinct key) from "{ECHO}"'
        ).fetchall()
        assert words == distinct
        return pictures, words

    def by_scan(mine: Dataset) -> tuple[int, int]:
        rows = [row for batch in mine.scan(ECHO) for row in batch.to_pylist()]
        for row in rows:
            assert row[ECHO] is None or row[ECHO]["texts"] == [row["content"]]
        return len(rows), sum(row[ECHO] is not None for row in rows)

    def by_missing(mine: Dataset) -> tuple[int, int]:
        return 400, 400 - mine.missing(ECHO).count()

    watches = {"sql": by_sql, "scan": by_scan, "missing": by_missing}
    threads = [threading.Thread(target=watch, args=entry) for entry in watches.items()]
    for thread in threads:
        thread.start()
    with compacting(dataset) as counts:
        finish(start("annotate", root, "echo", *SAYS, "-o", "seconds=0.03"))
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert min(reads[what] for what in watches) > 10, reads
    assert counts[0] > 5
    complete(dataset)


# -- a write that fails -------------------------------------------------------------------------------------------


def test_a_file_size_limit_is_said_and_costs_nothing(root: Path) -> None:
    dataset = new(root, 300)
    cutline("annotate", root, "echo", *SAYS, "--limit", "20")
    before = dataset.layer(ECHO).parts()
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (12_000, 12_000))
    said = cutline("annotate", root, "echo", *SAYS, code=1, preexec_fn=limit).stderr
    assert "cannot write" in said
    assert "ulimit -f" in said
    assert dataset.layer(ECHO).parts() == before
    assert published(dataset) == 20
    assert leftovers(root) == []
    assert "cannot write" in cutline("compact", root, code=0 if len(before) < 2 else 1).stderr or len(before) < 2
    cutline("annotate", root, "echo", *SAYS)
    complete(dataset)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill_up(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb") as handle:
        size = 1 << 16
        while size:
            try:
                os.write(handle.fileno(), bytes(size))
            except OSError:
                size //= 2
    return filler


@pytest.mark.slow
def test_a_full_disk_is_said_and_costs_nothing(small_disk: Path) -> None:
    root = small_disk / "photos"
    dataset = new(root, 100)
    for _ in range(2):
        cutline("annotate", root, "echo", *SAYS, "--limit", "10")
    filler = fill_up(small_disk)
    before = {path.name: path.read_bytes() for path in root.rglob("*.parquet")}
    os.utime(root / "p0001.png", (1, 1))
    for command in (("annotate", root, "echo", *SAYS), ("compact", root), ("add", root)):
        said = cutline(*command, code=1).stderr
        assert "cannot write" in said, command
        assert "free some space" in said
        assert {path.name: path.read_bytes() for path in root.rglob("*.parquet")} == before
        assert leftovers(root) == []
    said = cutline("annotate", root, "echo", *SAYS, "--as", "captions/other", code=1).stderr
    assert "free some space" in said
    assert len(captions(dataset)) == 100
    filler.unlink()
    cutline("annotate", root, "echo", *SAYS)
    complete(dataset)
    cutline("add", root)
    cutline("compact", root)
    complete(dataset)
    assert published(dataset) == 100


@pytest.mark.slow
def test_a_disk_that_fills_during_a_run(small_disk: Path) -> None:
    root = small_disk / "photos"
    dataset = new(root, 150)
    child = start("annotate", root, "echo", *SAYS, "-o", "seconds=0.02")
    wait_for(lambda: published(dataset))
    filler = fill_up(small_disk)
    said = finish(child, 1)
    assert "free some space" in said
    assert leftovers(root) == []
    kept = {row["key"]: row for row in raw_rows(dataset)}
    assert 0 < len(kept) < 150
    filler.unlink()
    cutline("annotate", root, "echo", *SAYS)
    assert kept.items() <= {row["key"]: row for row in raw_rows(dataset)}.items()
    assert published(dataset) == 150
    complete(dataset)


# -- annotators that misbehave ------------------------------------------------------------------------------------

MODULE = '''
import os, signal, time
from dataclasses import dataclass
from cutline.annotators.session import Batched
from cutline.options import option


@dataclass(frozen=True)
class Odd:
    """Misbehaves as it is told to."""

    writes = "captions/odd"
    reads = ("pictures",)
    workers = "device"
    mode: str = option("good", "how")
    at: list[str] = option([], "at which keys")
    log: str = option("", "a file to note each turn in", identity=False)
    gate: str = option("", "once this file is there, it behaves", identity=False)

    def load(self):
        if self.mode == "load raises":
            raise RuntimeError("no weights here")
        if self.mode == "load dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return Batch(self) if self.mode.startswith("batch") else One(self)


class One:
    def __init__(self, odd):
        self.odd = odd

    def __call__(self, rows):
        odd = self.odd
        for row in rows:
            key = row["key"]
            if odd.log:
                with open(odd.log, "a") as log:
                    print(os.getpid(), key, file=log)
            answer = {"key": key, "texts": [row["content"]], "verdict": "good"}
            if key in odd.at and not (odd.gate and os.path.exists(odd.gate)):
                match odd.mode:
                    case "killed": os.kill(os.getpid(), signal.SIGKILL)
                    case "exits": os._exit(3)
                    case "raises late" | "raises":
                        time.sleep(0.2 if odd.mode == "raises late" else 0)  # its parent sends more meanwhile
                        raise ValueError("not this one")
                    case "is silent": continue
                    case "leaves": return
                    case "errs": answer = {"key": key, "error": "too_odd", "detail": "it is"}
                    case "twice": yield answer
                    case "stranger": yield {**answer, "key": "nobody"}
                    case "column": answer["nonsense"] = 1
                    case "verdict": answer["verdict"] = "splendid"
                    case "misfit": answer["tokens_in"] = "many"
                    case "keyless": del answer["key"]
                    case "no row": answer = None
                    case "unpicklable": answer["raw"] = lambda: 0
                    case "slow": time.sleep(1)
            yield answer


class Batch(Batched):
    batch_size = 8

    def __init__(self, odd):
        self.odd = odd

    def prepare(self, row):
        if self.odd.mode == "batch unprepared" and row["key"] in self.odd.at:
            raise KeyError("what")
        return super().prepare(row)

    def batch(self, rows, prepared):
        if self.odd.mode == "batch memory" and len(rows) > 2:
            raise MemoryError("only two fit")
        if any(row["key"] in self.odd.at for row in rows):
            if self.odd.mode == "batch memory":
                raise MemoryError("this one never fits\\nat all")
            if self.odd.mode == "batch raises":
                raise ValueError("not this one")
        return [{"texts": [row["content"]], "raw": str(len(rows))} for row in rows]
'''


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which somebody else's package is installed: an annotator `odd`, and one called `echo`."""
    site = tmp_path_factory.mktemp("site")
    (site / "odd_annotator.py").write_text(MODULE)
    info = site / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cutline.annotators]\nodd = odd_annotator:Odd\necho = odd_annotator:Odd\nbroken = odd_annotator:Nothing\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield environment(PYTHONPATH=f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


def is_in(text: str, file: Path) -> bool:
    return file.exists() and text in file.read_text()


def run_odd(dataset: Dataset, mode: str, *at: str, workers: int = 1, retry: str = "", **given: Any) -> Report:
    """Let `odd` misbehave at these keys."""
    annotator = fill(load("annotators", "odd"), {"mode": mode, "at": list(at), **given})
    return annotate(Selection(dataset, annotator, ODD, retry=retry), workers=workers)


def fell(dataset: Dataset) -> dict[str, tuple[str, str]]:
    """Error rows; all other pictures have their own words."""
    rows = dataset.sql(f'select key, error, detail from "{ODD}" where error is not null').fetchall()
    good = {key: text for key, text in captions(dataset, ODD).items() if not str(text).startswith("error: ")}
    assert good == {key: sha256(dataset.root / key) for key in good}
    assert len(good) + len(rows) == dataset.sql("select count(*) from pictures").fetchall()[0][0]
    assert len(raw_rows(dataset, ODD)) == len(good) + len(rows), "one row for each picture"
    return {key: (error, detail) for key, error, detail in rows}


def test_somebody_elses_annotator_is_found(root: Path, odd: dict[str, str]) -> None:
    dataset = new(root, 10)
    listed = cutline("plugins", env={**odd, "PYTHONWARNINGS": "error"}, code=1)  # `broken` cannot be loaded
    assert "odd_annotator:Nothing" in listed.stderr
    assert "-o mode='good'" in cutline("plugins", "odd", env=odd).stdout
    cutline("annotate", root, "odd", env=odd)
    assert fell(dataset) == {}
    info = dataset.layer(ODD).info()
    assert info is not None
    assert (info["annotator"], info["settings"]) == ("odd", {"mode": "good", "at": []})
    done = cutline("annotate", root, "echo", env=odd)
    assert "also calls itself annotator 'echo'; the built-in one is used" in done.stderr
    assert captions(dataset)["p0000.png"] == "a picture called p0000.png"
    assert "no annotator is called 'od'; there are: " in cutline("annotate", root, "od", env=odd, code=2).stderr


@pytest.mark.parametrize(
    ("mode", "how"), [("killed", "SIGKILL"), pytest.param("exits", "exit code 3", marks=pytest.mark.slow)]
)
def test_a_picture_that_kills_its_worker_is_one_row(root: Path, odd: dict[str, str], mode: str, how: str) -> None:
    dataset = new(root, 40)
    done = cutline("annotate", root, "odd", "-o", f"mode={mode}", "-o", "at=p0007.png,p0033.png", code=3, env=odd)
    errors = fell(dataset)
    assert set(errors) == {"p0007.png", "p0033.png"}
    assert {error for error, _ in errors.values()} == {"crashed_worker"}
    assert all(how in detail for _, detail in errors.values())
    assert f"a worker died ({how})" in done.stderr
    assert "2 failed (2 crashed_worker)" in done.stderr
    assert "--retry errors" in done.stderr


@pytest.mark.slow
def test_killers_among_two_workers(root: Path, odd: dict[str, str]) -> None:
    dataset = new(root, 60)
    keys = ("p0000.png", "p0030.png", "p0031.png", "p0059.png")
    assert run_odd(dataset, "killed", *keys, workers=2).errors == {"crashed_worker": 4}
    assert {key: error for key, (error, _) in fell(dataset).items()} == dict.fromkeys(keys, "crashed_worker")


def test_a_worker_that_somebody_kills_costs_nothing(root: Path, odd: dict[str, str]) -> None:
    dataset = new(root, 60)
    log = root.parent / "log"
    child = start(
        *("annotate", root, "odd", "-o", "mode=slow", "-o", "at=p0009.png,p0020.png", "-o", f"log={log}"),
        command=CUTLINE,
        env=odd,
    )
    for key in ("p0009.png", "p0020.png"):
        wait_for(partial(is_in, key, log))
        pid = next(int(line.split()[0]) for line in log.read_text().splitlines() if key in line)
        os.kill(pid, signal.SIGKILL)
    said = finish(child, 0)
    assert said.count("a worker died (SIGKILL)") == 2
    assert fell(dataset) == {}


@pytest.mark.parametrize(("mode", "workers"), [pytest.param("raises", 2, marks=pytest.mark.slow), ("raises late", 1)])
def test_a_session_that_raises_costs_one_row(root: Path, odd: dict[str, str], mode: str, workers: int) -> None:
    dataset = new(root, 60)
    keys = ("p0000.png", "p0003.png", "p0004.png", "p0031.png", "p0059.png")
    assert run_odd(dataset, mode, *keys, workers=workers).errors == {"failed": 5}
    assert fell(dataset) == dict.fromkeys(keys, ("failed", "ValueError: not this one"))


@pytest.mark.parametrize("mode", ["is silent", "leaves"])
def test_a_row_without_an_answer_is_said(root: Path, odd: dict[str, str], mode: str) -> None:
    """Whether the session skips it and goes on, or ends in the middle of its rows."""
    dataset = new(root, 40)
    keys = ("p0000.png", "p0005.png", "p0006.png", "p0039.png")
    run_odd(dataset, mode, *keys)
    assert fell(dataset) == dict.fromkeys(keys, ("no_answer", "odd gave no answer"))


@pytest.mark.slow
def test_typed_errors_are_kept_and_tried_again_when_asked(root: Path, odd: dict[str, str]) -> None:
    dataset = new(root, 20)
    gate = root.parent / "gate"
    command = ("annotate", root, "odd", "-o", "mode=errs", "-o", "at=p0003.png,p0004.png", "-o", f"gate={gate}")
    cutline(*command, code=3, env=odd)
    assert fell(dataset)["p0003.png"] == ("too_odd", "it is")
    done = cutline(*command, code=3, env=odd)
    assert "nothing to do" in done.stdout
    assert "2 failed in earlier runs" in done.stderr
    said = cutline(*command, "--retry", "errors", code=3, env=odd).stderr
    assert "2 failed (2 too_odd)" in said
    rows = dataset.sql(f"""select attempt from "{ODD}" where error is not null""").fetchall()
    assert rows == [(2,), (2,)]
    gate.touch()
    cutline(*command, "--retry", "errors", "--limit", 1, code=3, env=odd)
    found = dataset.sql(f'select key, attempt from "{ODD}" where attempt > 1 and error is null').fetchall()
    assert found == [("p0003.png", 3)]
    cutline(*command, "--retry", "errors", env=odd)
    assert not any(str(text).startswith("error") for text in captions(dataset, ODD).values())


@pytest.mark.parametrize(("mode", "said"), [("load raises", "no weights here"), ("load dies", "died 3 times")])
def test_a_session_that_cannot_start_ends_the_run(root: Path, odd: dict[str, str], mode: str, said: str) -> None:
    dataset = new(root, 10)
    assert said in cutline("annotate", root, "odd", "-o", f"mode={mode}", code=1, env=odd).stderr
    assert published(dataset, ODD) == 0


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("stranger", "odd answered for 'nobody', which it was not asked"),
        ("twice", "odd answered for 'p0009.png', which it was not asked"),
        ("column", r"no column \['nonsense'\]"),
        ("keyless", "odd gave .* which is no row with a key"),
        ("no row", "odd gave None, which is no row with a key"),
    ],
)
def test_an_answer_that_makes_no_sense_ends_the_run(root: Path, odd: dict[str, str], mode: str, said: str) -> None:
    dataset = new(root, 20)
    with pytest.raises(CutlineError, match=said):
        run_odd(dataset, mode, "p0009.png")
    assert published(dataset, ODD) >= 9, "and what was done is kept"
    assert published(dataset, ODD) < 20


@pytest.mark.parametrize(("mode", "error"), [("misfit", "bad_row"), ("unpicklable", "failed"), ("verdict", None)])
def test_values_that_do_not_fit_cost_one_row(root: Path, odd: dict[str, str], mode: str, error: str | None) -> None:
    dataset = new(root, 20)
    assert run_odd(dataset, mode, "p0009.png").done == 20
    assert {key: why for key, (why, _) in fell(dataset).items()} == ({"p0009.png": error} if error else {})


def test_a_run_inside_another_thread(root: Path, odd: dict[str, str]) -> None:
    """Signals are only for the main thread; a run elsewhere goes without them."""
    dataset = new(root, 8)
    reports: list[Report] = []
    thread = threading.Thread(target=lambda: reports.append(run_odd(dataset, "good")))
    thread.start()
    thread.join()
    assert [report.good for report in reports] == [8]


# -- batches ------------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_is_halved(root: Path, odd: dict[str, str]) -> None:
    dataset = new(root, 40)
    run_odd(dataset, "batch memory", "p0011.png")
    assert fell(dataset) == {"p0011.png": ("out_of_memory", "this one never fits")}
    sizes = Counter(row["raw"] for row in raw_rows(dataset, ODD))
    assert set(sizes) <= {"2", "1", None}


def test_a_batch_that_raises_is_tried_one_by_one(root: Path, odd: dict[str, str]) -> None:
    dataset = new(root, 40)
    run_odd(dataset, "batch raises", "p0011.png", "p0012.png")
    assert fell(dataset) == dict.fromkeys(("p0011.png", "p0012.png"), ("failed", "ValueError: not this one"))
    sizes = Counter(row["raw"] for row in raw_rows(dataset, ODD))
    assert sizes["1"] < 20, "only that batch"


def test_a_row_that_cannot_be_prepared_leaves_its_batch(root: Path, odd: dict[str, str]) -> None:
    dataset = new(root, 40)
    run_odd(dataset, "batch unprepared", "p0011.png")
    assert fell(dataset) == {"p0011.png": ("failed", "KeyError: 'what'")}


class Sized(Batched):
    """Answers with the sizes of its batches; more than `fits` is too many."""

    def __init__(self, batch_size: int, fits: int) -> None:
        self.batch_size, self.fits, self.tried = batch_size, fits, list[int]()

    def prepare(self, row: Row) -> Any:
        if row["key"].startswith("bad"):
            raise PictureError("truncated", "half of it")
        return None

    def batch(self, rows: list[Row], prepared: list[Any]) -> list[Row]:
        self.tried.append(len(rows))
        if len(rows) > self.fits:
            raise MemoryError
        return [{"raw": str(len(rows))} for _ in rows]


@pytest.mark.parametrize(("batch_size", "fits", "count"), [(16, 3, 100), (8, 8, 20), (7, 2, 23), (1, 1, 5), (64, 5, 3)])
def test_halving_finds_what_fits_and_stays_there(batch_size: int, fits: int, count: int) -> None:
    session = Sized(batch_size, fits)
    rows: list[Row] = [{"key": f"k{number}"} for number in range(count)]
    answers = list(session(iter(rows)))
    assert sorted(answer["key"] for answer in answers) == sorted(row["key"] for row in rows)
    assert all("error" not in answer for answer in answers)
    assert sum(size > fits for size in session.tried) <= 2 * batch_size.bit_length(), "it learns"


def test_errors_in_preparing_are_typed() -> None:
    answers = {row["key"]: row for row in Sized(4, 4)(iter([{"key": "bad 1"}, {"key": "good"}, {"key": "bad 2"}]))}
    assert answers["bad 1"] == {"key": "bad 1", "error": "truncated", "detail": "half of it"}
    assert answers["good"]["raw"] == "1"


# -- the command line ---------------------------------------------------------------------------------------------


def test_limit_where_and_workers(root: Path) -> None:
    dataset = new(root, 20)
    assert echo(dataset, limit=0).todo == 0
    cutline("annotate", root, "echo", *SAYS, "--limit", 3)
    assert [key for key, text in captions(dataset).items() if text] == ["p0000.png", "p0001.png", "p0002.png"]
    cutline("annotate", root, "echo", *SAYS, "--where", "key > 'p0017'", "--workers", 2)
    assert sum(text is not None for text in captions(dataset).values()) == 6
    assert echo(dataset, where='"captions/echo".key is null and width = 8', limit=4).good == 4
    assert published(dataset) == 10
    assert echo(dataset).good == 10
    complete(dataset)


def test_retry_rejected(root: Path) -> None:
    dataset = new(root, 6)
    assert "6 rejected" in cutline("annotate", root, "echo", "-o", "says=").stdout
    assert echo(dataset, says="").todo == 0
    cutline("annotate", root, "echo", "-o", "says=", "--retry", "rejected", "--limit", 2)
    rows = dataset.sql(f'select key, attempt, reason from "{ECHO}" order by key limit 3').fetchall()
    assert rows == [("p0000.png", 2, "empty"), ("p0001.png", 2, "empty"), ("p0002.png", 1, "empty")]


def test_a_dry_run_shows_the_request_and_writes_nothing(root: Path) -> None:
    dataset = new(root, 5)
    done = cutline(
        "annotate", root, "echo", "-o", "says=a {format} called {key}", "--dry-run", "--where", "key > 'p0001'"
    )
    first = json.loads(done.stdout[done.stdout.index("{") :])
    assert done.stdout.startswith("4 pictures to do in captions/echo")
    assert first["request"] == {"says": "a PNG called p0001.png"}
    assert first["hash"] == digest(first["request"])
    assert not dataset.layer(ECHO).folder.exists()
    cutline("annotate", root, "echo", "-o", "says=a {format} called {key}")
    ((request,),) = dataset.sql(f"""select request from "{ECHO}" where key = 'p0001.png'""").fetchall()
    assert request == first["hash"]
    done = cutline("annotate", root, "echo", "-o", "says=a {format} called {key}", "--dry-run", "--log-json")
    assert events(done.stdout) == [{"event": "dry_run", "layer": ECHO, "todo": 0, "first": None}]


def test_log_json_says_it_all_in_lines(root: Path) -> None:
    new(root, 30)
    (root / "bad.png").write_bytes(picture(1)[:40])
    cutline("add", root, code=3)
    done = cutline("annotate", root, "echo", "-o", "seconds=0.05", "--log-json", code=3)
    said = events(done.stdout)
    assert [event["event"] for event in said[:1]] == ["start"]
    assert said[0] == {"event": "start", "layer": ECHO, "todo": 30}
    assert {event["event"] for event in said[1:-1]} == {"progress"}
    counts = [event["done"] for event in said[1:]]
    assert counts == sorted(counts)
    assert said[-1]["event"] == "end"
    assert {name: said[-1][name] for name in ("todo", "done", "good", "repaired", "rejected", "failed", "errors")} == {
        "todo": 30,
        "done": 30,
        "good": 30,
        "repaired": 0,
        "rejected": 0,
        "failed": 0,
        "errors": {},
    }
    assert said[-1]["interrupted"] is False
    assert said[-1]["seconds"] > 1
    assert "1 of the pictures cannot be read" in done.stderr


@pytest.mark.slow
def test_exit_codes(root: Path) -> None:
    new(root, 4)
    assert re.fullmatch(rf"{ECHO}: 4 good in \d+\.\d s\n", cutline("annotate", root, "echo").stdout)
    assert "--as captions/echo-b" in cutline("annotate", root, "echo", "-o", "says=other", code=1).stderr
    cutline("annotate", root, "echo", "-o", "says=other", "--as", "captions/echo-b")
    assert "is no dataset yet" in cutline("annotate", root.parent, "echo", code=1).stderr
    assert "there is no " in cutline("add", root / "nowhere", code=1).stderr
    os.truncate(root / "p0002.png", 20)
    cutline("add", root, code=3)
    assert "1 of the pictures cannot be read" in cutline("annotate", root, "echo", code=3).stderr
    cutline("annotate", root, "echo", "-o", "nonsense=1", code=2)


@pytest.mark.slow
def test_bad_usage_ends_with_2(root: Path) -> None:
    new(root, 2)
    usage: list[tuple[object, ...]] = [
        ("annotate", root),
        ("nonsense",),
        ("annotate", root, "echo", "-o", "nonsense=1"),
        ("annotate", root, "echo", "-o", "says"),
        ("annotate", root, "echo", "-o", "says=1", "-o", "says=2"),
        ("annotate", root, "echo", "-o", "seconds=long"),
        ("annotate", root, "echo", "-o", "says={nonsense}"),
        ("annotate", root, "echo", "--limit", "few"),
        ("annotate", root, "echo", "--limit", "-1"),
        ("annotate", root, "echo", "--workers", "0"),
        ("annotate", root, "echo", "--retry", "all"),
        ("annotate", root, "echo", "--shard", "2/2"),
        ("annotate", root, "echo", "--as", "tags/echo"),
        ("annotate", root, "echo", root / "no.toml"),
        ("add", root, "-o", "nonsense=1"),
    ]
    with ThreadPoolExecutor(4) as pool:
        for done in pool.map(lambda arguments: cutline(*arguments, code=2), usage):
            assert done.stderr, done.args


@pytest.mark.slow
def test_a_preset_is_read_and_the_command_line_comes_after_it(root: Path) -> None:
    dataset = new(root, 2)
    preset = root.parent / "preset.toml"
    preset.write_text('says = "from the preset {key}"\nseconds = 0.0\n')
    cutline("annotate", root, "echo", preset)
    assert captions(dataset)["p0000.png"] == "from the preset p0000.png"
    cutline("annotate", root, "echo", preset, "-o", "says=by hand", "--as", "captions/hand")
    assert captions(dataset, "captions/hand")["p0000.png"] == "by hand"
    preset.write_text("nonsense = 1\n")
    assert "no option 'nonsense'" in cutline("annotate", root, "echo", preset, code=2).stderr


@pytest.mark.slow
def test_settings_that_change_nothing_are_no_identity(root: Path) -> None:
    dataset = new(root, 4)
    echo(dataset, limit=2)
    cutline("annotate", root, "echo", *SAYS, "-o", "seconds=0.01", "-o", "open=false")
    assert published(dataset) == 4
    with pytest.raises(IdentityError):
        echo(dataset, says="other")


def test_a_worker_says_nothing_when_its_parent_is_killed(root: Path) -> None:
    new(root, 30)
    mark = f"mark-{secrets.token_hex(8)}"
    child = start("annotate", root, "echo", "-o", "seconds=0.1", "--log-json", env=environment(CUTLINE_TEST=mark))
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line).get("done"):
            break
    child.send_signal(signal.SIGKILL)
    assert child.stderr is not None
    assert child.stderr.read() == ""
    child.communicate()
    wait_for(lambda: not processes_with(mark), 20)
