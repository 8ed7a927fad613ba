"""From the bytes of an image file to pixels: those that a shipped model sees, or a refusal."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IFDRational

from fairq_utils.bench import photograph_folders as folders
from fairq_utils.data.decoding import MOST_PIXELS, Unreadable, decode
from fairq_utils.deploy import predict


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def face(size: tuple[int, int] = (90, 120)) -> Image.Image:
    return Image.open(io.BytesIO(folders.jpeg(3, size)))


@pytest.mark.parametrize("size", [(64, 64), (178, 218), (218, 178), (40, 300)])
def test_pixels_are_those_that_a_shipped_model_sees(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "face.jpg"
    path.write_bytes(folders.jpeg(1, size))
    found = decode(path.read_bytes(), 48)
    assert found.shape == (3, 48, 48) and found.dtype == np.uint8 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, predict.read_image(path, 48))


def test_resizing_averages_over_what_it_leaves_out() -> None:
    stripes = np.zeros((240, 240, 3), np.uint8)
    stripes[:, ::2] = 255
    found = decode(encoded(Image.fromarray(stripes)), 24)
    assert abs(found.astype(float) - 127.5).max() < 12


def test_drafts_change_little() -> None:
    image = folders.jpeg(5, (700, 900))
    quick, whole = decode(image, 64), decode(image, 64, draft=False)
    difference = np.abs(quick.astype(float) - whole)
    assert 0 < difference.mean() < 1.5


def test_a_camera_s_orientation_is_applied() -> None:
    upright = face((96, 96))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    found = decode(encoded(turned, "JPEG", quality=95, exif=exif), 96)
    expected = np.asarray(upright.convert("RGB")).transpose(2, 0, 1).astype(float)
    assert np.abs(found - expected).mean() < 4
    assert np.abs(decode(encoded(turned, "JPEG", quality=95), 96) - expected).mean() > 10


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", mode) for mode in ("L", "P", "RGBA", "LA", "1")] + [("JPEG", "L"), ("JPEG", "CMYK")],
)
def test_every_mode_becomes_rgb(kind: str, mode: str) -> None:
    image = face((64, 64)).convert("L" if mode in ("L", "LA", "1") else "RGB")
    found = decode(encoded(image.convert(mode), kind), 64)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(float)
    tolerance = {"P": 20, "1": 140}.get(mode, 6)
    assert found.shape == (3, 64, 64) and np.abs(found - expected).mean() < tolerance
    if mode in ("L", "LA", "1"):
        np.testing.assert_array_equal(found[0], found[2])


def bomb() -> bytes:
    return encoded(Image.new("1", (MOST_PIXELS // 1000, 1001)))


@pytest.mark.parametrize(
    ("content", "kind", "sentence"),
    [
        (b"", "unreadable", r"is empty \(0 bytes\)"),
        (
            b"<html>not found</html>",
            "unreadable",
            r"is no image in a known format \(JPEG, PNG, WEBP, BMP, TIFF, GIF\)",
        ),
        (folders.jpeg, "unreadable", r"cannot be decoded \(image file is truncated\)"),
        (bomb, "unsafe", "has 64000 x 1001 pixels, more than 64,000,000"),
        (
            lambda: encoded(Image.new("1", (20_000, 20_000))),
            "unsafe",
            "has more than 64,000,000 pixels",
        ),
        pytest.param(
            lambda: encoded(Image.new("1", (10_000, 10_000))),
            "unsafe",
            "has 10000 x 10000 pixels, more than 64,000,000",
            marks=pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
        ),
        pytest.param(
            lambda: encoded(Image.new("1", (10_000, 10_000))),
            "unsafe",
            "has more than 64,000,000 pixels",
            marks=pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning"),
        ),
        (
            lambda: encoded(Image.fromarray(np.full((8, 8), 40_000, np.uint16))),
            "unreadable",
            r"has more than 8 bits a channel \(mode I;16\)",
        ),
    ],
)
def test_what_is_no_image_is_refused(
    content: bytes | Callable[..., bytes], kind: str, sentence: str
) -> None:
    if content is folders.jpeg:
        content = folders.jpeg(0)[:900]
    elif callable(content):
        content = content()
    with pytest.raises(Unreadable, match=f"^{sentence}$") as refusal:
        decode(content, 32)
    assert refusal.value.kind == kind


@pytest.mark.parametrize("left", ["1 byte", "7 bytes", "0 bytes"])
def test_why_an_image_cannot_be_decoded_is_said_without_pillow_s_numbers(
    left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(image: Image.Image, mode: str) -> Image.Image:
        raise OSError(f"image file is truncated ({left} not processed)")

    content = folders.jpeg(0)
    monkeypatch.setattr(Image.Image, "convert", fails)
    with pytest.raises(Unreadable, match=r"^cannot be decoded \(image file is truncated\)$"):
        decode(content, 32)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_are_as_pillow_s(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(face((96, 96)), "JPEG", quality=95, exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    np.testing.assert_array_equal(
        decode(content, 96, draft=False), np.asarray(wanted).transpose(2, 0, 1)
    )


def test_damaged_notes_of_a_camera_do_not_cost_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(face((96, 96)), "JPEG", quality=95, exif=exif)
    plain = decode(encoded(face((96, 96)), "JPEG", quality=95), 96)

    def divides(notes: Image.Exif, tag: int) -> None:
        raise ZeroDivisionError("a rational of nothing")

    monkeypatch.setattr(Image.Exif, "get", divides)
    np.testing.assert_array_equal(decode(content, 96), plain)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_is_the_file_s_own() -> None:
    """Every file is decoded, or refused as that file."""
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x8769] = 6, IFDRational(72, 1), {0x829A: IFDRational(1, 60)}
    whole = encoded(face((96, 96)), "JPEG", quality=95, exif=exif)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for at in rng.integers(2, 400, 3):
            content[at] = rng.integers(256)
        try:
            assert decode(bytes(content), 16).shape == (3, 16, 16)
        except Unreadable:
            refused += 1
    assert 0 < refused < 300
