"""What convolutions are called: by the module that owns their weight, with a number where a module runs several times."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def module_of_weight(weight: str) -> str:
    """The module that owns a weight: ``backbone.conv_stem`` for ``network.backbone.conv_stem.weight``."""
    return weight.removeprefix("network.").split(".weight")[0]


def number_repeats(names: Sequence[str]) -> list[str]:
    """The names, with ``@0``, ``@1``, … behind each one that occurs several times, in their order."""
    uses, seen = Counter(names), Counter[str]()
    numbered: list[str] = []
    for name in names:
        numbered.append(f"{name}@{seen[name]}" if uses[name] > 1 else name)
        seen[name] += 1
    return numbered


def without_number(name: str) -> str:
    """The name that ``number_repeats`` was given."""
    return name.split("@")[0]
