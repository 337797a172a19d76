"""Decoding image files to RGB, cropping, padding and resizing them."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image

from dnnlib.util import UserError

WHITE = (255, 255, 255)

# Pillow only warns between its pixel limit and twice that; everywhere in this project it is an error.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

# The formats of `dnnlib.images.IMAGE_EXTENSIONS`. Pillow would open others whatever their name says, and some of them
# call programs (EPS: Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF")

# EXIF orientation -> what turns the stored pixels upright (EXIF 2.3, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(data: bytes, name: str, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """`read_rgb` as uint8 [H, W, 3]."""
    return np.array(read_rgb(data, name, background))


def read_rgb(data: bytes, name: str, background: tuple[int, int, int] = WHITE) -> Image.Image:
    """Encoded image -> picture in RGB, upright by its EXIF tag, first frame of animations.

    Grey values of 8 bits come back unchanged in all three channels. Transparent pixels show `background`. `name` is
    for messages: `UserError` if the data isn't a whole, readable image or has more pixels than Pillow's
    decompression-bomb limit.
    """
    try:
        with open_image(data) as img:
            _refuse_bomb(img, name)
            img.load()
            return _to_rgb(img, name, background)
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _bomb(name) from None
    except Exception as error:  # Pillow's readers raise almost anything on damaged data
        unknown = isinstance(error, Image.UnidentifiedImageError)
        reason = "the format is unknown" if unknown else str(error).partition("\n")[0]
        raise UserError(f"{name} is not a readable image ({reason or type(error).__name__}).") from error


def open_image(data: bytes) -> Image.Image:
    """The picture in `data`, its pixels not yet read: one of `FORMATS`. Raises what Pillow raises."""
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _bomb(name: str) -> UserError:
    return UserError(f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels (decompression bomb?); shrink it first.")


def _refuse_bomb(img: Image.Image, name: str) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and img.width * img.height > Image.MAX_IMAGE_PIXELS:
        raise _bomb(name)


def _to_rgb(img: Image.Image, name: str, background: tuple[int, int, int]) -> Image.Image:
    try:
        orientation = img.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF around sound pixels: take them as stored
        orientation = 1
    if img.mode == "F" or img.mode.startswith("I"):
        grey = _scaled_to_8_bits(np.asarray(img), name)
        img = Image.fromarray(grey)
    elif img.has_transparency_data:
        canvas = Image.new("RGBA", img.size, (*background, 255))
        img = Image.alpha_composite(canvas, img.convert("RGBA"))
    img = img.convert("RGB")
    img.info = {}  # colour profiles and the like, which saving would write again
    return img.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else img


def _scaled_to_8_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Grey values of 16 bits (0..65535), or float in 0..1, -> uint8 by rounding."""
    top = 1.0 if values.dtype.kind == "f" else 65535.0
    if not (values.min() >= 0 and values.max() <= top):  # also catches NaN
        raise UserError(f"{name} has pixel values outside of 0..{top:g}; save it with 8 or 16 bits per channel.")
    grey = np.empty(values.shape, np.uint8)
    step = max((1 << 20) // values.shape[1], 1)
    for start in range(0, len(values), step):  # in pieces, since float64 is eight times the picture
        grey[start : start + step] = np.rint(values[start : start + step].astype(np.float64) * (255 / top))
    return grey


def resize(img: Image.Image, width: int, height: int) -> Image.Image:
    """By Lanczos, unless it has this size."""
    return img if img.size == (width, height) else img.resize((width, height), Image.Resampling.LANCZOS)


def center_crop(img: Image.Image, width: int, height: int) -> Image.Image:
    """The largest centred part with the aspect ratio width : height."""
    w, h = img.size
    crop_w = max(min(w, round(h * width / height)), 1)
    crop_h = max(min(h, round(w * height / width)), 1)
    left, top = (w - crop_w) // 2, (h - crop_h) // 2
    return img.crop((left, top, left + crop_w, top + crop_h))


def pad(img: Image.Image, width: int, height: int, background: tuple[int, int, int]) -> Image.Image:
    """A picture no larger than the result, centred on width x height pixels of `background`."""
    canvas = Image.new("RGB", (width, height), background)
    canvas.paste(img, ((width - img.width) // 2, (height - img.height) // 2))
    return canvas
