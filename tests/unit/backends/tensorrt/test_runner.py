"""Running an engine, on a simulation of PyCUDA, cuda-python and the engine: there is no GPU here."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edge_effdet.artifacts import Engine, ModelSpec
from edge_effdet.backends.base import LoadOptions, Unavailable
from edge_effdet.backends.runtime_cache import runtime_cache_path
from edge_effdet.backends.tensorrt import builder as tensorrt
from edge_effdet.backends.tensorrt import rtx as tensorrt_rtx
from edge_effdet.backends.tensorrt.runner import TensorRTRunner
from edge_effdet.errors import BackendUnavailable, EngineError, InputError
from tests.records import make_record

trt = pytest.importorskip("tensorrt_rtx")

SPEC = ModelSpec("tiny", (16, 16), ("thing",), (1,))
# TensorRT's behaviour with the bindings that are here.
TENSORRT = dataclasses.replace(tensorrt.FLAVOR, module="tensorrt_rtx", oldest=(1, 0), beyond=(2, 0), has_plugins=False)
HALF = np.float32(0.5)


def write_engine(folder, content=b"good", backend="tensorrt-rtx", **record):
    path = folder / "tiny.engine"
    path.write_bytes(content)
    described = {"backend_version": trt.__version__, "target": "simulated (SM 86)"}
    return Engine(path, SPEC, backend, "fp32", "0" * 64, make_record(**described | record))


def load(folder, **options):
    return TensorRTRunner(TENSORRT, write_engine(folder), LoadOptions(**options))


def images_of(batch, start=0):
    return (np.arange(batch * 12, dtype=np.uint8) + np.uint8(start)).reshape(batch, 3, 2, 2)


def check(runner, images):
    np.testing.assert_array_equal(runner.run({"images": images})["out"], images + HALF)


def test_simulated_runs_of_several_batch_sizes(tmp_path, simulation):
    with load(tmp_path) as runner:
        assert [(spec.name, spec.shape, spec.dtype) for spec in (*runner.inputs, *runner.outputs)] == [
            ("images", (-1, 3, 2, 2), np.uint8),
            ("out", (-1, 3, 2, 2), np.float32),
        ]
        first = runner.run({"images": images_of(1)})["out"]
        for batch in (4, 1, 2, 4, 1):
            check(runner, images_of(batch, batch))
        np.testing.assert_array_equal(first, images_of(1) + HALF)
        # One context a batch size, each with a buffer a tensor.
        assert len(simulation.engine.contexts) == 3
        assert len(simulation.driver.memory) == simulation.driver.pinned == 6
    runner.close()


def test_simulated_engine_of_a_fixed_batch(tmp_path, simulation):
    simulation.engine.shape = (2, 3, 2, 2)
    with load(tmp_path) as runner:
        check(runner, images_of(2))
        with pytest.raises(InputError, match=r"takes uint8 \[2, 3, 2, 2\]"):
            runner.run({"images": images_of(1)})


def test_simulated_run_takes_what_is_not_contiguous(tmp_path, simulation):
    images = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3).transpose(0, 3, 1, 2)[..., ::2]
    with load(tmp_path) as runner:
        check(runner, images)


def test_simulated_second_run_is_captured_and_later_ones_launched(tmp_path, simulation):
    with load(tmp_path) as runner:
        check(runner, images_of(2))
        assert (simulation.graphs.executables, simulation.graphs.launches) == (0, 0)
        for launches in (1, 2, 3):
            check(runner, images_of(2, launches))
            assert (simulation.graphs.executables, simulation.graphs.launches) == (1, launches)
        check(runner, images_of(1))
        check(runner, images_of(1))
        assert (simulation.graphs.executables, simulation.graphs.launches) == (2, 4)


def test_simulated_context_that_changes_its_batch_is_captured_again(tmp_path, simulation):
    with load(tmp_path, parallel_runs=1) as runner:
        for batch in (1, 1, 4, 4, 1, 1):
            check(runner, images_of(batch, batch))
        assert len(simulation.engine.contexts) == 1
        assert (simulation.graphs.executables, simulation.graphs.launches) == (1, 3)


def test_simulated_runs_without_graphs(tmp_path, simulation, caplog):
    with load(tmp_path, cuda_graphs=False) as runner:
        for _ in range(3):
            check(runner, images_of(2))
    assert simulation.graphs.launches == 0
    assert "CUDA graph" not in caplog.text


@pytest.mark.parametrize("obstacle", ["uncapturable", "cuGraphInstantiate"])
def test_simulated_runs_stay_plain_where_capture_fails_and_say_so_once(tmp_path, simulation, caplog, obstacle):
    simulation.engine.uncapturable = obstacle == "uncapturable"
    simulation.graphs.fails = obstacle
    with caplog.at_level(logging.INFO), load(tmp_path) as runner:
        for start in range(4):
            check(runner, images_of(2, start))
    assert simulation.graphs.launches == 0
    assert caplog.text.count("runs without a CUDA graph") == 1


def test_simulated_profiles_are_chosen_by_batch(tmp_path, simulation):
    simulation.engine.ranges = [(1, 1, 2), (1, 8, 8)]
    with load(tmp_path) as runner:
        for batch, profile in ((1, 0), (2, 0), (8, 1), (7, 1)):
            check(runner, images_of(batch))
            assert simulation.engine.contexts[-1].active_optimization_profile == profile
        with pytest.raises(InputError, match=r"batch of 9 .* built for 1 to 2 and 1 to 8"):
            runner.run({"images": images_of(9)})
        check(runner, images_of(1))


def test_simulated_timing(tmp_path, simulation):
    simulation.engine.seconds = 0.002
    with load(tmp_path, timed=True) as runner:
        assert runner.last_timing is None
        for _ in range(3):
            check(runner, images_of(2))
            timing = runner.last_timing
            assert timing is not None
            assert 2 <= timing.device <= timing.device_with_copies <= timing.end_to_end
            assert runner.last_device_ms == timing.device
        with ThreadPoolExecutor(1) as other:
            assert other.submit(lambda: runner.last_timing).result() is None
    with load(tmp_path) as untimed:
        check(untimed, images_of(1))
        assert untimed.last_timing is None


def test_simulated_threads_run_at_a_time_and_get_their_own_results(tmp_path, simulation):
    simulation.engine.seconds = 0.005
    with load(tmp_path, parallel_runs=3) as runner, ThreadPoolExecutor(8) as threads:
        batches = [images_of(1 + number % 2, number) for number in range(40)]
        results = threads.map(lambda images: runner.run({"images": images})["out"], batches)
        for images, out in zip(batches, results, strict=True):
            np.testing.assert_array_equal(out, images + HALF)
    assert 1 < simulation.engine.most_running <= 3
    assert len(simulation.engine.contexts) <= 3


def test_simulated_threads_share_what_contexts_memory_allows(tmp_path, simulation, caplog):
    simulation.engine.most_contexts = 1
    simulation.engine.seconds = 0.005
    with load(tmp_path, parallel_runs=4) as runner, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda start: check(runner, images_of(1, start)), range(8)))
    assert simulation.engine.most_running == 1
    assert caplog.text.count("no more than 1 execution contexts") == 1


def test_simulated_close_waits_for_runs_under_way(tmp_path, simulation):
    simulation.engine.seconds = 0.1
    runner = load(tmp_path)
    thread = threading.Thread(target=lambda: check(runner, images_of(1)))
    thread.start()
    while simulation.engine.running == 0:
        pass
    runner.close()
    assert simulation.engine.running == 0
    thread.join()
    with pytest.raises(EngineError, match="closed"):
        runner.run({"images": images_of(1)})


def test_simulated_runner_that_nobody_closes_is_freed(tmp_path, simulation):
    """The fixture sees that nothing is left: of one that is dropped at once, of one that is still there when the process ends."""
    dropped, kept = load(tmp_path), load(tmp_path)
    check(dropped, images_of(1))
    check(kept, images_of(1))
    del dropped
    assert simulation.driver.streams == 1
    for release in simulation.at_exit:
        release()
    assert simulation.driver.streams == 0


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "takes images"),
        ({"images": np.zeros((1, 3, 2, 2), np.float32)}, "not float32"),
        ({"images": np.zeros((1, 3, 2, 4), np.uint8)}, r"not uint8 \[1, 3, 2, 4\]"),
        ({"images": np.zeros((3, 2, 2), np.uint8)}, r"not uint8 \[3, 2, 2\]"),
        ({"images": np.zeros((5, 3, 2, 2), np.uint8)}, "batch of 5 .* built for 1 to 4"),
    ],
)
def test_simulated_run_refuses_feeds_that_do_not_fit(tmp_path, simulation, feeds, message):
    with load(tmp_path) as runner:
        with pytest.raises(InputError, match=message):
            runner.run(feeds)
        check(runner, images_of(1))


def test_simulated_errors_free_everything(tmp_path, simulation):
    simulation.engine.fails = True
    feeds = {"images": images_of(1)}
    with pytest.raises(EngineError, match="could not be run"), load(tmp_path) as runner:
        runner.run(feeds)
    simulation.driver.capacity = 20
    with pytest.raises(BackendUnavailable, match="memory is full"), load(tmp_path) as runner:
        runner.run(feeds)
    simulation.engine.most_contexts = 0
    with pytest.raises(EngineError, match="cannot be prepared"):
        load(tmp_path)


def test_simulated_refusal_names_the_versions_and_frees_everything(tmp_path, simulation):
    foreign = write_engine(tmp_path, b"foreign", backend_version="1.2.0", target="120")
    with pytest.raises(
        EngineError, match=rf"{trt.__version__} on simulated \(SM 86\) refuses .* 1\.2\.0 built for 120"
    ):
        tensorrt_rtx.load(foreign, LoadOptions())


def test_simulated_refusal_gives_the_runtimes_diagnosis(tmp_path, simulation):
    kinds = trt.EngineInvalidityDiagnostics
    simulation.runtime.get_engine_validity = lambda content: (
        trt.EngineValidity.INVALID,
        int(kinds.VERSION_MISMATCH) | int(kinds.UNSUPPORTED_CC),
    )
    with pytest.raises(EngineError, match="version mismatch, unsupported cc, "):
        tensorrt_rtx.load(write_engine(tmp_path, b"foreign"), LoadOptions())


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"backend_version": "10.3.0"}, rf"built with TensorRT 10\.3\.0 and this machine has {trt.__version__}"),
        ({"target": "Orin (SM 87)"}, r"built on Orin \(SM 87\) and this GPU is simulated \(SM 86\)"),
    ],
)
def test_simulated_engine_of_another_machine_is_refused_with_the_fix(tmp_path, simulation, record, message):
    with pytest.raises(EngineError, match=f"{message}.*build it again on this machine"):
        TensorRTRunner(TENSORRT, write_engine(tmp_path, **record), LoadOptions())


@pytest.mark.parametrize(("graphs", "strategy"), [(True, "WHOLE_GRAPH_CAPTURE"), (False, "DISABLED")])
def test_simulated_rtx_captures_by_itself(tmp_path, simulation, graphs, strategy):
    with tensorrt_rtx.load(write_engine(tmp_path), LoadOptions(cuda_graphs=graphs)) as runner:
        for start in range(3):
            check(runner, images_of(1, start))
        (config,) = simulation.engine.configs
    assert config.cuda_graph_strategy == getattr(trt.CudaGraphStrategy, strategy)
    assert simulation.graphs.launches == 0


@pytest.mark.parametrize("before", [None, b"kernels", b"of another driver"])
def test_simulated_rtx_keeps_its_compiled_kernels(tmp_path, simulation, before):
    engine = write_engine(tmp_path)
    path = tmp_path / "tiny.engine.runtime_cache"
    assert runtime_cache_path(engine) == path
    if before is not None:
        path.write_bytes(before)
    with tensorrt_rtx.load(engine, LoadOptions()) as runner:
        check(runner, images_of(1))
        check(runner, images_of(2))
        first, second = simulation.engine.configs
        assert first.cache is second.cache is not None
    assert path.read_bytes() == b"kernels"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tiny.engine", "tiny.engine.runtime_cache"]


def test_simulated_rtx_runs_where_its_kernels_cannot_be_kept(tmp_path, simulation, caplog):
    (tmp_path / "file").touch()
    options = LoadOptions(runtime_cache=tmp_path / "file" / "cache")
    with tensorrt_rtx.load(write_engine(tmp_path), options) as runner:
        check(runner, images_of(1))
    assert "not kept for the next start" in caplog.text


def test_a_folder_that_cannot_be_written_moves_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = runtime_cache_path(write_engine(tmp_path))
    assert path == tmp_path / "cache" / "edge_effdet" / "compiled" / "0000000000000000-tiny.engine.runtime_cache"


def test_who_has_no_home_and_no_folder_keeps_nothing(tmp_path, simulation, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", nowhere)
    engine = write_engine(tmp_path)
    assert runtime_cache_path(engine) is None
    with tensorrt_rtx.load(engine, LoadOptions()) as runner:
        check(runner, images_of(1))
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.engine"]


def layer_named(name: str, kind: str, metadata: str) -> dict:
    """A layer as the inspector describes it, whose input and weights are INT8."""
    codes = {"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}
    return {"Name": name, "LayerType": kind, "Inputs": [codes], "Weights": {"Type": "Int8"}, "Metadata": metadata}


@pytest.mark.parametrize("backend", [tensorrt, tensorrt_rtx])
def test_simulated_layers_are_timed_without_cuda_graphs(tmp_path, simulation, monkeypatch, backend):
    monkeypatch.setattr(backend, "FLAVOR", TENSORRT if backend is tensorrt else backend.FLAVOR)
    described = [
        layer_named("c + relu", "CaskConvolution", "[ONNX Layer: c]\x1e[ONNX Layer: relu]"),
        layer_named("Reformatting c", "Reformat", "[ONNX Layer: c]"),
    ]
    simulation.engine.information = json.dumps({"Layers": described})
    simulation.engine.layers = {"Reformatting c": 0.25, "c + relu": 1.5, "unknown": 0.5}
    engine = write_engine(tmp_path)
    found = backend.profile(engine, LoadOptions(parallel_runs=1), {"images": images_of(2)}, 4)
    assert [(each.name, each.kind, each.precision, each.nodes) for each in found.layers] == [
        ("Reformatting c", "Reformat", "int8", ()),
        ("c + relu", "CaskConvolution", "int8", ("c", "relu")),
        ("unknown", "", "", ()),
    ]
    assert [each.milliseconds for each in found.layers] == [(0.25,) * 4, (1.5,) * 4, (0.5,) * 4]
    assert found.source == f"{backend.FLAVOR.title}'s profiler {trt.__version__}"
    assert simulation.graphs.launches == simulation.graphs.executables == 0
    if backend is tensorrt_rtx:
        assert simulation.engine.configs[-1].cuda_graph_strategy == trt.CudaGraphStrategy.DISABLED


def test_simulated_engine_that_reports_no_layer_has_no_profile(tmp_path, simulation, monkeypatch):
    monkeypatch.setattr(tensorrt, "FLAVOR", TENSORRT)
    found = tensorrt.profile(write_engine(tmp_path), LoadOptions(), {"images": images_of(1)}, 2)
    assert isinstance(found, Unavailable) and "no layer" in found.reason
    simulation.engine.fails = True
    with pytest.raises(EngineError, match="could not be run"):
        tensorrt.profile(write_engine(tmp_path), LoadOptions(), {"images": images_of(1)}, 2)


def test_simulated_runs_after_a_profile_report_to_nobody(tmp_path, simulation):
    simulation.engine.layers = {"c": 1.0}
    with load(tmp_path) as runner:
        _, times = runner.profile({"images": images_of(2)}, 2)
        assert times == [{"c": 1.0}] * 2
        check(runner, images_of(2))
        assert all(context.profiler is None for context in simulation.engine.contexts)
