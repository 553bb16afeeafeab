"""A small bundle, made once a run, and what runs commands in bad circumstances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bundles import template as template
from tests.faults.launcher import Launcher, NoCompiler
from tests.faults.matrix import Bench, Try, Unavailable
from tests.once import make_once


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Runs verbs on small inputs, which are made once a run."""

    def write(folder: Path) -> None:
        with Launcher(tmp_path_factory.mktemp("inputs")) as launcher:
            launcher.prepare(folder)

    try:
        inputs = make_once(tmp_path_factory, "inputs of the verbs", write)
    except NoCompiler as error:
        pytest.skip(str(error))
    with Bench(tmp_path_factory.mktemp("bench"), inputs) as bench:
        yield bench


@pytest.fixture
def hold(bench: Bench) -> Callable[[Try], None]:
    """``hold(tried)``: run a verb in a circumstance and see that it holds."""

    def run(tried: Try) -> None:
        try:
            verdict = bench.run(tried)
        except Unavailable as error:
            pytest.skip(str(error))
        assert not verdict.problems, f"{tried.name} ({verdict.at}):\n" + "\n".join(verdict.problems)

    return run
