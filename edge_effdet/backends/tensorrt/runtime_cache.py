"""TensorRT-RTX's runtime cache: the kernels that it compiled on the device, kept in a file between runs.

TensorRT-RTX compiles kernels when an engine is first run on a GPU. The cache is of one GPU, driver and version, and
``IRuntimeCache.deserialize`` refuses one that does not fit; then it is made anew, and the file replaced.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from edge_effdet.backends.runtime_cache import read_private, write_private
from edge_effdet.errors import InputError

logger = logging.getLogger("edge_effdet.backends.tensorrt")


class RuntimeCache:
    """The cache of one engine, shared by its execution contexts. Its methods are called with the GPU's context current."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cache: Any = None
        self._stored = b""

    def attach(self, config: Any) -> None:
        """Let a context that is made with this runtime configuration read and fill the cache."""
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._read()
        if not config.set_runtime_cache(self._cache):
            logger.warning("TensorRT-RTX takes no runtime cache here, so kernels are compiled at each start")

    def save(self) -> None:
        """Write the cache where it holds what the file does not. A file that cannot be written is worth a warning only."""
        cache, self._cache = self._cache, None
        content = bytes(cache.serialize() or b"") if cache is not None else b""
        if content in (b"", self._stored):
            return
        try:
            write_private(self.path, content)
        except (InputError, OSError) as error:
            logger.warning("the compiled kernels are not kept for the next start: %s", error)

    def _read(self) -> None:
        content = read_private(self.path)
        if content is None:
            return
        if self._cache.deserialize(content):
            self._stored = content
        else:
            logger.info("%s is of another GPU, driver or version and will be replaced", self.path)
