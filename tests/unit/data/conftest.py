"""What the tests of the readers share: small pictures, drawn here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def draw() -> Callable[..., Path]:
    """Write a grey picture, 40 high and 60 wide unless told, whose bytes differ with ``shade``."""

    def draw_picture(path: Path, size: tuple[int, int] = (40, 60), shade: int = 100) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), shade, np.uint8)).save(path)
        return path

    return draw_picture


@pytest.fixture
def write() -> Callable[[Path, str], Path]:
    """Write a text file, with its folders."""

    def write_text(path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


@pytest.fixture
def problems_of() -> Callable[..., list[tuple[str, str]]]:
    """(kind, where) of each problem of a data set, the root left out of ``where``."""

    def kinds_and_places(dataset) -> list[tuple[str, str]]:
        root = dataset.root if dataset.root.is_dir() else dataset.root.parent
        return [(problem.kind, problem.where.removeprefix(f"{root}/")) for problem in dataset.problems]

    return kinds_and_places
