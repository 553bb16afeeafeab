"""A small bundle, made once a run."""

from __future__ import annotations

from tests.bundles import template as template
