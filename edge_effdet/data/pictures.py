"""A plain folder of pictures, for what needs no labels: calibration."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from edge_effdet.data.assemble import assemble
from edge_effdet.data.base import Dataset
from edge_effdet.data.finder import walk_files, walk_pictures
from edge_effdet.data.raw import RawDataset, RawPicture
from edge_effdet.data.registry import READERS, get_reader, read_dataset
from edge_effdet.errors import DataError
from edge_effdet.runtime.images import describe_unreadable

logger = logging.getLogger(__name__)


def read_images(path: Path) -> Dataset:
    """Read a data set for its pictures alone: as ``read_dataset`` does, and a folder whose labels are not there or cannot be used by
    ``read_pictures``.

    Raises:
        DataError: there is no picture that can be read.
    """
    try:
        return read_dataset(path)
    except DataError as error:
        if not os.path.isdir(path) or not walk_pictures(path):  # noqa: PTH112 - Path.is_dir may raise
            raise
        labelled = any(get_reader(kind).recognises(path) for kind in READERS)
        dataset = read_pictures(path)
        count = len(dataset.all_samples())
        if labelled:
            logger.warning("the labels of %s are left aside; pictures read: %d. %s", path, count, error)
        else:
            logger.info("%s holds no labels of a known format; pictures read: %d", path, count)
        return dataset


def read_pictures(folder: Path) -> Dataset:
    """All pictures of a folder and of the folders in it, as one split ``all`` without classes and boxes.

    The id of a picture is its path in the folder. Pictures that cannot be read are left out and recorded.

    Raises:
        DataError: there is no picture that can be read.
    """
    pictures = [RawPicture(Path(os.path.relpath(path, folder)).as_posix(), path) for path in walk_pictures(folder)]
    dataset = assemble(RawDataset(folder, "pictures", [("all", pictures)], classes={}, searched=str(folder)))
    if unreadable := describe_unreadable(walk_files(folder)):
        logger.warning("%s holds pictures that cannot be read here and are left out: %s", folder, unreadable)
    for problem in dataset.problems:
        logger.warning("%s: %s", problem.where, problem.text)
    return dataset
