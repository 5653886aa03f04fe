"""Decoding: what every odd format looks like, pixel by pixel, and what every bad file is called."""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import struct
import subprocess
import sys
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageChops

from corpus import encode, make_bad_corpus, make_photo, make_twins, oriented, png_header
from cutline.pictures import EXTENSIONS, FOREIGN, MAX_PIXELS, Picture, PictureError, decode, inspect

BLACK, MAGENTA = (0, 0, 0), (255, 0, 255)


def array(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(image).astype(np.int64)


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> object:
    return image.getpixel((x, y))


def reason(data: bytes) -> str:
    with pytest.raises(PictureError) as caught:
        decode(data)
    return caught.value.reason


# ---- the corpus


@pytest.fixture(scope="module")
def bad_corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str | None]]:
    folder = tmp_path_factory.mktemp("corpus")
    return folder, make_bad_corpus(folder)


def test_inspect_calls_every_file_of_the_corpus_by_its_reason(bad_corpus: tuple[Path, dict[str, str | None]]) -> None:
    folder, expected = bad_corpus
    with ThreadPoolExecutor(8) as pool:  # as `add` runs it
        found = dict(zip(expected, pool.map(inspect, [folder / name for name in expected]), strict=True))
    assert {name: inspection.error for name, inspection in found.items()} == expected
    for name, inspection in found.items():
        if inspection.error is None:
            size = (48, 64) if name == "rotated.jpg" else (64, 48)
            assert (inspection.width, inspection.height) == size, name
            assert inspection.detail is None
            assert inspection.content == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        else:
            assert inspection.detail is not None
            assert repr(os.fspath(folder / name)) in inspection.detail  # names itself, on one line
            assert "\n" not in inspection.detail
            assert (inspection.width, inspection.format) == (None, None)


def test_decode_agrees_with_inspect(bad_corpus: tuple[Path, dict[str, str | None]]) -> None:
    folder, expected = bad_corpus
    for name, error in expected.items():
        if error is None:
            image = Picture(folder / name).decode()
            found = inspect(folder / name)
            assert (image.mode, image.size) == ("RGB", (found.width, found.height))
        elif name != "film.mp4":  # by its suffix alone
            with pytest.raises(PictureError) as caught:
                Picture(folder / name).decode()
            assert caught.value.reason == error
            assert repr(os.fspath(folder / name)) in str(caught.value)


def test_bytes_are_hashed_even_where_they_are_no_picture(bad_corpus: tuple[Path, dict[str, str | None]]) -> None:
    folder, _ = bad_corpus
    found = inspect(folder / "truncated.jpg")
    assert found.content == hashlib.sha256((folder / "truncated.jpg").read_bytes()).hexdigest()
    assert found.size == (folder / "truncated.jpg").stat().st_size
    assert found.mtime_ns == (folder / "truncated.jpg").stat().st_mtime_ns
    assert inspect(folder / "empty.jpg").content == hashlib.sha256(b"").hexdigest()
    film = inspect(folder / "film.mp4")
    assert (film.content, film.size) == (None, 24)  # films are not read to be hashed


def test_twins_are_two_files(tmp_path: Path) -> None:
    names = make_twins(tmp_path)
    assert names[0] != names[1]
    if len(list(tmp_path.iterdir())) == 2:
        assert inspect(tmp_path / names[0]).content != inspect(tmp_path / names[1]).content


