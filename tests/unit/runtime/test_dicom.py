"""DICOM pictures: windows, colours, frames and broken files. The tests write most files; a few come with pydicom."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.errors import DataError, MissingDependency
from edge_effdet.runtime import limits
from edge_effdet.runtime.images import image_size, open_picture, read_image

pydicom = pytest.importorskip("pydicom")


def save(path, pixels, photometric="MONOCHROME2", bits=None, **elements):
    """Write stored values, [height, width] or [height, width, 3] or [frames, height, width], uncompressed."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    colour = photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    shape = pixels.shape if colour or pixels.ndim == 2 else pixels.shape[1:]
    data.Rows, data.Columns = shape[:2]
    data.SamplesPerPixel = 3 if colour else 1
    if colour:
        data.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = 8 * pixels.dtype.itemsize
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in elements.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def grey_of(path):
    image = read_image(path)
    assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)
    assert image.flags.c_contiguous
    assert (image == image[..., :1]).all()
    return image[..., 0].tolist()


def test_without_a_window_the_values_are_stretched_over_their_range(tmp_path):
    path = save(tmp_path / "a.dcm", np.array([[100, 200, 600], [350, 100, 100]], np.uint16))
    assert grey_of(path) == [[0, 51, 255], [128, 0, 0]]
    assert image_size(path) == (2, 3)


def test_one_value_is_black(tmp_path):
    assert grey_of(save(tmp_path / "a.dicom", np.full((2, 2), 7, np.uint8))) == [[0, 0], [0, 0]]


def test_monochrome1_is_inverted(tmp_path):
    path = save(tmp_path / "a.DCM", np.array([[0, 51, 255]], np.uint8), "MONOCHROME1")
    assert grey_of(path) == [[255, 204, 0]]


def test_the_window_counts_in_rescaled_values(tmp_path):
    """In Hounsfield units a stored 0 is -1024, and the window 50 ± 100 goes from -50 to 149 (PS3.3 C.11.2.1.2.1)."""
    stored = np.array([[0, 974, 1024, 1173, 3000]], np.int16)
    window = {"WindowCenter": 50, "WindowWidth": 200, "RescaleIntercept": -1024, "RescaleSlope": 1}
    assert grey_of(save(tmp_path / "a.dcm", stored, **window)) == [[0, 0, 64, 255, 255]]


def test_the_window_agrees_with_pydicom(tmp_path):
    from pydicom import dcmread
    from pydicom.pixels import apply_modality_lut, apply_windowing

    stored = np.random.default_rng(0).integers(0, 4096, (8, 8)).astype(np.uint16)
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        window = {"WindowCenter": [40.5, 3], "WindowWidth": [300, 4], "VOILUTFunction": function}
        path = save(tmp_path / "a.dcm", stored, bits=12, RescaleIntercept=-1000, RescaleSlope=0.5, **window)
        header = dcmread(path)
        values = apply_windowing(apply_modality_lut(header.pixel_array, header), header)
        # apply_windowing maps to the range of the rescaled values, -1000 to 1047.5.
        expected = np.rint((values + 1000) / 2047.5 * 255)
        np.testing.assert_allclose(grey_of(path), expected, atol=1)


def test_a_window_without_width_is_none(tmp_path):
    path = save(tmp_path / "a.dcm", np.array([[10, 20]], np.uint8), WindowCenter=15, WindowWidth=0)
    assert grey_of(path) == [[0, 255]]


def test_a_table_of_values_goes_before_the_window(tmp_path):
    from pydicom.dataset import Dataset

    table = Dataset()
    table.add_new("LUTDescriptor", "US", [4, 0, 8])
    table.add_new("LUTData", "US", [0, 10, 200, 255])
    elements = {"VOILUTSequence": [table], "WindowCenter": 1, "WindowWidth": 2}
    path = save(tmp_path / "a.dcm", np.array([[0, 1, 2, 3, 9]], np.uint8), **elements)
    assert grey_of(path) == [[0, 10, 200, 255, 255]]


