"""The commands that the documentation shows: fenced blocks of shell, and what people type in them.

A block that cannot be run here has a comment on the line above it, ``<!-- not run: the reason -->``; it is the only way in which a block is marked.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHELL = ("bash", "sh")
_OPERATORS = "|&;<>()"

_BLOCK = re.compile(
    r"^(?:[ ]*<!--[ ]not[ ]run:[ ](?P<reason>[^\n]+?)[ ]-->\n)?^(?P<indent>[ ]*)(?P<mark>```+)(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)(?P=mark)[ ]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: the Markdown file.
        line: the line of its fence.
        language: what stands behind the fence.
        text: what is in it.
        not_run: the reason why it cannot be run here; None where it can.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages() -> list[Path]:
    """Every page of the documentation."""
    named = ("README.md", "CONTRIBUTING.md", "RELEASE.md", "SECURITY.md", "edge_effdet/quickstart/MODEL_CARD.md")
    folders = ("docs", "benchmarks", "calibration")
    found = [ROOT / name for name in named]
    return found + sorted(path for folder in folders for path in (ROOT / folder).rglob("*.md"))


def read_blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(path, text.count("\n", 0, found.start("mark")) + 1, found["language"], found["text"], found["reason"])
        for found in _BLOCK.finditer(text)
    ]


def shell_commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell text, without comments, redirections and variables that are set before it.

    Lines are joined at a backslash. ``sudo`` and ``srun`` with its options are left out, and a text that ``sh -c`` is given counts as commands of its own.
    """
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=_OPERATORS)
        lexer.whitespace_split = True
        command: list[str] = []
        skip = False
        for word in [*lexer, ";"]:
            if word[0] in _OPERATORS and not word.strip(_OPERATORS):
                # The file behind a redirection is no word of the command.
                skip = word[-1] in "<>"
                if not skip:
                    yield from _unwrapped(command)
                    command = []
            elif skip:
                skip = False
            else:
                command.append(word)


def _unwrapped(words: list[str]) -> Iterator[list[str]]:
    words = list(words)
    while words and (words[0] == "sudo" or re.fullmatch(r"[A-Z_]+=.*", words[0], re.DOTALL)):
        words.pop(0)
    if words and words[0] == "srun":
        words = words[next((n for n, word in enumerate(words) if n and not word.startswith("-")), len(words)) :]
    if words[:2] == ["sh", "-c"]:
        yield from shell_commands(words[2])
    elif words:
        yield words
