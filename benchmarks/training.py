"""What our training gives against a plain effdet loop, on the same data: AP at equal epochs, and the speed of a step.

python -m benchmarks.training --data ../shared/data/bccd --split trainval --epochs 4 --seeds 0 1 --name bccd
python -m benchmarks.training --steps-only --model tf_efficientdet_d0 --name d0

The peer runs twice, with effdet's scale jitter and with ours: the second is stronger in a short run. Each training is a
process of its own, and ``edge_effdet.evaluate`` judges what each left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from benchmarks.machine import save_result
from benchmarks.peers.effdet_loop import collate_batch, make_peer_step
from edge_effdet.artifacts import ModelSpec, Size
from edge_effdet.cli import Result, add_options, make_parser, options_from, progress, run_verb, size_argument, table
from edge_effdet.errors import EdgeEffDetError, UsageError
from edge_effdet.models.zoo import model_spec

if TYPE_CHECKING:
    import torch

RandomBatch = tuple["torch.Tensor", list["torch.Tensor"], list["torch.Tensor"]]

ROOT = Path(__file__).resolve().parents[1]
OURS = "ours"
PEER = "effdet loop"
PEER_FLAGS = ("", "--scale-min 0.8 --scale-max 1.25")
WARM_UP_STEPS = 3
BOXES_AN_IMAGE = 13
"""As many as BCCD has on average."""


def compare_training(
    commands: Mapping[str, Sequence[str]], judge: Sequence[str], seeds: Sequence[int], work: Path
) -> list[dict[str, Any]]:
    """One row a way and seed: AP on the test split, minutes of the whole process, images per second while it trains.

    The ways take turns, in the other order with every seed, so that what else the machine does falls on all of them.

    Args:
        commands: module and flags of each way, which takes ``--seed`` and ``--output`` besides.
        judge: module and flags of the evaluation, which takes ``--checkpoint`` besides.
        seeds: of weights, order and augmentation.
        work: an existing folder; the runs are kept in folders below it.
    """
    rows = []
    turns = [(way, seed) for number, seed in enumerate(seeds) for way in list(commands)[:: -1 if number % 2 else 1]]
    for way, seed in progress(turns, len(turns), "training"):
        output = work / f"{re.sub(r'[^a-z0-9.]+', '-', way)}-seed{seed}"
        started = time.perf_counter()
        run_module([*commands[way], "--seed", str(seed), "--output", str(output)])
        seconds = time.perf_counter() - started
        metrics = run_module([*judge, "--checkpoint", str(output / "best.safetensors")])
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
    """Means over the seeds of each way, and how many times as much ours has."""
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
    """One row a way: median milliseconds of a training step on the same random batch, and images per second.

    The peer stands in twice: with its anchors labelled in the step, as ours are, and with labels that its loader's
    processes have made at no cost, which is the most that its default arrangement can reach.
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
    seconds = time_steps(steps, rounds, device)
    return [
        {
            "way": way,
            "median_ms": 1000 * median(times),
            "images_per_second": batch_size / median(times),
            "ours_over_this_speed": median(times) / median(seconds[OURS]),
            "milliseconds": [round(1000 * value, 2) for value in times],
        }
        for way, times in seconds.items()
    ]


