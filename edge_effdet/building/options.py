"""What a build is told: ``BuildConfig``, in groups that are the command line's too."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from edge_effdet.artifacts import PRECISIONS
from edge_effdet.backends.arithmetic import EXACT_EVERYWHERE, FULL_RANGE, portable_weight_codes
from edge_effdet.backends.base import BACKENDS, get_backend
from edge_effdet.building.gate import DEFAULT_BUDGET
from edge_effdet.data.frames import LabelOptions
from edge_effdet.errors import UsageError
from edge_effdet.graph.export import SourceOptions
from edge_effdet.graph.targets import TARGETS
from edge_effdet.options import check_choices, option
from edge_effdet.quant.options import check_weight_codes
from edge_effdet.quant.stage import CalibrationOptions, QuantizeOptions
from edge_effdet.runtime.golden import KINDS

NMS_PLACES = ("host", "efficientnms")


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """What compiles and runs the engine."""

    backend: str = option("auto", help="what compiles and runs the engine", choices=("auto", "fastest", *BACKENDS))
    target: str = option("", help="tensorrt-rtx: SM versions, as in 86+89+120")
    workspace_mib: int = option(0, help="TensorRT: limit of the builder's scratch memory, 0 for none")
    timing_cache: Path | str | None = option(
        None, help="TensorRT: a file that keeps the timings of kernels between builds"
    )
    batch_sizes: str | tuple[int, ...] = option(
        "1,8", help="TensorRT, with --batch-size 0: what it is tuned for, the last being the most"
    )
    nms: str = option("host", help="where boxes are suppressed; efficientnms is TensorRT's plugin", choices=NMS_PLACES)


@dataclass(frozen=True, kw_only=True)
class GateOptions(LabelOptions):
    """How accuracy is measured, and what may be lost."""

    eval_data: Path | str | None = option(None, help="labelled images to measure the AP on, before and after")
    split: str | None = option(None, help="the split of --eval-data (default: val, else test, else everything)")
    max_ap_drop: str | float | None = option(
        None,
        help=f"points of AP that may be lost (default: {DEFAULT_BUDGET}), or none; an engine that surely loses more ends with exit code 4",
    )
    fall_back: bool = option(
        False, help="where no backend keeps the loss within that, build FP16 instead, and FP32 after it"
    )
    golden: str = option(
        "pictures",
        help="what travels with the engine to check it on other machines: three calibration pictures, drawn ones, or none",
        choices=KINDS,
    )
    search: bool = option(
        False, help="with --int8: find the convolutions that have to stay high for a loss within --max-ap-drop"
    )
    search_split: str | None = option(None, help="whose AP the search looks at (default: val); never the gate's own")
    search_target: str = option("orin-nano-8gb", help="whose time the search saves", choices=tuple(TARGETS))


@dataclass(frozen=True, kw_only=True)
class ExportChoices(SourceOptions):
    """How a checkpoint is exported. A graph that is given is exported already, so these stay None for it."""

    batch_size: int | None = option(None, help="images a run; 0 for a dynamic batch (default: 1)")
    fuse_separable: str | None = option(None, help="as in export (default: keep)", choices=("keep", "dense", "auto"))
    fuse_target: str | None = option(None, help="as in export, for auto", choices=tuple(TARGETS))


@dataclass(frozen=True, kw_only=True)
class LoweringOptions(ExportChoices, CalibrationOptions, QuantizeOptions, GateOptions):
    """Which graph is built, in which precision, and what it may lose, whatever compiles it.

    Raises:
        UsageError: a precision that does not exist, or options that contradict each other.
    """

    precision: str = "int8"
    name: str | None = option(None, help="what the files are called (default: as the checkpoint)")
    # Only a build knows which backend will run the graph.
    high_precision: str | None = option(  # type: ignore[assignment]
        None,
        help="what the rest of an INT8 graph runs in (default: fp16 for TensorRT and TensorRT-RTX, else fp32)",
        choices=("fp32", "fp16"),
    )
    weight_codes: int | None = option(  # type: ignore[assignment]
        None,
        help=f"largest code of an INT8 weight (default: {FULL_RANGE} for GPUs, else {EXACT_EVERYWHERE}, which every processor "
        "computes exactly)",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if self.precision not in PRECISIONS:
            raise UsageError(f"There is no `precision` {self.precision!r}; the precisions are {', '.join(PRECISIONS)}.")
        if self.name is not None and (self.name in ("", ".", "..") or Path(self.name).name != self.name):
            raise UsageError(
                f"The `name` {self.name!r} is a path, and files of that name would lie outside of `output`; give a name without slashes."
            )
        if self.search and self.precision != "int8":
            raise UsageError("`search` chooses what becomes INT8, and there is nothing to choose here; leave it out.")
        if self.weight_codes is not None:
            check_weight_codes(self.weight_codes)

    def quantizing(self, backend: str) -> QuantizeOptions:
        """How INT8 is made for a backend, with what was left to it filled in."""
        values = {item.name: getattr(self, item.name) for item in fields(QuantizeOptions)}
        values["high_precision"] = self.high_precision or get_backend(backend).TRAITS.rest
        values["weight_codes"] = portable_weight_codes(backend) if self.weight_codes is None else self.weight_codes
        return QuantizeOptions(**values)


@dataclass(frozen=True, kw_only=True)
class BuildConfig(LoweringOptions, BackendOptions):
    """All that a build is told; every field is a flag of ``python -m edge_effdet.build_engine``, which has its help."""

    output: Path | str = option(Path("engines"), help="the folder to write into")
