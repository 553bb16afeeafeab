"""Reading pictures from files: the one decoder that training, evaluation and the device share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from edge_effdet.artifacts import Size
from edge_effdet.dicom import DICOM_SUFFIXES, dicom_size, read_dicom
from edge_effdet.errors import DataError

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
"""What turns a picture of each EXIF orientation upright."""


def read_image(path: Path) -> np.ndarray:
    """Decode a picture to uint8 [height, width, 3], RGB, turned as its EXIF orientation says.

    A DICOM file is windowed to 8 bits: see ``dicom``.

    Raises:
        DataError: missing, empty, truncated, or not a picture.
        MissingDependency: a DICOM file, and pydicom is not installed.
    """
    if Path(path).suffix.lower() in DICOM_SUFFIXES:
        return read_dicom(path)
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):
                # Pillow's own conversion clips 16-bit grey to 255.
                upright = _upright(image)
                grey = (np.asarray(upright, np.uint16) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.asarray(_upright(image).convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"There is no image at {path}; check the path.") from error
    except UnidentifiedImageError as error:
        raise _no_image(path) from error
    # A damaged file makes Pillow raise nearly anything.
    except Exception as error:
        raise DataError(f"{path} cannot be decoded ({error}); remove it or copy it again.") from error


def image_size(path: Path) -> Size:
    """Height and width of a picture as ``read_image`` would return it, from its header alone.

    Raises:
        DataError: missing, or not a picture.
        MissingDependency: a DICOM file, and pydicom is not installed.
    """
    if Path(path).suffix.lower() in DICOM_SUFFIXES:
        return dicom_size(path)
    try:
        with Image.open(path) as image:
            width, height = image.size
            # PngImageFile's own getexif decodes the picture; the base class's reads what the header gave.
            sideways = Image.Image.getexif(image).get(_EXIF_ORIENTATION) in _SIDEWAYS
    except FileNotFoundError as error:
        raise DataError(f"There is no image at {path}; check the path.") from error
    except UnidentifiedImageError as error:
        raise _no_image(path) from error
    except Exception as error:
        raise DataError(f"{path} is not an image ({error}); remove it or copy it again.") from error
    return (width, height) if sideways else (height, width)


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the EXIF anew, and fails where a camera gave some tag another type.
    image.load()
    turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _no_image(path: Path) -> DataError:
    empty = Path(path).stat().st_size == 0
    return DataError(f"{path} is {'empty' if empty else 'not an image'}; remove it or copy it again.")


def list_images(folder: Path) -> list[Path]:
    """The pictures directly in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
