"""What facts cost beside decoding: `cutline annotate DIR facts` against a plain Pillow loop over the same JPEGs.

The baseline opens, decodes and converts each file to RGB with Pillow, on as many processes as annotate has. Both are
timed as whole processes, from start to exit, in interleaved pairs: whatever else the machine does meanwhile hurts
both. Printed is the median of the pairs' ratios, which should stay below 4, in seconds on the clock and, for a machine
that is not left alone, in processor time.

    python benchmarks/facts.py                # 20,000 pictures of 512 x 512, three pairs: ten minutes on two cores
    python benchmarks/facts.py -n 2000 --pairs 3
    python benchmarks/facts.py -n 2000 --direct     # the session alone, without Dataset and engine
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pairs import finish, median_ratio, middle, processor_seconds, say_machine, spread, take_pairs, verdict

DISTINCT = 300
TARGET = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--pictures", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=3, help="how often each side is timed")
    parser.add_argument("--processes", type=int, default=2, help="on each side")
    parser.add_argument(
        "--direct", action="store_true", help="time the session in a pool instead of `cutline annotate`"
    )
    parser.add_argument("--side", choices=["pillow", "session"], help=argparse.SUPPRESS)  # one side of a pair
    parser.add_argument("--folder", type=Path, help="keep the pictures here, and use those that are there")
    chosen = parser.parse_args()
    if chosen.side:
        run_side(chosen.side, chosen.folder, chosen.processes)
        return
    say_machine()
    with tempfile.TemporaryDirectory(prefix="cutline-facts-") as temporary:
        folder = chosen.folder or Path(temporary)
        draw_pictures(folder, chosen.pictures)
        compare(folder, chosen.pictures, chosen.pairs, chosen.processes, chosen.direct)


def draw_pictures(folder: Path, count: int) -> None:
    """Write `count` JPEGs of 512 x 512: `DISTINCT` drawn ones, and copies of those that differ in a trailing counter.

    Hard links would be read from one place; copies take the disk and the page cache that real pictures take.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [draw_jpeg(seed) for seed in range(min(DISTINCT, count))]
    for number in range(count):
        path = folder / f"{number % 100:02}" / f"{number:06}.jpg"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(drawn[number % len(drawn)] + number.to_bytes(4))  # behind the end: decoders stop before it
    print(f"{count:,} JPEGs of 512 x 512, {statistics.mean(map(len, drawn)) / 1000:.0f} kB on average", flush=True)


def draw_jpeg(seed: int) -> bytes:
    """A picture with the spectrum of a photograph (amplitude falls with frequency), some hard edges, and grain."""
    from io import BytesIO

    import numpy as np
    from PIL import Image, ImageDraw

    random = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512)))
    amplitude = 1 / np.maximum(frequency, 1 / 512) ** 1.1
    shared = random.normal(size=(512, 512))
    bands = []
    for _ in range(3):  # the channels of photographs go together
        spectrum = np.fft.fft2(shared + 0.4 * random.normal(size=(512, 512))) * amplitude
        band = np.fft.ifft2(spectrum).real
        bands.append(random.uniform(90, 160) + 50 * band / band.std() + random.normal(0, 3, (512, 512)))
    image = Image.fromarray(np.stack(bands, axis=-1).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, w, h = (int(value) for value in random.integers(0, 400, 4))
        colour = tuple(int(value) for value in random.integers(0, 256, 3))
        draw.ellipse((x, y, x + w // 3, y + h // 3), outline=colour, width=3)
    out = BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


def compare(folder: Path, count: int, pairs: int, processes: int, direct: bool) -> None:
    """Time both sides in interleaved pairs and print the ratio."""
    here = [sys.executable, os.fspath(Path(__file__).resolve()), "--folder", os.fspath(folder)]
    pillow = [*here, "--processes", str(processes), "--side", "pillow"]
    cutline = [sys.executable, "-m", "cutline"]
    if direct:
        measured = [*here, "--processes", str(processes), "--side", "session"]
    else:
        measured = [*cutline, "annotate", os.fspath(folder), "facts", "--workers", str(processes)]
        seconds, _ = timed([*cutline, "add", os.fspath(folder)])
        print(f"cutline add: {seconds:.1f} s, {count / seconds:.0f} pictures/s", flush=True)
    timed(pillow)  # once for the page cache
    spent: dict[str, list[float]] = {"pillow": [], "facts": []}

    def decode() -> float:
        seconds, processor = timed(pillow)
        spent["pillow"].append(processor)
        return seconds

    def annotate() -> float:
        shutil.rmtree(folder / ".cutline" / "layers" / "facts", ignore_errors=True)
        seconds, processor = timed(measured)
        spent["facts"].append(processor)
        return seconds

    found = take_pairs(pairs, decode, annotate)
    if not direct:
        check_layer(folder, count)
    for side, name in enumerate(("pillow decode", "facts")):
        print(f"{name}: {middle(found, side):.1f} s, {count / middle(found, side):.0f} pictures/s")
    processor = median_ratio(list(zip(spent["pillow"], spent["facts"], strict=True)))
    note = f"{spread(found)}; {processor:.2f} in processor time"
    finish(verdict(f"facts / pillow decode on {processes} processes", median_ratio(found), TARGET, "times", note))


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds that a command takes, on the clock and of the processors; its failure is ours."""
    start, before = time.perf_counter(), processor_seconds()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start, processor_seconds() - before


def check_layer(folder: Path, count: int) -> None:
    """A fast run that did nothing is no result."""
    import duckdb

    parts = os.fspath(folder / ".cutline" / "layers" / "facts" / "*.parquet")
    query = "select count(distinct key), count(distinct pixels), count(error) from read_parquet(?)"
    found = duckdb.execute(query, [parts]).fetchall()[0]
    if found != (count, min(DISTINCT, count), 0):
        sys.exit(f"the layer has (keys, distinct pixels, errors) = {found}")


def run_side(side: str, folder: Path, processes: int) -> None:
    """One side, on its processes."""
    files = sorted(folder.glob("??/*.jpg"))
    work = decode_all if side == "pillow" else measure_all
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        done = pool.map(work, [files[start::processes] for start in range(processes)], chunksize=1)
    if sum(done) != len(files):
        sys.exit(f"{sum(done)} of {len(files)} done")


def decode_all(files: list[Path]) -> int:
    from PIL import Image

    for file in files:
        with Image.open(file) as image:
            image.load()
            image.convert("RGB")
    return len(files)


def measure_all(files: list[Path]) -> int:
    from cutline.annotators.facts import Facts
    from cutline.pictures import Picture

    rows = (
        {"key": file.name, "picture": Picture(file, content=hashlib.sha256(file.read_bytes()).hexdigest())}
        for file in files
    )
    return sum("error" not in answer for answer in Facts().load()(rows))


if __name__ == "__main__":
    main()