def test_rgb_of_8_and_16_bits(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.dcm", pixels, "RGB")), pixels)
    wide = pixels.astype(np.uint16) << 8
    np.testing.assert_array_equal(read_image(save(tmp_path / "b.dcm", wide, "RGB")), pixels)
    assert image_size(tmp_path / "b.dcm") == (4, 6)


def test_ybr_becomes_rgb(tmp_path):
    pixels = np.array([[[76, 85, 255], [128, 128, 128]]], np.uint8)
    image = read_image(save(tmp_path / "a.dcm", pixels, "YBR_FULL"))
    np.testing.assert_allclose(image, [[[254, 0, 0], [128, 128, 128]]], atol=2)


def test_the_first_frame_is_taken_and_it_is_said_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    frames = np.stack([np.full((2, 3), value, np.uint8) for value in (0, 200)])
    frames[0, 0, 0] = 10
    path = save(tmp_path / "many.dcm", frames)
    assert image_size(path) == (2, 3)
    assert grey_of(path) == [[255, 0, 0], [0, 0, 0]]
    assert caplog.text.count("many.dcm holds 2 frames, of which the first is taken") == 1


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small.dcm", "examples_rgb_color.dcm", "examples_palette.dcm", "examples_ybr_color.dcm", "SC_rgb_rle_2frame.dcm"],
)  # fmt: skip
def test_files_of_real_devices(name):
    path = Path(pydicom.__file__).parent / "data" / "test_files" / name
    if not path.is_file():
        pytest.skip(f"this pydicom does not carry {name}")
    image = read_image(path)
    assert (image.shape[:2], image.shape[2], image.dtype) == (image_size(path), 3, np.uint8)
    assert image.std() > 10


@pytest.mark.parametrize("read", [read_image, image_size])
def test_a_missing_file_is_named(tmp_path, read):
    with pytest.raises(DataError, match=r"no image at .*absent\.dcm"):
        read(tmp_path / "absent.dcm")


@pytest.mark.parametrize("read", [read_image, image_size])
@pytest.mark.parametrize(("content", "message"), [(b"", "is empty"), (b"words", "cannot be decoded as DICOM")])
def test_a_file_that_is_no_dicom_is_named(tmp_path, read, content, message):
    (tmp_path / "bad.dcm").write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.dcm {message}.*; remove it or copy it again\.$"):
        read(tmp_path / "bad.dcm")


def test_a_truncated_file_has_a_size_and_no_pixels(tmp_path):
    path = save(tmp_path / "cut.dcm", np.zeros((64, 64), np.uint16))
    path.write_bytes(path.read_bytes()[:-4000])
    assert image_size(path) == (64, 64)
    with pytest.raises(DataError, match=r"cut\.dcm cannot be decoded as DICOM"):
        read_image(path)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    path = save(tmp_path / "huge.dcm", np.zeros((2, 2), np.uint8))
    header = pydicom.dcmread(path)
    # The file holds four bytes of pixels, so decoding it would raise another error.
    header.Rows, header.Columns = 9500, 9600
    header.save_as(path)
    assert image_size(path) == (9500, 9600)
    for read in (read_image, open_picture):
        with pytest.raises(
            DataError, match=r"huge\.dcm has 9600x9500 pixels, and more than 89 million .*; scale it down\.$"
        ):
            read(path)


