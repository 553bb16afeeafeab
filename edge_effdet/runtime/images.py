"""Reading pictures from files: the one decoder that training, evaluation and the device share."""

from __future__ import annotations

import functools
import importlib.util
import io
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError, features

from edge_effdet.artifacts import Size
from edge_effdet.errors import DataError, MissingDependency, NotEnoughMemory
from edge_effdet.runtime.bit_depth import stored_depth, strips_of, to_rgb, warn_once
from edge_effdet.runtime.dicom import DICOM_SUFFIXES, dicom_size, read_dicom
from edge_effdet.runtime.limits import DECODING, MAX_PIXELS, is_large, refuse_heavy, refuse_huge, refuse_shortage
from edge_effdet.runtime.preprocess import letterbox_size

logger = logging.getLogger("edge_effdet.runtime.images")

_HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
_PILLOW_TURNS_TIFF = int(PIL.__version__.partition(".")[0]) >= 11
_INSTALL_HEIC = "run pip install 'edge-effdet[heic]'"
# Pillow before 11.3 does not know the name of this feature, and warns.
_READS_AVIF = "avif" in features.modules and features.check_module("avif")
try:
    _READS_HEIC = importlib.util.find_spec("pillow_heif") is not None
# A program may have its own finder, which refuses packages.
except ModuleNotFoundError:
    _READS_HEIC = False

FORMATS: Mapping[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    **({"JPEG2000": (".jp2", ".j2k", ".jpx")} if features.check_codec("jpg_2000") else {}),
    **({"AVIF": (".avif",)} if _READS_AVIF else {}),
}
"""The formats that Pillow is let read, by its names of them, and their suffixes. Pillow knows more, which are not for photographs; some start other
programs, as EPS does Ghostscript, and a file of any format may be called .jpg. The usual ones come first: Pillow loads all of its modules where one
is not found among them."""

IMAGE_SUFFIXES = (
    frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
    | (_HEIC_SUFFIXES if _READS_HEIC else set())
    | DICOM_SUFFIXES
)
"""Suffixes, in lower case, of the files that count as pictures in a folder. A file that is named by itself may have any suffix."""

