"""DICOM pictures, as X-ray, CT and ultrasound devices write them: from stored values to 8-bit RGB.

The steps are those of the standard's grey-scale pipeline (DICOM PS3.3 C.11.1 modality LUT, C.11.2 VOI LUT), with the
picture's own first window, or the range of its values if it names no window. pydicom is imported when the first such file is read.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Size
from edge_effdet.errors import DataError, MissingDependency, first_line
from edge_effdet.runtime.limits import refuse_huge

logger = logging.getLogger(__name__)

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})

_SIZE_TAGS = ["Rows", "Columns", "NumberOfFrames"]


def read_dicom(path: Path) -> np.ndarray:
    """Decode the first frame of a DICOM file to uint8 [height, width, 3], RGB.

    Grey pictures: rescale slope and intercept or the modality LUT are applied, then the VOI LUT or the window (linear, linear
    exact or sigmoid), else the range of values is stretched. MONOCHROME1 is inverted. Colour pictures: RGB, YBR and palette.

    Raises:
        DataError: the file is missing or damaged, holds no picture, is too large, or its compression cannot be decoded here.
        MissingDependency: pydicom is not installed.
    """
    # The header is read alone first: reading the whole file takes as much memory as the file is large.
    refuse_huge(dicom_size(path), path)
    with _one_sentence(path):
        from pydicom import dcmread
        from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

        header = dcmread(path)
        pixels = pixel_array(header, index=0)
        photometric = str(header.PhotometricInterpretation)
        if photometric == "PALETTE COLOR":
            pixels = apply_color_lut(pixels, header)
            return _eight_bits(pixels, 8 * pixels.dtype.itemsize)
        if pixels.ndim == 3:
            return _eight_bits(pixels, int(header.BitsStored))
        grey = _apply_window(apply_modality_lut(pixels, header), header)
        if photometric == "MONOCHROME1":
            grey = 1.0 - grey
        return np.repeat(np.rint(grey * 255).astype(np.uint8)[..., None], 3, axis=2)


def dicom_size(path: Path) -> Size:
    """Height and width of a DICOM picture, from its header alone.

    Raises:
        DataError: the file is missing or damaged, or holds no picture.
        MissingDependency: pydicom is not installed.
    """
    with _one_sentence(path):
        from pydicom import dcmread

        header = dcmread(path, stop_before_pixels=True, specific_tags=_SIZE_TAGS)
        _require_picture(path, header)
        _say_frames(path, header)
        return int(header.Rows), int(header.Columns)


def _apply_window(values: np.ndarray, header: Any) -> np.ndarray:
    """Map grey values, after the modality LUT, to float64 0 to 1 by the VOI LUT or the window."""
    from pydicom.pixels import apply_voi_lut

    values = values.astype(np.float64)
    if header.get("VOILUTSequence"):
        bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
        return np.clip(apply_voi_lut(np.rint(values).astype(np.int64), header) / (2**bits - 1), 0, 1)
    center, width = _first_number(header.get("WindowCenter")), _first_number(header.get("WindowWidth"))
    if center is None or width is None or width <= 0:
        least, most = float(values.min()), float(values.max())
        return (values - least) / max(most - least, 1e-12)
    function = str(header.get("VOILUTFunction", "LINEAR"))
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR":
        # PS3.3 C.11.2.1.2.1: LINEAR, unlike LINEAR_EXACT, takes c - 0.5 for the centre and w - 1 for the width.
        center, width = center - 0.5, max(width - 1, 1e-12)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _first_number(element: Any) -> float | None:
    """The first number of an element, which may list several windows."""
    if element is None or element == "":
        return None
    return float(element if isinstance(element, (int, float, str)) else element[0])


def _eight_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    return np.ascontiguousarray((pixels >> max(bits - 8, 0)).astype(np.uint8))


def _require_picture(path: Path, header: Any) -> None:
    if not header.get("Rows") or not header.get("Columns"):
        raise DataError(f"{path} is a DICOM file without a picture; remove it.")


def _say_frames(path: Path, header: Any) -> None:
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        _say_once(f"{path} holds {frames} frames, of which the first is taken.")


@functools.cache
def _say_once(text: str) -> None:
    """Log a sentence the first time only: training reads each picture once an epoch."""
    logger.info("%s", text)


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Turn each error of pydicom into a DataError or MissingDependency of one sentence."""
    try:
        with warnings.catch_warnings():
            # pydicom warns of every value that breaks the standard, and real files have many.
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "pydicom":
            raise
        raise MissingDependency("pydicom", "dicom", "to read DICOM images") from error
    except FileNotFoundError as error:
        raise DataError(f"There is no image at {path}; check the path.") from error
    # On a damaged file pydicom and its decoders raise nearly any exception.
    except Exception as error:
        if Path(path).is_file() and Path(path).stat().st_size == 0:
            raise DataError(f"{path} is empty; remove it or copy it again.") from error
        if "missing dependencies" in str(error):
            raise DataError(
                f"{path} is compressed in a way that needs a decoder of its own ({first_line(error).rstrip(':')}); run pip "
                "install 'pylibjpeg[all]', or store it uncompressed."
            ) from error
        # The decoders give their reasons on the lines after the first.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} cannot be decoded as DICOM ({reason}); remove it or copy it again.") from error
