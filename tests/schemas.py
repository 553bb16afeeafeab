"""The JSON Schemas that the project publishes, made from dataclasses and their docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
from typing import Any

from pydantic import TypeAdapter

HOMES = ("edge_effdet.artifacts.record", "edge_effdet.artifacts.spec", "edge_effdet.benchmarking.record")


def schema_of(kind: type) -> dict[str, Any]:
    """The JSON Schema of a dataclass, with the descriptions that stand in the docstrings."""
    schema = TypeAdapter(kind).json_schema()
    for name, part in ((kind.__name__, schema), *schema["$defs"].items()):
        own = next(getattr(module, name) for module in map(importlib.import_module, HOMES) if hasattr(module, name))
        part["description"] = " ".join(own.__doc__.split("\n\n")[0].split())
        part["additionalProperties"] = False
        part["required"] = list(part["properties"])
        del part["title"]
        for field, text in attributes(own.__doc__).items():
            part["properties"][field]["description"] = text
            for key in ("title", "default"):
                part["properties"][field].pop(key, None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def attributes(docstring: str) -> dict[str, str]:
    """The section ``Attributes`` of a docstring; a line may describe several."""
    # From 3.13 on the compiler takes the indentation off.
    section = inspect.cleandoc(docstring).partition("Attributes:\n")[2]
    lines = re.findall(r"^    (\w+(?:, \w+)*): (.*?)(?=\n    \w+(?:, \w+)*:|\Z)", section, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()).replace("``", "`") for names, text in lines for name in names.split(", ")}