UNREADABLE_SUFFIXES: Mapping[str, str] = {
    suffix: cure
    for cure, suffixes in (
        (_INSTALL_HEIC, _HEIC_SUFFIXES),
        ("install Pillow 11.3 or newer", (".avif",)),
        ("install a Pillow that was built with OpenJPEG", (".jp2", ".j2k", ".jpx")),
        ("convert them to JPEG or PNG", (".jxl", ".psd", ".svg", ".exr")),
        ("develop them to JPEG or PNG", (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2")),
    )
    for suffix in suffixes
    if suffix not in IMAGE_SUFFIXES
}
"""Suffixes, in lower case, of pictures that cannot be read here, each with what to do about it."""

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

_LATE_EXIF = (b"eXIf", b"iTXtXML:com.adobe.xmp", b"tEXtRaw profile type exif", b"zTXtRaw profile type exif")
"""How the chunks of a PNG begin in which Pillow finds an orientation."""

_PNG_START, _PNG_TAIL = 8, 1 << 16
"""Where the first chunk of a PNG starts, and how many bytes at its end are searched for its last pixels."""

_SEVERAL = {
    **dict.fromkeys(("GIF", "PNG", "WEBP", "AVIF"), "is animated; only its first frame is used"),
    # The further pictures of an MPO, as phones write it, are previews and depth maps.
    "TIFF": "has several pages; only its first page is used",
    "HEIF": "holds several pictures; only its main picture is used",
}
"""What is said of a file with more than one picture, by Pillow's name of its format."""

_MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2, "RGB": 4}
"""Bytes that Pillow keeps for a pixel in each mode; in any other 4."""

_DECODER_BYTES = {"JPEG2000": 12, "AVIF": 8, "HEIF": 8, "WEBP": 4, "GIF": 4, "TIFF": 1}
"""Bytes for a pixel that the decoder of a format holds besides: OpenJPEG 32 bits for each channel, those of video formats the picture in YUV and in
RGBA; of a TIFF a strip, which usually is a small part."""

_COEFFICIENT_BYTES = 3
"""Bytes for a pixel that a progressive JPEG keeps until its last scan: 16 bits for each coefficient, with colour at a quarter of the points."""

_OUT_OF_MEMORY = "out of memory"
"""What Pillow's message of an OSError says where its decoder got no memory."""

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def read_image(path: Path) -> np.ndarray:
    """Decode a picture to uint8 [height, width, 3], RGB, turned upright by its EXIF orientation.

    Transparency is dropped. ``bit_depth`` says what becomes of values that do not have 8 bits; a DICOM file is windowed to 8 bits
    (``dicom.read_dicom``).

    Raises:
        DataError: the file is missing, empty, truncated, too large, or not a picture.
        MissingDependency: the file is DICOM and pydicom is not installed, or it is HEIC and pillow-heif is not.
        NotEnoughMemory: the system gives no more memory or open files, which says nothing of the file.
    """
    if Path(path).suffix.lower() in DICOM_SUFFIXES:
        return read_dicom(path)
    return pixels_of(open_picture(path)[0])


def open_picture(
    source: Path | bytes, reduce_to: Size | None = None, fit: Size | None = None, most_pixels: int = MAX_PIXELS
) -> tuple[Image.Image, Size]:
    """Decode a picture as ``read_image`` does, but to a Pillow image, which spares a copy of the pixels.

    What is decoded at the same time in all threads takes ``limits.MAX_DECODE_BYTES`` together: a picture that does not fit waits.

    Args:
        source: a file, or the bytes of one.
        reduce_to: height and width of the network's input, or None. A JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size,
            but not smaller than its letterbox in that input. This is faster, but the pixels differ slightly.
        fit: height and width of the network's input, or None. A large picture (``limits.LARGE_PIXELS``) is then scaled to its letterbox in that
            input, to exactly the pixels that ``preprocess.fill_input`` makes of it, so that it is not held in its own size.
        most_pixels: how many pixels a picture may have; fewer for one that anybody may send.

    Returns:
        The decoded RGB picture, upright, and the height and width that it has without ``reduce_to`` and ``fit``.

    Raises:
        DataError, MissingDependency, NotEnoughMemory: as in ``read_image``.
    """
    name = source if isinstance(source, Path) else "The picture"
    if isinstance(source, Path) and source.suffix.lower() in DICOM_SUFFIXES:
        pixels = read_dicom(source, most_pixels)
        size = (pixels.shape[0], pixels.shape[1])
        return _fitted(Image.fromarray(pixels), size, fit), size
    needed = 0
    try:
        with _open(source) as image:
            refuse_huge((image.height, image.width), name, most_pixels)
            if image.format in _SEVERAL and getattr(image, "is_animated", False):
                warn_once(f"several pictures: {image.format}", f"{name} {_SEVERAL[image.format]}")
            stored, depth = image.format, stored_depth(image)
            width, height = image.size
            size = (height, width)
            turned = False
            if stored == "JPEG":
                orientation = image.getexif().get(_EXIF_ORIENTATION)
                turned = orientation in _TURNS
                if orientation in _SIDEWAYS:
                    size = (width, height)
                if reduce_to is not None:
                    scale = min(reduce_to[0] / size[0], reduce_to[1] / size[1])
                    image.draft("RGB", (math.ceil(width * scale), math.ceil(height * scale)))
            needed = decoding_bytes(image, turned)
            refuse_heavy(needed, size, depth or f"{image.mode} in {stored}", name)
            with DECODING.hold(needed):
                upright = _upright(image)
                if stored != "JPEG":
                    # Only a JPEG may have been reduced; what others are when they are decoded is what they are.
                    size = (upright.height, upright.width)
                return _fitted(to_rgb(upright, depth, name), size, fit), size
    except (DataError, MissingDependency):
        raise
    except MemoryError as error:
        raise _no_memory(name) from error
    except FileNotFoundError as error:
        raise DataError(f"There is no image at {name}; check the path.") from error
    except PermissionError as error:
        raise DataError(f"{name} may not be read by this user; see who may read it.") from error
    except UnidentifiedImageError as error:
        raise _no_image(source) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} is too large ({error}); scale it down.") from error
    # On a damaged file Pillow raises nearly any exception.
    except Exception as error:
        refuse_shortage(error, name)
        # Pillow's decoders say so of some damaged files too.
        if _OUT_OF_MEMORY in str(error) and _is_short_of(needed):
            raise _no_memory(name) from error
        raise DataError(f"{name} cannot be decoded ({error}); remove it or copy it again.") from error


