"""Order and samples: the same for any number of processes and workers, and from wherever a run begins again."""

from __future__ import annotations

import errno
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet.data.base import Sample
from edge_effdet.errors import DataError, UsageError
from edge_effdet.models.zoo import model_spec
from edge_effdet.training.loader import EpochBatches, TrainingImages, batches_of, training_loader, validation_loader
from edge_effdet.training.options import TrainConfig

SPEC = model_spec("tf_efficientdet_lite0", ("disc", "bar"), image_size=(64, 64))


@pytest.fixture
def samples(tmp_path) -> list[Sample]:
    rng = np.random.default_rng(0)
    made = []
    for number in range(6):
        path = tmp_path / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
        box = np.array([[5, 5, 30, 30]], np.float32)
        made.append(Sample(str(number), path, 40, 60, box, np.array([number % 2]), np.array([False])))
    return made


def test_processes_share_each_batch():
    whole = EpochBatches(22, 6, seed=1)
    parts = [EpochBatches(22, 6, seed=1, rank=rank, processes=2) for rank in range(2)]
    assert len(whole) == len(parts[0]) == 3
    for batch, first, second in zip(whole, *parts, strict=True):
        assert batch[0::2] == first and batch[1::2] == second


def test_epochs_differ_and_an_epoch_can_be_entered_in_its_middle():
    batches = EpochBatches(20, 4, seed=3)
    first = list(batches)
    batches.start_at(1, 0)
    second = list(batches)
    assert first != second and {epoch for batch in second for epoch, _ in batch} == {1}
    assert sorted(index for batch in first for _, index in batch) == list(range(20))
    batches.start_at(1, 3)
    assert list(batches) == second[3:]


