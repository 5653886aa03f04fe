"""Facts about pictures whose facts are known beforehand, by construction or by a plainer computation."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, PngImagePlugin

from corpus import encode, make_photo, oriented
from cutline import registry, schemas
from cutline.annotators.facts import Facts, measure, phash
from cutline.pictures import Picture, decode, inspect


def facts(data: bytes) -> dict[str, Any]:
    return measure(decode(data, None))


def bits_apart(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def row(path: Path, key: str = "a") -> dict[str, Any]:
    found = inspect(path)
    return {"key": key, "picture": Picture(path, found.size, found.mtime_ns, found.content)}


# ---- as an annotator


def test_a_session_answers_every_row_with_the_columns_of_the_layer(tmp_path: Path) -> None:
    rows = []
    for number in range(20):
        path = tmp_path / f"{number}.png"
        path.write_bytes(encode(make_photo(seed=number), "PNG"))
        rows.append(row(path, path.name))
    (tmp_path / "7.png").write_bytes(b"")
    (tmp_path / "9.png").unlink()
    os.truncate(tmp_path / "11.png", 300)
    found = {answer["key"]: answer for answer in registry.load("annotators", "facts")().load()(iter(rows))}
    assert len(found) == 20
    failed = {key: found.pop(key)["error"] for key in ("7.png", "9.png", "11.png")}
    assert failed == {"7.png": "empty", "9.png": "vanished", "11.png": "changed"}
    for answer in found.values():
        assert set(answer) == {"key", *schemas.columns("facts")}


def test_facts_of_other_bytes_are_refused_whatever_the_time_says(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(encode(make_photo(), "BMP"))
    known = row(path)
    path.write_bytes(encode(make_photo(seed=1), "BMP"))  # as large as before
    os.utime(path, ns=(known["picture"].mtime_ns, known["picture"].mtime_ns))
    (answer,) = Facts().load()(iter([known]))
    assert answer["error"] == "changed"


# ---- pixels


def test_pixels_are_the_same_in_every_lossless_format_and_with_any_metadata() -> None:
    photo = make_photo()
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a prompt")
    same = [
        encode(photo, "PNG"),
        encode(photo, "PNG", compress_level=1, pnginfo=text),
        encode(photo, "BMP"),
        encode(photo, "TIFF", compression="tiff_lzw"),
        encode(photo, "WEBP", lossless=True),
        encode(photo.convert("RGBA"), "PNG"),
        encode(photo.transpose(Image.Transpose.ROTATE_90), "PNG", exif=oriented(6)),
    ]
    assert len({facts(data)["pixels"] for data in same}) == 1


def test_pixels_differ_by_one_level_by_shape_and_by_alpha() -> None:
    flat = Image.new("RGB", (6, 4), (9, 9, 9))
    other = flat.copy()
    other.putpixel((5, 3), (9, 9, 10))
    clear = flat.copy()
    clear.putalpha(254)
    shapes = [flat, other, clear, Image.new("RGB", (4, 6), (9, 9, 9)), Image.new("RGB", (24, 1), (9, 9, 9))]
    assert len({measure(image)["pixels"] for image in shapes}) == 5


# ---- phash


def plain_phash(image: Image.Image) -> int:
    """The definition, term by term: sums of cosines, in plain Python."""
    levels = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS)).tolist()
    low = [
        sum(
            levels[y][x] * math.cos(math.pi * v * (2 * y + 1) / 64) * math.cos(math.pi * u * (2 * x + 1) / 64)
            for y in range(32)
            for x in range(32)
        )
        for v in range(8)
        for u in range(8)
    ]
    middle = sorted(low)[31:33]
    return int("".join("1" if value > sum(middle) / 2 else "0" for value in low), 2)


@pytest.mark.parametrize("seed", range(5))
def test_phash_is_its_definition(seed: int) -> None:
    grey = make_photo(90, 70, seed=seed).convert("L")
    assert phash(grey) == plain_phash(grey)


def test_phash_survives_resizing_and_compression_and_tells_pictures_apart() -> None:
    photos = [make_photo(640, 480, seed=seed) for seed in range(6)]
    hashes = [facts(encode(photo, "PNG"))["phash"] for photo in photos]
    for photo, original in zip(photos, hashes, strict=True):
        for data in (
            encode(photo, "JPEG", quality=60),
            encode(photo.resize((320, 240), Image.Resampling.BICUBIC), "JPEG", quality=80),
            encode(photo.resize((1000, 750), Image.Resampling.BICUBIC), "WEBP", quality=70),
        ):
            assert bits_apart(facts(data)["phash"], original) <= 6
    apart = [bits_apart(one, other) for i, one in enumerate(hashes) for other in hashes[:i]]
    assert min(apart) >= 12
    assert all(0 <= value < 1 << 64 for value in hashes)


def test_flat_pictures_all_have_one_phash() -> None:
    """Rounding noise of the transform must not decide a bit."""
    assert {phash(Image.new("L", size, 77)) for size in ((1, 1), (32, 32), (300, 17))} == {1 << 63}


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(10, 60))
def test_phash_ignores_a_little_brightness(seed: int, lift: int) -> None:
    grey = make_photo(48, 48, seed=seed).convert("L").point(lambda level: level // 2)
    lighter = grey.point(lambda level: level + lift)
    assert bits_apart(phash(grey), phash(lighter)) <= 1


# ---- measures


def test_brightness_and_contrast_have_their_ends() -> None:
    black, white = (measure(Image.new("RGB", (40, 30), colour)) for colour in ("black", "white"))
    assert (black["brightness"], black["contrast"]) == (0, 0)
    assert (white["brightness"], white["contrast"]) == (1, 0)
    half = Image.new("RGB", (40, 30), "black")
    half.paste((255, 255, 255), (0, 0, 20, 30))
    assert (measure(half)["brightness"], measure(half)["contrast"]) == (0.5, 0.5)
    assert measure(Image.new("RGB", (4, 4), (0, 255, 0)))["brightness"] == pytest.approx(0.587, abs=0.005)  # luma


def test_colourfulness_is_that_of_hasler_and_suesstrunk() -> None:
    assert measure(Image.new("RGB", (8, 8), (90, 90, 90)))["colourfulness"] == 0
    assert measure(Image.new("RGB", (8, 8), (255, 0, 0)))["colourfulness"] == pytest.approx(
        0.3 * math.hypot(255, 127.5)
    )
    halves = Image.new("RGB", (8, 8), (255, 0, 0))
    halves.paste((0, 255, 0), (0, 0, 4, 8))  # rg is ±255 around 0, yb is 127.5 throughout
    assert measure(halves)["colourfulness"] == pytest.approx(255 + 0.3 * 127.5)


def test_sharpness_is_the_variance_of_the_laplacian() -> None:
    dots = np.random.default_rng(0).integers(0, 256, (20, 30)).astype(np.uint8)
    responses = [
        int(dots[y - 1, x]) + int(dots[y + 1, x]) + int(dots[y, x - 1]) + int(dots[y, x + 1]) - 4 * int(dots[y, x])
        for y in range(1, 19)
        for x in range(1, 29)
    ]
    found = measure(Image.fromarray(dots).convert("RGB"))["sharpness"]
    assert found == pytest.approx(np.var(responses))


def test_sharpness_falls_with_blur_and_not_with_size() -> None:
    photo = make_photo(1024, 768)
    sharp = measure(photo)["sharpness"]
    blurred = [measure(photo.filter(ImageFilter.GaussianBlur(radius)))["sharpness"] for radius in (4, 16)]
    assert sharp > blurred[0] > blurred[1]
    assert measure(photo.reduce(2))["sharpness"] == pytest.approx(sharp, rel=0.1)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 5000), (5000, 1), (2, 300), (257, 3)])
def test_the_smallest_and_thinnest_pictures_have_facts(size: tuple[int, int]) -> None:
    found = measure(Image.new("RGB", size, (200, 100, 50)))
    assert (found["sharpness"], found["contrast"]) == (0, 0)
    assert found["brightness"] == pytest.approx((0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255, abs=0.005)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 1000))
def test_measures_stay_in_their_ranges(width: int, height: int, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4)).astype(np.uint8)
    found = measure(Image.fromarray(noise))
    assert 0 <= found["brightness"] <= 1
    assert 0 <= found["contrast"] <= 0.5
    assert found["sharpness"] >= 0
    assert found["colourfulness"] >= 0
    assert 0 <= found["phash"] < 1 << 64


def test_transparent_parts_count_as_white() -> None:
    clear = Image.new("RGBA", (300, 300), (0, 0, 0, 0))
    assert measure(clear)["brightness"] == 1
    clear.paste((0, 0, 0, 255), (0, 0, 150, 300))
    assert measure(clear)["brightness"] == pytest.approx(0.5, abs=0.01)


# ---- tags


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1599, 1199), set()),
        ((1600, 10), {"highres", "wide_image"}),
        ((1000, 1200), {"highres"}),
        ((3199, 2399), {"highres"}),
        ((3200, 1000), {"highres", "absurdres"}),
        ((1000, 2400), {"highres", "absurdres"}),
        ((1024, 256), {"wide_image"}),
        ((1024, 257), set()),
        ((1023, 10), set()),
        ((256, 1024), {"tall_image"}),
        ((257, 1024), set()),
    ],
)
def test_size_tags(size: tuple[int, int], expected: set[str]) -> None:
    striped = Image.new("RGB", size, (200, 30, 30))
    striped.paste((30, 30, 200), (0, 0, max(1, size[0] // 2), size[1]))  # two hues, so no tag of colour
    assert set(measure(striped)["tags"]) == expected


def tinted(photo: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    return Image.merge("RGB", [photo.convert("L").point(lambda level, c=c: level * c // 255) for c in colour])


def test_greyscale_is_monochrome_too_even_as_a_colour_jpeg() -> None:
    grey = make_photo(300, 200).convert("L").convert("RGB")
    for data in (encode(grey, "PNG"), encode(grey, "JPEG", quality=40), encode(grey.convert("L"), "JPEG")):
        assert facts(data)["tags"] == ["monochrome", "greyscale"]
    yellowed = Image.fromarray((np.asarray(grey) * 0.9 + (8, 4, 0)).astype(np.uint8))
    assert facts(encode(yellowed, "JPEG"))["tags"] == ["monochrome", "greyscale"]


@pytest.mark.parametrize("colour", [(255, 200, 140), (60, 90, 255), (255, 0, 0), (120, 255, 120)])
def test_one_hue_is_monochrome_but_not_greyscale(colour: tuple[int, int, int]) -> None:
    image = tinted(make_photo(300, 200), colour)
    assert facts(encode(image, "PNG"))["tags"] == ["monochrome"]
    assert facts(encode(image, "JPEG", quality=85))["tags"] == ["monochrome"]


def test_two_hues_or_a_spot_of_colour_are_neither() -> None:
    assert facts(encode(make_photo(300, 200), "PNG"))["tags"] == []
    opposites = Image.new("RGB", (100, 100), (255, 0, 0))
    opposites.paste((0, 255, 255), (0, 0, 50, 100))  # their mean is grey
    assert measure(opposites)["tags"] == []
    spot = make_photo(300, 200).convert("L").convert("RGB")
    ImageDraw.Draw(spot).ellipse((100, 100, 112, 112), fill=(230, 20, 20))
    assert "greyscale" not in measure(spot)["tags"]
    blue = tinted(make_photo(300, 200), (60, 90, 255))
    ImageDraw.Draw(blue).ellipse((100, 100, 112, 112), fill=(230, 20, 20))
    assert measure(blue)["tags"] == []


def test_transparent_background_needs_a_share_of_the_picture() -> None:
    def with_hole(share: float, alpha: int = 0) -> list[str]:
        clear = make_photo(100, 100).convert("RGBA")
        clear.paste((255, 255, 255, alpha), (0, 0, 100, round(100 * share)))
        found: list[str] = facts(encode(clear, "PNG"))["tags"]
        return found

    assert with_hole(0.3) == with_hole(0.05) == ["transparent_background"]
    assert with_hole(0.04) == []  # rounded corners
    assert with_hole(0.3, alpha=128) == []  # glass
    assert facts(encode(make_photo(100, 100).convert("RGBA"), "PNG"))["tags"] == []
