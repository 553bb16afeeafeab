"""Each class of the package has a name of its own, so that a name in a message, a docstring or a traceback is one thing."""

from __future__ import annotations

import ast
from pathlib import Path

import edge_effdet


def test_no_two_classes_share_a_name():
    root = Path(edge_effdet.__file__).parent
    homes: dict[str, list[str]] = {}
    for path in sorted(root.rglob("*.py")):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.ClassDef):
                homes.setdefault(statement.name, []).append(path.relative_to(root).as_posix())
    assert len(homes) > 100, "the package was not found"
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
