"""Aspect-ratio buckets: every recorded choice of sd-scripts, and many pictures at once as one by one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutline.compose.buckets import Buckets
from cutline.compose.kohya import TrainerError
from cutline.options import OptionError

ORACLE = Path(__file__).parent / "oracles" / "kohya" / "buckets.jsonl"
CASES = [json.loads(line) for line in ORACLE.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "{}x{}".format(*case["size"]))
def test_as_recorded(case: dict[str, Any]) -> None:
    buckets = Buckets(**(case["conf"] | {"max_reso": tuple(case["conf"]["max_reso"])}))
    if "predefined" in case:
        assert [list(size) for size in buckets.predefined] == (case["predefined"] or [])
    if "error" in case:
        with pytest.raises(TrainerError) as error:
            buckets.choose(*case["size"])
        assert str(error.value) == case["error"]
        return
    bucket = buckets.choose(*case["size"])
    assert [bucket.width, bucket.height] == case["bucket"]
    assert list(bucket.resized) == case["resized"]
    assert bucket.ar_error == case["ar_error"]


@pytest.mark.parametrize(
    "buckets", [Buckets(), Buckets((512, 512), max_size=1024), Buckets((832, 1216), min_size=200, steps=8)]
)
def test_a_picture_of_a_buckets_size_is_left_as_it_is(buckets: Buckets) -> None:
    for size in buckets.predefined:
        bucket = buckets.choose(*size)
        assert ((bucket.width, bucket.height), bucket.resized, bucket.ar_error) == (size, size, 0)


def test_heights_below_the_least_are_no_buckets() -> None:
    assert min(min(size) for size in Buckets((512, 512), 256, 2048).predefined) == 256


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_size": 512}, "below max_reso 1024x1024"),
        ({"min_size": 4096}, "below min_size = 4096"),
        ({"steps": 0}, "at least 1"),
        ({"max_reso": (32, 32)}, "no room for a bucket of steps = 64"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionError, match=problem):
        Buckets(**settings)


@pytest.mark.parametrize("no_upscale", [False, True])
def test_a_picture_without_pixels_has_no_bucket(no_upscale: bool) -> None:
    buckets = Buckets(no_upscale=no_upscale)
    with pytest.raises(OptionError, match="0x5"):
        buckets.choose(0, 5)
    with pytest.raises(OptionError, match="at least 1"):
        buckets.choose_all([0], [5])
    assert [len(side) for side in buckets.choose_all([], [])] == [0, 0]


def test_a_narrow_picture_stops_a_trainer_that_does_not_upscale() -> None:
    # 72,384 x 14 pixels have the area of 1024x1024, and 14 is less than one step.
    buckets = Buckets(no_upscale=True)
    with pytest.raises(TrainerError, match="ZeroDivisionError"):
        buckets.choose(100_000, 20)
    assert [side.tolist() for side in buckets.choose_all([100_000, 64], [20, 128])] == [[0, 64], [0, 128]]


SIDES = st.integers(1, 20_000)


@given(
    st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=20),
    st.sampled_from([(512, 512), (1024, 1024), (832, 1216)]),
    st.sampled_from([1, 8, 32, 64]),
    st.booleans(),
)
def test_many_at_once_as_one_by_one(
    sizes: list[tuple[int, int]], max_reso: tuple[int, int], steps: int, no_upscale: bool
) -> None:
    buckets = Buckets(max_reso, steps=steps, no_upscale=no_upscale)
    widths, heights = buckets.choose_all(*np.array(sizes).T)
    for size, *chosen in zip(sizes, widths.tolist(), heights.tolist(), strict=True):
        try:
            bucket = buckets.choose(*size)
        except TrainerError:
            assert chosen == [0, 0]
            continue
        assert [bucket.width, bucket.height] == chosen == list(one_by_hand(buckets, *size))
        assert bucket.width % steps == 0 == bucket.height % steps
        assert bucket.resized[0] >= bucket.width
        assert bucket.resized[1] >= bucket.height


def one_by_hand(buckets: Buckets, width: int, height: int) -> tuple[int, int]:
    """The rule once more, of one picture, in Python's numbers."""
    if not buckets.no_upscale:
        if (width, height) in buckets.predefined:
            return width, height
        return min(buckets.predefined, key=lambda size: abs(size[0] / size[1] - width / height))

    def stepped(pixels: float) -> int:
        return int(pixels + 0.5) // buckets.steps * buckets.steps

    if width * height > buckets.area:
        ratio = width / height
        exact = (buckets.area * ratio) ** 0.5
        wide, high = stepped(exact), stepped(buckets.area / exact)
        if abs(wide / stepped(wide / ratio) - ratio) < abs(stepped(high * ratio) / high - ratio):
            width, height = wide, int(wide / ratio + 0.5)
        else:
            width, height = int(high * ratio + 0.5), high
    return width // buckets.steps * buckets.steps, height // buckets.steps * buckets.steps
