"""What every verb's ``main`` shares: flags built from option dataclasses, logging, exit codes, progress."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import io
import logging
import os
import re
import sys
import threading
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

from edge_effdet import signals
from edge_effdet.artifacts import Size, json_text, printable
from edge_effdet.errors import EdgeEffDetError, UsageError, first_line
from edge_effdet.signals import INTERRUPTED as INTERRUPTED
from edge_effdet.signals import TERMINATED as TERMINATED

T = TypeVar("T")

_NO_MEMORY = (
    "can't start new thread",
    "can't allocate memory",
    "not enough memory",
    "could not create a primitive",
    "bad_alloc",
    "pthread_create failed",
    "Resource temporarily unavailable",
    "Failed to serialize proto",
)
"""What Python, torch, onnxruntime and protobuf say, in errors without a class of their own, nearly always for want of memory: for the stack of a thread, for a tensor, for
a convolution by oneDNN, for anything in C++, and for the bytes of a graph, which are far from the 2 GB that are too many for it."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters but for line ends and tabs, Unicode's separators of lines and paragraphs, and what changes the direction of the text."""

_USED_UP = (errno.EAGAIN, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC)
"""What the system says where it has no more of something."""

_OF_PATHS = (
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
"""What it says of a path that is not right, or not allowed."""

_READERS = ("json", "yaml", "ast")
"""Libraries that read a list in a list by calling themselves."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a verb has to say: lines for a person, and one object for a machine (``--json``).

    Attributes:
        text: the lines.
        data: the object.
        failure: what ends the command with its exit code after both were printed; None where all is well.
    """

    text: str
    data: dict[str, Any] = field(default_factory=dict)
    failure: EdgeEffDetError | None = None


class _NobodyReads(BrokenPipeError):
    """Whoever read what is printed has left, as ``head -1`` does, which is no error."""


class _Parser(argparse.ArgumentParser):
    """A parser that refuses in one sentence, where argparse prints all flags before it, of which some verbs have fifty. The sentence does nothing to a
    terminal: an argument may be the name of a file.
    """

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {_one_line(message)}{self._meant(message)}; see {self.prog} --help\n")

    def _meant(self, message: str) -> str:
        """The flag that was probably meant, in brackets, where there is no such flag as the message says."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        near = get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        return f" (did you mean {near[0]}?)" if near else ""

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse says nothing where the help cannot be printed.
        if file is sys.stdout:
            print_result(message.removesuffix("\n"))
        else:
            super()._print_message(message, file)


class _ShowVersion(argparse.Action):
    """Prints the version and ends; argparse's own action wants the version before anybody has asked for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print_result(version_text())
        parser.exit()


def version_text() -> str:
    """``edge-effdet X.Y.Z``, which every ``--version`` prints."""
    return f"edge-effdet {metadata.version('edge-effdet')}"


def add_options(parser: argparse.ArgumentParser, *classes: type) -> None:
    """Add one ``--flag`` a field of each dataclass, with the field's type, default and help.

    The flags of a dataclass stand in a group of the help, whose title is the first sentence of the dataclass's docstring. What a
    dataclass inherits stands in the groups of its bases; one that gathers several bases has its own fields among the verb's. A field
    that an earlier dataclass had too is one flag, which sets both.
    """
    for cls in classes:
        hints = typing.get_type_hints(cls)
        described = {item.name: item for item in fields(cls) if "help" in item.metadata}
        owners = {name: _owner(cls, name) for name in described}
        for owner in (base for base in cls.__mro__ if base in owners.values()):
            gathers = len([base for base in owner.__bases__ if is_dataclass(base)]) > 1
            group = parser if gathers else parser.add_argument_group(_group_title(owner))
            for name in (name for name in described if owners[name] is owner):
                if f"--{name.replace('_', '-')}" not in parser._option_string_actions:
                    _add_option(group, described[name], hints[name])


def add_switch(parser: argparse._ActionsContainer, flag: str, default: bool, text: str) -> None:
    """Add ``--flag`` and ``--no-flag``, with what holds without either."""
    action = parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
    # Given as an argument it would be followed by "(default: True)" on Python 3.12 and before, and by nothing after that.
    action.help = f"{text} (default: {'on' if default else 'off'})"


def _owner(cls: type, name: str) -> type:
    """The dataclass that a field comes from: of those that have it, the one that all others inherit from."""
    return next(base for base in reversed(cls.__mro__) if name in getattr(base, "__dataclass_fields__", {}))


def _group_title(cls: type) -> str:
    text = " ".join((cls.__doc__ or "").split())
    # The docstring that ``dataclass`` makes is the signature.
    if not text or text.startswith(f"{cls.__name__}("):
        return re.sub(r"(?<!^)(?=[A-Z])", " ", cls.__name__).capitalize()
    return re.split(r"\.(?:\s|$)", text)[0].replace("``", "")


def _add_option(parser: argparse._ActionsContainer, item: Field[Any], hint: Any) -> None:
    flag, text = "--" + item.name.replace("_", "-"), item.metadata["help"]
    if hint is bool:
        add_switch(parser, flag, bool(item.default), text)
        return
    required = item.default is MISSING
    if not required and item.default not in (None, ""):
        text += f" (default: {_shown(item.default)})"
    parser.add_argument(
        flag,
        type=_parser_of(hint),
        default=None if required else item.default,
        required=required,
        choices=item.metadata["choices"],
        metavar=None if item.metadata["choices"] else _metavar(item.name),
        help=text,
    )


def options_from(cls: type[T], arguments: argparse.Namespace) -> T:
    """The dataclass that ``add_options`` made flags for, from what was parsed."""
    values = {item.name: getattr(arguments, item.name) for item in fields(cls) if hasattr(arguments, item.name)}  # type: ignore[arg-type]
    return cls(**values)


def make_parser(verb: str, description: str, example: str, prog: str = "") -> argparse.ArgumentParser:
    """A parser with the flags that every verb has. ``prog`` is how a script that is no verb of the package is started."""
    parser = _Parser(
        prog=prog or f"python -m edge_effdet.{verb}",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # For every argument whose type is Path.
    parser.register("type", Path, _path_argument)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout, for machines")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="print the version of edge-effdet")
    return parser


def name_flags(text: str, flags: Mapping[str, str]) -> str:
    """A message for the command line: each `` `field` `` in it becomes the flag that sets the field, and
    each `` `field=False` `` the flag that switches it off.

    A stage names the field of its options, for it may be called from Python, where there are no flags.

    Args:
        text: the message.
        flags: the flag of each field that the verb can set. Of another field the name is left, without the backticks.
    """

    def flag(found: re.Match[str]) -> str:
        name = flags.get(found[1])
        if name is None:
            return found[0].strip("`")
        return name.replace("--", "--no-", 1) if found[2] else name

    return re.sub(r"(?<!`)`([a-z]\w*)(=False)?`(?!`)", flag, text)


def _flags(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The long flag of each field; the first one, where several set the same field."""
    flags: dict[str, str] = {}
    for action in parser._actions:
        for flag in action.option_strings:
            if flag.startswith("--"):
                flags.setdefault(action.dest, flag)
    return flags


class _FlagFormatter(logging.Formatter):
    """Formats a log record with flags in place of fields, and so that it can be printed."""

    def __init__(self, flags: Mapping[str, str]) -> None:
        super().__init__()
        self._named = flags

    def format(self, record: logging.LogRecord) -> str:
        text = name_flags(super().format(record), self._named)
        # A warning is a sentence, as an error is, and the name of a file in it may hold line breaks. News may be tables.
        return _one_line(text) if record.levelno >= logging.WARNING and not record.exc_info else on_terminal(text)


def run_verb(
    parser: argparse.ArgumentParser, stage: Callable[[argparse.Namespace], Result | None], argv: Sequence[str] | None
) -> int:
    """Parse, run, print, and turn errors into one sentence on stderr and the documented exit code.

    Messages name the fields of options in backticks, and here their flags take the place (``name_flags``).

    A stage that returns None has nothing to say: one of several processes that all did the same.
    """
    with _printing_anything():
        code = _run_stage(parser, stage, argv)
    if signals.IS_COMMAND:
        atexit.unregister(_end_beside_hanging_threads)
        atexit.register(_end_beside_hanging_threads, code)
    return code


def _end_beside_hanging_threads(code: int) -> None:
    """End the process with its code where a thread of ours still waits for a server, a pipe or an endless run: Python ends such a thread in the middle
    of a library's code, which crashes some."""
    if any(each.daemon and each.name.startswith("edge-effdet") for each in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)


@contextlib.contextmanager
def _printing_anything() -> Iterator[None]:
    """Let stdout and stderr write what their encoding lacks as ``\\u9e1f``, where they would end the command, and be there if they were closed."""
    _open_what_is_closed()
    changed: list[tuple[io.TextIOWrapper, str | None]] = []
    for stream in (sys.stdout, sys.stderr):
        # A program that calls main may have put anything in their place.
        if isinstance(stream, io.TextIOWrapper):
            changed.append((stream, stream.errors))
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in changed:
            # Setting it back flushes what is left, which a reader that left early never took, or a full disk.
            if not stream.closed:
                try:
                    stream.reconfigure(errors=errors)
                except OSError:
                    _let_go(stream)
                    stream.reconfigure(errors=errors)


def _let_go(stream: IO[str]) -> None:
    """Send what is left of a stream that cannot be written to nowhere. Else Python would try again when it ends, and say so in its own words."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


# Not StreamHandler[IO[str]], which Python 3.10 does not know.
class _StderrHandler(logging.StreamHandler):
    """Logs to stderr. Once that takes nothing more, as a full disk, it lets go of it: what starts processes writes the rest of stderr out first, and would fail."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if isinstance(sys.exc_info()[1], OSError):
            _let_go(self.stream)
        else:
            super().handleError(record)


def _run_stage(
    parser: argparse.ArgumentParser,
    stage: Callable[[argparse.Namespace], Result | None],
    argv: Sequence[str] | None,
) -> int:
    debug = False
    flags = _flags(parser)
    handler = _StderrHandler(sys.stderr)
    handler.setFormatter(_FlagFormatter(flags))
    logger = logging.getLogger("edge_effdet")
    previous = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Some libraries give the root a handler when they are imported, which would print each line again.
    logger.propagate = False
    # Deprecations inside the libraries are for us to see in the tests, not for a user to read.
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # Pillow's of a picture that ``images`` then refuses, in a sentence.
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit", category=RuntimeWarning)
    try:
        with signals.raising():
            arguments = parser.parse_args(argv)
            debug = arguments.debug
            result = stage(arguments)
            if result is not None:
                text = name_flags(result.text, flags)
                print_result(json_text(result.data, ascii_only=True) if arguments.json else on_terminal(text))
                if result.failure is not None:
                    raise result.failure
    except KeyboardInterrupt as error:
        _say(signals.SAID)
        return TERMINATED if isinstance(error, signals.Terminated) else INTERRUPTED
    except _NobodyReads:
        return 0
    except Exception as error:
        number = signals.was_asked()
        sentence = str(error) if isinstance(error, EdgeEffDetError) else _sentence_of(error)
        if number is None and sentence is None:
            raise
        if debug:
            _say(on_terminal(traceback.format_exc().rstrip()))
        if number is not None:
            # What the work raised when it was interrupted, in place of the interruption.
            _say(signals.SAID)
            return 128 + number
        assert sentence is not None
        _say(f"error: {_one_line(name_flags(sentence, flags))}")
        return error.exit_code if isinstance(error, EdgeEffDetError) else EdgeEffDetError.exit_code
    finally:
        # A program may call main more than once, each time with another stderr.
        logger.removeHandler(handler)
        level, logger.propagate = previous
        logger.setLevel(level)
    return 0


def on_terminal(text: str) -> str:
    """A text that can be printed and does nothing else to a terminal: control characters, as a file's name may have them, are escaped, but for
    line ends and tabs, and so is what would let it be read in another order."""
    return printable(_CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text))


def _sentence_of(error: Exception) -> str | None:
    """What went wrong with the system or a runtime, in one sentence; None for a mistake of this program, whose traceback is worth more."""
    if isinstance(error, OSError):
        what = "The system refuses something" if error.filename is None else f"{error.filename} cannot be used"
        advice = ""
        if error.errno in _USED_UP:
            advice = "; free what is short, and give the command again"
        elif error.errno in _OF_PATHS and error.filename is not None:
            advice = "; see whether the path is right and who may read and write it"
        return f"{what} ({error.strerror or first_line(error)}){advice}."
    # protobuf's errors have no base in common with others.
    reported = isinstance(error, RuntimeError) or type(error).__module__.startswith("google.protobuf.")
    if isinstance(error, MemoryError) or (reported and any(each in str(error) for each in _NO_MEMORY)):
        return "There is not enough memory; end other programs, or give smaller inputs."
    if isinstance(error, RecursionError) and any(
        frame.f_globals.get("__name__", "").partition(".")[0] in _READERS
        for frame, _ in traceback.walk_tb(error.__traceback__)
    ):
        return (
            "A file that is read holds lists within lists, deeper than anything that this program writes; give another."
        )
    # Classes of its C++ module, without a common Python base.
    if type(error).__module__.startswith("onnxruntime."):
        return f"onnxruntime failed ({first_line(error)}); see whether the graph is one that export wrote, and export it again."
    return None


def print_result(text: str) -> None:
    """Print what a verb has to say. Where nobody reads it the verb ends as if all was well. Raises UsageError where it cannot be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        _let_go(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise _NobodyReads from error
        raise UsageError(
            f"The results cannot be printed ({error.strerror or error}); print them where there is room."
        ) from error


def _say(text: str) -> None:
    """Print a line on stderr, where somebody may read it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _let_go(sys.stderr)
    except ValueError:
        pass


def _open_what_is_closed() -> None:
    """Put nothing in place of a standard stream that was closed, so that what is printed goes nowhere, and not into the next file that is opened."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # The lowest number that is free, which is the stream's own.
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115


def progress(items: Iterable[T], total: int, label: str) -> Iterable[T]:
    """Wrap ``items`` in a progress bar on stderr where tqdm is there and a person is looking."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return items
    return tqdm(items, total=total, desc=label, file=sys.stderr, disable=not sys.stderr.isatty(), leave=False)


def parse_size(text: str) -> Size:
    """``320`` or ``384x640`` (height x width) to (height, width). Raises UsageError for anything else."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"An image size of {text!r} is neither N nor HxW; write 320 or 384x640.")
    return int(parts[0]), int(parts[-1])


def count_of(number: int, noun: str) -> str:
    """``1 worker``, ``2 workers``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first the header, as aligned text; numbers to the right. A line break in a cell is written as ``\\n``.

    A column in which half of the cells or more begin with a letter is one of words, and a cell that begins with a digit stands to the left there too.
    """
    rows = [[_one_line(cell) for cell in row] for row in rows]
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    words = [2 * sum(cell[:1].isalpha() for cell in column[1:]) >= len(column[1:]) > 0 for column in columns]
    lines = ["  ".join("-" * width for width in widths)]
    for row in rows:
        cells = [
            cell.rjust(width) if row is not rows[0] and cell[:1].isdigit() and not wordy else cell.ljust(width)
            for cell, width, wordy in zip(row, widths, words, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[1], lines[0], *lines[2:]])


def _one_line(text: str) -> str:
    """``on_terminal`` without line ends and tabs."""
    return on_terminal(text).replace("\n", r"\n").replace("\t", r"\t")


def _shown(default: Any) -> str:
    return "x".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _metavar(name: str) -> str:
    return name.rsplit("_", 1)[-1].upper()


def _parser_of(hint: Any) -> Callable[[str], Any]:
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = kinds[0]
    if hint == Size:
        return size_argument
    if hint in (int, float, str, Path):
        return hint
    raise TypeError(f"no parser for an option of type {hint}")


def _path_argument(text: str) -> Path:
    # Path("") is the present folder, which nobody means whose variable is not set.
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; write . for the present folder")
    return Path(text)


def size_argument(text: str) -> Size:
    try:
        return parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
