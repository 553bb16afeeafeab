"""Decoding: formats, colour modes, bit depths, orientation, and files that are no pictures.

``test_images_lowest.py`` runs this file with the lowest Pillow that is allowed, so it imports nothing but NumPy and Pillow.
"""

from __future__ import annotations

import os
import struct
import sys
import warnings
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image, features

from edge_effdet.errors import DataError, MissingDependency
from edge_effdet.runtime import bit_depth, images
from edge_effdet.runtime.images import (
    IMAGE_SUFFIXES,
    UNREADABLE_SUFFIXES,
    PictureFrame,
    describe_unreadable,
    image_size,
    list_images,
    open_picture,
    picture_frame,
    read_image,
)

ORIENTATION = 0x0112

TURNS = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda image: np.rot90(image),
}
"""What shows a stored picture upright, by its EXIF orientation."""

STORED = {
    "jpg": {"quality": 95},
    "jfif": {"format": "JPEG", "quality": 95},
    "mpo": {"quality": 95},
    "png": {},
    "webp": {"lossless": True},
    "tif": {},
    "tiff": {"compression": "tiff_lzw"},
    **({"avif": {"quality": 95}} if ".avif" in IMAGE_SUFFIXES else {}),
}
"""The suffixes of formats that store an orientation, with the options of a picture that is decoded nearly as it was."""


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def _nothing_warned_of(monkeypatch):
    monkeypatch.setattr(bit_depth, "_warned", set())


def save(path, pixels, orientation=None, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    if orientation:
        exif = image.getexif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    image.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_a_lossless_picture_comes_back(tmp_path, pixels, suffix):
    path = save(tmp_path / f"image{suffix}", pixels)
    image = read_image(path)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, pixels)
    assert image_size(path) == (4, 6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I", "F"])
def test_every_mode_becomes_rgb(tmp_path, pixels, mode):
    # Pillow before 12 cannot read an uncompressed TIFF in YCbCr.
    options = {"compression": "tiff_lzw"} if mode == "YCbCr" else {}
    path = save(tmp_path / f"image.{'png' if mode == 'P' else 'tif'}", Image.fromarray(pixels).convert(mode), **options)
    image = read_image(path)
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_keeps_its_upper_8_bits(tmp_path, caplog, suffix):
    grey = np.array([[0, 256, 65535], [255, 32768, 511]], np.uint16)
    path = tmp_path / f"grey.{suffix}"
    if suffix == "pgm":
        # Pillow before 11.1 writes none of 16 bits.
        path.write_bytes(b"P5 3 2 65535\n" + grey.astype(">u2").tobytes())
    else:
        save(path, grey)
    np.testing.assert_array_equal(read_image(path), np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2))
    assert caplog.text == ""


RAMP = np.linspace(0, 1, 4096).reshape(64, 64)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        (
            "u12.png",
            (RAMP * 4095).astype(np.uint16),
            "16-bit values of 0 to 4095, most likely 12 bits, and is nearly black",
        ),
        ("u10.tif", (RAMP * 1023).astype(np.uint16), "16-bit values of 0 to 1023, most likely 10 bits"),
        ("float.tif", RAMP.astype(np.float32), "floating-point values of 0 to 1 and is black"),
        (
            "wide.tif",
            (300 * RAMP - 20).astype(np.float32),
            "floating-point values of -20 to 280 and is cut off at 0 and 255",
        ),
        ("i32.tif", (RAMP * 65535).astype(np.int32), "32-bit values of 0 to 65535 and is cut off at 0 and 255"),
    ],
)
def test_values_of_which_little_is_left_are_told_once_with_their_range(tmp_path, caplog, name, values, said):
    for path in (tmp_path / name, tmp_path / f"more_{name}"):
        read_image(save(path, values))
    assert f"{name} has {said}" in caplog.text
    assert caplog.text.count("scale such pictures to 8 bits before; this is said of the first such picture only") == 1


@pytest.mark.parametrize(
    "values", [(RAMP * 255).astype(np.int32), (RAMP * 255).astype(np.float32), np.zeros((4, 6), np.uint16)]
)
def test_values_that_fit_are_not_told(tmp_path, caplog, values):
    image = read_image(save(tmp_path / "grey.tif", values))
    np.testing.assert_array_equal(image[..., 0], values.astype(np.uint8))
    assert caplog.text == ""


