"""The epochs of a run: train, validate, keep the best weights, and write the state that a killed run resumes from."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list, gather_object
from tqdm import tqdm

from edge_effdet.artifacts import Checkpoint, ModelSpec
from edge_effdet.data.base import Sample
from edge_effdet.errors import CheckpointError, UsageError
from edge_effdet.models.checkpoint import open_checkpoint, save_checkpoint
from edge_effdet.training.loader import (
    Batch,
    EpochBatches,
    batches_of,
    leave_dead_loaders_to_the_next_batch,
    training_loader,
)
from edge_effdet.training.memory import explain_out_of_memory, is_out_of_memory
from edge_effdet.training.options import TrainConfig, differing_options
from edge_effdet.training.qat import quantizer_ranges, without_quantizers
from edge_effdet.training.report import TensorBoardLog, draw_curves, write_metrics
from edge_effdet.training.resume import FILE_NAME, RunProgress, load_progress, save_progress
from edge_effdet.training.trainer import Losses, Trainer
from edge_effdet.training.validation import Validation, validate

logger = logging.getLogger("edge_effdet.train")

LOSS_NAMES = ("loss", "class_loss", "box_loss")


class Run:
    """One training run in a folder.

    Args:
        trainer: ready to step.
        train, val: the samples; ``val`` may be empty.
        batches: the order of ``train`` for this process.
        spec: the model's.
        config: how it is trained.
        output: the run's folder, which exists.
        provenance: goes into each checkpoint's metadata.
    """

    def __init__(
        self,
        trainer: Trainer,
        train: Sequence[Sample],
        val: Sequence[Sample],
        batches: EpochBatches,
        spec: ModelSpec,
        config: TrainConfig,
        output: Path,
        provenance: Mapping[str, Any],
    ) -> None:
        self.trainer, self.train, self.val, self.batches = trainer, train, val, batches
        self.spec, self.config, self.output, self.provenance = spec, config, output, dict(provenance)
        self.identity = {
            "spec": spec.to_dict(),
            "data_sha256": provenance.get("data_sha256"),
            "val_sha256": provenance.get("val_sha256"),
            "started_from": provenance.get("started_from"),
            "options": config.record(),
        }
        self.progress = RunProgress()
        self.main = trainer.accelerator.is_main_process
        self.started = time.perf_counter()
        self.told: set[str] = set()

    def restore(self) -> None:
        """Go on from the folder's last whole checkpoint, or from the beginning where there is none.

        Raises:
            CheckpointError: the checkpoint is damaged.
            UsageError: it belongs to a run with other options or data; the message names them.
        """
        loaded = load_progress(self.output)
        self._require_one_state(loaded[0] if loaded else None)
        if loaded is None:
            logger.warning("%s holds no checkpoint to resume from yet: starting from the beginning", self.output)
            return
        progress, identity, tensors, numbers = loaded
        differing = differing_options(identity["options"], self.identity["options"])
        if differing:
            raise UsageError(
                f"The run in {self.output} was started with other options ({', '.join(differing)}); give those it was "
                "started with, or start anew in another `output`."
            )
        for name, what in (
            ("spec", "model or classes"),
            ("data_sha256", "training data"),
            ("val_sha256", "validation data"),
            ("started_from", "weights"),
        ):
            if identity[name] != _through_json(self.identity[name]):
                raise UsageError(
                    f"The run in {self.output} was started with another {what}; give the same, or start anew in another "
                    "`output`."
                )
        self.trainer.restore(tensors, numbers)
        self.progress = progress
        if progress.epoch < self.config.epochs:
            logger.info("going on at epoch %d, step %d", progress.epoch + 1, progress.step + 1)
        else:
            logger.info("the run in %s is finished", self.output)

    def _require_one_state(self, progress: RunProgress | None) -> None:
        """Raises UsageError where processes found different states: a machine that does not see the others' folder would start anew."""
        if self.trainer.accelerator.num_processes == 1:
            return
        position: Any = (progress.epoch, progress.step) if progress else None
        if len(set(gather_object([position]))) > 1:
            raise UsageError(
                f"Some processes find another state in {self.output} than others; give an `output` that all machines share."
            )

    def require_unused(self) -> None:
        """Raises UsageError where the folder holds an unfinished run, which a new one would overwrite."""
        with contextlib.suppress(CheckpointError):
            loaded = load_progress(self.output)
            if loaded is None or not (loaded[0].epoch or loaded[0].step):
                return
            done, epochs = loaded[0].epoch, loaded[1]["options"]["schedule"]["epochs"]
            if done < epochs:
                raise UsageError(
                    f"{self.output} holds a run that stopped after {done} of {epochs} epochs, which this one would overwrite; "
                    f"give `resume` to go on with it, another `output`, or delete its {FILE_NAME}."
                )
            logger.warning("the finished run in %s is overwritten", self.output)

    def run(self) -> Checkpoint:
        """Train the epochs that are left and return the best checkpoint."""
        loader = training_loader(self.train, self.batches, self.spec, self.config)
        if self.main and self.progress == RunProgress():
            # An earlier run in this folder may have left it, and without validation nothing would replace it.
            (self.output / "best_loss.safetensors").unlink(missing_ok=True)
            self._save()
        log = contextlib.closing(TensorBoardLog(self.output, self.progress.epoch)) if self.main else None
        with log or contextlib.nullcontext() as tensorboard:
            while self.progress.epoch < self.config.epochs:
                row = self._finish_epoch(self._train_epoch(loader))
                if tensorboard is not None:
                    tensorboard.add(row)
        self.trainer.accelerator.wait_for_everyone()
        if self.told:
            logger.warning(
                "%d image%s could not be decoded and were replaced by others", len(self.told), "s"[: len(self.told) > 1]
            )
        # The other machines may not have the file.
        best: list[Any] = [open_checkpoint(self.output / "best.safetensors") if self.main else None]
        if self.trainer.accelerator.num_processes > 1:
            best = broadcast_object_list(best)
        return best[0]

    def _train_epoch(self, loader: Any) -> dict[str, Any]:
        epoch, first = self.progress.epoch, self.progress.step
        steps = len(self.batches)
        self.trainer.start_epoch(epoch)
        self.batches.start_at(epoch, first)
        sums, waited, saved_at = np.array(self.progress.sums), 0.0, time.perf_counter()
        began = time.perf_counter()
        for step, batch, wait in self._bar(loader, epoch, first, steps):
            waited += wait
            losses = self._step(batch, epoch, step)
            sums += np.asarray(losses, np.float64)
            self._tell_unreadable(batch)
            self._show(losses, epoch, step, first, began)
            whole = (step + 1) % self.config.accumulate == 0
            if (
                self.main
                and whole
                and step + 1 < steps
                and time.perf_counter() - saved_at >= 60 * self.config.save_minutes
            ):
                self.progress = replace(self.progress, step=step + 1, sums=tuple(sums.tolist()))
                self._save()
                saved_at = time.perf_counter()
        seconds = time.perf_counter() - began
        images = (steps - first) * self.batches.batch_size
        row: dict[str, Any] = {"epoch": epoch + 1, **dict(zip(LOSS_NAMES, (sums / steps).tolist(), strict=True))}
        row["learning_rate"] = self.trainer.learning_rate
        row["images_per_second"] = round(images / seconds, 2)
        row["data_wait_share"] = round(waited / seconds, 4)
        return row

    def _bar(self, loader: Any, epoch: int, first: int, steps: int) -> Iterator[tuple[int, Batch, float]]:
        """Yield each step's number, its batch, and the seconds that the batch was waited for, under a progress bar on a terminal."""
        source = batches_of(loader)
        with tqdm(
            total=steps, initial=first, desc=f"epoch {epoch + 1}/{self.config.epochs}", file=sys.stderr,
            disable=not (self.main and sys.stderr.isatty()), leave=False,
        ) as self.bar:  # fmt: skip
            for step in range(first, steps):
                asked = time.perf_counter()
                batch = next(source)
                if step == first:
                    leave_dead_loaders_to_the_next_batch()
                yield step, batch, time.perf_counter() - asked
                self.bar.update()

    def _step(self, batch: Batch, epoch: int, step: int) -> Losses:
        try:
            return self.trainer.step(batch, epoch, step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # The traceback keeps the frames alive, and with them the tensors of the batch that does not fit.
            failure = error.with_traceback(None)
        processes = self.trainer.accelerator.num_processes
        raise explain_out_of_memory(
            self.trainer.try_batch, len(batch.indices), self.spec.image_size, failure, processes
        )

    def _show(self, losses: Losses, epoch: int, step: int, first: int, began: float) -> None:
        done = step + 1 - first
        rate = done / (time.perf_counter() - began)
        left = (self.config.epochs - epoch) * len(self.batches) - step - 1
        self.bar.set_postfix_str(
            f"loss {losses.total:.3f} class {losses.class_loss:.3f} box {losses.box_loss:.4f} lr "
            f"{self.trainer.learning_rate:.1e} {rate * self.batches.batch_size:.1f} img/s left {_clock(left / rate)}",
            refresh=False,
        )

    def _tell_unreadable(self, batch: Batch) -> None:
        for message in batch.unreadable:
            if message not in self.told:
                self.told.add(message)
                logger.warning("skipped an image: %s", message)

    def _finish_epoch(self, row: dict[str, Any]) -> dict[str, Any]:
        epoch = self.progress.epoch
        epochs, every = self.config.epochs, self.config.validate_every
        validation = None
        if self.val and (epoch + 1 == epochs or (epoch + 1) % every == 0):
            validation = validate(self.trainer, self.val, self.spec, self.config)
            row |= {f"val_{name}": value for name, value in zip(LOSS_NAMES, validation.losses, strict=True)}
            row |= {"AP": validation.metrics.AP, "AP50": validation.metrics.AP50}
        elapsed = time.perf_counter() - self.started
        self.started = time.perf_counter()
        row["seconds"] = round(elapsed, 2)
        before = self.progress
        state = replace(
            before,
            epoch=epoch + 1,
            step=0,
            sums=(0.0, 0.0, 0.0),
            rows=(*before.rows, row),
            seconds=before.seconds + elapsed,
        )
        better = not self.val
        if validation is not None:
            ap, loss = validation.metrics.AP, validation.losses[0]
            better = before.best_ap is None or ap > before.best_ap
            state = replace(state, best_ap=ap, stale=0) if better else replace(state, stale=before.stale + 1)
            if before.best_loss is None or loss < before.best_loss:
                state = replace(state, best_loss=loss)
                self._save_weights("best_loss.safetensors", row, validation)
        if better:
            self._save_weights("best.safetensors", row, validation)
        self._save_weights("last.safetensors", row, validation)
        patience = self.config.patience
        if patience and state.stale >= patience and state.epoch < epochs:
            logger.info("stopped early: no better AP in %d validations", patience)
            state = replace(state, epoch=epochs)
        self.progress = state
        if self.main:
            self._save()
            write_metrics(self.output, state.rows)
            draw_curves(self.output, state.rows)
        self._tell_epoch(row, epoch + 1)
        return row

    def _tell_epoch(self, row: Mapping[str, Any], done: int) -> None:
        note = f"  AP {100 * row['AP']:.1f}  AP50 {100 * row['AP50']:.1f}" if "AP" in row else ""
        epochs = self.config.epochs
        left = (epochs - done) * self.progress.seconds / done
        logger.info(
            "epoch %d/%d  loss %.3f (class %.3f, box %.4f)  lr %.1e  %.1f images/s, %.0f %% of it waiting for data%s  left %s",
            done, epochs, row["loss"], row["class_loss"], row["box_loss"], row["learning_rate"], row["images_per_second"],
            100 * row["data_wait_share"], note, _clock(left),
        )  # fmt: skip

    def _save_weights(self, name: str, row: Mapping[str, Any], validation: Validation | None) -> None:
        if not self.main:
            return
        network = self.trainer.ema.module
        record = {
            **self.provenance,
            "epoch": row["epoch"],
            "val": validation.metrics.to_dict() if validation else None,
            "val_loss": validation.losses[0] if validation else None,
        }
        if self.config.qat:
            record["qat"] = {"format": "int8", "ranges": quantizer_ranges(network)}
        save_checkpoint(self.output / name, without_quantizers(network.state_dict()), self.spec, record)

    def _save(self) -> None:
        tensors, numbers = self.trainer.state()
        save_progress(self.output, self.progress, self.identity, tensors, numbers)


def _through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"
