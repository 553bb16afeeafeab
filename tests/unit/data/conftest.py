"""Fixtures for the tests of the readers: they write small pictures and text files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def draw() -> Callable[..., Path]:
    """A function that writes a grey picture of brightness ``shade``, by default 40 pixels high and 60 wide."""

    def draw_picture(path: Path, size: tuple[int, int] = (40, 60), shade: int = 100) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*size, 3), shade, np.uint8)).save(path)
        return path

    return draw_picture


@pytest.fixture
def write() -> Callable[[Path, str], Path]:
    """A function that writes a text file and makes its folders."""

    def write_text(path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_text


@pytest.fixture
def problems_of() -> Callable[..., list[tuple[str, str]]]:
    """A function that lists (kind, where) of each problem of a data set, with ``where`` relative to its root."""

    def kinds_and_places(dataset) -> list[tuple[str, str]]:
        root = dataset.root if dataset.root.is_dir() else dataset.root.parent
        return [(problem.kind, problem.where.removeprefix(f"{root}/")) for problem in dataset.problems]

    return kinds_and_places
