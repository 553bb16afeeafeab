"""Reading pictures from files: the one decoder that training, evaluation and the device share."""

from __future__ import annotations

import io
import logging
import math
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from edge_effdet.artifacts import Size
from edge_effdet.errors import DataError
from edge_effdet.runtime.dicom import DICOM_SUFFIXES, dicom_size, read_dicom
from edge_effdet.runtime.limits import refuse_huge

logger = logging.getLogger("edge_effdet.runtime.images")

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}) | DICOM_SUFFIXES

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = frozenset({5, 6, 7, 8})
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The operation that turns a picture upright, by its EXIF orientation."""

_ANIMATED = frozenset({"GIF", "PNG", "WEBP"})


def read_image(path: Path) -> np.ndarray:
    """Decode a picture to uint8 [height, width, 3], RGB, turned upright by its EXIF orientation.

    A DICOM file is windowed to 8 bits: see ``dicom.read_dicom``.

    Raises:
        DataError: the file is missing, empty, truncated, too large, or not a picture.
        MissingDependency: the file is DICOM, and pydicom is not installed.
    """
    if Path(path).suffix.lower() in DICOM_SUFFIXES:
        return read_dicom(path)
    return np.asarray(open_picture(path)[0])


def open_picture(source: Path | bytes, reduce_to: Size | None = None) -> tuple[Image.Image, Size]:
    """Decode a picture as ``read_image`` does, but to a Pillow image, which spares a copy of the pixels.

    Args:
        source: a file, or the bytes of one.
        reduce_to: height and width of the network's input, or None. A JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size,
            but not smaller than its letterbox in that input. This is faster, but the pixels differ slightly.

    Returns:
        The decoded RGB picture, upright, and the height and width that it has without ``reduce_to``.

    Raises:
        DataError, MissingDependency: as in ``read_image``.
    """
    name = source if isinstance(source, Path) else "The picture"
    if isinstance(source, Path) and source.suffix.lower() in DICOM_SUFFIXES:
        pixels = read_dicom(source)
        return Image.fromarray(pixels), (pixels.shape[0], pixels.shape[1])
    try:
        with Image.open(source if isinstance(source, Path) else io.BytesIO(source)) as image:
            refuse_huge((image.height, image.width), name)
            if image.format in _ANIMATED and getattr(image, "is_animated", False):
                logger.warning("%s is animated; only its first frame is used", name)
            width, height = image.size
            sideways = image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS
            size = (width, height) if sideways else (height, width)
            if reduce_to is not None and image.format == "JPEG":
                scale = min(reduce_to[0] / size[0], reduce_to[1] / size[1])
                image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))
            upright = _upright(image)
            if upright.mode.startswith("I;16"):
                # Pillow's own conversion clips 16-bit grey to 255.
                upright = Image.fromarray((np.asarray(upright, np.uint16) >> 8).astype(np.uint8))
            # convert would copy a picture that is RGB already.
            return (upright if upright.mode == "RGB" else upright.convert("RGB")), size
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"There is no image at {name}; check the path.") from error
    except UnidentifiedImageError as error:
        raise _no_image(source) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} is too large ({error}); scale it down.") from error
    # On a damaged file Pillow raises nearly any exception.
    except Exception as error:
        raise DataError(f"{name} cannot be decoded ({error}); remove it or copy it again.") from error


def image_size(path: Path) -> Size:
    """Height and width of a picture as ``read_image`` would return it, from its header alone.

    Raises:
        DataError: the file is missing, or not a picture.
        MissingDependency: the file is DICOM, and pydicom is not installed.
    """
    if Path(path).suffix.lower() in DICOM_SUFFIXES:
        return dicom_size(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            # PngImageFile.getexif would decode the picture; the method of the base class reads the header alone.
            sideways = Image.Image.getexif(image).get(_EXIF_ORIENTATION) in _SIDEWAYS
    except FileNotFoundError as error:
        raise DataError(f"There is no image at {path}; check the path.") from error
    except UnidentifiedImageError as error:
        raise _no_image(Path(path)) from error
    except Exception as error:
        raise DataError(f"{path} is not an image ({error}); remove it or copy it again.") from error
    return (width, height) if sideways else (height, width)


def _upright(image: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose writes the EXIF data anew, and fails if a camera gave a tag an unexpected type.
    image.load()
    turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _no_image(source: Path | bytes) -> DataError:
    if isinstance(source, bytes):
        return DataError(f"The picture is {'not an image' if source else 'empty'}; give the content of an image file.")
    empty = source.stat().st_size == 0
    return DataError(f"{source} is {'empty' if empty else 'not an image'}; remove it or copy it again.")


def list_images(folder: Path) -> list[Path]:
    """The picture files directly in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