def test_a_batch_is_never_larger_than_the_split():
    assert [len(batch) for batch in EpochBatches(5, 8, seed=0)] == [5]
    assert [len(batch) for batch in EpochBatches(5, 8, seed=0, rank=1, processes=2)] == [2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_depends_on_seed_epoch_and_index_only(samples, workers):
    options = TrainConfig(batch_size=3, workers=workers)
    batches = EpochBatches(len(samples), 3, seed=0)
    batches.start_at(4, 0)
    images = TrainingImages(samples, SPEC, options)
    seen = 0
    for batch in training_loader(samples, batches, SPEC, options):
        assert batch.images.shape == (3, 3, 64, 64) and not batch.unreadable
        for position, index in enumerate(batch.indices):
            _, labelled, _ = images[4, index]
            np.testing.assert_array_equal(batch.images[position].numpy(), labelled[0].transpose(2, 0, 1))
            np.testing.assert_array_equal(batch.boxes[position].numpy(), labelled[1][:, [1, 0, 3, 2]])
            assert batch.classes[position].tolist() == (labelled[2] + 1).tolist()
            seen += 1
    assert seen == 6


def test_another_image_stands_in_for_a_broken_one(samples):
    samples[2].path.write_bytes(b"no picture")
    samples[3].path.unlink()
    images = TrainingImages(samples, SPEC, TrainConfig())
    index, labelled, unreadable = images[0, 2]
    assert index == 2 and labelled is not None and len(unreadable) >= 2
    assert str(samples[2].path) in unreadable[0] and str(samples[3].path) in unreadable[1]


def test_no_readable_image_at_all_is_an_error(samples):
    for sample in samples:
        sample.path.write_bytes(b"")
    with pytest.raises(DataError, match="None of the training images"):
        TrainingImages(samples, SPEC, TrainConfig())[0, 0]


def test_validation_leaves_a_broken_image_out_and_does_not_augment(samples):
    samples[1].path.write_bytes(b"no picture")
    options = TrainConfig(batch_size=4, workers=0)
    batches = list(validation_loader(samples, range(6), SPEC, options))
    assert [batch.indices for batch in batches] == [(0, 2, 3), (4, 5)]
    assert len(batches[0].unreadable) == 1
    scale = 64 / 60
    np.testing.assert_allclose(batches[0].boxes[0].numpy(), np.array([[5, 5, 30, 30]]) * scale, rtol=1e-5)


def test_processes_validate_in_smaller_batches(samples):
    options = TrainConfig(batch_size=4, workers=0)
    batches = list(validation_loader(samples, range(0, 6, 2), SPEC, options, processes=2))
    assert [batch.indices for batch in batches] == [(0, 2), (4,)]


def test_a_validation_split_is_refused_at_once_where_no_labelled_image_can_be_decoded(samples):
    from edge_effdet.training.stage import _check_samples

    _check_samples(samples[:3], samples[3:])
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
    empty = [replace(samples[4], boxes=none[0], class_ids=none[1], ignore=none[2])]
    content = samples[3].path.read_bytes()
    samples[3].path.write_bytes(content[: len(content) // 3])
    with pytest.raises(DataError, match="None of the validation images with a box"):
        _check_samples(samples[:3], [samples[3], *empty])


LOAD = """
import pickle, sys
from pathlib import Path
from edge_effdet.errors import UsageError
from edge_effdet.training.loader import EpochBatches, batches_of, training_loader
from edge_effdet.training.options import TrainConfig

samples, spec = pickle.loads(Path(sys.argv[1]).read_bytes())
config = TrainConfig(batch_size=2, workers=1)
batches = batches_of(training_loader(samples, EpochBatches(len(samples), 2, seed=0), spec, config))
next(batches)
try:
    # As another program does that needs it too.
    Path("/dev/shm/full").write_bytes(bytes(1 << 30))
except OSError:
    pass
try:
    print(sum(1 for _ in batches))
except UsageError as error:
    print(error)
"""


@pytest.mark.timeout(300)
def test_shared_memory_that_runs_out_ends_the_loading_in_a_sentence(samples, tmp_path):
    """torch by itself would print a traceback in the process that loads, and wait for its batch for ever."""
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None:
        pytest.skip("only root can give a process a /dev/shm of its own")
    (tmp_path / "samples").write_bytes(pickle.dumps((samples * 20, SPEC)))
    command = shlex.join([sys.executable, "-c", LOAD, str(tmp_path / "samples")])
    done = subprocess.run(
        [unshare, "-m", "sh", "-c", f"mount -t tmpfs -o size=1m none /dev/shm && exec {command}"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(
        "The processes that load images cannot hand them over, for no shared memory is left ("
    )
    assert "No space left on device" in done.stdout and done.stdout.count("\n") == 1 and "`workers` 0" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


FEW_FILES = """
import os, pickle, resource, sys
from pathlib import Path
from edge_effdet.errors import UsageError
from edge_effdet.training.loader import EpochBatches, batches_of, training_loader
from edge_effdet.training.options import TrainConfig

samples, spec = pickle.loads(Path(sys.argv[1]).read_bytes())

def load(size, more):
    limit = len(os.listdir("/proc/self/fd")) + more
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    config = TrainConfig(batch_size=size, workers=1)
    try:
        return sum(len(batch.boxes) for batch in batches_of(training_loader(samples, EpochBatches(len(samples), size, seed=0), spec, config)))
    except UsageError as error:
        return str(error)

print(load(2, 40))
print(load(60, 40))
for more in range(4):
    print(load(2, more))
"""


@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what is open")
def test_a_large_batch_needs_no_more_open_files_and_too_few_are_told_in_a_sentence(samples, tmp_path):
    """torch hands each tensor over by a file of its own, and where it has none left it prints a traceback and waits for ever."""
    (tmp_path / "samples").write_bytes(pickle.dumps((samples * 20, SPEC)))
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, str(tmp_path / "samples")],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    small, large, *few = done.stdout.splitlines()
    assert (small, large) == ("120", "120")
    assert len(few) == 4 and all("for they need more open files than the " in line for line in few)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "they need more open files than the"),
        (
            RuntimeError(f"{os.strerror(errno.EMFILE)}. Communication with the workers is no longer possible."),
            "they need more open files than the",
        ),
        # Others have opened all that the system has, and no limit of this process helps.
        (
            OSError(errno.ENFILE, os.strerror(errno.ENFILE)),
            "for the system opens no more files; give fewer `workers`, or end other programs",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no shared memory is left (No space left on device)"),
    ],
    ids=["EMFILE", "torch", "ENFILE", "ENOSPC"],
)
def test_what_is_short_is_told(error, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        list(batches_of(Failing(error)))


def test_another_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="half"):
        list(batches_of(Failing(RuntimeError("half"))))


class Failing:
    """A loader whose processes cannot be started, or fail at the first batch."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __iter__(self):
        if isinstance(self.error, OSError):
            raise self.error
        return self

    def __next__(self):
        raise self.error


def test_an_error_of_a_process_that_loads_is_its_sentence(samples):
    for sample in samples:
        sample.path.write_bytes(b"")
    config = TrainConfig(batch_size=3, workers=1)
    loader = training_loader(samples, EpochBatches(len(samples), 3, seed=0), SPEC, config)
    with pytest.raises(DataError) as raised:
        list(batches_of(loader))
    assert str(raised.value) == "None of the training images can be decoded; check the files."
