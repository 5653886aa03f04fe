"""The store: whatever is written, folded, compacted, killed or raced, the newest good row of a key wins."""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutline import layer as layer_module
from cutline.dataset import Dataset, KeyRule
from cutline.layer import FOLD_AT, IdentityError, Layer, LayerWriter, layers_below, rank
from cutline.options import CutlineError

LAYER = "captions/x"
FLUSHES = int(os.environ.get("CUTLINE_TEST_FLUSHES", "20000"))
"""Of one row each. The promise is about 100,000, which takes this machine over four minutes: set it by hand."""


def memory_folder() -> str | None:
    """Where a sync costs nothing, for tests of many small parts."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture
def quick() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        yield Path(folder)


@pytest.fixture
def dataset(quick: Path) -> Dataset:
    return new_dataset(quick)


def new_dataset(folder: Path) -> Dataset:
    """A dataset whose pictures are rows only."""
    made = Dataset(folder)
    made.create(KeyRule())
    return made


def show(dataset: Dataset, **pictures: str | None) -> None:
    """Say what each picture is now: key=content."""
    with dataset.layer("pictures").write() as writer:
        for key, content in pictures.items():
            writer.add({"key": key, "uri": key, "content": content})


def part(dataset: Dataset, *rows: dict[str, Any], layer: str = LAYER) -> Path:
    """Publish these rows as one part."""
    before = set(dataset.layer(layer).parts())
    with dataset.layer(layer).write() as writer:
        for row in rows:
            writer.add(row)
    (made,) = set(dataset.layer(layer).parts()) - before
    return made


def good(key: str, text: str, content: str | None = None) -> dict[str, Any]:
    return {"key": key, "texts": [text], "content": content}


def bad(key: str, error: str, content: str | None = None, **more: Any) -> dict[str, Any]:
    return {"key": key, "error": error, "content": content, **more}


def said(dataset: Dataset) -> dict[str, str]:
    """What the view says: key -> text, or the error."""
    rows = dataset.sql(f'select key, coalesce(text, error) from "{LAYER}"').fetchall()
    assert len(dict(rows)) == len(rows), "one row for each key"
    return dict(rows)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.parquet")}


# -- which row wins -----------------------------------------------------------------------------------------------


def test_newest_good_row_wins(dataset: Dataset) -> None:
    for text in ("first", "second", "third"):
        part(dataset, good("a", text))
    assert said(dataset) == {"a": "third"}


def test_a_row_without_error_beats_one_with(dataset: Dataset) -> None:
    part(dataset, bad("a", "failed"), bad("b", "failed"))
    part(dataset, good("a", "words"))
    part(dataset, bad("a", "no_answer"), bad("b", "no_answer"))
    assert said(dataset) == {"a": "words", "b": "no_answer"}


def test_the_number_of_a_part_decides_and_no_clock(dataset: Dataset) -> None:
    folder = dataset.layer(LAYER).folder
    parts = [part(dataset, good("a", text)) for text in ("first", "second", "third")]
    assert [re.fullmatch(r"(\d{6})-[0-9a-f]{6}\.parquet", path.name)[1] for path in parts] == [  # type: ignore[index]
        "000001",
        "000002",
        "000003",
    ]
    for age, path in enumerate(parts):
        os.utime(path, (1e9 - age, 1e9 - age))
    assert said(dataset) == {"a": "third"}
    assert dataset.layer(LAYER).parts() == parts
    parts[2].rename(folder / "000000-ffffff.parquet")
    assert said(Dataset(dataset.root)) == {"a": "second"}
    (folder / "000000-ffffff.parquet").rename(folder / "1234567-000000.parquet")  # more digits than six
    assert said(dataset) == {"a": "third"}
    assert part(dataset, good("a", "fourth")).name.startswith("1234568-")
    assert said(dataset) == {"a": "fourth"}


def test_of_parts_of_one_number_the_random_digits_decide(dataset: Dataset) -> None:
    folder = dataset.layer(LAYER).folder
    for digits, text in (("00000b", "b"), ("00000a", "a"), ("00000c", "c")):
        part(dataset, good("k", text)).rename(folder / f"000007-{digits}.parquet")
    assert said(dataset) == {"k": "c"}
    dataset.compact(LAYER)
    assert said(dataset) == {"k": "c"}


def test_deleting_clears_a_key(dataset: Dataset) -> None:
    part(dataset, good("a", "words"), good("a", "of another", "c1"), good("b", "kept"))
    part(dataset, {"key": "a", "deleted": True})
    assert said(dataset) == {"b": "kept"}
    part(dataset, good("a", "again"))
    assert said(dataset) == {"a": "again", "b": "kept"}


def test_an_error_that_deletes_replaces_what_was_before(dataset: Dataset) -> None:
    part(dataset, good("a", "words"))
    part(dataset, bad("a", "vanished", deleted=True))
    assert said(dataset) == {"a": "vanished"}
    part(dataset, bad("a", "failed"))
    assert said(dataset) == {"a": "failed"}
    part(dataset, good("a", "back"))
    assert said(dataset) == {"a": "back"}


def test_rows_of_another_content_come_back_with_it(dataset: Dataset) -> None:
    show(dataset, a="c1", b="c1")
    part(dataset, good("a", "about c1", "c1"), good("b", "about c1", "c1"))
    part(dataset, good("a", "about c2", "c2"))
    assert said(dataset) == {"a": "about c1", "b": "about c1"}
    show(dataset, a="c2")
    assert said(dataset) == {"a": "about c2", "b": "about c1"}
    show(dataset, a="c3")
    assert said(dataset) == {"b": "about c1"}
    assert [key for (key, *_) in dataset.sql("select key from pictures").fetchall()]
    assert [row[0] for row in dataset.missing(LAYER).fetchall()] == ["a"]
    dataset.compact()
    show(dataset, a="c1")
    assert said(dataset) == {"a": "about c1", "b": "about c1"}


def test_a_row_without_content_goes_for_whatever_is_there(dataset: Dataset) -> None:
    show(dataset, a="c1", b=None)
    part(dataset, good("a", "typed"), good("b", "typed", "c9"), good("stranger", "typed", "c9"))
    assert said(dataset) == {"a": "typed", "b": "typed", "stranger": "typed"}
    show(dataset, a="c2")
    assert said(dataset)["a"] == "typed"
    assert dataset.missing(LAYER).fetchall() == []


# -- one writer ---------------------------------------------------------------------------------------------------


def test_one_flush_says_what_the_same_rows_say_in_many(dataset: Dataset) -> None:
    """When rows are published is chance; what they say must not depend on it."""
    scripts: dict[str, list[dict[str, Any]]] = {
        "deleted after": [good("", "one", "c1"), {"deleted": True}],
        "deleted before": [{"deleted": True}, good("", "two")],
        "error after": [good("", "three"), bad("", "failed")],
        "error before": [bad("", "failed"), good("", "four")],
        "replaced": [good("", "five"), bad("", "vanished", deleted=True)],
        "replaced and back": [good("", "six", "c1"), bad("", "vanished", deleted=True), good("", "seven")],
        "twice": [good("", "eight"), good("", "nine")],
    }
    for together, prefix in ((True, "t/"), (False, "s/")):
        with LayerWriter(dataset.layer(LAYER)) as writer:
            writer.add(good(prefix + "deleted before", "zero"))
            writer.add(good(prefix + "deleted before", "zero", "c1"))
            writer.flush()
            for name, rows in scripts.items():
                for row in rows:
                    writer.add({**row, "key": prefix + name})
                    if not together:
                        writer.flush()
    found = said(dataset)
    for name in scripts:
        assert found.get("t/" + name) == found.get("s/" + name), name
    assert found["s/twice"] == "nine"
    assert found["s/error after"] == "three"
    assert found["s/replaced and back"] == "seven"
    assert "s/deleted after" not in found


def test_a_writer_flushes_by_time(dataset: Dataset) -> None:
    writer = LayerWriter(dataset.layer(LAYER), flush_seconds=0.2)
    assert not writer.tick()
    writer.add(good("a", "words"))
    assert not writer.tick()
    assert writer.waiting == 1
    time.sleep(0.25)
    assert writer.tick()
    assert (writer.waiting, writer.published) == (0, 1)
    assert said(dataset) == {"a": "words"}
    assert not writer.tick()


def test_a_writer_flushes_by_size(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_module, "FLUSH_ROWS", 10)
    writer = LayerWriter(dataset.layer(LAYER))
    for number in range(25):
        writer.add(good(f"k{number}", "words"))
    assert (writer.waiting, writer.published) == (5, 20)
    assert [pq.read_metadata(path).num_rows for path in dataset.layer(LAYER).parts()] == [10, 10]


def test_a_row_that_does_not_fit_becomes_an_error_row(dataset: Dataset) -> None:
    rows: list[dict[str, Any]] = [
        {"key": "text for a list", "texts": 5},
        {"key": "a list for text", "raw": ["x"]},
        {"key": "too long", "attempt": 1 << 40},
        {"key": "surrogate", "texts": ["\ud83d"]},
        {"key": "words for a number", "seconds": "long"},
        {"key": "content too", "seconds": "long", "content": "c1"},
        good("good", "words"),
    ]
    part(dataset, *rows)
    found = {row[0]: row[1:] for row in dataset.sql(f'select key, error, detail, content from "{LAYER}"').fetchall()}
    assert {key for key, row in found.items() if row[0] == "bad_row"} == {row["key"] for row in rows} - {"good"}
    assert found["good"] == (None, None, None)
    assert found["content too"][2] == "c1"
    assert all(detail and detail.isascii() for error, detail, _ in found.values() if error)


def test_a_column_that_the_kind_lacks_is_refused(dataset: Dataset) -> None:
    with pytest.raises(CutlineError, match=r"no column \['rating'\].*texts, raw"):
        LayerWriter(dataset.layer(LAYER)).add({"key": "a", "rating": "s"})
    for name in ("nonsense", "captions/../x", "captions/", "captions/a b", "captions//x"):
        with pytest.raises(CutlineError, match="layer"):
            dataset.layer(name)


def test_a_part_is_sorted_and_says_where_it_was_made(dataset: Dataset) -> None:
    made = part(dataset, *(good(key, "words") for key in ("b", "ü", "a", "B", "z", "猫", "😀")))
    table = pq.read_table(made)
    keys = table.column("key").to_pylist()
    assert keys == sorted(keys, key=str.encode)
    about = json.loads(pq.read_metadata(made).metadata[b"cutline"])
    assert set(about) == {"cutline", "machine", "python", "plain"}
    assert set(pq.ParquetFile(made).metadata.row_group(0).column(0).compression.split()) == {"ZSTD"}


def test_torn_and_foreign_files_are_no_parts(dataset: Dataset) -> None:
    part(dataset, good("a", "words"))
    folder = dataset.layer(LAYER).folder
    for name in (".part-0123456789ab.tmp", "000002-abcdef.parquet.tmp", "000002-abcdef.parquet~", "notes.parquet"):
        (folder / name).write_bytes(b"PAR1 torn")
    assert len(dataset.layer(LAYER).parts()) == 1
    assert said(dataset) == {"a": "words"}
    part(dataset, good("b", "words"))
    dataset.compact()
    assert said(dataset) == {"a": "words", "b": "words"}


def test_compacting_clears_away_what_killed_writers_left(dataset: Dataset) -> None:
    folder = dataset.layer(LAYER).folder
    kept = part(dataset, good("a", "words"))
    names = (".part-0123456789ab.tmp", ".layer-0123456789ab.json")
    for name in names:
        (folder / name).write_bytes(b"PAR1")
    dataset.compact()
    assert {path.name for path in folder.iterdir()} == {kept.name, *names}, "they may be someone's present work"
    for name in names:
        os.utime(folder / name, (1e9, 1e9))
    dataset.compact()
    assert list(folder.iterdir()) == [kept]


def test_layers_are_found_below_their_folder(dataset: Dataset) -> None:
    part(dataset, good("a", "words"))
    part(dataset, {"key": "a", "general": ["cat"]}, layer="tags/danbooru")
    show(dataset, a="c1")
    with dataset.layer("facts").write("facts", {}) as writer:
        writer.add({"key": "a"})
    dataset.layer("captions/none").write("echo", {})  # a layer is there with its first rows
    for number in range(2):
        part(dataset, good("a", f"{number}"), layer="captions/deep/er")
    dataset.compact("captions/deep/er")
    (dataset.home / "layers" / "somebody's").mkdir()
    assert [layer.name for layer in layers_below(dataset.home / "layers")] == [
        "captions/deep/er",
        "captions/x",
        "facts",
        "pictures",
        "tags/danbooru",
    ]


# -- identity -----------------------------------------------------------------------------------------------------


def test_other_settings_are_refused_with_the_way_out(dataset: Dataset) -> None:
    layer = dataset.layer("captions/m")
    with layer.write("blip", {"model": "base", "beams": 3}) as writer:
        writer.add(good("a", "words"))
    layer.write("blip", {"beams": 3, "model": "base"})  # in any order
    with pytest.raises(IdentityError) as refused:
        layer.write("blip", {"model": "large", "beams": 3})
    text = str(refused.value)
    assert 'model: "base" made it, now "large"' in text
    assert "beams" not in text
    assert "--as captions/m-b" in text
    with pytest.raises(IdentityError, match="annotator: blip made it, now florence2"):
        layer.write("florence2", {"model": "base", "beams": 3})
    with pytest.raises(IdentityError, match="beams: 3 made it, now null"):
        layer.write("blip", {"model": "base"})
    info = layer.info()
    assert info is not None
    assert (info["annotator"], info["settings"]) == ("blip", {"model": "base", "beams": 3})


def test_sources_and_annotators_keep_out_of_each_others_layers(dataset: Dataset) -> None:
    part(dataset, good("a", "a person's"), layer="captions/human")
    with pytest.raises(IdentityError, match="--as captions/human-blip"):
        dataset.layer("captions/human").write("blip", {})
    with dataset.layer("captions/m").write("blip", {}) as writer:
        writer.add(good("a", "a model's"))
    with pytest.raises(IdentityError, match="written by blip"):
        dataset.layer("captions/m").write()


ROUNDS = 25


def claim(home: Path, me: str, barrier: Barrier, results: Any) -> None:
    won = []
    for number in range(ROUNDS):
        layer = Layer(home, f"captions/r{number}")
        barrier.wait(60)
        try:
            with layer.write("echo", {"says": me}) as writer:
                writer.add(good("a", me))
        except IdentityError:
            won.append(False)
        else:
            won.append(True)
    results.put((me, won))


def test_two_processes_that_make_one_layer_agree_whose_it_is(quick: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    children = [context.Process(target=claim, args=(quick, me, barrier, results)) for me in ("left", "right")]
    for child in children:
        child.start()
    won = dict(results.get(timeout=60) for _ in children)
    for child in children:
        child.join()
    for number in range(ROUNDS):
        layer = Layer(quick, f"captions/r{number}")
        info = layer.info()
        assert info is not None
        winners = [me for me in won if won[me][number]]
        assert winners == [info["settings"]["says"]], f"round {number}"
        rows = [row["texts"] for path in layer.parts() for row in pq.read_table(path).to_pylist()]
        assert rows == [winners]
        assert sorted(path.name for path in layer.folder.iterdir() if path.suffix != ".parquet") == ["layer.json"]


# -- folding and compacting ---------------------------------------------------------------------------------------


def test_a_writer_folds_its_own_small_parts(dataset: Dataset) -> None:
    layer = dataset.layer(LAYER)
    with LayerWriter(layer) as writer:
        for number in range(FOLD_AT - 1):
            writer.add(good(f"k{number:02d}", f"{number}"))
            writer.flush()
        before = hashes(layer.folder)
        assert len(layer.parts()) == FOLD_AT - 1
        writer.add(good("k00", "newer"))
        writer.flush()
        (folded,) = layer.parts()
        assert pq.read_metadata(folded).num_rows == FOLD_AT
        after = hashes(layer.folder)
        assert before.items() <= after.items()  # the inputs wait in retired/, as they were
        assert len(list((layer.folder / "retired").iterdir())) == FOLD_AT
        expected = {f"k{number:02d}": f"{number}" for number in range(FOLD_AT - 1)} | {"k00": "newer"}
        assert said(dataset) == expected
        # A folded row keeps the rank of the part that it came from: later rows of others still beat it.
        ranks = dict(zip(*(pq.read_table(folded).column(name).to_pylist() for name in ("key", "rank")), strict=True))
        assert ranks["k01"] < ranks["k02"] < rank(folded)


def test_folding_between_anothers_rows_changes_nothing(dataset: Dataset) -> None:
    """The fold is a newer part than the other writer's row, but holds older rows."""
    slow = LayerWriter(dataset.layer(LAYER))
    for number in range(FOLD_AT):
        if number == FOLD_AT // 2:
            part(dataset, good("same", "the other's"), {"key": "cleared", "deleted": True})
        row = {0: good("same", "mine"), 1: good("cleared", "mine"), FOLD_AT - 1: good("mine", "last")}
        slow.add(row.get(number, good(f"k{number}", "x")))
        slow.flush()
    assert len(dataset.layer(LAYER).parts()) == 2
    found = said(dataset)
    assert found["same"] == "the other's"
    assert "cleared" not in found
    dataset.compact(LAYER)
    assert said(dataset) == found


