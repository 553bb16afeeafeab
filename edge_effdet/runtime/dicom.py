"""DICOM pictures, as X-ray, CT and ultrasound devices write them: from stored values to 8-bit RGB.

The steps are those of the standard's grey-scale pipeline (DICOM PS3.3 C.11.1 modality LUT, C.11.2 VOI LUT), with the
picture's own first window, or the range of its values if it names no window. pydicom is imported when the first such file is read.
"""

from __future__ import annotations

import functools
import logging
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Size
from edge_effdet.errors import DataError, MissingDependency, NotEnoughMemory, first_line
from edge_effdet.runtime.limits import (
    DECODING,
    MAX_DECODE_BYTES,
    MAX_PIXELS,
    refuse_heavy,
    refuse_huge,
    refuse_shortage,
)

logger = logging.getLogger(__name__)

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})

_STRIP_PIXELS = 2**20
"""So many grey values are worked on together."""

_BLOCK = 2**20
"""So many bytes are read or inflated together."""

_SIZE_TAGS = ["Rows", "Columns", "NumberOfFrames"]


def read_dicom(path: Path, most_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode the first frame of a DICOM file to uint8 [height, width, 3], RGB.

    Grey pictures: rescale slope and intercept or the modality LUT are applied, then the VOI LUT or the window (linear, linear
    exact or sigmoid), else the range of values is stretched. MONOCHROME1 is inverted. Colour pictures: RGB, YBR and palette.

    Args:
        path: the file.
        most_pixels: how many pixels the picture may have.

    Raises:
        DataError: the file is missing or damaged, holds no picture, is too large, or its compression cannot be decoded here.
        MissingDependency: pydicom is not installed.
        NotEnoughMemory: the system gives no more memory.
    """
    # The header is read alone first: reading the whole file takes as much memory as the file is large.
    size = dicom_size(path)
    refuse_huge(size, path, most_pixels)
    with _one_sentence(path):
        from pydicom import dcmread
        from pydicom.pixels import apply_color_lut, pixel_array
        from pydicom.uid import DeflatedExplicitVRLittleEndian

        header = dcmread(path, stop_before_pixels=True)
        needed = _decoding_bytes(header, size)
        refuse_heavy(needed, size, f"{header.get('BitsAllocated', 16)}-bit DICOM", path)
        with DECODING.hold(needed):
            # From the path and not from the whole file in memory: of a film only the first frame is read. A deflated file has to be inflated.
            deflated = header.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
            pixels = pixel_array(dcmread(path) if deflated else path, index=0)
            photometric = str(header.PhotometricInterpretation)
            if photometric == "PALETTE COLOR":
                pixels = apply_color_lut(pixels, header)
                return _eight_bits(pixels, 8 * pixels.dtype.itemsize)
            if pixels.ndim == 3:
                return _eight_bits(pixels, int(header.BitsStored))
            return _grey_to_rgb(pixels, header, inverted=photometric == "MONOCHROME1")


def _decoding_bytes(header: Any, size: Size) -> int:
    """How much memory a picture takes while it is decoded, by its header: twice its stored values, and the picture in RGB."""
    stored = -(-int(header.get("BitsAllocated", 16)) // 8) * int(header.get("SamplesPerPixel", 1))
    # pydicom makes a palette's picture in 16 bits for each colour.
    palette = 6 if str(header.get("PhotometricInterpretation", "")) == "PALETTE COLOR" else 0
    return size[0] * size[1] * (2 * stored + palette + 3)


def _grey_to_rgb(pixels: np.ndarray, header: Any, inverted: bool) -> np.ndarray:
    """Grey values as they are stored to uint8 [height, width, 3], some rows at a time: in float64 the whole picture would take eight times as much."""
    from pydicom.pixels import apply_modality_lut

    rows = max(1, _STRIP_PIXELS // pixels.shape[1])
    starts = range(0, pixels.shape[0], rows)
    window = _Window.of(header)
    if window is None:
        # Without one the range of all values is stretched.
        strips = (apply_modality_lut(pixels[start : start + rows], header) for start in starts)
        ends = [(float(strip.min()), float(strip.max())) for strip in strips]
        window = _Window.stretched(min(low for low, _ in ends), max(high for _, high in ends))
    rgb = np.empty((*pixels.shape, 3), np.uint8)
    for start in starts:
        grey = window.apply(apply_modality_lut(pixels[start : start + rows], header).astype(np.float64))
        rgb[start : start + rows] = np.rint((1.0 - grey if inverted else grey) * 255).astype(np.uint8)[..., None]
    return rgb


def dicom_size(path: Path) -> Size:
    """Height and width of a DICOM picture, from its header alone.

    Raises:
        DataError: the file is missing or damaged, or holds no picture.
        MissingDependency: pydicom is not installed.
    """
    with _one_sentence(path):
        from pydicom import dcmread

        _refuse_bomb(path)
        header = dcmread(path, stop_before_pixels=True, specific_tags=_SIZE_TAGS)
        _require_picture(path, header)
        _say_frames(path, header)
        return int(header.Rows), int(header.Columns)


@dataclass(frozen=True, slots=True)
class _Window:
    """What maps grey values, after the modality LUT, to 0 to 1.

    Attributes:
        apply: float64 of any shape to float64 of the same.
    """

    apply: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, header: Any) -> _Window | None:
        """The VOI LUT or the first window of a picture; None where it has neither."""
        from pydicom.pixels import apply_voi_lut

        if header.get("VOILUTSequence"):
            bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
            return cls(
                lambda values: np.clip(apply_voi_lut(np.rint(values).astype(np.int64), header) / (2**bits - 1), 0, 1)
            )
        center, width = _first_number(header.get("WindowCenter")), _first_number(header.get("WindowWidth"))
        if center is None or width is None or width <= 0:
            return None
        function = str(header.get("VOILUTFunction", "LINEAR"))
        if function == "SIGMOID":
            return cls(lambda values: 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
        if function == "LINEAR":
            # PS3.3 C.11.2.1.2.1: LINEAR, unlike LINEAR_EXACT, takes c - 0.5 for the centre and w - 1 for the width.
            middle, span = center - 0.5, max(width - 1, 1e-12)
        else:
            middle, span = center, width
        return cls(lambda values: np.clip((values - middle) / span + 0.5, 0, 1))

    @classmethod
    def stretched(cls, least: float, most: float) -> _Window:
        """From the smallest to the largest value of a picture."""
        return cls(lambda values: (values - least) / max(most - least, 1e-12))


def _first_number(element: Any) -> float | None:
    """The first number of an element, which may list several windows."""
    if element is None or element == "":
        return None
    return float(element if isinstance(element, (int, float, str)) else element[0])


def _eight_bits(pixels: np.ndarray, bits: int) -> np.ndarray:
    return np.ascontiguousarray((pixels >> max(bits - 8, 0)).astype(np.uint8))


def _refuse_bomb(path: Path) -> None:
    """Refuse a file that is deflated as a whole and would be too large inflated: pydicom inflates it to read its first element.

    A part 10 file begins with 128 bytes and the letters DICM, then comes its meta information, whose first element says in 12 bytes how long the rest is.
    """
    from pydicom.filereader import read_file_meta_info
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    meta = read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return
    inflating, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with Path(path).open("rb") as file:
        file.seek(132 + 12 + int(meta.FileMetaInformationGroupLength))
        content = file.read(_BLOCK)
        while content and not inflating.eof:
            inflated += len(inflating.decompress(content, _BLOCK))
            if inflated > MAX_DECODE_BYTES:
                raise DataError(
                    f"{path} is compressed as a whole and takes more than {MAX_DECODE_BYTES >> 20} MiB when it is not; store it in parts."
                )
            content = inflating.unconsumed_tail or file.read(_BLOCK)


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
    except MemoryError as error:
        raise NotEnoughMemory(
            f"There is not enough memory to decode {path}; end other programs, or give fewer `decoders` and `runs`, or smaller pictures."
        ) from error
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "pydicom":
            raise
        raise MissingDependency("pydicom", "dicom", "to read DICOM images") from error
    except FileNotFoundError as error:
        raise DataError(f"There is no image at {path}; check the path.") from error
    # On a damaged file pydicom and its decoders raise nearly any exception.
    except Exception as error:
        refuse_shortage(error, path)
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