@pytest.mark.parametrize(("largest", "told"), [(15, True), (255, False)])
def test_12_bit_color_in_16_bits_is_told(tmp_path, caplog, largest, told):
    """Pillow writes no 16-bit colour. The lower byte of each value is 255."""
    row = b"\0" + b"".join(bytes([column * largest // 5, 255] * 3) for column in range(6))
    head = struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)
    path = tmp_path / "color.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", head)
        + png_chunk(b"IDAT", zlib.compress(4 * row))
        + png_chunk(b"IEND", b"")
    )
    assert read_image(path).max() == largest
    assert ("color.png has 16-bit values of 0 to 4095, most likely 12 bits" in caplog.text) == told
    assert told or caplog.text == ""


def test_the_pillow_is_the_one_that_is_to_be_tested():
    expected = os.environ.get("EXPECTED_PILLOW", PIL.__version__)
    assert (PIL.__version__ + ".0").startswith(expected + ".")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", STORED)
def test_a_picture_is_turned_upright_and_its_size_is_known_before(tmp_path, suffix, orientation):
    marked = np.zeros((32, 48, 3), np.uint8)
    marked[:16, :16] = 255
    path = save(tmp_path / f"image.{suffix}", marked, orientation, **STORED[suffix])
    image = read_image(path)
    upright = TURNS[orientation](marked)
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).max() < 40
    size = upright.shape[:2]
    assert picture_frame(path) == PictureFrame(size, (32, 48), orientation)
    assert image_size(path) == open_picture(path)[1] == open_picture(path.read_bytes())[1] == size


@pytest.mark.parametrize("suffix", ["bmp", "gif", "ppm", "jp2", "dib"])
def test_a_format_without_an_orientation_is_as_it_is_stored(tmp_path, pixels, suffix):
    if f".{suffix}" not in IMAGE_SUFFIXES:
        pytest.skip(f"this Pillow reads no .{suffix}")
    path = save(tmp_path / f"image.{suffix}", pixels)
    assert picture_frame(path) == PictureFrame((4, 6), (4, 6))
    assert read_image(path).shape == (4, 6, 3)
    assert open_picture(path)[1] == (4, 6)


def test_an_orientation_in_xmp_data_alone_is_treated_alike_by_header_and_decoder(tmp_path, pixels):
    """Which formats Pillow looks for it in depends on its version."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    paths = [tmp_path / f"image.{suffix}" for suffix in ("jpg", "webp", "tif")]
    for path, options in zip(paths, ({"xmp": xmp}, {"xmp": xmp}, {"tiffinfo": {700: xmp}}), strict=True):
        save(path, pixels, **options)
    for path in paths:
        assert image_size(path) == read_image(path).shape[:2] == open_picture(path)[1], path.name


@pytest.mark.parametrize(
    "chunk",
    [
        lambda exif: (b"eXIf", exif),
        lambda exif: (
            b"tEXt",
            b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (len(exif) + 6, (b"Exif\0\0" + exif).hex().encode()),
        ),
        lambda exif: (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<rdf:Description tiff:Orientation="6"/>'),
    ],
    ids=["eXIf", "raw profile", "XMP"],
)
def test_an_orientation_after_the_pixels_of_a_png_is_found(tmp_path, pixels, chunk):
    """exiftool writes it there, and ImageMagick writes dates there, which are no reason to decode the picture."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = save(tmp_path / "image.png", pixels)
    content = path.read_bytes()
    dated = content[:-12] + png_chunk(b"tEXt", b"date:create\x002024-01-01T00:00:00+00:00")
    path.write_bytes(dated + content[-12:])
    assert not images._has_late_exif(path)
    path.write_bytes(dated + png_chunk(*chunk(exif.tobytes().removeprefix(b"Exif\0\0"))) + content[-12:])
    np.testing.assert_array_equal(read_image(path), TURNS[6](pixels))
    assert picture_frame(path) == PictureFrame((6, 4), (4, 6), 6)


