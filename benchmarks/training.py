"""Compare our training with a plain effdet loop on the same data: AP at equal epochs, and the speed of a step.

python -m benchmarks.training --data ../shared/data/bccd --split trainval --epochs 4 --seeds 0 1 --name bccd
python -m benchmarks.training --steps-only --model tf_efficientdet_d0 --name d0

The effdet loop runs twice, with effdet's scale jitter and with ours: with ours it is stronger in a short run. Each training is a
process of its own, and ``edge_effdet.evaluate`` measures the AP of each result.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from benchmarks.latency import time_ways
from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from benchmarks.peers.effdet_loop import collate_batch, make_peer_step
from benchmarks.processes import run_module
from edge_effdet.artifacts import ModelSpec
from edge_effdet.cli import Result, add_options, options_from, progress, run_verb, table
from edge_effdet.errors import UsageError
from edge_effdet.models.zoo import model_spec

if TYPE_CHECKING:
    import torch

RandomBatch = tuple["torch.Tensor", list["torch.Tensor"], list["torch.Tensor"]]

OURS = "ours"
PEER = "effdet loop"
PEER_FLAGS = ("", "--scale-min 0.8 --scale-max 1.25")
WARM_UP_STEPS = 3
CLASSES = 3
BOXES_AN_IMAGE = 13
"""How many boxes a random picture has: as many as BCCD's pictures on average."""


def compare_training(
    commands: Mapping[str, Sequence[str]], judge: Sequence[str], seeds: Sequence[int], work: Path
) -> list[dict[str, Any]]:
    """Train in each way with each seed and evaluate the results.

    The ways take turns, in the opposite order with every other seed, so that what else the machine does falls on all of them.

    Args:
        commands: module and flags of each way; ``--seed`` and ``--output`` are added.
        judge: module and flags of the evaluation; ``--checkpoint`` is added.
        seeds: the seeds of weights, order and augmentation.
        work: an existing folder, below which the runs are kept.

    Returns:
        One row a way and seed: AP on the test split, the minutes of the whole process, and the images per second of its training.

    Raises:
        EdgeEffDetError: a training or an evaluation failed.
    """
    rows = []
    turns = [(way, seed) for number, seed in enumerate(seeds) for way in list(commands)[:: -1 if number % 2 else 1]]
    for way, seed in progress(turns, len(turns), "training"):
        output = work / f"{re.sub(r'[^a-z0-9.]+', '-', way)}-seed{seed}"
        started = time.perf_counter()
        module, *flags = commands[way]
        run_module(module, [*flags, "--seed", seed, "--output", output])
        seconds = time.perf_counter() - started
        metrics = run_module(judge[0], [*judge[1:], "--checkpoint", output / "best.safetensors"])
        log = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        rows.append(
            {
                "way": way,
                "seed": seed,
                "AP": metrics["AP"],
                "AP50": metrics["AP50"],
                "minutes": round(seconds / 60, 2),
                "images_per_second": median(entry["images_per_second"] for entry in log),
                "checkpoint_sha256": metrics["checkpoint_sha256"],
                "evaluation": {key: metrics[key] for key in ("split", "images", "data_sha256")},
            }
        )
    return rows