def _is_short_of(needed: int) -> bool:
    """Whether the system gives so many bytes no more."""
    try:
        bytearray(needed)
    except MemoryError:
        return True
    return False


def pixels_of(picture: Image.Image) -> np.ndarray:
    """A picture in RGB as uint8 [height, width, 3]. Of a large one NumPy would hold two copies for a moment."""
    if not is_large((picture.height, picture.width)):
        return np.asarray(picture)
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    for top, strip in strips_of(picture):
        pixels[top : top + len(strip)] = strip
    return pixels


def decoding_bytes(image: Image.Image, turned: bool = False) -> int:
    """How much memory a picture takes while it is decoded to RGB, by its header: for Pillow's copy in its own mode, for the one in RGB, for what the
    decoder of its format holds, and for one more where the picture is ``turned`` upright."""
    own = _MODE_BYTES.get(image.mode, 4)
    held = own + _DECODER_BYTES.get(image.format or "", 0) + (own if turned else 0)
    if "progressive" in image.info or "progression" in image.info:
        held += _COEFFICIENT_BYTES
    if image.mode != "RGB":
        held += _MODE_BYTES["RGB"]
    if image.mode.startswith("I"):
        # The upper 8 bits, on the way from 16-bit grey to RGB.
        held += 1
    return image.width * image.height * held


@dataclass(frozen=True, slots=True)
class PictureFrame:
    """How a picture lies in its file.

    Attributes:
        upright: height and width of the picture as ``read_image`` returns it.
        raw: height and width as the pixels are stored, before the EXIF orientation turns them.
        orientation: the EXIF orientation, 1 to 8; 1 for a picture that is stored upright.
    """

    upright: Size
    raw: Size
    orientation: int = 1


def image_size(path: Path) -> Size:
    """Height and width of a picture as ``read_image`` would return it, from its header alone. Raises as ``picture_frame``."""
    return picture_frame(path).upright


def picture_frame(path: Path) -> PictureFrame:
    """How a picture lies in its file, from its header alone.

    Raises:
        DataError: the file is missing, too large, or not a picture.
        MissingDependency, NotEnoughMemory: as in ``read_image``.
    """
    path = Path(path)
    if path.suffix.lower() in DICOM_SUFFIXES:
        size = dicom_size(path)
        return PictureFrame(size, size)
    try:
        with _open(path) as image:
            refuse_huge((image.height, image.width), path)
            # PngImageFile.getexif decodes the picture to find what stands after its pixels; the base class's reads the header alone.
            late = image.format == "PNG" and "exif" not in image.info and _has_late_exif(path)
            exif = image.getexif() if late else Image.Image.getexif(image)
            orientation = exif.get(_EXIF_ORIENTATION)
            return _frame(image, orientation if orientation in _TURNS else 1)
    except (DataError, MissingDependency):
        raise
    except FileNotFoundError as error:
        raise DataError(f"There is no image at {path}; check the path.") from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read by this user; see who may read it.") from error
    except UnidentifiedImageError as error:
        raise _no_image(path) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} is too large ({error}); scale it down.") from error
    except MemoryError as error:
        raise _no_memory(path) from error
    except Exception as error:
        refuse_shortage(error, path)
        raise DataError(f"{path} is not an image ({error}); remove it or copy it again.") from error