def test_a_bomb_takes_no_memory() -> None:
    """Measured in a fresh process: the header of a picture of 10 GB costs less than 20 MB, imports included."""
    script = """
import resource, struct, sys
sys.path.insert(0, 'tests')
from corpus import encode, make_photo, png_header
from cutline.pictures import PictureError, decode
decode(encode(make_photo(), "PNG"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
size = struct.pack("<I", 16382)[:3]
webp = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + size
for data in (png_header(60_000, 60_000) + struct.pack(">I", 9) + b"IDAT", webp):
    try:
        decode(data)
    except PictureError as error:
        print(error.reason)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=_environment()
    )
    png, webp, kilobytes = done.stdout.split()
    assert (png, webp) == ("too_large", "too_large")
    assert int(kilobytes) < 20_000


def test_the_cap_holds_where_pillows_was_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert reason(png_header(60_000, 60_000) + struct.pack(">I", 9) + b"IDAT") == "too_large"
    assert MAX_PIXELS > 10_000 * 10_000  # a scan of 100 megapixels is a picture


def test_large_pictures_decode_without_a_warning(tmp_path: Path) -> None:
    """Between 89 and 179 million pixels Pillow warns. Run apart: pytest resets the filters of each test."""
    (tmp_path / "large.png").write_bytes(encode(Image.new("1", (10_000, 9_500)), "PNG"))
    script = "import sys, pathlib, cutline.pictures as p; print(p.inspect(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-W", "error", "-c", script, os.fspath(tmp_path / "large.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment())
    assert "width=10000" in done.stdout
    assert done.stderr == ""


def test_importing_pictures_is_cheap() -> None:
    script = "import sys, cutline.pictures; print(sorted({'PIL', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=_environment()
    )
    assert done.stdout == "[]\n"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


# ---- truncation and damage


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 90, "progressive": True}),
        ("JPEG", {"quality": 60, "subsampling": 0, "restart_marker_rows": 1}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("AVIF", {}),
    ],
)
def test_a_cut_off_file_is_found_at_reduced_scale_too(kind: str, settings: dict[str, object], tmp_path: Path) -> None:
    whole = encode(make_photo(160, 120), kind, **settings)
    path = tmp_path / "picture"
    path.write_bytes(whole)
    assert inspect(path).error is None
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.97):
        cut = whole[: int(len(whole) * share)]
        path.write_bytes(cut)
        assert inspect(path).error == "truncated", share
        assert reason(cut) == "truncated", share


def test_a_jpeg_without_its_last_byte_is_truncated(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encode(make_photo(), "JPEG")[:-1])
    assert inspect(tmp_path / "a.jpg").error == "truncated"


@pytest.mark.filterwarnings("ignore:::PIL")  # pytest has reset the filters that pictures.py has set
@pytest.mark.filterwarnings("error:::cutline")
def test_nothing_but_picture_errors_comes_out_of_broken_files() -> None:
    """Files broken at random: each decodes, or has a reason."""
    photo = make_photo(32, 24)
    clear = photo.copy()
    clear.putalpha(photo.convert("L"))
    files = [encode(clear, kind) for kind in ("PNG", "WEBP", "AVIF")]
    files += [encode(photo, kind) for kind in ("JPEG", "GIF", "BMP", "TIFF")]
    files += [encode(photo.convert(mode), "TIFF") for mode in ("F", "CMYK", "P")]
    files += [encode(photo.quantize(8), "PNG", transparency=2), encode(photo, "JPEG", exif=oriented(6))]
    files += [encode(photo.convert("I;16"), "PNG")]
    chance, outcomes = random.Random(0), Counter[str]()
    for _ in range(1500):
        data = bytearray(chance.choice(files))
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        for _ in range(chance.choice([1, 2, 5, 20])):
            if data:
                place = chance.randrange(min(len(data), chance.choice([64, 200, len(data)])))
                data[place] = chance.choice([0, 127, 255])
        try:
            outcomes[decode(bytes(data), None).mode] += 1
        except PictureError as error:
            outcomes[error.reason] += 1
    assert set(outcomes) <= {"RGB", "RGBA", "empty", "truncated", "not_an_image", "too_large", "unsupported"}
    assert min(outcomes["RGB"], outcomes["RGBA"], outcomes["truncated"], outcomes["too_large"]) > 20


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"hello, this is no picture at all", "not_an_image"),
        (b"<html><body><svg></svg></body></html>", "not_an_image"),
        (b"\xff\xd8\xff\xe0", "truncated"),
        (b"RIFF\0\0\0\0WEBP", "truncated"),
        (b"RIFF\0\0\0\0AVI LIST", "unsupported"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unsupported"),
        (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1", "truncated"),
        (b"8BPS\0\1" + bytes(20), "unsupported"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "unsupported"),
    ],
)
def test_bytes_say_what_a_file_is(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_a_wrong_suffix_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(make_photo(), "JPEG"))
    assert inspect(tmp_path / "a.png").format == "JPEG"


# ---- pixels


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_shows_the_same_upright_picture(kind: str, orientation: int, tmp_path: Path) -> None:
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste((255, 0, 0), (0, 0, 32, 16))  # top left
    upright.paste((0, 0, 255), (32, 16, 64, 32))  # bottom right
    turn = Image.Transpose
    undo = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    data = encode(
        stored, kind, exif=oriented(orientation), **({"quality": 95} if kind in ("JPEG", "WEBP", "AVIF") else {})
    )
    shown = decode(data)
    assert shown.size == (64, 32)
    assert np.abs(array(shown)[4:-4:8, 4::8] - array(upright)[4:-4:8, 4::8]).max() < 40  # lossy, but nothing moved
    assert shown.getexif().get(0x0112) is None  # turned once, for good
    (tmp_path / "a").write_bytes(data)
    assert (inspect(tmp_path / "a").width, inspect(tmp_path / "a").height) == (64, 32)


def test_broken_exif_leaves_the_picture_as_it_lies() -> None:
    assert decode(encode(make_photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff")).size == (64, 48)
    assert decode(encode(make_photo(), "JPEG", exif=oriented(77))).size == (64, 48)


RAMP = np.linspace(0, 65535, 257).round().astype(np.uint16)[None, :]  # 256 apart: clipping would show at once


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    grey = array(decode(encode(Image.fromarray(RAMP), kind)))[0, :, 0]
    assert np.abs(grey - RAMP[0] / 257).max() <= 0.5
    assert (grey[0], grey[-1]) == (0, 255)


def test_big_endian_sixteen_bits_are_scaled() -> None:
    image = Image.frombytes("I;16B", (257, 1), RAMP.astype(">u2").tobytes())
    assert (array(decode(encode(image, "TIFF")))[0, :, 0] == np.rint(RAMP[0] / 257)).all()


def test_white_is_zero_in_some_tiffs() -> None:
    grey = array(decode(encode(Image.fromarray(RAMP), "TIFF", tiffinfo={262: 0})))[0, :, 0]
    assert (grey[0], grey[-1]) == (255, 0)


def test_twelve_bit_tiff_uses_its_own_range() -> None:
    """Two samples per three bytes; Pillow reads this but cannot write it."""
    rows = bytes.fromhex("fff000") + bytes.fromhex("800fff")
    entries = {
        256: (4, 2),
        257: (4, 2),
        258: (3, 12),
        259: (3, 1),
        262: (3, 1),
        273: (4, 8),
        277: (3, 1),
        278: (4, 2),
        279: (4, 6),
    }
    header = b"II*\0" + struct.pack("<I", 14) + rows + struct.pack("<H", len(entries))
    for tag, (kind, value) in entries.items():
        header += struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value)
    assert array(decode(header + bytes(4)))[..., 0].tolist() == [[255, 0], [128, 255]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 257, 65535], [0, 1, 255]),  # integers that fit in 16 bits are 16-bit values
        ([-32768, 0, 32767], [0, 128, 255]),  # others span from their least to their greatest
        ([0, 1_000_000, 2_000_000], [0, 128, 255]),
        ([70_000, 70_000, 70_000], [0, 0, 0]),
    ],
)
def test_integers_are_scaled(values: list[int], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype=np.int32))
    assert np.abs(array(decode(encode(image, "TIFF")))[0, :, 0] - expected).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([float("nan"), 0.0, 1.0], [0, 0, 255]),
        ([float("nan")] * 3, [0, 0, 0]),
    ],
)
def test_floats_are_scaled(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert np.abs(array(decode(encode(image, "TIFF")))[0, :, 0] - expected).max() <= 1


def test_transparent_sixteen_bit_grey() -> None:
    data = encode(Image.fromarray(np.array([[1000, 40_000]], dtype=np.uint16)), "PNG", transparency=1000)
    assert decode(data, MAGENTA).getpixel((0, 0)) == MAGENTA
    assert decode(data, None).getchannel("A").getpixel((1, 0)) == 255


def test_red_is_red_in_cmyk() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert pixel(decode(encode(red, "TIFF"))) == (255, 0, 0)
    assert np.abs(array(decode(encode(red, "JPEG", quality=95))) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_lies_over_the_background(kind: str) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(255, 0, 0, 255), (0, 0, 255, 0), (0, 255, 0, 128)])
    data = encode(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    white, black = array(decode(data)), array(decode(data, BLACK))
    assert white[0, 0].tolist() == black[0, 0].tolist() == [255, 0, 0]
    assert white[0, 1].tolist() == [255, 255, 255]
    assert black[0, 1].tolist() == [0, 0, 0]
    assert np.abs(white[0, 2] - (127, 255, 127)).max() <= 1
    assert np.abs(black[0, 2] - (0, 128, 0)).max() <= 1
    assert decode(data, None).mode == "RGBA"
    assert decode(data, None).getpixel((2, 0)) == (0, 255, 0, 128)


def test_grey_with_alpha() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(100, 255), (0, 0)])
    assert array(decode(encode(image, "PNG"), MAGENTA))[0].tolist() == [[100, 100, 100], [255, 0, 255]]


def test_palette_and_its_transparency() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert array(decode(encode(image, "PNG")))[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    graded = decode(encode(image, "PNG", transparency=bytes([0, 128, 255])), BLACK)
    assert array(graded)[0].tolist() == [[0, 0, 0], [0, 128, 0], [0, 0, 255]]
    single = decode(encode(image, "GIF", transparency=1), BLACK)
    assert array(single)[0].tolist() == [[255, 0, 0], [0, 0, 0], [0, 0, 255]]


def test_a_colour_that_means_transparent() -> None:
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (200, 100, 50))
    assert array(decode(encode(image, "PNG", transparency=(10, 20, 30)), MAGENTA))[0].tolist() == [
        [255, 0, 255],
        [200, 100, 50],
    ]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    grey = Image.new("L", (8, 8), 255)
    grey.paste(0, (0, 0, 4, 8))
    image = grey.convert(mode) if mode in ("1", "L", "P") else grey.convert("RGB").convert(mode)
    shown = decode(encode(image, "TIFF"), None)
    assert shown.mode == "RGB"
    assert np.abs(array(shown)[0, [0, 7]] - [[0] * 3, [255] * 3]).max() <= 3


def test_opaque_alpha_is_no_transparency() -> None:
    photo = make_photo()
    clear = photo.copy()
    clear.putalpha(255)
    assert decode(encode(clear, "PNG"), None).mode == "RGB"
    assert ImageChops.difference(decode(encode(clear, "PNG")), photo).getbbox() is None


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_an_animation_shows_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(array(decode(data)) - (255, 0, 0)).max() <= 4


def test_metadata_stays_behind() -> None:
    exif = oriented(6)
    exif[0x010E] = "a secret"
    shown = decode(encode(make_photo(), "JPEG", exif=exif, comment=b"another"))
    assert shown.info == {}
    assert b"secret" not in encode(shown, "PNG")


def test_a_reduced_decode_keeps_the_size_asked_for() -> None:
    photo = make_photo(800, 600)
    data = encode(photo, "JPEG", quality=95)
    assert decode(data).size == (800, 600)
    assert decode(data, at_least=150).size == (200, 150)
    assert decode(data, at_least=151).size == (400, 300)
    assert decode(data, at_least=5000).size == (800, 600)
    assert decode(encode(photo, "PNG"), at_least=10).size == (800, 600)
    reduced = array(decode(data, at_least=150))
    assert np.abs(reduced - array(photo.reduce(4))).mean() < 3


# ---- files that come, go and change


def test_reading_a_changed_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(make_photo(), "PNG"))
    known = inspect(path)
    picture = Picture(path, known.size, known.mtime_ns, known.content)
    assert picture.read() == path.read_bytes()
    os.utime(path, ns=(1, 1))  # touched: other time, same bytes
    assert picture.read() == path.read_bytes()
    path.write_bytes(encode(make_photo(seed=1), "PNG"))
    with pytest.raises(PictureError, match="run cutline add again") as caught:
        picture.read()
    assert caught.value.reason == "changed"
    with pytest.raises(PictureError):
        picture.decode()
    assert Picture(path).read() == path.read_bytes()  # nothing known, nothing to compare


def test_verify_sees_what_size_and_time_hide(tmp_path: Path) -> None:
    path = tmp_path / "a.bmp"
    path.write_bytes(encode(make_photo(), "BMP"))
    known = inspect(path)
    path.write_bytes(encode(make_photo(seed=1), "BMP"))
    assert known.mtime_ns is not None
    os.utime(path, ns=(known.mtime_ns, known.mtime_ns))
    picture = Picture(path, known.size, known.mtime_ns, known.content)
    assert picture.read()
    with pytest.raises(PictureError) as caught:
        picture.read(verify=True)
    assert caught.value.reason == "changed"


def test_content_may_be_an_md5_from_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(make_photo(), "PNG"))
    content = hashlib.md5(path.read_bytes()).hexdigest()
    assert Picture(path, 1, 1, content).read(verify=True)
    path.write_bytes(encode(make_photo(seed=1), "PNG"))
    with pytest.raises(PictureError):
        Picture(path, 1, 1, content).read()


def test_a_vanished_file_and_a_folder_in_its_place(tmp_path: Path) -> None:
    assert inspect(tmp_path / "a.png").error == "vanished"
    assert inspect(tmp_path / "a.png" / "b.png").error == "vanished"
    assert inspect(tmp_path / ("n" * 300)).error == "vanished"
    assert inspect(Path("a\0b.png")).error == "vanished"
    (tmp_path / "folder.png").mkdir()
    assert inspect(tmp_path / "folder.png").error == "not_an_image"
    os.mkfifo(tmp_path / "pipe.png")
    assert inspect(tmp_path / "pipe.png").error == "not_an_image"  # and does not wait for a writer
    with pytest.raises(PictureError) as caught:
        Picture(tmp_path / "a.png").read()
    assert caught.value.reason == "vanished"


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)
    assert inspect(tmp_path / "sparse.png").error == "too_large"


def test_no_permission(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(make_photo(), "PNG"))
    (tmp_path / "a.png").chmod(0)
    tmp_path.chmod(0o755)
    if os.geteuid() != 0:
        assert inspect(tmp_path / "a.png").error == "permission"
        return
    os.seteuid(65534)  # root reads everything; nobody does not
    try:
        assert inspect(tmp_path / "a.png").error == "permission"
    finally:
        os.seteuid(0)


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(PictureError("changed", "a.png has changed")))
    assert (error.reason, str(error)) == ("changed", "a.png has changed")


def test_suffixes_are_lower_case_and_apart() -> None:
    assert not EXTENSIONS & FOREIGN
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in EXTENSIONS | FOREIGN)
    assert {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"} <= EXTENSIONS


def test_a_huge_text_in_a_png_is_no_crash() -> None:
    bomb = zlib.compress(bytes(64 << 20))
    chunk = b"zTXt" + b"k\0\0" + bomb
    png = encode(make_photo(), "PNG")
    data = png[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
    assert reason(data) in ("truncated", "too_large")
