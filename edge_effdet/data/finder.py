"""Finds the picture that an annotation names, however the exporting program spelled its path."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from edge_effdet.artifacts.files import file_identity
from edge_effdet.data.base import Problem
from edge_effdet.runtime.images import IMAGE_SUFFIXES

logger = logging.getLogger(__name__)

LIKELIEST_SUFFIXES = (".jpg", ".jpeg", *sorted(IMAGE_SUFFIXES - {".jpg", ".jpeg"}))
"""Suffixes in the order in which a picture is looked for by its stem: what lies beside a photo as PNG is most often its mask."""

_QUERY = re.compile(r"\?(?:.*&)?d=([^&]*)")
_ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]*://[^/]*/?", re.IGNORECASE)


def walk_folders(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and all below it, each with the sorted names of its files. Linked folders are followed, and each is entered once.

    Pipes, sockets and devices are no files: reading one may never end. A folder that cannot be read is warned of.
    """
    # A link to a folder above is a loop, by which the files of folders beside this one would be taken for its own.
    seen = {file_identity(place) for place in folder.resolve().parents}
    left = [folder]
    while left:
        here = left.pop()
        identity = file_identity(here)
        if identity is None or identity in seen:
            continue
        seen.add(identity)
        try:
            folders, files = _contents(here)
        except NotADirectoryError:
            continue
        except OSError as error:
            logger.warning("%s cannot be read (%s), and what is in it is left out", here, error.strerror or error)
            continue
        # Hidden ones hold what programs keep for themselves, as .ipynb_checkpoints with copies of pictures.
        left += [here / name for name in sorted(folders, reverse=True) if not name.startswith(".")]
        yield here, sorted(files)


def _contents(folder: Path) -> tuple[list[str], list[str]]:
    """The names of the folders and of the files in a folder."""
    folders: list[str] = []
    files: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            # What a link leads to may be gone. Then it counts, and who opens it tells so.
            if entry.is_symlink() and file_identity(Path(entry.path)) is None:
                files.append(entry.name)
            elif entry.is_dir():
                folders.append(entry.name)
            elif entry.is_file():
                files.append(entry.name)
    return folders, files


def walk_files(folder: Path) -> Iterator[Path]:
    """All files that ``walk_folders`` finds."""
    for here, names in walk_folders(folder):
        yield from (here / name for name in names)


def walk_pictures(folder: Path) -> list[Path]:
    """All pictures below a folder."""
    return [path for path in walk_files(folder) if is_picture(path)]


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name. macOS's ``._`` files are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("._")


