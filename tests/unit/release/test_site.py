"""The documentation becomes a site in which every link leads somewhere and nothing is loaded from elsewhere."""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path

import pytest

from release.site import (
    CONFIG,
    PAGES,
    ROOT,
    SOURCE,
    SiteError,
    build_site,
    find_outside,
    find_pages,
    rewrite_links,
    stage_site,
)

PLACES = {
    "README.md": "index.md",
    "docs/a.md": "a.md",
    "docs/sub/README.md": "sub/index.md",
    "docs/images/p.jpg": "images/p.jpg",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_site(ROOT, tmp_path_factory.mktemp("site"))


def test_every_page_is_built_and_in_the_menu(site: Path):
    pages = set(find_pages(ROOT).values())
    assert {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")} == pages | {"404.md"}
    menu = (ROOT / CONFIG).read_text().partition("\nnav:\n")[2].partition("\ntheme:")[0]
    assert set(re.findall(r"[\w./-]+\.md", menu)) == pages


def test_the_first_page_has_its_picture_and_its_commands(site: Path):
    text = (site / "index.html").read_text()
    pictures = re.findall(r'<img[^>]*src="([^"]+)"', text)
    assert pictures and all((site / each).is_file() for each in pictures)
    assert "edge_effdet.train" in re.sub(r"<[^>]+>", "", text)


def test_each_link_of_the_built_pages_leads_to_a_file(site: Path):
    for page in site.rglob("*.html"):
        # Of the page that a server shows for any address, links are absolute.
        for link in re.findall(r'href="([^":]+)"', page.read_text()) if page.name != "404.html" else []:
            path = link.partition("#")[0].partition("?")[0]
            assert not path or (page.parent / path).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("[a](a.md)", "[a](a.md)"),
        ("[a](a.md#part)", "[a](a.md#part)"),
        ("[up](../README.md)", "[up](index.md)"),
        ("[sub](sub/)", "[sub](sub/index.md)"),
        ("![p](images/p.jpg)", "![p](images/p.jpg)"),
        ("[![p](images/p.jpg)](a.md)", "[![p](images/p.jpg)](a.md)"),
        ("[there](#here), [out](https://example.org/a.md), [mail](mailto:a@example.org)", None),
        ("[module](../code.py) is `code.py`", "module is `code.py`"),
        ("`[a](gone.md)`\n\n```\n[a](gone.md)\n```\n", None),
    ],
)
def test_links_of_a_page(tmp_path: Path, text: str, becomes: str | None):
    (tmp_path / "code.py").touch()
    assert rewrite_links(text, "docs/a.md", PLACES, tmp_path) == (text if becomes is None else becomes, [])


def test_links_from_and_to_other_folders(tmp_path: Path):
    assert rewrite_links("[a](docs/a.md#x)", "README.md", PLACES, tmp_path) == ("[a](a.md#x)", [])
    assert (
        rewrite_links("[a](../a.md) [r](../../README.md)", "docs/sub/README.md", PLACES, tmp_path)[0]
        == "[a](../a.md) [r](../index.md)"
    )


def test_a_link_to_nothing_is_named_with_its_line(tmp_path: Path):
    _, broken = rewrite_links("one\n\n[a](gone.md) and [b](../../outside.md)\n", "docs/a.md", PLACES, tmp_path)
    assert broken == [(3, "gone.md"), (3, "../../outside.md")]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of one-line pages, with the real configuration but for the menu."""
    root = tmp_path / "root"
    for name in PAGES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}\n")
    (root / "docs").mkdir()
    (root / "docs" / "a.md").write_text("# A\n\n## Part\n")
    config = (ROOT / CONFIG).read_text()
    (root / CONFIG).write_text(config.partition("\nnav:\n")[0] + "\ntheme:" + config.partition("\ntheme:")[2])
    shutil.copy(ROOT / "docs" / "site.css", root / "docs")
    return root


def test_what_is_wrong_ends_the_build_and_leaves_the_site_before(small: Path, tmp_path: Path):
    output = tmp_path / "site"
    built = build_site(small, output)
    before = (built / "a.html").read_text()
    for text, said in (
        ("# A\n\n[b](gone.md)\n", r"docs/a\.md:3: gone\.md"),
        ("# A\n\n[b](a.md#gone)\n", "anchor does not exist"),
        ("# A\n\n<img src='https://example.org/a.png'>\n", r"a\.html: https://example\.org/a\.png"),
    ):
        (small / "docs" / "a.md").write_text(text)
        with pytest.raises(SiteError, match=said):
            build_site(small, output)
    assert (built / "a.html").read_text() == before
    assert [path.name for path in output.iterdir()] == ["html"]


def test_a_page_that_is_missing_and_two_that_are_one(small: Path, tmp_path: Path):
    (small / "docs" / "security.md").write_text("")
    with pytest.raises(SiteError, match=r"same page: security\.md"):
        stage_site(small, tmp_path / "out")
    (small / "SECURITY.md").unlink()
    with pytest.raises(SiteError, match=r"missing: SECURITY\.md"):
        stage_site(small, tmp_path / "out")


def test_what_a_page_would_load(tmp_path: Path):
    (tmp_path / "a.html").write_text(
        '<link rel="canonical" href="https://a.example/"><link rel="stylesheet" href="//b.example/x.css"><a href="https://c.example">'
        '<script src="https://d.example/x.js"></script><img src="data:image/png;base64,x"><iframe src="HTTP://e.example"></iframe>'
    )
    (tmp_path / "a.css").write_text("@import 'https://f.example/x.css'; a { background: url(x.png) }")
    assert [line.partition(": ")[2] for line in find_outside(tmp_path)] == [
        "//b.example/x.css", "https://d.example/x.js", "https://f.example/x.css",
    ]  # fmt: skip


def test_pages_are_where_links_expect_them(small: Path, tmp_path: Path):
    assert stage_site(small, tmp_path / "out") == []
    for name, page in find_pages(small).items():
        assert (tmp_path / "out" / SOURCE / page).is_file()
        assert posixpath.dirname(page) == "" or name.startswith("docs/")
