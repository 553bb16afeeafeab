"""What the extras bring, what it declares, what is in it, and what must not be passed on unasked."""

from __future__ import annotations

import pytest

from release.licenses import (
    ALLOWED,
    READ,
    Licensed,
    copyleft_libraries,
    judge_licenses,
    main,
    required_by,
    user_extras,
)


def test_what_an_extra_brings():
    names, missing = required_by(["ort"])
    assert {"numpy", "pillow", "onnxruntime"} <= names
    assert missing == set()
    assert not names & {"torch", "pytest", "edge-effdet"}
    more, _ = required_by(["train"])
    # The extra names the package itself with another extra.
    assert {"torch", "faster-coco-eval"} <= more


def test_what_is_not_installed_is_named():
    _, missing = required_by(["ort-cuda"])
    assert missing == {"onnxruntime-gpu"}


def test_extras_of_developers_do_not_count():
    extras = user_extras()
    assert {"ort", "export", "video", "heic"} <= set(extras)
    assert not set(extras) & {"dev", "release", "docs", "peers"}


def test_nothing_that_a_user_installs_is_refused(tmp_path):
    assert main(["--output", str(tmp_path / "new" / "licenses.md")]) == 0
    lines = (tmp_path / "new" / "licenses.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:] if line.startswith("|")]
    rows = {cells[0]: cells[1:] for cells in table}
    names, missing = required_by(user_extras())
    assert names == rows.keys() and all(name in lines[-1] for name in missing)
    assert len(names) > 100 and "numpy" in names
    assert {name for name, (_, _, remark) in rows.items() if remark} == set(ALLOWED)
    assert {name: rows[name][1] for name in READ} == READ
    assert not [name for name, (_, license_, _) in rows.items() if license_ == "not known"]


def test_what_is_in_a_wheel_that_declares_something_else():
    found = {name: copyleft_libraries(name) for name in ("av", "pillow-heif", "numpy", "no-such-package")}
    assert found == {"av": ("x264", "x265"), "pillow-heif": ("x265",), "numpy": (), "no-such-package": ()}


def test_the_core_brings_nothing_under_the_gpl():
    names, _ = required_by(["ort", "openvino", "serve", "mqtt", "track"])
    assert not names & set(ALLOWED)


@pytest.mark.parametrize(
    ("license_", "libraries", "said"),
    [
        ("GPL-3.0-or-later", (), "is under GPL-3.0"),
        ("GNU General Public License v2 (GPLv2)", (), "is under GNU"),
        ("AGPL-3.0", (), "is under AGPL"),
        ("MIT AND GPL-2.0-only", (), "is under MIT AND GPL"),
        ("BSD-3-Clause", ("x264",), "has x264 in its wheel"),
        ("", (), "names no licence"),
    ],
)
def test_what_is_refused(license_: str, libraries: tuple[str, ...], said: str):
    (problem,) = judge_licenses([Licensed("a", "1", license_, libraries)])
    assert said in problem


@pytest.mark.parametrize(
    "license_",
    [
        "MIT",
        "LGPL-3.0-or-later",
        "GNU Lesser General Public License v3",
        "GPL-2.0 OR MIT",
        "BSD License; GNU General Public License (GPL)",
        "MPL-2.0",
    ],
)
def test_what_is_not_refused(license_: str):
    assert judge_licenses([Licensed("a", "1", license_)]) == []


def test_an_exception_is_for_its_package_alone():
    assert judge_licenses([Licensed("av", "1", "BSD-3-Clause", ("x264",))]) == []
    assert judge_licenses([Licensed("avx", "1", "BSD-3-Clause", ("x264",))]) != []