@pytest.mark.parametrize("orientation", [3, 6])
def test_orientation_of_16_bit_grey_is_applied_and_the_size_agrees(tmp_path, orientation):
    grey = np.arange(24, dtype=np.uint16).reshape(4, 6) << 10
    path = save(tmp_path / "grey.png", grey, orientation)
    image = read_image(path)
    assert image_size(path) == image.shape[:2]
    upright = grey[::-1, ::-1] if orientation == 3 else np.rot90(grey, -1)
    np.testing.assert_array_equal(image[..., 0], upright >> 8)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(DataError, match=r"no image at .*absent\.jpg"):
        read(tmp_path / "absent.jpg")


@pytest.mark.parametrize("read", [read_image, image_size])
@pytest.mark.parametrize("content", [b"", b"words", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_picture_is_named(tmp_path, read, content):
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.jpg"):
        read(tmp_path / "broken.jpg")


def test_an_empty_file_is_called_empty(tmp_path):
    (tmp_path / "image.png").touch()
    with pytest.raises(DataError, match=r"image\.png is empty; remove it"):
        read_image(tmp_path / "image.png")


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(DataError, match="cannot be decoded"):
        read_image(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_truncated_picture_has_a_size_and_no_pixels(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"cut{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert image_size(path) == (64, 64)
    with pytest.raises(DataError, match=rf"cut\{suffix} cannot be decoded"):
        read_image(path)


def test_a_folder_is_listed_by_name(tmp_path, pixels):
    for name in ("b.png", "a.JPG", "c.webp"):
        save(tmp_path / name, pixels)
    (tmp_path / "d.DCM").touch()
    (tmp_path / "e.dicom").touch()
    (tmp_path / "f.jfif").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder.jpg").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png", "c.webp", "d.DCM", "e.dicom", "f.jfif"]


@pytest.mark.parametrize("after", [b"a comment that names IDAT by chance", b"IDAT" * 20_000])
def test_late_data_of_a_png_are_found_behind_what_looks_like_pixels(tmp_path, pixels, after):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = save(tmp_path / "image.png", pixels)
    content = path.read_bytes()
    late = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + png_chunk(b"tEXt", b"Comment\0" + after)
    path.write_bytes(content[:-12] + late + content[-12:])
    assert picture_frame(path) == PictureFrame((6, 4), (4, 6), 6)
    assert read_image(path).shape == (6, 4, 3)


def test_pictures_that_cannot_be_read_here_are_counted_with_what_to_do(tmp_path):
    assert not UNREADABLE_SUFFIXES.keys() & IMAGE_SUFFIXES
    assert describe_unreadable([tmp_path / "a.jpg", tmp_path / "notes.txt"]) == ""
    named = describe_unreadable([tmp_path / "b.NEF", tmp_path / "a.jpg", tmp_path / "c.nef", tmp_path / "d.psd"])
    assert named == "2 .nef (develop them to JPEG or PNG), 1 .psd (convert them to JPEG or PNG)"
    assert (".avif" in IMAGE_SUFFIXES) == ("avif" in features.modules and features.check("avif"))
    assert (".heic" in IMAGE_SUFFIXES) != (".heic" in UNREADABLE_SUFFIXES)


PHONE = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.mark.parametrize("read", [read_image, image_size])
def test_heic_without_its_package_names_it(tmp_path, monkeypatch, read):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(images, "_READS_HEIC", False)
    images._register_heif.cache_clear()
    for name in ("phone.heic", "phone.jpg"):
        (tmp_path / name).write_bytes(PHONE)
    with pytest.raises(MissingDependency, match=r"pillow-heif .* run pip install 'edge-effdet\[heic\]'"):
        read(tmp_path / "phone.heic")
    with pytest.raises(
        DataError, match=r"phone\.jpg is a HEIC picture in spite of its suffix; run pip install 'edge-effdet\[heic\]'"
    ):
        read(tmp_path / "phone.jpg")
    with pytest.raises(MissingDependency):
        open_picture(PHONE)


@pytest.mark.parametrize("name", ["phone.heic", "phone.jpg"])
def test_heic_is_read_where_its_package_is_installed(tmp_path, name):
    pillow_heif = pytest.importorskip("pillow_heif")
    if "EXPECTED_PILLOW" in os.environ:
        pytest.skip("the pillow-heif that is installed is made for the newest Pillow")
    images._register_heif.cache_clear()
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :16] = 255
    pillow_heif.from_pillow(Image.fromarray(stored)).save(tmp_path / name, format="HEIF", quality=95)
    image = read_image(tmp_path / name)
    assert image.shape == stored.shape and np.abs(image.astype(int) - stored).max() < 40
    assert picture_frame(tmp_path / name) == PictureFrame((32, 48), (32, 48))
    (tmp_path / name).write_bytes(PHONE)
    with pytest.raises(DataError, match="is not an image"):
        read_image(tmp_path / name)


def test_a_tag_of_a_wrong_type_in_the_exif_costs_no_picture(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010E] = 6, "words"
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path, exif=exif)
    # The tag 0x010E (description) becomes 0x0100 (width) with a text, which Pillow reads but cannot write back.
    path.write_bytes(path.read_bytes().replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02"))
    assert image_size(path) == (6, 4)
    assert read_image(path).shape == (6, 4, 3)


@pytest.mark.parametrize("read", [read_image, picture_frame])
@pytest.mark.parametrize("warned", [False, True])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, read, warned):
    path = tmp_path / "huge.png"
    # The file is a header alone, so decoding it would raise another error.
    content = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9500, 9500, 8, 2, 0, 0, 0))
    path.write_bytes(content + png_chunk(b"IDAT", b""))
    with warnings.catch_warnings(), pytest.raises(DataError, match=r"huge\.png .*; scale it down") as caught:
        # Pillow's own warning is an error only where warnings are.
        warnings.simplefilter("error" if warned else "ignore", Image.DecompressionBombWarning)
        read(path)
    assert warned or "has 9500x9500 pixels, and more than 89 million are refused" in str(caught.value)


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_a_picture_without_pixels_is_named(tmp_path):
    path = tmp_path / "none.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 5, 8, 2, 0, 0, 0)))
    with pytest.raises(DataError, match=r"none\.png"):
        read_image(path)