def test_compacting_keeps_what_every_content_has(dataset: Dataset) -> None:
    for number, key in enumerate(["a", "b", "c", "d"] * 5):
        show(dataset, **{key: f"c{number % 3}"})
        part(dataset, good(key, f"{number}", f"c{number % 3}"), good("shared", f"{number}"))
    part(dataset, {"key": "d", "deleted": True})
    before = said(dataset)
    kept = hashes(dataset.home)
    done = dataset.compact()
    assert done == {LAYER: (21, 1), "pictures": (20, 1)}
    assert said(dataset) == before
    assert kept.items() <= hashes(dataset.home).items()
    assert dataset.compact() == {LAYER: (1, 1), "pictures": (1, 1)}
    for content in ("c0", "c1", "c2"):
        show(dataset, a=content)
        assert "a" in said(dataset)


def test_compacting_cuts_all_layers_at_the_same_keys(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutline.dataset.cuts.PICTURES_PER_CUT", 10)
    keys = [f"k{number:03d}" for number in range(45)] + ["猫", "😀"]
    with dataset.layer("pictures").write() as writer:
        for key in keys:
            writer.add({"key": key, "uri": key, "content": "c"})
            writer.flush()
    part(dataset, *(good(key, "old") for key in keys[::2]))
    part(dataset, *(good(key, "new") for key in keys[::3]), good("a key of no picture", "x"), good("~", "y"))
    before = said(dataset)
    dataset.compact()
    assert said(dataset) == before
    ranges: dict[str, list[tuple[str, str]]] = {}
    for name in ("pictures", LAYER):
        found = (pq.read_table(path).column("key").to_pylist() for path in dataset.layer(name).parts())
        ranges[name] = [(keys[0], keys[-1]) for keys in found]
    assert len(ranges["pictures"]) == len(ranges[LAYER]) == 5
    cuts = [first for first, _ in ranges["pictures"]][1:]
    assert cuts == ["k010", "k020", "k030", "k040"]
    for (_, last), (first, _), cut in zip(ranges[LAYER], ranges[LAYER][1:], cuts, strict=False):
        assert last < cut <= first


def test_a_crash_between_any_two_steps_of_compacting_changes_nothing(dataset: Dataset) -> None:
    """Outputs are published one by one, then inputs retired one by one, in whatever order: stop after each."""
    contents = ["c0", "c1"]
    show(dataset, a="c0", b="c1")
    for number in range(8):
        part(
            dataset,
            good("a", f"a{number}", contents[number % 2]),
            good("b", f"b{number}", "c1") if number % 3 else {"key": "b", "deleted": True},
            good("cleared", f"{number}") if number < 6 else {"key": "cleared", "deleted": True},
            good(f"only{number}", "x"),
        )
    folder = dataset.layer(LAYER).folder
    inputs = {path.name: path.read_bytes() for path in dataset.layer(LAYER).parts()}
    truth = said(dataset)
    dataset.compact(LAYER)
    outputs = {path.name: path.read_bytes() for path in dataset.layer(LAYER).parts()}
    assert said(dataset) == truth
    steps: list[dict[str, bytes]] = []
    published = dict(inputs)
    for name in sorted(outputs):
        published[name] = outputs[name]
        steps.append(dict(published))
    for order in (sorted(inputs), sorted(inputs, reverse=True)):
        left = dict(published)
        for name in order:
            del left[name]
            steps.append(dict(left))
    for number, step in enumerate(steps):
        for path in folder.glob("*.parquet"):
            path.unlink()
        for name, data in step.items():
            (folder / name).write_bytes(data)
        fresh = Dataset(dataset.root)
        assert said(fresh) == truth, f"after step {number}"
        fresh.compact(LAYER)  # and the next compact tidies up
        assert said(fresh) == truth, f"compacted after step {number}"
        assert len(fresh.layer(LAYER).parts()) == 1


def test_a_crash_between_any_two_steps_of_folding_changes_nothing(dataset: Dataset) -> None:
    folder = dataset.layer(LAYER).folder
    inputs: dict[str, bytes] = {}
    with LayerWriter(dataset.layer(LAYER)) as writer:
        for number in range(FOLD_AT):
            if number == 20:
                part(dataset, {"key": "k3", "deleted": True}, good("k4", "other"))
            writer.add(good(f"k{number % 7}", f"{number}") if number < 9 else bad(f"k{number % 7}", f"{number}"))
            writer.flush()
            if number == FOLD_AT - 2:
                truth = said(dataset)
                assert truth["k4"] == "other"
                assert truth["k3"] == "24"
    inputs = {path.name: path.read_bytes() for path in (folder / "retired").iterdir()}
    assert len(inputs) == FOLD_AT
    truth = said(dataset)
    for name in sorted(inputs):  # bring them back one by one
        (folder / name).write_bytes(inputs[name])
        assert said(dataset) == truth
    dataset.compact(LAYER)
    assert said(dataset) == truth


def test_a_fold_whose_parts_a_compact_took_is_left_to_it(dataset: Dataset) -> None:
    with LayerWriter(dataset.layer(LAYER)) as writer:
        for number in range(FOLD_AT + 5):
            writer.add(good(f"k{number:02d}", f"{number}"))
            writer.flush()
            if number == FOLD_AT - 10:
                dataset.compact(LAYER)
    assert said(dataset) == {f"k{number:02d}": f"{number}" for number in range(FOLD_AT + 5)}
    dataset.compact(LAYER)
    assert said(dataset) == {f"k{number:02d}": f"{number}" for number in range(FOLD_AT + 5)}


# -- any sequence -------------------------------------------------------------------------------------------------

KEYS, CONTENTS = st.sampled_from("abc"), st.sampled_from([None, "c1", "c2"])
STEPS = st.one_of(
    st.tuples(st.just("good"), st.integers(0, 1), KEYS, CONTENTS),
    st.tuples(st.just("rejected"), st.integers(0, 1), KEYS, CONTENTS),
    st.tuples(st.just("bad"), st.integers(0, 1), KEYS, CONTENTS),
    st.tuples(st.just("replace"), st.integers(0, 1), KEYS, CONTENTS),
    st.tuples(st.just("delete"), st.integers(0, 1), KEYS, st.none()),
    st.tuples(st.sampled_from(["flush", "flush", "restart"]), st.integers(0, 1), st.none(), st.none()),
    st.tuples(st.just("picture"), st.just(0), KEYS, st.sampled_from(["c1", "c2"])),
    st.tuples(st.sampled_from(["compact", "unretire"]), st.just(0), st.none(), st.none()),
)


class Model:
    """The store's rules in memory: rows in the order of their publishing, and what each picture is now."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.now = {"a": "c1", "b": "c1", "c": "c2"}
        self.flushes = 0

    def publish(self, waiting: list[dict[str, Any]]) -> None:
        """One part: a deleted row clears its key's before it; of one content a good row stays, else the last."""
        self.flushes += 1
        kept: dict[str, dict[Any, dict[str, Any]]] = {}
        for row in waiting:
            mine = kept.setdefault(row["key"], {})
            if row.get("deleted"):
                mine.clear()
                mine["deleted"] = row
            elif not (row.get("error") and row.get("content") in mine and not mine[row.get("content")].get("error")):
                mine[row.get("content")] = row
        self.rows += [(self.flushes, row) for mine in kept.values() for row in mine.values()]

    def winner(self, key: str) -> dict[str, Any] | None:
        mine = [(flush, row) for flush, row in self.rows if row["key"] == key]
        cut = max((flush for flush, row in mine if row.get("deleted")), default=0)
        best = [
            ((row.get("error") is None, flush, row.get("content") is not None, not row.get("deleted")), row)
            for flush, row in mine
            if flush >= cut
            and not (row.get("deleted") and row.get("error") is None)
            and row.get("content") in (None, self.now[key])
        ]
        return max(best, key=lambda entry: entry[0])[1] if best else None

    def said(self) -> dict[str, str]:
        winners = {key: self.winner(key) for key in self.now}
        return {key: row["raw"] for key, row in winners.items() if row is not None}

    def missing(self, retry: str) -> list[str]:
        lacks = []
        for key in self.now:
            row = self.winner(key)
            again = row is not None and (
                (retry == "errors" and row.get("error")) or (retry == "rejected" and row.get("verdict") == "rejected")
            )
            if row is None or again:
                lacks.append(key)
        return lacks


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(STEPS, min_size=6, max_size=30))
def test_any_sequence_of_writes_folds_and_compacts_says_what_the_model_says(steps: list[tuple[Any, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(layer_module, "FOLD_AT", 2)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory_folder())))
        dataset = new_dataset(folder)
        model = Model()
        show(dataset, **model.now)
        writers = [LayerWriter(dataset.layer(LAYER)) for _ in range(2)]
        waiting: list[list[dict[str, Any]]] = [[], []]

        def flush(who: int) -> None:
            if waiting[who]:
                writers[who].flush()
                model.publish(waiting[who])
                waiting[who] = []

        for number, (what, who, key, content) in enumerate(steps):
            row = {"key": key, "content": content, "raw": f"row {number}"}
            match what:
                case "good":
                    row["verdict"] = "good"
                case "rejected":
                    row["verdict"] = "rejected"
                case "bad":
                    row["error"] = "failed"
                case "replace":
                    row.update(error="vanished", deleted=True)
                case "delete":
                    writers[who].delete(key)
                    waiting[who].append({"key": key, "deleted": True})
                    continue
                case "flush":
                    flush(who)
                case "restart":
                    flush(who)
                    writers[who] = LayerWriter(dataset.layer(LAYER))
                case "picture":
                    show(dataset, **{key: content})
                    model.now[key] = content
                case "compact":
                    dataset.compact()
                case "unretire":  # what a crash before the retiring would have left, now or long ago
                    for old in (dataset.layer(LAYER).folder / "retired").glob("*.parquet"):
                        shutil.copy(old, old.parent.parent / old.name)
            if what in ("good", "rejected", "bad", "replace"):
                writers[who].add(row)
                waiting[who].append(row)
            elif dataset.layer(LAYER).parts():
                rows = dataset.sql(f'select key, raw from "{LAYER}"').fetchall()
                assert len(dict(rows)) == len(rows)
                assert dict(rows) == model.said(), f"after step {number}, {what}"
        for who in range(2):
            flush(who)
        for _ in range(2):
            for retry in ("", "errors", "rejected"):
                found = [row[0] for row in dataset.missing(LAYER, retry=retry).fetchall()]
                assert found == model.missing(retry), f"missing with retry={retry!r}"
            dataset.compact()


