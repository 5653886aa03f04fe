"""Pictures that are there twice, against brute force and on real files; and what a dataset lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cutline import near
from cutline.dataset import Dataset
from cutline.duplicates import Duplicates
from cutline.options import CutlineError, OptionError
from running import cutline, make_pictures


def brute(hashes: near.Hashes, distance: int) -> list[int]:
    """Every hash with every other: for each the place of the first of its group."""
    root = np.arange(len(hashes))
    for place in range(len(hashes)):
        close = np.bitwise_count(hashes ^ hashes[place]) <= distance
        joined = np.isin(root, root[close])
        root[joined] = root[joined].min()
    return [int(place) for place in root]


def mutated(random: np.random.Generator, centre: int, flips: int, count: int) -> near.Hashes:
    """Hashes around one, each with up to so many bits changed."""
    found = np.full(count, centre, np.uint64)
    for _ in range(flips):
        found ^= np.uint64(1) << random.integers(0, 64, count, dtype=np.uint64)
    return found


def mixture(random: np.random.Generator, size: int) -> near.Hashes:
    """Hashes of strangers, of many small families, of a crowd near black and of many that are equal."""
    families = [mutated(random, int(centre), 5, 4) for centre in random.integers(0, 2**63, size // 8, dtype=np.uint64)]
    found = np.concatenate(
        [
            random.integers(0, 2**64, size, dtype=np.uint64),
            *families,
            mutated(random, 0, 4, size),
            np.zeros(size // 2, np.uint64),
        ]
    )
    random.shuffle(found)
    return found


@pytest.mark.parametrize("distance", [0, 1, 2, 3, 6, 9, near.FARTHEST])
def test_groups_are_those_of_brute_force(distance: int) -> None:
    hashes = mixture(np.random.default_rng(distance), 800)
    assert near.groups(hashes, distance).tolist() == brute(hashes, distance)


@pytest.mark.parametrize("limits", [{"_CROWD": 1}, {"_CROWD": 8, "_BLOCK": 16}, {"_WAITING": 0}, {"_COMPARE": 10**6}])
def test_limits_change_no_group(limits: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = mixture(np.random.default_rng(5), 300)
    expected = near.groups(hashes, 6).tolist()
    for name, value in limits.items():
        monkeypatch.setattr(near, name, value)
    assert near.groups(hashes, 6).tolist() == expected == brute(hashes, 6)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 2**63, 2**64 - 1, 0xFF, 0xFFFF, 0x0F0F << 40, 3 << 31]), max_size=12),
    st.integers(0, 8),
)
def test_few_hashes(hashes: list[int], distance: int) -> None:
    array = np.array(hashes, np.uint64)
    assert near.groups(array, distance).tolist() == brute(array, distance)


def test_each_pair_meets_in_a_choice_of_blocks() -> None:
    """Whatever bits differ, some choice of blocks has none of them."""
    random = np.random.default_rng(0)
    for count in (10, 100_000, 10_000_000):
        for distance in (1, 4, 6, near.FARTHEST):
            choices = near.choices(count, distance)
            kept = [sum(((1 << bits) - 1) << low for low, bits in blocks) for blocks in choices]
            for _ in range(50):
                flipped = sum(1 << int(bit) for bit in random.choice(64, distance, replace=False))
                assert any(mask & flipped == 0 for mask in kept)


def test_a_chain_is_one_group() -> None:
    hashes = np.array([0, 0b111111, 0b111111111111], np.uint64)
    assert near.groups(hashes, 6).tolist() == [0, 0, 0]
    assert near.groups(hashes[[0, 2]], 6).tolist() == [0, 1]


def test_a_crowd_costs_little() -> None:
    """Fifty thousand nearly black pictures: a thousand million pairs."""
    hashes = np.concatenate([mutated(np.random.default_rng(1), 0, 4, 50_000), np.zeros(50_000, np.uint64)])
    assert not near.groups(hashes, 6).any()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photographs, each also as something else, a third, and one that will vanish."""
    import skimage

    samples = Path(skimage.__file__).parent / "data"
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(samples / "chelsea.png", folder / "cat.png")
    shutil.copy(samples / "chelsea.png", folder / "cat again.png")
    shutil.copy(samples / "chelsea.png", folder / "gone.png")
    with Image.open(samples / "coffee.png") as coffee:
        coffee.save(folder / "coffee.png")
        coffee.save(folder / "coffee.bmp")
        coffee.crop((4, 4, 596, 400)).resize((300, 200)).save(folder / "small.jpg", quality=70)
    shutil.copy(samples / "rocket.jpg", folder / "rocket.jpg")
    cutline("add", folder)
    cutline("annotate", folder, "facts")
    (folder / "gone.png").unlink()
    cutline("add", folder)
    return folder


def test_each_kind_of_duplicate_is_found(photos: Path) -> None:
    found = Duplicates(Dataset(photos))
    assert list(found.exact()) == [["cat again.png", "cat.png"]]
    assert list(found.pixels()) == [["coffee.bmp", "coffee.png"]]
    assert list(found.near()) == [["coffee.bmp", "coffee.png", "small.jpg"]]
    assert found.without_facts() == 0
    everything = Duplicates(Dataset(photos), near.FARTHEST)
    assert ["coffee.bmp", "coffee.png", "small.jpg"] in list(everything.near())


def test_the_command_names_every_picture(photos: Path) -> None:
    make_pictures(photos, 1)
    cutline("add", photos)
    done = cutline("status", photos, "--duplicates")
    assert "exact\t1\tcat again.png\nexact\t1\tcat.png\npixels\t1\tcoffee.bmp\n" in done.stdout
    assert "near: 3 pictures in 1 group\n1 pictures without facts" in done.stderr
    found = json.loads(cutline("status", photos, "--duplicates", "--distance", "0", "--json").stdout)["duplicates"]
    assert (found["distance"], found["without_facts"]) == (0, 1)
    assert found["exact"] == [["cat again.png", "cat.png"]]
    assert "small.jpg" not in json.dumps(found["near"])


def test_what_cannot_be_searched_is_refused(tmp_path: Path, photos: Path) -> None:
    make_pictures(tmp_path / "bare", 1)
    cutline("add", tmp_path / "bare")
    with pytest.raises(CutlineError, match=r"annotate .* facts"):
        Duplicates(Dataset(tmp_path / "bare"))
    with pytest.raises(OptionError, match="from 0 to 12"):
        Duplicates(Dataset(photos), 13)
    assert "give both" in cutline("status", photos, "--distance", "3", code=2).stderr


def test_missing_keys_are_listed_by_layer(tmp_path: Path) -> None:
    names = make_pictures(tmp_path, 5)
    (tmp_path / names[1]).with_suffix(".txt").write_text("one")
    cutline("add", tmp_path)
    cutline("annotate", tmp_path, "echo", "--limit", "2")
    expected = {"captions/echo": names[2:], "captions/sidecar": [names[0], *names[2:]]}
    found = json.loads(cutline("status", tmp_path, "--missing", "--json").stdout)
    assert found["missing"] == expected
    assert {name: entry["missing"] for name, entry in found["layers"].items()} == {
        name: len(keys) for name, keys in expected.items()
    }
    lines = cutline("status", tmp_path, "--missing").stdout.splitlines()
    assert lines[-7:] == [f"{name}\t{key}" for name, keys in expected.items() for key in keys]
    cutline("annotate", tmp_path, "echo")
    assert json.loads(cutline("status", tmp_path, "--missing", "--json").stdout)["missing"]["captions/echo"] == []