def list_images(folder: Path) -> list[Path]:
    """The picture files directly in a folder, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def describe_unreadable(files: Iterable[Path]) -> str:
    """Count the pictures among files that cannot be read here, by ``UNREADABLE_SUFFIXES``.

    Returns:
        A clause such as "2 .heic (run pip install 'edge-effdet[heic]'), 1 .nef (develop them to JPEG or PNG)", or "" if there are none.
    """
    counts = Counter(path.suffix.lower() for path in files)
    return ", ".join(
        f"{count} {suffix} ({UNREADABLE_SUFFIXES[suffix]})"
        for suffix, count in sorted(counts.items())
        if suffix in UNREADABLE_SUFFIXES
    )


def _open(source: Path | bytes) -> Image.Image:
    """Open a picture by its content. What HEIC needs is loaded when the first such picture comes, whatever suffix it has."""
    try:
        return Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=tuple(FORMATS))
    except UnidentifiedImageError:
        if not _is_heif(source):
            raise
    if not _READS_HEIC and isinstance(source, Path) and source.suffix.lower() not in _HEIC_SUFFIXES:
        # In a folder of JPEGs it is one picture that cannot be read, and no reason to end.
        raise DataError(f"{source} is a HEIC picture in spite of its suffix; {_INSTALL_HEIC}, or convert it to JPEG.")
    _register_heif()
    return Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=("HEIF",))


def _is_heif(source: Path | bytes) -> bool:
    if isinstance(source, bytes):
        start = source[:12]
    else:
        with source.open("rb") as file:
            start = file.read(12)
    return start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS


@functools.cache
def _register_heif() -> None:
    try:
        import pillow_heif
    except ModuleNotFoundError as error:
        raise MissingDependency("pillow-heif", "heic", "to read HEIC pictures") from error
    pillow_heif.register_heif_opener()


def _has_late_exif(path: Path) -> bool:
    """Whether EXIF or XMP data stand after the pixels of a PNG, where exiftool writes them."""
    with path.open("rb", buffering=0) as file:
        # libpng writes pixels in chunks of 8 KiB: to begin with the last one spares a walk over hundreds of them.
        start = max(_PNG_START, file.seek(0, io.SEEK_END) - _PNG_TAIL)
        file.seek(start)
        last = start + file.read(_PNG_TAIL).rfind(b"IDAT") - 4
        # These four bytes may also stand by chance among the pixels; then no walk from there ends where the file does.
        found = _walk_chunks(file, last) if last >= start else None
        return bool(_walk_chunks(file, _PNG_START) if found is None else found)


def _walk_chunks(file: BinaryIO, start: int) -> bool | None:
    """Whether a chunk after the pixels is one of ``_LATE_EXIF``; None if there is no end of a PNG after the chunks from ``start`` on."""
    file.seek(start)
    pixels_seen = found = False
    while len(head := file.read(8)) == 8:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        if kind == b"IEND":
            return found
        if kind == b"IDAT":
            pixels_seen = True
        elif pixels_seen:
            begin = file.read(min(length, 21))
            found = found or (kind + begin).startswith(_LATE_EXIF)
            length -= len(begin)
        # Each chunk ends with a checksum of 4 bytes.
        file.seek(length + 4, io.SEEK_CUR)
    return None


def _frame(image: Image.Image, orientation: int) -> PictureFrame:
    """The frame of a picture that was opened and not yet decoded."""
    told = (image.height, image.width)
    if orientation not in _SIDEWAYS:
        return PictureFrame(told, told, orientation)
    other = (image.width, image.height)
    # Pillow turns a TIFF by itself when it decodes it. From 11.0 on it tells the size after that at once, unless the orientation is not
    # in TIFF's own tag but in XMP data.
    tags: Any = getattr(image, "tag_v2", {})
    if image.format == "TIFF" and _PILLOW_TURNS_TIFF and tags.get(_EXIF_ORIENTATION) in _SIDEWAYS:
        return PictureFrame(told, other, orientation)
    return PictureFrame(other, told, orientation)


def _upright(image: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose writes the EXIF data anew, and fails if a camera gave a tag an unexpected type.
    image.load()
    turn = _TURNS.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _fitted(picture: Image.Image, size: Size, fit: Size | None) -> Image.Image:
    if fit is None or not is_large((picture.height, picture.width)):
        return picture
    height, width, _ = letterbox_size(*size, fit)
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def _no_memory(name: object) -> NotEnoughMemory:
    return NotEnoughMemory(
        f"There is not enough memory to decode {name}; end other programs, or give fewer `decoders` and `runs`, or smaller pictures."
    )


def _no_image(source: Path | bytes) -> DataError:
    if isinstance(source, bytes):
        return DataError(f"The picture is {'not an image' if source else 'empty'}; give the content of an image file.")
    empty = source.stat().st_size == 0
    return DataError(f"{source} is {'empty' if empty else 'not an image'}; remove it or copy it again.")
