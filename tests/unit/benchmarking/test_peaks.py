"""What the processor reaches at best, with few threads and a short time: no figure is compared with another machine's."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.benchmarking import peaks
from edge_effdet.benchmarking.peaks import array_bytes, copy_rate, measure_here, measure_peaks, onnxruntime_product

MIB = 1 << 20


def test_this_machine_has_peaks():
    found = measure_peaks(1, seconds=0.1)
    assert found is not None
    assert found.threads == 1
    assert found.fp32_gflops > 0 and found.bandwidth_gb_s > 0
    assert found.int8_gops is not None and found.int8_gops > 0
    assert [part in found.how for part in ("float32", "int8", "MiB copied")] == [True] * 3


def test_without_onnx_there_is_no_int8(monkeypatch):
    monkeypatch.setattr(peaks, "onnxruntime_product", lambda *_: {})
    monkeypatch.setattr(peaks, "SMALL", 64)
    monkeypatch.setattr(peaks, "array_bytes", lambda: MIB)
    found = measure_here(1, 0.01)
    assert found["int8_gops"] is None
    assert (
        found["how"]
        == "NumPy's product of float32 matrices of 64 x 64; an array of 1 MiB copied, counted as read and as written"
    )


@pytest.mark.parametrize(("left", "right"), [("float32", "float32"), ("uint8", "int8"), ("uint8", "uint8")])
def test_a_product_is_of_whole_matrices(left: str, right: str):
    ((name, run),) = onnxruntime_product(1, 64, left, right).items()
    (product,) = run()  # type: ignore[misc]
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 100, (64, 64)) for _ in range(2))
    np.testing.assert_array_equal(product, first @ second)
    assert left in name and right in name


def test_each_piece_of_an_array_is_copied_by_each_number_of_threads(monkeypatch):
    copied = []
    real = np.copyto
    monkeypatch.setattr(np, "copyto", lambda target, source: (real(target, source), copied.append(target.nbytes)))
    monkeypatch.setattr(peaks, "_PIECE", MIB)
    for threads in (1, 3):
        copied.clear()
        assert copy_rate(threads, 3 * MIB, 0.0) > 0
        # A piece before what counts, and two.
        assert sum(copied) == 3 * MIB and len(copied) == 3 * threads


def test_a_process_that_fails_is_no_peak(monkeypatch, caplog):
    def fail(arguments, **_):
        raise subprocess.CalledProcessError(1, arguments, stderr="Traceback\nMemoryError: no room")

    monkeypatch.setattr(subprocess, "run", fail)
    with caplog.at_level(logging.WARNING):
        assert measure_peaks(1) is None
    assert "was not measured: MemoryError: no room" in caplog.text


def machine(folder: Path, caches: dict[int, dict[str, tuple[int, str, str]]], free_kib: int) -> dict[str, Path]:
    """The kernel's files of a machine: for each core the level, size and sharers of its caches."""
    for cpu, own in caches.items():
        for index, values in own.items():
            cache = folder / "sys" / "devices" / "system" / "cpu" / f"cpu{cpu}" / "cache" / index
            cache.mkdir(parents=True)
            for name, value in zip(("level", "size", "shared_cpu_list"), values, strict=True):
                (cache / name).write_text(f"{value}\n")
    (folder / "proc").mkdir()
    (folder / "proc" / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {free_kib} kB\n")
    return {"proc": folder / "proc", "sys": folder / "sys"}


def test_an_array_is_larger_than_the_last_caches(tmp_path: Path):
    def core(cpu: int) -> dict[str, tuple[int, str, str]]:
        last = "0-1" if cpu < 2 else "2-3"
        return {"index0": (1, "32K", str(cpu)), "index2": (2, "1M", str(cpu)), "index3": (3, "20M", last)}

    files = machine(tmp_path, {cpu: core(cpu) for cpu in range(4)}, 1 << 25)
    assert array_bytes(**files, cpus={0, 1, 2, 3}) == 4 * 40 * MIB
    assert array_bytes(**files, cpus={0, 1}) == 4 * 20 * MIB


def test_an_array_leaves_room_in_the_memory(tmp_path: Path):
    files = machine(tmp_path, {0: {"index3": (3, "1024M", "0")}}, 800 << 10)
    assert array_bytes(**files, cpus={0}) == 100 * MIB
    (tmp_path / "proc" / "meminfo").unlink()
    assert array_bytes(**files, cpus={0}) == 512 * MIB
    # A machine that does not tell of its caches.
    assert array_bytes(**files, cpus={7}) == 64 * MIB
