"""What docstrings name in double backticks is there: a function that was renamed or moved must not live on in prose."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import edge_effdet

ROOT = Path(edge_effdet.__file__).parent
SCRIPTS = [ROOT.parent / name for name in ("benchmarks", "calibration", "tests")]
NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
QUOTED = re.compile(r"``([^`\n]+)``")
SCRIPT = re.compile(r"[\w/]+\.py\b")

FILE_ENDINGS = (
    ".csv",
    ".cu",
    ".html",
    ".json",
    ".jsonl",
    ".md",
    ".onnx",
    ".pdf",
    ".png",
    ".safetensors",
    ".txt",
    ".yaml",
)
"""Of files that are not the package's own, which a docstring may name."""

FOREIGN = frozenset(
    {
        # Of effdet, pycocotools, CUDA, TensorRT, onnxruntime, OpenVINO, NNCF and the kernel.
        *(
            "VOC2007",
            "ResizePad",
            "generate_detections",
            "COCOeval.evaluateImg",
            "IRuntimeCache.deserialize",
            "cuda.bindings",
        ),
        *("cuda.bindings.driver", "pycuda.driver", "CaskConvolution", "kgen", "reduce_range", "overflow_fix"),
        *("__dp4a", "dp4a", "vpmaddubsw", "taskset", "Features"),
        # Splits as people name them, folds as a CSV names them, and letters of formulas.
        *("instances_val2017", "train2017", "val2017", "fold0", "fold1", "l", "c_i", "w_i"),
    }
)
"""Names of others, which the code of the package does not use."""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def trees() -> dict[str, ast.Module]:
    return {module_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def is_text(node: ast.AST) -> bool:
    """A docstring, or the text below an attribute that describes it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def texts(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if is_text(node):
            yield node.value.value


@cache
def words() -> frozenset[str]:
    """Everything that the code of the package calls something: its own names, those that it uses, and its texts of one word."""
    found = {*dir(builtins), *(part for module in trees() for part in module.split("."))}
    for tree in trees().values():
        for node in ast.walk(tree):
            for field in ("id", "attr", "name", "asname", "arg", "module"):
                value = getattr(node, field, None)
                if isinstance(value, str):
                    found.update(value.split("."))
        described = {id(node.value) for node in ast.walk(tree) if is_text(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described:
                found.update(re.findall(r"[A-Za-z_]\w*", node.value))
    return frozenset(found)


def names_in(body: list[ast.stmt]) -> set[str]:
    """What the statements of a module or a class define or import, and what the methods of a class give ``self``."""
    found: set[str] = set()
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.alias):
                found.add((node.asname or node.name).split(".")[0])
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return found


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    found: dict[str, list[ast.ClassDef]] = {}
    for tree in trees().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def has_member(name: str, member: str) -> bool:
    """Whether a class of the package, or one of the package that it inherits from, has a member."""
    for node in classes().get(name, []):
        bases = [ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases]
        if member in names_in(node.body) or any(has_member(base, member) for base in bases):
            return True
    return False


@cache
def parameters(module: str) -> frozenset[str]:
    return frozenset(node.arg for node in ast.walk(trees()[module]) if isinstance(node, ast.arg))


def is_there(name: str, module: str) -> bool:
    """Whether a name in a docstring of ``module``, which may be dotted, can be found.

    Its first part is a module, a class, a parameter of a function there, or anything else that the code names.
    """
    parts = name.split(".")
    if len(parts) > 1 and parts[0] in parameters(module) and any(has_member(cls, parts[1]) for cls in classes()):
        return True
    for length in range(len(parts), 0, -1):
        prefix, rest = ".".join(parts[:length]), parts[length:]
        homes = [home for home in trees() if home == prefix or home.endswith(f".{prefix}")]
        if homes:
            return not rest or any(
                rest[0] in names_in(trees()[home].body) and (len(rest) == 1 or has_member(rest[0], rest[1]))
                for home in homes
            )
    if len(parts) > 1 and parts[0] in classes():
        return has_member(parts[0], parts[1])
    return all(part in words() for part in parts)


def unknown_names(text: str, module: str = "edge_effdet") -> list[str]:
    quoted = [name.removesuffix("()") for name in QUOTED.findall(text)]
    names = [name for name in quoted if NAME.fullmatch(name) and not name.endswith((".py", *FILE_ENDINGS))]
    unknown = [name for name in names if name not in FOREIGN and not is_there(name, module)]
    files = [path.as_posix() for folder in (ROOT, *SCRIPTS) for path in folder.rglob("*.py")]
    return unknown + [name for name in SCRIPT.findall(text) if not any(file.endswith(f"/{name}") for file in files)]


@pytest.mark.parametrize("module", sorted(trees()))
def test_every_name_in_a_docstring_is_there(module: str):
    assert [name for text in texts(trees()[module]) for name in unknown_names(text, module)] == []


def test_a_name_that_is_gone_is_noticed():
    gone = ["save_engine_record", "pipeline.detect_source", "Engine.colour", "artifacts.Engine.colour", "no_such.py"]
    assert unknown_names(", ".join(f"``{name}``" for name in gone)) == gone
    kept = [
        "load_engine",
        "pipeline.Pipeline",
        "Engine.sha256",
        "artifacts.Engine.sha256",
        "runtime/detector.py",
        "a + b",
    ]
    assert unknown_names(", ".join(f"``{name}``" for name in kept)) == []
