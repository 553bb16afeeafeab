"""Text in the encodings that other programs write."""

from __future__ import annotations

import codecs
import json

import pytest

from edge_effdet.data.text import decode_text, read_json, read_text
from edge_effdet.errors import DataError

TEXT = 'names: ["Möwe", "gull"]\n'


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"]
)  # fmt: skip
def test_the_encoding_is_told_from_the_content(tmp_path, encoding):
    file = tmp_path / "data.yaml"
    file.write_bytes(TEXT.encode(encoding))
    assert read_text(file) == TEXT


def test_a_mark_of_big_endian_utf_16_is_taken_off(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(codecs.BOM_UTF16_BE + "0 0.5".encode("utf-16-be"))
    assert read_text(file) == "0 0.5"


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_end_as_everywhere(tmp_path, ending):
    file = tmp_path / "a.txt"
    file.write_bytes(f"a{ending}b{ending}".encode())
    assert read_text(file).splitlines() == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "named"),
    [(b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0d", "UTF-8 or Windows"), (codecs.BOM_UTF8 + b"\xff", "utf-8-sig"), (b"a\x00b\x00\x00", "utf-16-le")],
)  # fmt: skip
def test_what_is_no_text_is_refused_with_the_encoding(tmp_path, content, named):
    with pytest.raises(DataError, match=f"is no text in {named}.*save it as UTF-8"):
        decode_text(content, tmp_path / "a.txt")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.txt cannot be read"):
        read_text(tmp_path / "absent.txt")


def test_json_in_any_encoding_and_half_a_file(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(json.dumps({"name": "Möwe"}, ensure_ascii=False).encode("utf-16"))
    assert read_json(file) == {"name": "Möwe"}
    file.write_text('{"name": ')
    with pytest.raises(DataError, match="is not whole JSON"):
        read_json(file)
    file.write_text("[" * 100_000)
    with pytest.raises(DataError, match="is not whole JSON"):
        read_json(file)
