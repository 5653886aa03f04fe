"""Booru metadata by the million: tag dump and merge by `cutline export` against the way of seed 000's scripts.

The scripts are written anew here from what is known of them: whole files in Python dicts, one item of a thread pool for
each post, `json.dumps(indent=2)` of everything at the end. Both sides start from files and end with files, each in a
process of its own, load and write included: the scripts from the Parquet and the JSON that they read, Cutline from a
dataset to which the same Parquet and JSON were added (what `add` takes is printed too: a dataset is filled once and
read often). Timed in turns, `--runs` times; medians count. Beside them stand two limits, taken in the same run: the
same bytes written to the same disk, and the same entries through Python's JSON encoder and nothing else.

    python benchmarks/metadata.py                            # 200,000 and two million posts: half an hour on two cores
    python benchmarks/metadata.py -n 200000
    python benchmarks/metadata.py -n 2000000 8000000 --ours  # Cutline alone, and how its cost grows
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import make_booru
from cutline.formats import kohya
from pairs import finish, say_machine

DUMP, MERGE, COMPACTED = "tag dump", "merge", "merge, compacted"
TARGETS = {DUMP: 10.0, MERGE: 10.0, COMPACTED: 12.0}
MEGABYTES, MEGABYTES_8M, GROWTH = 2500.0, 4000.0, 4.6
GROUPS = ("artist", "character", "copyright", "general", "meta")  # in the order of the seed

CAPTIONS = """[columns]
id = ["index"]
[captions]
florence-long = "florence_long"
"""

RECIPES = {
    DUMP: f'[tags]\nfirst_of = ["tags/danbooru"]\norder = {json.dumps(GROUPS)}\n',
    MERGE: f'[tags]\nfirst_of = ["tags/danbooru"]\norder = {json.dumps(GROUPS)}\n'
    '[captions]\nfirst_of = ["captions/florence-long"]\n[latents]\nfirst_of = ["latents/kohya"]\n',
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--posts", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--runs", type=int, default=3, help="how often each side is timed")
    parser.add_argument("--ours", action="store_true", help="Cutline alone")
    parser.add_argument("--folder", type=Path, help="where to put it all, and to leave it; by default it is removed")
    parser.add_argument("--seed-step", nargs="+", help=argparse.SUPPRESS)  # one run of the baseline
    chosen = parser.parse_args()
    if chosen.seed_step:
        step, *paths = chosen.seed_step
        steps: dict[str, Callable[..., None]] = {"dump": seed_dump, "merge": seed_merge}
        steps[step](*map(Path, paths))
        return
    say_machine()
    with tempfile.TemporaryDirectory(prefix="cutline-metadata-") as temporary:
        home = chosen.folder or Path(temporary)
        met: list[bool] = []
        taken: dict[int, dict[str, float]] = {}
        for posts in chosen.posts:
            taken[posts] = measure(home / str(posts), posts, chosen.runs, ours_only=chosen.ours, met=met)
        for smaller, larger in zip(chosen.posts, chosen.posts[1:], strict=False):
            if larger == 4 * smaller:
                for what, seconds in taken[larger].items():
                    grown = seconds / taken[smaller][what]
                    met.append(verdict(f"{what}, {larger:,} posts against {smaller:,}", grown, GROWTH, "times"))
    finish(*met)


def measure(home: Path, posts: int, runs: int, *, ours_only: bool, met: list[bool]) -> dict[str, float]:
    """Time everything at one size; the median seconds of Cutline by what it did."""
    print(f"\n== {posts:,} posts", flush=True)
    if not (home / "metadata.parquet").exists():
        make_booru.write(home, posts, seed_files=not ours_only)
    dataset = home / "dataset"
    fill(dataset, home)
    for name, text in RECIPES.items():
        (home / f"{name}.toml").write_text(text)
    exports = [(DUMP, "dump", "meta_cap_dd.json"), (MERGE, "merge", "meta_lat.json")]
    result: dict[str, float] = {}
    baseline: dict[str, float] = {}
    for what, step, file in exports:
        # The merge's first input is what the dump writes.
        inputs = (
            ["metadata.parquet"]
            if step == "dump"
            else ["ids.json", "seed/meta_cap_dd.json", "captions.json", "latents.json"]
        )
        seed = [
            sys.executable,
            __file__,
            "--seed-step",
            step,
            *(str(home / name) for name in inputs),
            str(home / "seed"),
        ]
        ours = cutline(
            "export", dataset, "kohya", home / "ours" / file, "--recipe", home / f"{what}.toml", "-o", "legacy=true"
        )
        theirs_taken, ours_taken = [], []
        for _ in range(runs):
            if not ours_only:
                theirs_taken.append(run(seed))
            (home / "ours" / file).unlink(missing_ok=True)
            ours_taken.append(run(ours))
        result[what] = report(what, posts, theirs_taken, ours_taken, met)
        baseline[what] = statistics.median(seconds for seconds, _ in theirs_taken) if theirs_taken else 0.0
        limits(home / "ours" / file, result[what])
        if not ours_only:
            check(home, file)
    seconds, megabytes = run(cutline("compact", dataset))
    print(f"compact: {seconds:.1f} s, {megabytes:.0f} MB", flush=True)
    again = []
    for _ in range(runs):
        (home / "ours" / "meta_lat.json").unlink()
        again.append(
            run(
                cutline(
                    "export",
                    dataset,
                    "kohya",
                    home / "ours" / "meta_lat.json",
                    "--recipe",
                    home / f"{MERGE}.toml",
                    "-o",
                    "legacy=true",
                )
            )
        )
    result[COMPACTED] = report(COMPACTED, posts, [(baseline[MERGE], 0.0)] if not ours_only else [], again, met)
    return result


def fill(dataset: Path, home: Path) -> None:
    """Add the files to a dataset, unless that was done."""
    if dataset.exists():
        return
    dataset.mkdir()
    (home / "captions.toml").write_text(CAPTIONS)
    for name in ("metadata.parquet", "captions.parquet", "latents.json"):
        more = {
            "latents.json": ("-o", "layer=kohya"),
            "captions.parquet": ("--from", "booru", "-o", f"map={home / 'captions.toml'}"),
        }
        seconds, megabytes = run(cutline("add", dataset, home / name, *more.get(name, ("--from", "booru"))))
        print(f"cutline add {name}: {seconds:.1f} s, {megabytes:.0f} MB", flush=True)


def report(
    what: str, posts: int, theirs: list[tuple[float, float]], ours: list[tuple[float, float]], met: list[bool]
) -> float:
    seconds, megabytes = statistics.median(one for one, _ in ours), max(peak for _, peak in ours)
    rate = f"{posts / seconds:,.0f} posts/s, {megabytes:.0f} MB"
    print(f"{what}: {seconds:.2f} s ({min(ours)[0]:.2f} to {max(ours)[0]:.2f}), {rate}", flush=True)
    large = posts > 2_000_000
    met.append(verdict(f"{what}, peak memory", megabytes, MEGABYTES_8M if large else MEGABYTES, "MB"))
    if theirs:
        before, peak = statistics.median(one for one, _ in theirs), max(peak for _, peak in theirs)
        if peak:
            print(f"  the seed's way: {before:.2f} s ({min(theirs)[0]:.2f} to {max(theirs)[0]:.2f}), {peak:.0f} MB")
        met.append(
            verdict(
                f"{what}, the seed's time over ours", before / seconds, TARGETS[what], "times", least=posts >= 2_000_000
            )
        )
    return seconds


def verdict(figure: str, value: float, target: float, unit: str, least: bool | None = None) -> bool:
    """Print a figure with its target, at least or at most; whether it is met. Below two million posts none is due."""
    at = "most" if least is None else "least"
    ok = value <= target if least is None else value >= target or not least
    note = "" if least is None or least else " (at two million posts)"
    print(
        f"{'met   ' if ok else 'MISSED'} {figure}: {value:.2f} {unit}, target at {at} {target:g} {unit}{note}",
        flush=True,
    )
    return ok


def limits(file: Path, seconds: float) -> None:
    """What nothing could beat: the same bytes to the same disk, and the same entries through the JSON encoder."""
    copy = file.with_suffix(".copy")
    start = time.perf_counter()
    with file.open("rb") as source, copy.open("wb") as target:
        while data := source.read(1 << 24):
            target.write(data)
    written = time.perf_counter() - start
    copy.unlink()
    with file.open("rb") as source:
        lines = [line for line in islice(source, 1, 50_001) if line.startswith(b'"')]
    entries = [json.loads(b"{" + line.rstrip(b",\n") + b"}") for line in lines]
    start = time.perf_counter()
    for entry in entries:
        json.dumps(entry, ensure_ascii=False)
    encoded = (time.perf_counter() - start) * file.stat().st_size / sum(map(len, lines))
    size = file.stat().st_size / 1e9
    print(
        f"  limits: {size:.2f} GB read and written again {written:.2f} s (ours is {seconds / written:.1f} times that);"
    )
    print(f"  through json.dumps alone {encoded:.2f} s (ours is {seconds / encoded:.2f} times that)", flush=True)


def check(home: Path, file: str) -> None:
    """Both sides say the same, of a thousand posts or so; what differs on purpose is put right first."""
    ours, theirs = _entries(home / "ours" / file), _entries(home / "seed" / file)
    count = same = 0
    for key, said in theirs.items():
        entry = dict(ours.get(key, {}))
        entry.pop("image_size", None)
        if "caption" in said and "caption" not in entry and "tags" in entry:
            entry["caption"] = entry["tags"]  # the seed lets tags stand in
        said = {name: value for name, value in said.items() if value}
        same += said == entry
        count += 1
    print(f"  {same:,} of {count:,} entries looked at are equal", flush=True)
    if same < count:
        raise SystemExit(f"{file}: the two sides differ")


def _entries(path: Path) -> dict[str, Any]:
    """Every two-thousandth entry or so."""
    found = ((entry.name, entry.fields) for entry in kohya.read(path))
    return {name: dict(fields) for name, fields in found if name and int(name) % 1999 == 7}


def cutline(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "cutline", *map(str, arguments)]


def run(command: list[str]) -> tuple[float, float]:
    """Run a process to its end: seconds, and the most memory that it held, in MB."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if code := os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return seconds, used.ru_maxrss / 1024