class PictureFinder:
    """Finds pictures by the names that annotations give.

    A name is tried as it is written; with ``/`` for ``\\``; without a web address, with what follows ``d=`` in its query, and
    unquoted; with its letters composed or decomposed (Unicode NFC and NFD), and in another case. It is looked for in
    each of the folders, then without its first parts, and last by its file name alone anywhere below the root.

    Attributes:
        folders: where pictures are looked for, in this order.
    """

    def __init__(self, folders: Iterable[Path], root: Path | None = None) -> None:
        """Look in folders.

        Args:
            folders: the likeliest first; those that do not exist are left out.
            root: the folder below which a picture is looked for by its file name alone; None not to.
        """
        self.folders: list[Path] = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
        self._root = root
        self._listings: dict[Path, dict[str, list[str]]] = {}
        self._below: dict[str, list[Path]] | None = None
        self._several: dict[tuple[Path, Path], list[str]] = defaultdict(list)
        self._ambiguous: list[str] = []

    def find(self, name: str, suffixes: Sequence[str] = ()) -> Path | None:
        """The picture with a name; None where there is none, or where only its file name fits and fits several.

        Args:
            name: as the annotation has it.
            suffixes: where given, the name may lack its suffix, and these are tried in this order.
        """
        if os.path.isabs(name) and os.path.isfile(name):  # noqa: PTH113, PTH117 - a name that no file can have is no error
            return Path(name)
        for parts in _spellings(name):
            for start in range(len(parts)):
                if (found := self._in_folders(parts[start:], suffixes, name)) is not None:
                    return found
        return self._anywhere(name, suffixes)

    def problems(self) -> list[Problem]:
        """One for each pair of folders that hold different pictures of one name, and one for names that fit several pictures."""
        problems = [
            Problem(
                "namesake",
                str(taken),
                f"{len(names)} picture{'s have' if len(names) > 1 else ' has'} a namesake: {taken} is read and {other} is not "
                f"(first: {names[0]})",
            )
            for (taken, other), names in self._several.items()
        ]
        if self._ambiguous:
            text = (
                f"{len(self._ambiguous)} name{'s fit' if len(self._ambiguous) > 1 else ' fits'} several pictures below {self._root}, "
                f"none of which is taken (first: {self._ambiguous[0]})"
            )
            problems.append(Problem("namesake", str(self._root), text))
        return problems

    def searched(self) -> str:
        """The folders for a message."""
        return ", ".join(str(folder) for folder in self.folders) or "no folder"

    def _in_folders(self, parts: Sequence[str], suffixes: Sequence[str], name: str) -> Path | None:
        found: Path | None = None
        for folder in self.folders:
            here = self._in_folder(folder, parts, suffixes)
            if here is None:
                continue
            if found is None:
                found = here
            elif not found.samefile(here):
                self._several[found.parent, here.parent].append(name)
        return found

    def _in_folder(self, folder: Path, parts: Sequence[str], suffixes: Sequence[str]) -> Path | None:
        for inner in parts[:-1]:
            if inner == "..":
                folder = folder.parent
                continue
            listing = self._listing(folder).get(name_key(inner))
            if not listing:
                return None
            folder = folder / _nearest(listing, inner)
        listing = self._listing(folder)
        for candidate in (parts[-1], *(parts[-1] + suffix for suffix in suffixes)):
            names = listing.get(name_key(candidate))
            if names:
                path = folder / _nearest(names, candidate)
                if path.is_file():
                    return path
        return None

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._listings:
            names: dict[str, list[str]] = defaultdict(list)
            try:
                for name in sorted(each.name for each in folder.iterdir()):
                    names[name_key(name)].append(name)
            except OSError:
                pass
            self._listings[folder] = names
        return self._listings[folder]

    def _anywhere(self, name: str, suffixes: Sequence[str]) -> Path | None:
        if self._root is None:
            return None
        if self._below is None:
            self._below = defaultdict(list)
            for path in walk_pictures(self._root):
                self._below[name_key(path.name)].append(path)
        for parts in _spellings(name):
            for candidate in (parts[-1], *(parts[-1] + suffix for suffix in suffixes)):
                found = self._below.get(name_key(candidate), [])
                if len(found) == 1:
                    return found[0]
                if found:
                    self._ambiguous.append(name)
                    return None
        return None


def match_path(folder: Path, parts: Sequence[str]) -> Path | None:
    """The file or folder at a path below a folder, whatever the case and the composition of its letters; None where there is none."""
    place = folder
    for part in parts:
        if part == "..":
            place = place.parent
            continue
        try:
            names = sorted(each.name for each in place.iterdir()) if place.is_dir() else []
        except OSError:
            names = []
        fitting = [name for name in names if name_key(name) == name_key(part)]
        if not fitting:
            return None
        place = place / (part if part in fitting else fitting[0])
    return place


def _spellings(name: str) -> list[list[str]]:
    """The parts of a path in each way that it may be meant."""
    query = _QUERY.search(name)
    bare = _ADDRESS.sub("", unquote(query[1].replace("+", " ")) if query else name)
    spellings = [name, name.replace("\\", "/"), bare.replace("\\", "/"), unquote(bare).replace("\\", "/")]
    split = [[part for part in spelling.split("/") if part not in ("", ".")] for spelling in dict.fromkeys(spellings)]
    return [parts for parts in split if parts]


def name_key(name: str) -> str:
    """What names have in common that differ only in case or in the composition of letters."""
    return unicodedata.normalize("NFC", name).casefold()


def _nearest(names: Sequence[str], wanted: str) -> str:
    """Of names that differ in case or in the composition of letters, the one that is written as wanted, else the first."""
    return wanted if wanted in names else names[0]
