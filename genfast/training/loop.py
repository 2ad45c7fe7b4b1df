"""The training loop: steps, log, samples, validation and checkpoints, in this order."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from genfast._files import encode_json
from genfast.errors import CheckpointError, DataError, NumericsError
from genfast.training import checkpoint, rng
from genfast.training.config import TrainingConfig
from genfast.training.loader import Batches, SoundBatches, with_last
from genfast.training.log import RunLog
from genfast.training.progress import Progress, say
from genfast.training.run import SUMMARY, write_file
from genfast.training.signals import StopRequest
from genfast.training.trainer import Trainer


@dataclass
class Position:
    """Where a run is. Kept in every checkpoint, so that a resumed log goes on as well.

    Attributes:
        epoch: epochs finished.
        batch: batches taken of the epoch after them.
        seconds: time spent training: fetching batches and taking steps.
        sums: sums of the losses since the last row of the log.
        counts: how often each was added.
        images: images since the last row of the log.
        row_seconds: `seconds` at the last row of the log.
        losses: the last row's losses.
    """

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    images: int = 0
    row_seconds: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)


class Loop:
    """Trains until the last epoch is done, or a signal asks to stop.

    Args:
        trainer: the model and its optimizers.
        data: the batches to train on.
        valid: the batches to measure the loss on after each epoch, or None.
        config: the settings.
        run: where to write; without a folder nothing is written.
        identity: what each checkpoint says about the run besides its state.
    """

    def __init__(
        self,
        trainer: Trainer,
        data: Batches | SoundBatches,
        valid: Batches | SoundBatches | None,
        config: TrainingConfig,
        run: Path | None,
        identity: dict[str, Any],
    ) -> None:
        self.position = Position()
        self._trainer, self._data, self._valid = trainer, data, valid
        self._config, self._run, self._identity = config, run, identity
        self._saved_step: int | None = None
        self._log: RunLog | None = None
        self._stop = StopRequest()

    def restore(self, found: checkpoint.Checkpoint) -> None:
        """Go back to where a checkpoint was written.

        Raises:
            CheckpointError: if its content does not fit.
        """
        try:
            self.position = Position(**found.state["position"])
            trainer_state = found.state["trainer"]
            self._trainer.restore(found.step, found.weights(), found.training(), trainer_state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{found.path}: state of another run: {error!r}") from error
        self._saved_step = found.step

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.position.epoch >= self._config.epochs

    def train(self, name: str) -> None:
        """Train to the end; leave the model with the weights to sample with, in eval mode.

        Raises:
            NumericsError: if a loss or gradient stops being finite.
            CheckpointError: if a checkpoint cannot be written.
            KeyboardInterrupt, SystemExit: after a signal, once the step is done and saved.
        """
        config, per_epoch = self._config, self._data.per_epoch()
        if self._saved_step is not None:
            where = f"{self._run}: {self._trainer.step} steps are done"
            say(f"{where}, nothing is left to do" if self.finished else where, config.progress)
        if self.finished:
            if self._run is not None and not (self._run / SUMMARY).exists():
                self._write_summary()  # the run ended between its last checkpoint and this
            self._trainer.finish()
            return
        total = None if per_epoch is None else per_epoch * config.epochs
        steps, noun = self._trainer.step, self._data.noun
        bar = Progress(name, total, steps, config.epochs, config.progress, noun)
        with self._stop:
            try:
                self._start()
                while not (self.finished or self._stop):
                    self._epoch(bar)
                if self.finished:
                    self._write_summary()
            except NumericsError as error:
                kept = checkpoint.list_checkpoints(self._run) if self._run is not None else []
                if kept:
                    raise NumericsError(f"{error}; last checkpoint: {kept[0]}") from error
                raise
            finally:
                bar.close()
                if self._log is not None:
                    self._log.close()
        self._trainer.finish()
        if self._stop:
            where = f"saved in {self._run}" if self._run is not None else "nothing is saved"
            say(f"stopped after step {self._trainer.step}; {where}", config.progress)
            raise self._stop.exception()

    def _start(self) -> None:
        """Open the log and save the initial weights: from now on there is a checkpoint."""
        if self._run is not None:
            (self._run / SUMMARY).unlink(missing_ok=True)
            self._log = RunLog(self._run, self._trainer.step, self._config.tensorboard)
            self._save()

    def _epoch(self, bar: Progress) -> None:
        """Train to the end of the current epoch."""
        config, position, trainer = self._config, self.position, self._trainer
        before = trainer.step
        started = time.perf_counter()
        for (x, labels), last in with_last(self._data.epoch(position.epoch, position.batch)):
            losses = trainer.train_step(x, labels)
            position.batch += 1
            position.seconds += time.perf_counter() - started
            self._collect(losses, len(x))
            bar.step(position.epoch + 1, losses, self._images_per_second())
            ends = last and position.epoch + 1 == config.epochs
            if ends or _is_due(trainer.step, config.log_every):
                self._write_row()
            if last:
                self._validate()
                position.epoch, position.batch = position.epoch + 1, 0
            if (ends and config.sample_every) or _is_due(trainer.step, config.sample_every):
                self._sample()
            # Last, so that what a checkpoint says is done is on the disk.
            if ends or _is_due(trainer.step, config.checkpoint_every) or self._stop:
                self._save()
            if self._stop:
                return
            started = time.perf_counter()
        if trainer.step == before:
            raise DataError(
                f"data: expected batches after batch {position.batch} of epoch "
                f"{position.epoch + 1}, got none; the data must be the same for every epoch"
            )

    def _collect(self, losses: dict[str, float], images: int) -> None:
        position = self.position
        position.images += images
        for name, value in losses.items():
            position.sums[name] = position.sums.get(name, 0.0) + value
            position.counts[name] = position.counts.get(name, 0) + 1

    def _images_per_second(self) -> float:
        """Return the speed since the last row of the log."""
        position = self.position
        return position.images / max(position.seconds - position.row_seconds, 1e-9)

    def _write_row(self) -> None:
        """Write the means since the last row."""
        position = self.position
        means = {name: position.sums[name] / count for name, count in position.counts.items()}
        if self._log is not None:
            speed = {f"{self._data.noun}_per_second": self._images_per_second()}
            self._log.write(self._row() | speed | means)
        position.losses |= means
        position.row_seconds = position.seconds
        position.images, position.sums, position.counts = 0, {}, {}

    def _row(self) -> dict[str, Any]:
        position = self.position
        epoch = position.epoch + (position.batch > 0)
        return {"step": self._trainer.step, "epoch": epoch, "seconds": position.seconds}

    def _validate(self) -> None:
        """Log the mean loss over the validation data; given up when asked to stop."""
        model, log = self._trainer.model, self._log
        # Losses of parts that play against each other do not measure the model.
        if self._valid is None or log is None or model.parts(self._trainer.step) != ("model",):
            return
        sums: dict[str, float] = {}
        count = 0
        seed = rng.derive(self._config.seed, 1)  # the same noise each time
        model.eval()
        with rng.private(seed), self._trainer.sampling_weights(), torch.no_grad():
            for x, labels in self._valid.once():
                if self._stop:
                    return
                for name, value in self._trainer.losses(x, labels, "model").items():
                    sums[name] = sums.get(name, 0.0) + value.item() * len(x)
                count += len(x)
        row = {f"valid/{name}": value / count for name, value in sums.items()}
        log.write(self._row() | row)
        self.position.losses |= row

    def _sample(self) -> None:
        """Write samples, drawn from the same noise each time and off the run's own."""
        if self._run is None or self._stop:
            return
        trainer, config = self._trainer, self._config
        seed = rng.derive(config.seed, 2)
        generator = torch.Generator().manual_seed(seed)
        with rng.private(seed), trainer.sampling_weights():
            count, more = self._data.to_draw(trainer.model)
            samples = trainer.model.sample(
                config.sample_count or count, generator=generator, **more
            )
        self._data.write_samples(samples, self._run / "samples" / f"step-{trainer.step:08d}")

    def _save(self) -> None:
        """Write a checkpoint, unless this step has one."""
        if self._run is None or self._log is None or self._saved_step == self._trainer.step:
            return
        self._log.sync()
        tensors, trainer_state = self._trainer.state()
        state = {**self._identity, "trainer": trainer_state, "position": asdict(self.position)}
        weights, keep = self._trainer.weights(), self._config.keep
        checkpoint.save(self._run, self._trainer.step, weights, tensors, state, keep=keep)
        self._saved_step = self._trainer.step

    def _write_summary(self) -> None:
        """Write `summary.json`: what the finished run took and reached."""
        if self._run is None:
            return
        summary = {
            "steps": self._trainer.step,
            "epochs": self.position.epoch,
            "seconds": self.position.seconds,
            "parameters": sum(p.numel() for p in self._trainer.model.parameters()),
            "losses": self.position.losses,
        }
        write_file(self._run / SUMMARY, encode_json(summary))


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
