"""Decoding: colour modes, orientation, and files that are no pictures."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from edge_effdet.errors import DataError
from edge_effdet.runtime.images import image_size, list_images, open_picture, read_image

ORIENTATION = 0x0112


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


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
    path = save(tmp_path / "image.tif", Image.fromarray(pixels).convert(mode)) if mode != "P" else save(
        tmp_path / "image.png", Image.fromarray(pixels).convert(mode)
    )  # fmt: skip
    image = read_image(path)
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8


def test_16_bit_grey_keeps_its_upper_8_bits(tmp_path):
    grey = np.array([[0, 256, 65535], [255, 32768, 511]], np.uint16)
    path = save(tmp_path / "grey.png", grey)
    np.testing.assert_array_equal(read_image(path), np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda image: image),
        (2, lambda image: image[:, ::-1]),
        (3, lambda image: image[::-1, ::-1]),
        (4, lambda image: image[::-1]),
        (5, lambda image: image.transpose(1, 0, 2)),
        (6, lambda image: np.rot90(image, -1)),
        (7, lambda image: image.transpose(1, 0, 2)[::-1, ::-1]),
        (8, lambda image: np.rot90(image)),
    ],
)
def test_orientation_is_applied_and_the_size_agrees(tmp_path, pixels, orientation, turn):
    path = save(tmp_path / "image.png", pixels, orientation)
    image = read_image(path)
    np.testing.assert_array_equal(image, turn(pixels))
    assert image_size(path) == image.shape[:2]


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
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder.jpg").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.JPG", "b.png", "c.webp", "d.DCM", "e.dicom"]


def test_a_tag_of_a_wrong_type_in_the_exif_costs_no_picture(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION], exif[0x010E] = 6, "words"
    path = tmp_path / "photo.jpg"
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(path, exif=exif)
    # The tag 0x010E (description) becomes 0x0100 (width) with a text, which Pillow reads but cannot write back.
    path.write_bytes(path.read_bytes().replace(b"\x01\x0e\x00\x02", b"\x01\x00\x00\x02"))
    assert image_size(path) == (6, 4)
    assert read_image(path).shape == (6, 4, 3)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "huge.png"
    # The file is a header alone, so decoding it would raise another error.
    content = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9500, 9500, 8, 2, 0, 0, 0))
    path.write_bytes(content + png_chunk(b"IDAT", b""))
    with pytest.raises(DataError, match=r"huge\.png .*; scale it down"):
        read_image(path)


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