# The way of the seed's scripts.


def seed_dump(parquet: Path, out: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(parquet, columns=["id", *(f"tag_string_{group}" for group in GROUPS)])
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    meta: dict[str, dict[str, str]] = {}

    def one(row: tuple[Any, ...]) -> None:
        number, *groups = row
        meta[str(number)] = {"tags": " ".join(group for group in groups if group).replace(" ", ", ")}

    _each(one, rows)
    out.mkdir(exist_ok=True)
    (out / "meta_cap_dd.json").write_text(json.dumps(meta, indent=2))


def seed_merge(ids: Path, tags: Path, captions: Path, latents: Path, out: Path) -> None:
    json_ids, json_tags, json_captions, json_latents = (
        json.loads(path.read_text()) for path in (ids, tags, captions, latents)
    )
    meta: dict[str, dict[str, Any]] = {}
    missing: dict[str, list[str]] = {"tags": [], "caption": [], "latent": []}

    def one(key: str) -> None:
        entry: dict[str, Any] = {}
        if found := json_tags.get(key):
            entry["tags"] = found["tags"]
        else:
            missing["tags"].append(key)
        if found := json_captions.get(key):
            entry["caption"] = found["caption"]
        else:
            entry["caption"] = entry["tags"]
            missing["caption"].append(key)
        if found := json_latents.get(key):
            entry["train_resolution"] = found["train_resolution"]
        else:
            missing["latent"].append(key)
        meta[key] = entry

    _each(one, iter(json_ids))
    (out / "meta_lat.json").write_text(json.dumps(meta, indent=2))
    (out / "missing.json").write_text(json.dumps(missing, indent=2))


def _each(one: Any, items: Iterator[Any]) -> None:
    with ThreadPoolExecutor(48) as pool:
        for done in [pool.submit(one, item) for item in items]:
            done.result()


if __name__ == "__main__":
    main()