def average_ways(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a way: the means over its seeds, and our means divided by them (None where they are 0)."""
    ways = list(dict.fromkeys(row["way"] for row in rows))
    numbers = ("AP", "AP50", "minutes", "images_per_second")
    means = {way: {name: mean(row[name] for row in rows if row["way"] == way) for name in numbers} for way in ways}
    return [
        {"way": way, **means[way]}
        | {f"ours_over_this_{name}": _ratio(means[OURS][name], means[way][name]) for name in numbers}
        for way in ways
    ]


def compare_steps(
    spec: ModelSpec, batch_size: int, rounds: int, device: str, precision: str, ours: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Time training steps on the same random batch, in turns.

    The effdet loop is timed in two forms: with the anchors labelled in the step, as in ours, and with labels that the processes of its
    loader are taken to have made at no cost, which is the most that its default arrangement can reach.

    Args:
        spec: the model.
        batch_size: how many images a batch has.
        rounds: how often each step is timed.
        device: ``cpu`` or ``cuda``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        ours: flags of ``edge_effdet.train`` beyond its defaults.

    Returns:
        One row a way: the median milliseconds of a step, and images per second.
    """
    batch = random_batch(spec, batch_size, seed=0)
    labelled, plain = (collate_batch(*batch, spec, device, labelled=labelled) for labelled in (True, False))
    with_labels = make_peer_step(spec, device, precision)
    without_labels = make_peer_step(spec, device, precision, labels_in_loader=True)
    our_step = make_our_step(spec, batch_size, device, precision, ours)
    steps: dict[str, Callable[[], object]] = {
        f"{PEER}, labels in the step": lambda: with_labels(plain),
        f"{PEER}, labels made before": lambda: without_labels(labelled),
        OURS: lambda: our_step(batch),
    }
    milliseconds = time_steps(steps, rounds, device)
    return [
        {
            "way": way,
            "median_ms": median(times),
            "images_per_second": 1000 * batch_size / median(times),
            "ours_over_this_speed": median(times) / median(milliseconds[OURS]),
            "milliseconds": [round(value, 2) for value in times],
        }
        for way, times in milliseconds.items()
    ]


def time_steps(steps: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each step, ``rounds`` times, in turns of one step after a warm-up of each."""

    def finish(step: Callable[[], object]) -> None:
        step()
        _synchronize(device)

    calls = {name: partial(finish, step) for name, step in steps.items()}
    for call in calls.values():
        for _ in range(WARM_UP_STEPS):
            call()
    times = time_ways(calls, rounds, runs=1, warm_up=0)
    return {name: own.ravel().tolist() for name, own in times.items()}


def make_our_step(
    spec: ModelSpec, batch_size: int, device: str, precision: str, flags: Sequence[str] = ()
) -> Callable[[RandomBatch], float]:
    """The step of our trainer on a ``RandomBatch``, with ``flags`` of ``edge_effdet.train`` beyond its defaults. It returns the loss."""
    from edge_effdet.training.options import TrainConfig
    from edge_effdet.training.trainer import make_step

    parser = argparse.ArgumentParser(prog="--ours")
    add_options(parser, TrainConfig)
    shared = ["--model", spec.name, "--batch-size", str(batch_size), "--device", device, "--precision", precision]
    chosen = parser.parse_args([*shared, *flags])
    step = make_step(spec, options_from(TrainConfig, chosen))
    return lambda batch: step(*batch).total


def random_batch(spec: ModelSpec, batch_size: int, seed: int) -> RandomBatch:
    """Random pixels, uint8 [B, 3, H, W], and for each picture boxes, float32 [N, 4] yxyx, and classes, int64 [N] 1-based."""
    import torch

    random = torch.Generator().manual_seed(seed)
    height, width = spec.image_size
    images = torch.randint(0, 256, (batch_size, 3, height, width), dtype=torch.uint8, generator=random)
    sides = torch.tensor([height, width] * 2)
    boxes, classes = [], []
    for _ in range(batch_size):
        corner = 0.8 * torch.rand(BOXES_AN_IMAGE, 2, generator=random)
        extent = 0.1 + 0.1 * torch.rand(BOXES_AN_IMAGE, 2, generator=random)
        boxes.append(torch.cat([corner, corner + extent], dim=1) * sides)
        classes.append(torch.randint(1, spec.num_classes + 1, (BOXES_AN_IMAGE,), generator=random))
    return images, boxes, classes


def _synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _ratio(ours: float, other: float) -> float | None:
    return ours / other if other else None


def _training_commands(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The command of each way. All share the same flags, and the loops have those of ``--peer`` too."""
    shared = ["--data", str(arguments.data.resolve()), "--split", arguments.split, "--model", arguments.model]
    shared += ["--epochs", str(arguments.epochs), "--batch-size", str(arguments.batch_size)]
    peers = {
        f"{PEER} {flags}".strip(): ["benchmarks.peers.effdet_loop", *shared, *shlex.split(flags)]
        for flags in arguments.peer or PEER_FLAGS
    }
    return {**peers, OURS: ["edge_effdet.train", *shared]}


def _run(arguments: argparse.Namespace) -> Result:
    import torch

    about = {name: getattr(arguments, name) for name in ("model", "batch_size")}
    about["device"] = f"cpu, {torch.get_num_threads()} threads"
    kind, result, text = (_run_steps if arguments.steps_only else _run_training)(arguments)
    path = save_result(kind, {**about, **result}, arguments.name)
    return Result(f"{about['device']}\n\n{text}\n\n{path}", {**about, **result})


def _run_training(arguments: argparse.Namespace) -> tuple[str, dict[str, Any], str]:
    if arguments.data is None:
        raise UsageError("There is nothing to train on; give `data`, or `steps_only` for the speed of a step alone.")
    judge = ["edge_effdet.evaluate", "--data", str(arguments.data.resolve()), "--split", "test"]
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        rows = compare_training(_training_commands(arguments), judge, arguments.seeds, Path(folder))
    means = average_ways(rows)
    setting = {"data": arguments.data.name, "split": arguments.split, "epochs": arguments.epochs}
    shown = [("way", "seed", "AP", "AP50", "minutes", "images/s")]
    shown += [(row["way"], str(row["seed"]), *_numbers(row)) for row in rows]
    header = ("mean of the seeds", "AP", "AP50", "minutes", "images/s", "ours/this: AP", "AP50", "images/s")
    ratios = [f"ours_over_this_{name}" for name in ("AP", "AP50", "images_per_second")]
    averaged = [(row["way"], *_numbers(row), *(_times(row[name]) for name in ratios)) for row in means]
    return "training", {**setting, "rows": rows, "means": means}, f"{table(shown)}\n\n{table([header, *averaged])}"


def _run_steps(arguments: argparse.Namespace) -> tuple[str, dict[str, Any], str]:
    spec = model_spec(arguments.model, tuple(f"class {number + 1}" for number in range(CLASSES)))
    rows = compare_steps(spec, arguments.batch_size, arguments.rounds, "cpu", "fp32")
    shown = [("a step of", "median", "images/s", "ours/this")]
    shown += [
        (
            row["way"],
            f"{row['median_ms']:.1f} ms",
            f"{row['images_per_second']:.1f}",
            _times(row["ours_over_this_speed"]),
        )
        for row in rows
    ]
    return "training-steps", {"rounds": arguments.rounds, "classes": CLASSES, "rows": rows}, table(shown)


def _numbers(row: Mapping[str, Any]) -> tuple[str, ...]:
    points = (f"{100 * row[name]:.1f}" for name in ("AP", "AP50"))
    return (*points, f"{row['minutes']:.1f}", f"{row['images_per_second']:.1f}")


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "training",
        "Our training against a plain effdet loop.",
        "--data bccd --split trainval --epochs 4 --seeds 0 1 --name bccd",
        rounds=20,
        data="a data set, as edge_effdet.train takes it",
        name="training",
    )
    parser.add_argument("--split", default="train", metavar="NAME", help="the split to train on (default: train)")
    parser.add_argument("--model", default="tf_efficientdet_lite0", metavar="NAME", help="a model name of effdet")
    parser.add_argument("--epochs", type=int, default=4, metavar="N", help="epochs of each training (default: 4)")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="the seeds of the trainings (default: 0 1)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="images a step (default: 8)")
    parser.add_argument(
        "--peer",
        action="append",
        metavar="FLAGS",
        help="flags of one effdet loop, in quotes; repeat the flag for several loops (default: two loops)",
    )
    parser.add_argument(
        "--steps-only", action="store_true", help="time the training step on random batches, without data"
    )
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