def test_a_file_without_a_picture_is_named(tmp_path):
    path = save(tmp_path / "report.dcm", np.zeros((2, 2), np.uint8))
    header = pydicom.dcmread(path)
    del header.Rows, header.Columns, header.PixelData
    header.save_as(path)
    for read in (read_image, image_size):
        with pytest.raises(DataError, match=r"report\.dcm is a DICOM file without a picture"):
            read(path)


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    path = save(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    for read in (read_image, image_size):
        with pytest.raises(MissingDependency, match=r"pydicom is not installed.*edge-effdet\[dicom\]"):
            read(path)


def test_pydicom_is_not_loaded_before_it_is_needed():
    code = "import sys, edge_effdet.runtime.images; print('pydicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


PEAK = """
# Of this process alone: what getrusage says begins with that of the process that started it.
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

import sys
from pathlib import Path
from edge_effdet.runtime.images import read_image
read_image(Path(sys.argv[2]))
before = peak()
read_image(Path(sys.argv[1]))
print(peak() - before >> 10)
"""


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [{}, {"WindowCenter": 500, "WindowWidth": 900}])
def test_a_large_picture_takes_no_copies_in_floating_point(tmp_path, photometric, window):
    """25 million pixels of 16 bits: 48 MiB stored, twice for a moment, and 72 MiB in RGB; in float64 a single copy would take 190."""
    rows = np.arange(5000, dtype=np.uint16)[:, None].repeat(5000, 1)
    large = save(tmp_path / "large.dcm", rows, photometric, RescaleSlope=2, RescaleIntercept=-7, **window)
    small = save(
        tmp_path / "small.dcm", rows[:20, :20].copy(), photometric, RescaleSlope=2, RescaleIntercept=-7, **window
    )
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(large), str(small)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 7 * 25_000_000 / 2**20 + 40


def test_strips_make_the_picture_that_the_whole_makes(tmp_path, monkeypatch):
    from edge_effdet.runtime import dicom

    values = np.random.default_rng(0).integers(0, 4096, (37, 29), np.uint16)
    for number, elements in enumerate(
        ({}, {"WindowCenter": 900, "WindowWidth": 300}, {"RescaleSlope": 3, "RescaleIntercept": 5})
    ):
        path = save(tmp_path / f"{number}.dcm", values, **elements)
        whole = read_image(path)
        monkeypatch.setattr(dicom, "_STRIP_PIXELS", 100)
        np.testing.assert_array_equal(read_image(path), whole)
        monkeypatch.undo()


def test_a_film_is_not_read_as_a_whole(tmp_path):
    """Of 40 frames of 8 MiB one is read."""
    frames = np.zeros((40, 2048, 2048), np.uint16)
    frames[0, 0, 0] = 9
    large, small = save(tmp_path / "film.dcm", frames), save(tmp_path / "one.dcm", frames[0, :20, :20].copy())
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(large), str(small)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 100


def test_a_picture_is_refused_by_what_it_takes_to_decode(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "MAX_PICTURE_BYTES", 2**29)
    path = save(tmp_path / "a.dcm", np.zeros((2, 2), np.uint32), Rows=8000, Columns=8000)
    with pytest.raises(DataError, match=r"a\.dcm has 8000x8000 pixels as 32-bit DICOM, which take 671 MiB to decode"):
        read_image(path)


def deflate(path, add=b""):
    """Write a DICOM file again, deflated as a whole, with ``add`` behind its elements."""
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    header = pydicom.dcmread(path)
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    if add:
        header.EncapsulatedDocument = add
    header.save_as(path, enforce_file_format=True)
    return path


def test_a_deflated_file_is_read_and_one_that_grows_without_bounds_is_refused(tmp_path, monkeypatch):
    from edge_effdet.runtime import dicom

    values = np.arange(600, dtype=np.uint16).reshape(20, 30)
    plain, packed = save(tmp_path / "plain.dcm", values), deflate(save(tmp_path / "packed.dcm", values))
    np.testing.assert_array_equal(read_image(packed), read_image(plain))
    bomb = deflate(save(tmp_path / "bomb.dcm", values), bytes(40 << 20))
    assert bomb.stat().st_size < 100_000
    read_image(bomb)
    monkeypatch.setattr(dicom, "MAX_DECODE_BYTES", 30 << 20)
    with pytest.raises(DataError, match=r"bomb\.dcm is compressed as a whole and takes more than 30 MiB"):
        image_size(bomb)
    assert image_size(packed) == (20, 30)
