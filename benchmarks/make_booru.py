"""Draw booru metadata that looks like the real thing, at any size: what the benchmarks of gathering and merging read.

300,000 tags in five categories, each drawn by Zipf's law; 35 tags a post on average, with a long tail; captions of
about 90 words for 95 posts in 100, some with quotation marks and line breaks; the size of a trainer's bucket for each.
Every chunk of posts is drawn from (seed, number of the chunk) alone, so any part of it can be drawn again.

    python benchmarks/make_booru.py FOLDER -n 200000           # metadata.parquet, captions.parquet, latents.json
    python benchmarks/make_booru.py FOLDER -n 200000 --seed-files   # and the JSON that seed 000's merge reads
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

CHUNK = 65_536
"""Posts."""

CATEGORIES = {  # tags, mean number a post, exponent of Zipf's law
    "general": (45_000, 32.5, 1.0),
    "character": (80_000, 1.6, 0.9),
    "copyright": (24_000, 1.2, 1.0),
    "artist": (150_000, 1.0, 0.7),
    "meta": (1_000, 3.2, 1.1),
}
WORDS, WORDS_A_CAPTION = 8_000, 90
BUCKETS = ((1024, 1024), (832, 1216), (1216, 832), (896, 1152), (1152, 896), (768, 1344), (1344, 768))
RATINGS = ("g", "s", "q", "e")
FIRST_ID = 1


def chunks(posts: int, seed: int = 0) -> Iterator[pa.Table]:
    """The posts, in order of their ids: id, rating, score, fav_count, tag_string_*, tag_count_*, caption, bucket."""
    for number, start in enumerate(range(0, posts, CHUNK)):
        yield _chunk(start, min(CHUNK, posts - start), np.random.default_rng((seed, number)))


def _chunk(start: int, rows: int, rng: np.random.Generator) -> pa.Table:
    rating = rng.choice(4, rows, p=[0.27, 0.53, 0.11, 0.09])
    bucket = np.array(BUCKETS)[rng.integers(len(BUCKETS), size=rows)]
    columns: dict[str, object] = {
        "id": np.arange(start, start + rows, dtype=np.int64) + FIRST_ID,
        "rating": pa.DictionaryArray.from_arrays(rating.astype(np.int32), list(RATINGS)).cast(pa.string()),
        "score": np.round(rng.lognormal(2.0 + 0.5 * rating, 1.0)).astype(np.int64) - 2,
        "fav_count": np.round(rng.lognormal(2.3 + 0.5 * rating, 1.1)).astype(np.int64),
    }
    busy = rng.lognormal(0.0, 0.45, rows)  # a picture with much to see has much of everything
    for category, (_, mean, _) in CATEGORIES.items():
        tags = _tags(category, rng.poisson(mean * busy / 1.1), rng)
        columns[f"tag_count_{category}"] = pc.list_value_length(tags).cast(pa.int64())
        columns[f"tag_string_{category}"] = pc.binary_join(tags, " ")
    columns["caption"] = _captions(rows, rng)
    columns["width"], columns["height"] = bucket[:, 0].astype(np.int32), bucket[:, 1].astype(np.int32)
    return pa.table(columns)


def _tags(category: str, counts: np.ndarray, rng: np.random.Generator) -> pa.ListArray:
    """So many different tags for each post, fewer where one is drawn twice."""
    names, cumulated = _vocabulary(category)
    drawn = np.searchsorted(cumulated, rng.random(int(counts.sum())))
    pairs = np.unique(np.repeat(np.arange(len(counts)), counts) * len(names) + drawn)
    offsets = np.searchsorted(pairs, np.arange(len(counts) + 1) * len(names))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), names.take(pa.array(pairs % len(names))))


@cache
def _vocabulary(category: str) -> tuple[pa.StringArray, np.ndarray]:
    size, _, exponent = CATEGORIES[category]
    rng = np.random.default_rng((1, len(category), size))
    weights = 1.0 / np.arange(1, size + 1) ** exponent
    made = {"general": "{0}_{1}", "character": "{0}_{1}_({2})", "copyright": "{0}_no_{1}", "artist": "{0}{1}"}
    form = made.get(category, "{0}_{1}_(medium)")
    words = _words()
    names: list[str] = []
    seen: set[str] = set()
    while len(names) < size:
        name = form.format(*(words[index] for index in rng.integers(len(words), size=3)))
        if name in seen:
            name += f"_{len(names)}"
        seen.add(name)
        names.append(name)
    if category == "general":
        names[:6] = ["1girl", "solo", "long_hair", "^_^", "o_o", "looking_at_viewer"]
    return pa.array(names), np.cumsum(weights) / weights.sum()


@cache
def _words() -> list[str]:
    rng = np.random.default_rng(2)
    syllables = [first + vowel for first in "bdfghklmnprstvz" for vowel in ("a", "e", "i", "o", "u", "en", "ar", "is")]
    return ["".join(rng.choice(syllables, rng.integers(1, 4))) for _ in range(WORDS)]


@cache
def _word_odds() -> np.ndarray:
    weights = 1.0 / np.arange(1, WORDS + 1)
    return np.asarray(np.cumsum(weights) / weights.sum())


def _captions(rows: int, rng: np.random.Generator) -> pa.StringArray:
    counts = np.maximum(rng.normal(WORDS_A_CAPTION, 20, rows).astype(np.int64), 5)
    drawn = np.searchsorted(_word_odds(), rng.random(int(counts.sum())))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    words = pa.array(_words()).take(pa.array(drawn))
    texts = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), words), " ")
    quoted = pa.array(rng.random(rows) < 0.08)
    texts = pc.if_else(quoted, pc.binary_join_element_wise(texts, 'A sign says "stop".', "\n"), texts)
    return pc.if_else(pa.array(rng.random(rows) < 0.05), None, texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-n", "--posts", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seed-files", action="store_true", help="also what seed 000's merge reads, as JSON")
    chosen = parser.parse_args()
    write(chosen.folder, chosen.posts, chosen.seed, seed_files=chosen.seed_files)


def write(folder: Path, posts: int, seed: int = 0, *, seed_files: bool = False) -> None:
    """Write the posts as people have them: danbooru's Parquet, a Parquet of captions, the trainer's JSON of buckets."""
    folder.mkdir(parents=True, exist_ok=True)
    writers: dict[str, pq.ParquetWriter] = {}
    objects = {"latents.json": _Object(folder / "latents.json")}
    if seed_files:
        objects |= {name: _Object(folder / name) for name in ("ids.json", "captions.json")}
    for table in chunks(posts, seed):
        count = sum(table.column(f"tag_count_{category}").to_numpy() for category in CATEGORIES)
        metadata = table.drop_columns(["caption", "width", "height"]).append_column("tag_count", pa.array(count))
        captions = pa.table({"index": table.column("id"), "florence_long": table.column("caption")})
        for name, part in (("metadata.parquet", metadata), ("captions.parquet", captions)):
            if name not in writers:
                writers[name] = pq.ParquetWriter(folder / name, part.schema)
            writers[name].write_table(part)
        keys = table.column("id").cast(pa.string()).to_pylist()
        sizes = zip(table.column("width").to_pylist(), table.column("height").to_pylist(), strict=True)
        objects["latents.json"].write(
            (key, {"train_resolution": list(size)}) for key, size in zip(keys, sizes, strict=True)
        )
        if seed_files:
            objects["ids.json"].write((key, {}) for key in keys)
            texts = table.column("caption").to_pylist()
            objects["captions.json"].write(
                (key, {"caption": text}) for key, text in zip(keys, texts, strict=True) if text
            )
    for writer in writers.values():
        writer.close()
    for written in objects.values():
        written.close()


class _Object:
    """A JSON object written as it comes, as seed 000's programs write it: ASCII, indented."""

    def __init__(self, path: Path) -> None:
        self._handle = path.open("w", encoding="ascii")
        self._between = "{\n  "

    def write(self, entries: Iterator[tuple[str, object]]) -> None:
        for key, value in entries:
            self._handle.write(f"{self._between}{json.dumps(key)}: {json.dumps(value, indent=2)}")
            self._between = ",\n  "

    def close(self) -> None:
        self._handle.write("\n}\n")
        self._handle.close()


if __name__ == "__main__":
    main()