def test_an_animation_is_its_first_frame_and_that_is_said(tmp_path, caplog):
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "image.gif", save_all=True, append_images=frames[1:])
    image = read_image(tmp_path / "image.gif")
    assert image.shape == (4, 6, 3)
    assert (image == (255, 0, 0)).all()
    assert "image.gif is animated; only its first frame" in caplog.text
    frames[0].save(tmp_path / "other.gif", save_all=True, append_images=frames[1:])
    read_image(tmp_path / "other.gif")
    assert "other.gif" not in caplog.text


def test_a_second_page_of_a_tiff_is_told_and_the_preview_in_a_phones_mpo_is_not(tmp_path, caplog):
    pages = [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    pages[0].copy().save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[pages[1].copy()])
    with Image.open(tmp_path / "phone.jpg") as phone:
        assert phone.format == "MPO"
    assert read_image(tmp_path / "phone.jpg")[0, 0, 0] > 250
    assert caplog.text == ""
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    assert (read_image(tmp_path / "scan.tif") == (255, 0, 0)).all()
    assert "scan.tif has several pages; only its first page is used" in caplog.text


def test_transparency_is_dropped_and_the_color_below_stays(tmp_path):
    below = np.zeros((4, 6, 4), np.uint8)
    below[..., :3] = (10, 200, 30)
    assert (read_image(save(tmp_path / "clear.png", below)) == (10, 200, 30)).all()


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpeg_can_be_decoded_small_and_its_size_is_still_known(tmp_path, orientation):
    smooth = np.linspace(0, 255, 200 * 404 * 3).reshape(200, 404, 3).astype(np.uint8)
    path = save(tmp_path / "photo.jpg", smooth, orientation, quality=95)
    whole, size = open_picture(path)
    assert size == image_size(path) == (whole.height, whole.width)
    small, same = open_picture(path, (96, 96))
    assert same == size
    assert small.size == tuple(-(-side // 4) for side in whole.size)
    assert open_picture(path.read_bytes(), (96, 96))[0].size == small.size
    assert np.abs(np.asarray(small).astype(int) - np.asarray(whole.reduce(4))).max() <= 4
    # A picture that would become smaller than the letterbox needs is decoded whole.
    assert open_picture(path, (300, 300))[0].size == whole.size


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"words", "is not an image")])
def test_bytes_that_are_no_picture(content, said):
    with pytest.raises(DataError, match=said):
        open_picture(content)
