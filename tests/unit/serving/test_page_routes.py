"""The pages: what is served with which headers, and that their files ask for nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib import resources

import pytest

from edge_effdet.serving.page_routes import HEADERS, MEDIA_TYPES
from tests.serving import RunningServer

PAGE = resources.files("edge_effdet.serving") / "page"
FILES = {item.name: item.read_text(encoding="utf-8") for item in PAGE.iterdir()}
NAMESPACES = ("http://www.w3.org/2000/svg",)
EXAMPLES = ("http://127.0.0.1:8080",)


@pytest.fixture(scope="module")
def server(small_engine):
    with RunningServer(small_engine) as running:
        yield running


class Elements(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize(("path", "name"), [("/", "index.html"), ("/docs", "docs.html")])
def test_the_pages_are_served_with_a_strict_policy(server, path, name):
    status, headers, content = server.ask("GET", path)
    assert (status, content.decode()) == (200, FILES[name])
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    for header, value in HEADERS.items():
        assert headers[header] == value
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert not {"script-src", "style-src"} & policy.keys(), "these would take the place of default-src"


def test_every_file_is_served_as_what_it_is(server):
    for name, text in FILES.items():
        if name.endswith(".html"):
            continue
        status, headers, content = server.ask("GET", f"/page/{name}")
        assert (status, content.decode()) == (200, text)
        assert headers["Content-Type"] == MEDIA_TYPES[name[name.rindex(".") :]]
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path", ["/page/", "/page/none.js", "/page/index.html", "/page/../app.py", "/page/%2e%2e/app.py"]
)
def test_other_files_are_not_there(server, path):
    assert server.ask("GET", path)[0] == 404


def test_a_browser_that_has_a_file_is_told_so(server):
    status, headers, content = server.ask("GET", "/page/page.css")
    assert content
    status, again, content = server.ask("GET", "/page/page.css", headers={"If-None-Match": headers["ETag"]})
    assert (status, content, again["ETag"]) == (304, b"", headers["ETag"])
    assert server.ask("GET", "/page/page.js", headers={"If-None-Match": headers["ETag"]})[0] == 200
    assert server.ask("HEAD", "/")[0] == 200


def test_the_page_knows_whether_there_is_a_source(server, small_engine, tmp_path):
    assert b'data-live="no"' in server.ask("GET", "/")[2]
    with RunningServer(small_engine, str(tmp_path / "not there yet")) as watching:
        assert b'data-live="yes"' in watching.ask("GET", "/")[2]


@pytest.mark.parametrize("name", sorted(FILES))
def test_no_file_names_another_place(name):
    addresses = re.findall(r"(?:https?:)?//[a-z0-9][^\s'\"`)<>]*", re.sub(r"(?m)(^|\s)//.*$", "", FILES[name]))
    assert [each for each in addresses if not each.startswith((*NAMESPACES, *EXAMPLES))] == []


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.endswith(".html")))
def test_pages_have_no_script_and_no_style_of_their_own(name):
    for tag, attributes in Elements(FILES[name]).found:
        assert tag != "style"
        assert tag != "script" or (attributes.get("src") and attributes.get("type") == "module")
        assert not [each for each in attributes if each == "style" or each.startswith("on")]
        for key in ("src", "href"):
            target = attributes.get(key)
            if target and target.startswith("page/"):
                assert target.removeprefix("page/") in FILES


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.endswith(".js")))
def test_scripts_import_what_is_there_and_write_only_text(name):
    for target in re.findall(r"from '\./([^']+)'", FILES[name]):
        assert target in FILES
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        "setAttribute('style'",
    ):
        assert word not in FILES[name]


def test_every_element_that_scripts_look_for_is_in_the_page():
    ids = {attributes["id"] for _, attributes in Elements(FILES["index.html"]).found if "id" in attributes}
    wanted = {
        found
        for name, text in FILES.items()
        if name.endswith(".js") and name != "docs.js"
        for found in re.findall(r"(?:byId|getElementById)\('([^']+)'\)", text)
    }
    assert len(wanted) > 30
    assert wanted <= ids


def test_every_field_of_a_form_has_a_label():
    elements = Elements(FILES["index.html"]).found
    labelled = {attributes.get("for") for tag, attributes in elements if tag == "label"}
    inside = re.findall(r"<label[^>]*>[^<]*<input id=\"([^\"]+)\"", FILES["index.html"])
    # What browsers want beside a password is hidden.
    fields = [attributes["id"] for tag, attributes in elements if tag == "input" and "hidden" not in attributes]
    assert len(fields) >= 4
    assert set(fields) <= labelled | set(inside)
