"""How full `annotate` keeps a server: 512 requests of 0.2 s against one that works on 64 at once.

The ideal is what no client can beat: 512 requests in 64 slots are 8 rounds of 0.2 s, 1.6 s. The server is a process of
its own (tests/misbehaving.py); what is more than its slots waits there, as it does in real ones. Half as many again as
it has slots are in flight, so that a slot that falls free finds the next request. Measured are

- the engine: `annotate` with the annotator `server`, by `Report.seconds`, from the worker's being ready to the last
  row's being on disk;
- the session alone, on the same pictures: from the first row to the last answer, without a parent and without a disk.

A bare loop of aiohttp that sends one body 512 times is timed beside them: what this machine could do.

Pictures are small, so that two cores can read, decode and encode 320 of them a second beside the server, which no
captioner could describe so fast: what is measured is whether the server is kept full, and not Pillow.

    python benchmarks/server_in_flight.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from PIL import Image

from cutline import options, registry
from cutline.annotators.server import Server, data_url
from cutline.annotators.session import Row
from cutline.dataset import Dataset
from cutline.engine.here import annotate
from cutline.engine.selection import Selection
from cutline.pictures import Picture
from misbehaving import MODEL, counts, process
from pairs import finish, say_machine

TARGET = 0.90


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--requests", type=int, default=512)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.2, help="how long the server takes for each")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    say_machine()
    ideal = chosen.requests * chosen.seconds / chosen.slots
    with tempfile.TemporaryDirectory(prefix="cutline-server-") as temporary:
        root = Path(temporary) / "pictures"
        draw(root, chosen.requests)
        dataset = Dataset(root)
        dataset.add(options.fill(registry.load("sources", "folder"), {"path": str(root)}))
        taken: dict[str, list[float]] = {"bare aiohttp": [], "session": [], "engine": []}
        with process(slots=chosen.slots, seconds=chosen.seconds) as (url, _):
            in_flight = chosen.slots * 3 // 2
            given = {"endpoints": url, "model": MODEL, "in_flight": in_flight}
            settings = options.fill(Server, given)
            for number in range(chosen.rounds):
                taken["bare aiohttp"].append(bare(url, dataset, chosen.requests, in_flight))
                taken["session"].append(by_session(settings, dataset, chosen.requests))
                taken["engine"].append(by_engine(settings, dataset, chosen.requests, number))
                print(", ".join(f"{name} {seconds[-1]:.2f} s" for name, seconds in taken.items()), flush=True)
            seen = counts(url)
    wanted = 3 * chosen.rounds * chosen.requests
    if seen["asked"] != wanted or seen["peak"] > in_flight:
        sys.exit(f"the server was asked {seen['asked']} times, up to {seen['peak']} at once")
    print(f"{chosen.requests} requests of {chosen.seconds:g} s in {chosen.slots} slots: {ideal:.2f} s is ideal")
    shares = {name: ideal / statistics.median(seconds) for name, seconds in taken.items()}
    for name, share in shares.items():
        rate = chosen.requests / statistics.median(taken[name])
        print(f"{name}: {rate:.0f} requests/s, {share:.1%} of the ideal rate (median of {chosen.rounds})")
    met = shares["engine"] >= TARGET
    print(f"engine / bare aiohttp: {shares['engine'] / shares['bare aiohttp']:.1%}")
    print(f"{'met   ' if met else 'MISSED'} engine / ideal: {shares['engine']:.1%}, target at least {TARGET:.0%}")
    finish(met)


def draw(folder: Path, count: int) -> None:
    """Write small JPEGs."""
    folder.mkdir()
    for number in range(count):
        Image.radial_gradient("L").resize((96, 64)).rotate(number).convert("RGB").save(folder / f"{number:04}.jpg")


def bare(url: str, dataset: Dataset, count: int, in_flight: int) -> float:
    """Seconds of a loop that anyone would write, which sends one body again and again."""
    import aiohttp

    file = next(Path(dataset.root).glob("*.jpg"))
    shown = {"type": "image_url", "image_url": {"url": data_url(Picture(file), 1 << 20, "jpeg", file.name)}}
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": [shown]}]}).encode()

    async def all_of_them() -> float:
        free = asyncio.Semaphore(in_flight)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

            async def one() -> None:
                async with free, http.post(f"{url}/chat/completions", data=body) as reply:
                    assert (await reply.json())["choices"]

            start = time.perf_counter()
            await asyncio.gather(*(one() for _ in range(count)))
            return time.perf_counter() - start

    return asyncio.run(all_of_them())


def by_session(settings: Server, dataset: Dataset, count: int) -> float:
    """Seconds of the session, fed from a list."""
    files = sorted(Path(dataset.root).glob("*.jpg"))
    rows: list[Row] = [
        {"key": file.name, "uri": file.name, "picture": Picture(file), "attempt": 1, "content": None} for file in files
    ]
    session = settings.load()
    start = time.perf_counter()
    answers = list(session(iter(rows)))
    seconds = time.perf_counter() - start
    assert len(answers) == count
    assert all(answer["verdict"] == "good" for answer in answers)
    return seconds


def by_engine(settings: Server, dataset: Dataset, count: int, number: int) -> float:
    """Seconds of `annotate`."""
    report = annotate(Selection(dataset, settings, f"captions/server-{number}"))
    assert report.good == count, report
    return report.seconds


if __name__ == "__main__":
    main()
