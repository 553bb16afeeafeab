"""Build the documentation as a site: the Markdown files of the repository, which GitHub shows as they are, become pages with a menu and a search.

    python -m release.site --output runs/site

The pages keep their text. They move together from several folders into one, so links between them are written anew. A link to a file that is not a
page, such as a module, becomes its name alone, since the site does not hold the source. zensical, which reads ``mkdocs.yml``, builds the pages; a link or
an anchor that leads nowhere ends the build.
"""

from __future__ import annotations

import argparse
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "mkdocs.yml"
SOURCE, BUILT = "source", "html"
"""Where the pages are written and where the site is built, below the folder of the output; ``mkdocs.yml`` has the same names."""

PAGES: Mapping[str, str] = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "RELEASE.md": "release.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/gpu_check.md": "gpu-check.md",
    "calibration/README.md": "calibration.md",
    "edge_effdet/quickstart/MODEL_CARD.md": "model-card.md",
}
"""The pages outside of ``docs``, and what they are called in the site."""

COPIED = (".css", ".jpg", ".json", ".png", ".svg")
"""The kinds of files in ``docs`` that pages show or link."""

_FENCE = re.compile(r"^(?P<mark> *(?:```+|~~~+)).*?^(?P=mark)[ ]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_OUTSIDE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


class SiteError(Exception):
    """What is wrong with the pages or their build."""


def find_pages(root: Path) -> dict[str, str]:
    """The pages of a repository: from the path of each Markdown file to that of its page in the site.

    Raises:
        SiteError: two files would become one page, or a file of ``PAGES`` is missing.
    """
    found = dict(PAGES)
    for path in sorted((root / "docs").rglob("*.md")):
        inside = path.relative_to(root / "docs")
        found[f"docs/{inside.as_posix()}"] = inside.with_name(
            "index.md" if inside.name == "README.md" else inside.name
        ).as_posix()
    missing = [name for name in found if not (root / name).is_file()]
    if missing:
        raise SiteError(f"These pages are missing: {', '.join(missing)}.")
    double = sorted({page for page in found.values() if list(found.values()).count(page) > 1})
    if double:
        raise SiteError(f"Two files would become the same page: {', '.join(double)}.")
    return found


def stage_site(root: Path, output: Path) -> list[str]:
    """Write the pages, the files that they show, and the configuration.

    Args:
        root: the repository.
        output: a folder that is made anew.

    Returns:
        The links that lead to nothing, each with its file and line.

    Raises:
        SiteError: as ``find_pages``.
    """
    pages = find_pages(root)
    shutil.rmtree(output, ignore_errors=True)
    (output / SOURCE).mkdir(parents=True)
    shutil.copy(root / CONFIG, output / CONFIG)
    files = {
        path.relative_to(root).as_posix(): path for path in sorted((root / "docs").rglob("*")) if path.suffix in COPIED
    }
    for name, path in files.items():
        copy = output / SOURCE / name.removeprefix("docs/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    places = {**pages, **{name: name.removeprefix("docs/") for name in files}}
    broken: list[str] = []
    for name, page in pages.items():
        text, dead = rewrite_links((root / name).read_text(encoding="utf-8"), name, places, root)
        broken += [f"{name}:{line}: {target}" for line, target in dead]
        path = output / SOURCE / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return broken


def rewrite_links(text: str, name: str, places: Mapping[str, str], root: Path) -> tuple[str, list[tuple[int, str]]]:
    """The text of a page with links that are right in the site.

    Args:
        text: Markdown. Links are looked for outside of code.
        name: the path of the file in the repository.
        places: from paths in the repository to paths in the site.
        root: the repository.

    Returns:
        The text, and the line and the target of each link that leads to nothing in the repository.
    """
    code = [found.span() for pattern in (_FENCE, _CODE) for found in pattern.finditer(text)]
    page = places[name]
    broken: list[tuple[int, str]] = []

    def anew(found: re.Match[str]) -> str:
        target = found["target"]
        if any(begin <= found.start() < end for begin, end in code) or _OUTSIDE.match(target) or target.startswith("#"):
            return found[0]
        path, mark, anchor = target.partition("#")
        leads_to = posixpath.normpath(posixpath.join(posixpath.dirname(name), path))
        place = next((places[each] for each in (leads_to, f"{leads_to}/README.md") if each in places), None)
        if place is not None:
            return f"{found['image']}[{found['text']}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{mark}{anchor})"
        if leads_to.startswith("..") or not (root / leads_to).exists():
            broken.append((text.count("\n", 0, found.start()) + 1, target))
        return found["text"]

    return _LINK.sub(anew, text), broken


def build_site(root: Path, output: Path) -> Path:
    """Stage and build the site; what was built before stays until the new one is whole.

    Args:
        root: the repository.
        output: the folder of the site, which gets ``html``.

    Returns:
        The folder of the built pages.

    Raises:
        SiteError: a link or an anchor leads to nothing, a page asks for a file of another site, or zensical failed.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".new-") as folder:
        stage = Path(folder) / "site"
        if broken := stage_site(root, stage):
            raise SiteError("These links lead to nothing:\n  " + "\n  ".join(broken))
        words = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(stage / CONFIG)]
        done = subprocess.run(
            words, cwd=stage, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            said = _COLOURS.sub("", done.stdout).partition("Traceback (most recent call last)")[0]
            raise SiteError(f"zensical refuses the pages:\n{said.strip()}")
        asked = sorted(set(find_outside(stage / BUILT)))
        if asked:
            raise SiteError("These pages ask for files of other sites:\n  " + "\n  ".join(asked))
        shutil.rmtree(output / BUILT, ignore_errors=True)
        (stage / BUILT).rename(output / BUILT)
    return output / BUILT


def find_outside(folder: Path) -> Iterator[str]:
    """What pages and style sheets load from other sites; links that a reader may follow do not count."""
    for path in sorted(folder.rglob("*.html")):
        parser = _Loads()
        parser.feed(path.read_text(encoding="utf-8"))
        yield from (f"{path.relative_to(folder)}: {target}" for target in parser.found)
    for path in sorted(folder.rglob("*.css")):
        for target in re.findall(
            r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)", path.read_text(encoding="utf-8")
        ):
            yield f"{path.relative_to(folder)}: {target}"


class _Loads(HTMLParser):
    """Collects what a page loads by itself from another site."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        loads = [
            given.get("src"),
            given.get("srcset"),
            given.get("poster"),
            given.get("data") if tag == "object" else None,
        ]
        # Of links, those that the browser follows by itself.
        if tag == "link" and not set((given.get("rel") or "").split()) & {
            "canonical",
            "prev",
            "next",
            "alternate",
            "license",
        }:
            loads.append(given.get("href"))
        self.found += [target for target in loads if target and re.match(r"(https?:)?//", target)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m release.site", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "runs" / "site",
        metavar="DIR",
        help="the folder of the site (default: runs/site)",
    )
    arguments = parser.parse_args(argv)
    try:
        print(build_site(ROOT, arguments.output.resolve()) / "index.html")
    except SiteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
