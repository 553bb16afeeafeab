"""How tests are divided among workers, and what several folders share: the measurement data, and a data set that is drawn here."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from edge_effdet.backends.cores import usable_cores
from tests.once import WORKER, worker_number

_DEFAULT_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_OBJECT = """
  <object><name>{}</name><difficult>0</difficult>
    <bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


_MOST_WORKERS = 8
"""A worker takes up to 2 GB of memory, and the longest test file takes as long however many there are."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for each core; none where all that is named are files, since starting workers takes longer than most files."""
    named = [Path(name.partition("::")[0]) for name in config.option.file_or_dir]
    return 0 if named and all(path.is_file() for path in named) else min(usable_cores(), _MOST_WORKERS)


def pytest_xdist_setupnodes() -> None:
    """Let each worker, which inherits this, compute with one thread: workers whose threads wait for each other are slower."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Give each worker one core. onnxruntime and OpenVINO start as many threads as there are cores that the process may use."""
    if WORKER and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[worker_number() % len(cores)]})


def pytest_collection_finish() -> None:
    """Let effdet make its configurations of feature pyramids once: it makes all seven, to return one, for each network and each spec."""
    if "effdet" in sys.modules:
        from effdet import config, efficientdet

        made = functools.cache(config.get_fpn_config)
        for module in (config, efficientdet):
            module.get_fpn_config = made


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Answers of golden checks that are kept for the user must not reach a test, nor a test's the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the measurement data: ``$EDGE_EFFDET_DATA``, or ``shared/data`` beside the repository.

    Skips where it is missing; with ``EDGE_EFFDET_REQUIRE_DATA=1``, which ``.ci/run`` sets where the data is there, fails.
    """
    root = Path(os.environ.get("EDGE_EFFDET_DATA") or _DEFAULT_DATA)
    return _require_folder(root)


@pytest.fixture(scope="session")
def bccd(data_root: Path) -> Path:
    """364 photographs of blood cells in Pascal VOC form."""
    return _require_folder(data_root / "bccd")


def _require_folder(folder: Path) -> Path:
    if not folder.is_dir():
        reason = f"no measurement data at {folder}; set EDGE_EFFDET_DATA"
        if os.environ.get("EDGE_EFFDET_REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def tiny_voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve drawn pictures of discs and bars, 60 x 80, in Pascal VOC form: 8 in train, 2 in val, 2 in test."""
    root = tmp_path_factory.mktemp("tiny_voc")
    rng = np.random.default_rng(0)
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    stems = [f"scene_{number:02}" for number in range(12)]
    for stem in stems:
        picture = Image.fromarray(rng.integers(90, 130, (60, 80, 3), dtype=np.uint8))
        brush = ImageDraw.Draw(picture)
        objects = ""
        for name, x in (("disc", int(rng.integers(2, 16))), ("bar", int(rng.integers(44, 56)))):
            y = int(rng.integers(2, 30))
            if name == "disc":
                brush.ellipse((x, y, x + 19, y + 19), fill=(220, 40, 40))
                objects += _OBJECT.format(name, x, y, x + 20, y + 20)
            else:
                brush.rectangle((x, y, x + 7, y + 23), fill=(30, 60, 220))
                objects += _OBJECT.format(name, x, y, x + 8, y + 24)
        picture.save(root / "JPEGImages" / f"{stem}.jpg", quality=95)
        (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{objects}\n</annotation>\n")
    for split, chosen in (("train", stems[:8]), ("val", stems[8:10]), ("test", stems[10:])):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in chosen))
    return root
