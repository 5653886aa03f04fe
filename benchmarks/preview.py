"""A preview of a whole dataset against its tokenizer alone: what everything else that it tells costs.

The baseline gives composed texts (200,000 of them) to the bare tokenizer of CLIP, `encode_batch_fast` in batches and on
all cores, and nothing else; they were composed before and lie in a file. A preview starts from the dataset: it composes
the texts, counts their tokens for both encoders of SDXL, compares ways to join tags and captions, follows every tag,
finds equal texts and all the rest. Taken in turns; the median of the ratios counts.

    python benchmarks/preview.py               # a million posts: a quarter of an hour on two cores
    python benchmarks/preview.py -n 50000
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import make_booru
from cutline.compose import clip
from cutline.compose.recipe import Recipe
from cutline.compose.tokens import find_trainer
from cutline.dataset import Dataset
from cutline.preview.survey import Survey, survey
from metadata import CAPTIONS, cutline, run
from pairs import finish, median_ratio, middle, say_machine, spread, take_pairs, verdict

RATIO = 2.0
"""At least half of the bare tokenizer's rate: at most twice its time."""

BATCH = 4096
RECIPE = {
    "tags": {"first_of": ["tags/danbooru"], "order": ["artist", "character", "copyright", "general", "meta"]},
    "captions": {"first_of": ["captions/florence-long"]},
    "text": {"order": ["tags", "caption"]},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--posts", type=int, default=1_000_000)
    parser.add_argument("--texts", type=int, default=200_000, help="of the baseline, at most; its time is scaled up")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="of the preview; the baseline tokenises one")
    parser.add_argument("--folder", type=Path, help="where to put it all, and to leave it; by default it is removed")
    chosen = parser.parse_args()
    say_machine()
    with tempfile.TemporaryDirectory(prefix="cutline-preview-") as temporary:
        home = chosen.folder or Path(temporary)
        dataset, recipe = Dataset(home / "dataset"), Recipe.parse(RECIPE)
        fill(home, chosen.posts)
        texts = home / "texts.parquet"
        compose(dataset, recipe, texts)
        found: list[Survey] = []
        tokens: list[int] = []

        def preview() -> float:
            start = time.perf_counter()
            found.append(survey(dataset, recipe, find_trainer("kohya-sdxl"), epochs=chosen.epochs))
            return time.perf_counter() - start

        some = min(chosen.texts, chosen.posts)
        pairs = take_pairs(chosen.pairs, lambda: tokenise(texts, some, tokens) * chosen.posts / some, preview)
    counted = found[0].encoders[0].tokens
    if chosen.epochs == 1 and some == chosen.posts:
        assert int((counted.values * counted.counts).sum()) == tokens[0], "both count the same tokens"
    rate, ours = (chosen.posts / middle(pairs, side) for side in (0, 1))
    print(f"{found[0].texts:,} texts of {tokens[0] / some:.0f} tokens on average")
    print(f"the tokenizer alone: {rate:,.0f} texts/s; preview: {ours:,.0f} pictures/s")
    print(f"most memory held: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB, both sides in turn")
    finish(verdict("preview's time over the bare tokenizer's", median_ratio(pairs), RATIO, "times", spread(pairs)))


def fill(home: Path, posts: int) -> None:
    """Make a dataset of tags and captions, unless that was done."""
    if (home / "dataset").exists():
        return
    make_booru.write(home, posts)
    (home / "dataset").mkdir()
    (home / "captions.toml").write_text(CAPTIONS)
    run(cutline("add", home / "dataset", home / "metadata.parquet", "--from", "booru"))
    options = ("--from", "booru", "-o", f"map={home / 'captions.toml'}")
    run(cutline("add", home / "dataset", home / "captions.parquet", *options))


def compose(dataset: Dataset, recipe: Recipe, path: Path) -> None:
    """Write the texts of all posts to a Parquet file; where there is nothing to say, an empty one."""
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())])) as writer:
        for batch in dataset.scan(*recipe.layers, fields=recipe.fields, rows=BATCH):
            texts = recipe.compose(batch, seed=0).fill_null("")
            writer.write_batch(pa.RecordBatch.from_arrays([texts], names=["text"]))


def tokenise(path: Path, some: int, tokens: list[int]) -> float:
    """Tokenise so many of them; the seconds of the tokenizer alone."""
    tokenizer = clip.packaged()
    assert tokenizer is not None, "pip install --no-deps open_clip_torch"
    seconds, count, done = 0.0, 0, 0
    for batch in pq.ParquetFile(path).iter_batches(BATCH):
        texts = batch.column(0).to_pylist()[: some - done]
        done += len(texts)
        start = time.perf_counter()
        made = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        seconds += time.perf_counter() - start
        count += sum(map(len, made))
        if done == some:
            break
    tokens.append(count)
    return seconds


if __name__ == "__main__":
    main()
