"""The exception tree. Each class carries the exit code that the command line ends with.

    EdgeEffDetError                2
    ├── UsageError                 2   an option or a combination of options that makes no sense
    ├── InputError                 2   a file or folder that cannot be used as it is
    │   ├── DataError                  a data set: images, annotations, splits, classes
    │   ├── CheckpointError            a checkpoint: missing, truncated, foreign, of another model
    │   ├── GraphError                 an ONNX file: missing, foreign, of an unexpected form
    │   ├── EngineError                an engine: missing, changed, or without its JSON
    │   └── BundleError                a bundle: missing, changed, unsigned, or not for this device
    ├── NotEnoughMemory            2   a picture or an engine needs more memory or open files than there are, which says nothing of the file
    ├── MissingDependency          3   an optional package; the message names the pip command
    ├── BackendUnavailable         3   a backend that cannot work on this machine
    ├── AccuracyGateFailed         4   the engine was built and is kept, but lost too much AP
    ├── RegressionFound            4   an engine is slower, or finds less, than in the baseline; the report is written
    └── NotHealthy                 4   a service did not become healthy after an installation or a rollback, or is not now; the message says what runs

A message is one sentence for a person: what happened, why, and what to do. It names an option by its field in backticks,
as in `` `max_ap_drop` ``, which a Python caller sets; the command line puts the flag in its place (``cli.name_flags``).
"""

from __future__ import annotations


class EdgeEffDetError(Exception):
    """The root of the tree: whatever a user can cause or mend. ``exit_code`` is what the command line ends with."""

    exit_code = 2


class UsageError(EdgeEffDetError):
    pass


class InputError(EdgeEffDetError):
    pass


class DataError(InputError):
    pass


class CheckpointError(InputError):
    pass


class GraphError(InputError):
    pass


class EngineError(InputError):
    pass


class BundleError(InputError):
    pass


class NotEnoughMemory(EdgeEffDetError):
    """The system gave no more memory, or opened no more files. It is no InputError: the file that was being read may be as good as any other."""


class MissingDependency(EdgeEffDetError):
    """An optional package is not installed.

    Args:
        package: the name to import.
        extra: the extra of edge-effdet that installs it.
        purpose: what it was wanted for, as in "to train".
    """

    exit_code = 3

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{package} is not installed, which is needed {purpose}: run pip install 'edge-effdet[{extra}]'."
        )
        self._given = package, extra, purpose

    def __reduce__(self) -> tuple[type[MissingDependency], tuple[str, str, str]]:
        # An exception is unpickled from its message, and this one is not made from it.
        return MissingDependency, self._given


class BackendUnavailable(EdgeEffDetError):
    exit_code = 3


class AccuracyGateFailed(EdgeEffDetError):
    exit_code = 4


class RegressionFound(EdgeEffDetError):
    exit_code = 4


class NotHealthy(EdgeEffDetError):
    exit_code = 4


def first_line(error: BaseException) -> str:
    """The first line of a library's message that says something, for a sentence of our own."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