# -- many parts, many processes -----------------------------------------------------------------------------------


def write_many(home: Path, me: int, count: int) -> None:
    with LayerWriter(Layer(home, LAYER)) as writer:
        for number in range(count):
            writer.add(good(f"{me}-{number:04d}", f"{me}"))
            writer.add(good("contested", f"{me}-{number:04d}"))
            writer.flush()


@pytest.mark.slow
def test_processes_write_fold_and_compact_at_once(quick: Path) -> None:
    dataset = new_dataset(quick)
    home = dataset.home / "layers"
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=write_many, args=(home, me, 150)) for me in range(3)]
    for child in children:
        child.start()
    while any(child.is_alive() for child in children):
        if dataset.layer(LAYER).parts():
            dataset.compact(LAYER)
            ((count, distinct),) = dataset.sql(f'select count(*), count(distinct key) from "{LAYER}"').fetchall()
            assert 0 < count == distinct
    assert [child.exitcode for child in children] == [0, 0, 0]
    for _ in range(2):
        found = said(dataset)
        assert len(found) == 3 * 150 + 1
        assert found["contested"].endswith("-0149")
        assert all(value == key[0] for key, value in found.items() if key != "contested")
        dataset.compact()
    names = [path.name for path in dataset.layer(LAYER).folder.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith(".tmp")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_flushes_of_one_row_leave_few_parts(quick: Path) -> None:
    dataset = new_dataset(quick)
    layer = dataset.layer(LAYER)
    began, most = time.monotonic(), 0
    with LayerWriter(layer) as writer:
        for number in range(FLUSHES):
            writer.add({"key": f"k{number:06d}", "raw": f"{number}"})
            writer.flush()
            if number % 97 == 0:
                most = max(most, len(layer.parts()))
    print(f"{FLUSHES:,} flushes: {time.monotonic() - began:.0f} s, at most {most} parts, then {len(layer.parts())}")
    assert max(most, len(layer.parts())) <= 200
    assert len(list(layer.folder.iterdir())) <= 250
    found = dataset.sql(f'select count(*), count(distinct key), sum(raw::bigint) from "{LAYER}"').fetchall()
    assert found == [(FLUSHES, FLUSHES, FLUSHES * (FLUSHES - 1) // 2)]
    dataset.compact()
    assert dataset.sql(f'select count(*), sum(raw::bigint) from "{LAYER}"').fetchall() == [
        (FLUSHES, FLUSHES * (FLUSHES - 1) // 2)
    ]


def test_a_table_is_published_at_once(dataset: Dataset) -> None:
    with LayerWriter(dataset.layer(LAYER)) as writer:
        writer.add_table(pa.table({"key": ["b", "a"], "texts": [["two"], ["one"]]}))
        assert writer.published == 2
        writer.add_table(pa.table({"key": pa.array([], pa.string())}))
    assert said(dataset) == {"a": "one", "b": "two"}
    assert len(dataset.layer(LAYER).parts()) == 1
