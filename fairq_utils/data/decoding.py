"""Decoding an image file: from its bytes to the pixels that a network sees."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fairq_utils.errors import BadInput

# More than any of the collections' images; 200 MB as RGB. Below Pillow's own limit, between one
# and two times which it only warns.
MOST_PIXELS = 64_000_000
# A JPEG decoder can leave out detail by powers of two for a fraction of the work. Twice the
# pixels that are kept leave antialiasing enough to average over.
SPARE = 2
# Pillow's limit, which :func:`upright` never comes to.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
LEFT_OVER = re.compile(r" \(\d+ bytes? not processed\)")
# Pillow reads others too, some by programs of others' (EPS by Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
ORIENTATION = 0x0112  # EXIF's tag, and what each of its values asks for
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
EIGHT_BITS = frozenset("1 L LA P PA RGB RGBA RGBX CMYK YCbCr LAB HSV".split())


class Unreadable(BadInput):
    """Bytes that are no usable image; the message is half a sentence, without the file's name.

    Attributes
    ----------
    kind : ``unreadable`` or ``unsafe``, of :data:`fairq_utils.data.listing.KINDS`
    """

    def __init__(self, problem: str, kind: str = "unreadable") -> None:
        super().__init__(problem)
        self.kind = kind


def decode(encoded: bytes, size: int, *, draft: bool = True) -> NDArray[np.uint8]:
    """An image upright, in RGB: its middle square, resized with antialiasing.

    The same as resizing the shorter side to ``size`` and cropping the centre, without the long
    sides that a strip of an image would grow. Grey, palette and CMYK become RGB, transparency is
    dropped, and the orientation that a camera noted (EXIF) is applied where it can be read.

    Parameters
    ----------
    encoded : bytes
        A file's content, in one of :data:`FORMATS`, 8 bits a channel.
    size : int
        Pixels per side.
    draft : bool
        Let a JPEG of more than twice that size be decoded at a half, quarter or eighth.

    Returns
    -------
    uint8 (3, size, size)

    Raises
    ------
    Unreadable
        Empty, truncated, no image, too many pixels, or more than 8 bits a channel.
    """
    image = upright(encoded, SPARE * size if draft else None)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    resized = square.resize((size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(resized, np.uint8).transpose(2, 0, 1))


def upright(encoded: bytes, least: int | None = None) -> Image.Image:
    """An image upright, in RGB, of its own size.

    Parameters
    ----------
    encoded : bytes
    least : int, optional
        Pixels per side that suffice: a JPEG of twice as many, or more, is decoded at a half, a
        quarter or an eighth.

    Raises
    ------
    Unreadable
        As in :func:`decode`.
    MemoryError
        Memory is short, which is not the image's fault.
    """
    if not encoded:
        raise Unreadable("is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
            pixels = opened.width * opened.height
            if pixels > MOST_PIXELS:
                raise Unreadable(
                    f"has {opened.width} x {opened.height} pixels, more than {MOST_PIXELS:,}",
                    kind="unsafe",
                )
            if opened.mode not in EIGHT_BITS:
                raise Unreadable(f"has more than 8 bits a channel (mode {opened.mode})")
            if least is not None and opened.format == "JPEG":
                opened.draft(None, (least, least))
            turn = _turn(opened)
            image = opened.convert("RGB")
            return image if turn is None else image.transpose(turn)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Unreadable(f"has more than {MOST_PIXELS:,} pixels", kind="unsafe") from None
    except UnidentifiedImageError:
        raise Unreadable(f"is no image in a known format ({', '.join(FORMATS)})") from None
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # decoders raise what damage leads them to
        raise Unreadable(f"cannot be decoded ({_reason(error)})") from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    """The turn that a camera noted; None where there is none, or the notes are damaged."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # whatever is wrong with them, the pixels are not
        return None


def _reason(error: Exception) -> str:
    """Pillow's reason, without an address in memory, or how much of its buffer was left.

    Both are other ones in another run or release, and tell nothing about the file.
    """
    text = LEFT_OVER.sub("", str(error).split(" <_io.")[0]).strip()
    return text or type(error).__name__
