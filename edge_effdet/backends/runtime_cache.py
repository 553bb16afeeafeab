"""Where a runtime that compiles at load keeps what it compiled, for the next start on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from edge_effdet.artifacts import Engine

SUFFIX = ".runtime_cache"


def user_cache_folder() -> Path:
    """The folder of the user's own for what can be made again. Raises RuntimeError for a user without a home, as in some containers."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge_effdet"


def runtime_cache_path(engine: Engine) -> Path:
    """``<engine>.runtime_cache`` beside the engine; where that folder cannot be written, in the user's cache folder."""
    beside = engine.path.with_name(engine.path.name + SUFFIX)
    if os.access(engine.path.parent, os.W_OK):
        return beside
    try:
        folder = user_cache_folder()
    except RuntimeError:
        # Writing fails, and the caller says so.
        return beside
    # What is run without a JSON beside it, as the cost model does, has no hash.
    digest = engine.sha256[:16]
    return folder / f"{digest}-{beside.name}"