def time_steps(steps: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each step, ``rounds`` times, in turns after a warm-up."""
    for step in steps.values():
        for _ in range(WARM_UP_STEPS):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for name in progress([name for _ in range(rounds) for name in steps], rounds * len(steps), "timing"):
        _synchronize(device)
        started = time.perf_counter()
        steps[name]()
        _synchronize(device)
        seconds[name].append(time.perf_counter() - started)
    return seconds


def make_our_step(
    spec: ModelSpec, batch_size: int, device: str, precision: str, flags: Sequence[str] = ()
) -> Callable[[RandomBatch], float]:
    """Our trainer's step on (images, boxes, classes), with ``flags`` of ``edge_effdet.train`` beyond its defaults."""
    from edge_effdet.training import options
    from edge_effdet.training.trainer import make_step

    groups = {
        "model": options.ModelOptions,
        "schedule": options.ScheduleOptions,
        "optimizer": options.OptimizerOptions,
        "augment": options.AugmentOptions,
        "affine": options.AffineOptions,
        "run": options.RunOptions,
    }
    parser = argparse.ArgumentParser(prog="--ours")
    add_options(parser, *groups.values())
    shared = ["--model", spec.name, "--batch-size", str(batch_size), "--device", device, "--precision", precision]
    chosen = parser.parse_args([*shared, *flags])
    step = make_step(spec, options.TrainOptions(**{name: options_from(cls, chosen) for name, cls in groups.items()}))
    return lambda batch: step(*batch).total


def random_batch(spec: ModelSpec, batch_size: int, seed: int) -> RandomBatch:
    """Random pixels, uint8 [B, 3, H, W], and a picture's boxes, float32 [N, 4] yxyx, and classes, int64 [N] 1-based."""
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


def run_module(words: Sequence[str]) -> dict[str, Any]:
    """Run ``python -m WORDS --json`` and return its object; its log goes to stderr. Raises EdgeEffDetError where it fails."""
    process = subprocess.run(
        [sys.executable, "-m", *words, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if process.returncode:
        raise EdgeEffDetError(
            f"python -m {shlex.join(words)} ended with {process.returncode}, so nothing was compared; its own message "
            "stands above."
        )
    return json.loads(process.stdout.splitlines()[-1])


def describe_device(device: str) -> str:
    """``cpu`` with torch's threads, or the GPU's name. Raises UsageError where there is none."""
    import torch

    if device == "cpu":
        return f"cpu, {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        raise UsageError("--device cuda finds no GPU that torch can use; give --device cpu.")
    return torch.cuda.get_device_name()


def _synchronize(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _ratio(ours: float, other: float) -> float | None:
    return ours / other if other else None


def _training_commands(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Every way gets the same shared flags; what differs is in ``--peer`` and ``--ours``."""
    shared = ["--data", str(arguments.data.resolve()), "--split", arguments.split, "--model", arguments.model]
    if arguments.image_size is not None:
        shared += ["--image-size", _shown(arguments.image_size)]
    shared += ["--epochs", str(arguments.epochs), "--batch-size", str(arguments.batch_size)]
    shared += ["--device", arguments.device, "--precision", arguments.precision]
    peers = {
        f"{PEER} {flags}".strip(): ["benchmarks.peers.effdet_loop", *shared, *shlex.split(flags)]
        for flags in arguments.peer or PEER_FLAGS
    }
    return {**peers, OURS: ["edge_effdet.train", *shared, *shlex.split(arguments.ours)]}


def _run(arguments: argparse.Namespace) -> Result:
    return _run_steps(arguments) if arguments.steps_only else _run_training(arguments)


def _run_training(arguments: argparse.Namespace) -> Result:
    if arguments.data is None:
        raise UsageError("There is nothing to train on; give --data D, or --steps-only for the speed of a step alone.")
    device = describe_device(arguments.device)
    judge = ["edge_effdet.evaluate", "--data", str(arguments.data.resolve()), "--split", arguments.test_split]
    with contextlib.ExitStack() as stack:
        work = arguments.output or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-effdet-")))
        work = work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        rows = compare_training(_training_commands(arguments), judge, arguments.seeds, work)
    means = average_ways(rows)
    result = {
        "data": arguments.data.name,
        "split": arguments.split,
        "epochs": arguments.epochs,
        "ours": arguments.ours,
        **_shared_record(arguments, device),
        "rows": rows,
        "means": means,
    }
    path = save_result(f"training-{arguments.name}", result)
    shown = [("way", "seed", "AP", "AP50", "minutes", "images/s")]
    shown += [(row["way"], str(row["seed"]), *_numbers(row)) for row in rows]
    header = ("mean of the seeds", "AP", "AP50", "minutes", "images/s", "ours/this: AP", "AP50", "images/s")
    averaged = [
        (row["way"], *_numbers(row), *(_times(row[f"ours_over_this_{name}"]) for name in ("AP", "AP50", "images_per_second")))
        for row in means
    ]  # fmt: skip
    return Result(f"{device}\n\n{table(shown)}\n\n{table([header, *averaged])}\n\n{path}", result)


def _run_steps(arguments: argparse.Namespace) -> Result:
    device = describe_device(arguments.device)
    class_names = tuple(f"class {number}" for number in range(1, arguments.classes + 1))
    spec = model_spec(arguments.model, class_names, image_size=arguments.image_size)
    rows = compare_steps(
        spec, arguments.batch_size, arguments.rounds, arguments.device, arguments.precision, shlex.split(arguments.ours)
    )
    result = {
        "rounds": arguments.rounds,
        "classes": arguments.classes,
        "ours": arguments.ours,
        **_shared_record(arguments, device),
        "rows": rows,
    }
    path = save_result(f"training-steps-{arguments.name}", result)
    shown = [
        (
            row["way"],
            f"{row['median_ms']:.1f} ms",
            f"{row['images_per_second']:.1f}",
            _times(row["ours_over_this_speed"]),
        )
        for row in rows
    ]
    return Result(f"{device}\n\n{table([('a step of', 'median', 'images/s', 'ours/this'), *shown])}\n\n{path}", result)


def _shared_record(arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    size = None if arguments.image_size is None else _shown(arguments.image_size)
    chosen = {name: getattr(arguments, name) for name in ("model", "batch_size", "precision")}
    return {**chosen, "image_size": size, "device": device}


def _numbers(row: Mapping[str, Any]) -> tuple[str, ...]:
    points = (f"{100 * row[name]:.1f}" for name in ("AP", "AP50"))
    return (*points, f"{row['minutes']:.1f}", f"{row['images_per_second']:.1f}")


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def _shown(size: Size) -> str:
    return "x".join(map(str, size))


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "benchmarks",
        "Our training against a plain effdet loop.",
        "python -m benchmarks.training --data bccd --split trainval --epochs 4 --seeds 0 1 --name bccd",
    )
    parser.add_argument("--data", type=Path, metavar="D", help="a data set, as edge_effdet.train takes it")
    parser.add_argument("--split", default="train", metavar="NAME", help="to train on (default: train)")
    parser.add_argument("--test-split", default="test", metavar="NAME", help="to judge on (default: test)")
    parser.add_argument("--model", default="tf_efficientdet_lite0", metavar="NAME", help="a name of effdet")
    parser.add_argument("--image-size", type=size_argument, metavar="N", help="N or HxW (default: the model's own)")
    parser.add_argument("--epochs", type=int, default=4, metavar="N", help="(default: 4)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="(default: 0 1)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="(default: 8)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(default: cpu)")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"), help="(default: fp32)")
    parser.add_argument(
        "--ours", default="", metavar="FLAGS", help="of edge_effdet.train beyond its defaults, in quotes"
    )
    parser.add_argument(
        "--peer",
        action="append",
        metavar="FLAGS",
        help="a peer with these flags, in quotes; repeat for more (default: two)",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep the runs here")
    parser.add_argument("--steps-only", action="store_true", help="time the training step on random batches, no data")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="timed steps of each (default: 20)")
    parser.add_argument(
        "--classes", type=int, default=3, metavar="N", help="of the model whose steps are timed (default: 3)"
    )
    parser.add_argument("--name", required=True, help="of the result file")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
