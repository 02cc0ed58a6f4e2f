"""What training writes for people to read: metrics.csv and log.txt of its run folder, and a tracker."""

import contextlib
import csv
import io
import logging
import os
import sys
import time
from pathlib import Path

from Libraries.Disk import disk_errors, write_whole
from Libraries.Training.Tracker import Tracker
from Libraries.Utils import ROOT_LOGGER, get_logger

logger = get_logger("RunLog")


class MetricsFile:
    """The metrics.csv of a run, one line per report; lines after the resumed step are dropped."""

    def __init__(self, path: Path, step: int, metric_names: tuple[str, ...]):
        self.path = path
        self.fields = ["step", "loss", "lr", "grad_norm", "samples_per_second", *metric_names]
        rows = [row for row in read_metrics(path) if row["step"] <= step] if path.exists() else []
        write_whole(path, ",".join(self.fields).encode() + b"\r\n" + b"".join(map(self._line, rows)))

    def write(self, step: int, **values: float) -> None:
        line = self._line({"step": step, **values})
        # a file that is gone is not made anew: its folder may be gone with its disk
        with disk_errors(self.path, size=len(line)), open(self.path, "r+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                file.truncate(end)  # half a line could be read as a whole one
                raise

    def _line(self, row: dict[str, float]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self.fields).writerow(row)
        return text.getvalue().encode()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a metrics.csv, each with only the values it has; "step" is an int.

    A last line without its end, of a training that was killed while it wrote it, does not count.

    Raises:
        ValueError: the file is damaged; the message says where.
    """
    rows = []
    with disk_errors(path, "read"):
        content = Path(path).read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        for row in csv.DictReader(io.StringIO(whole.decode(), newline="")):
            values = {key: float(value) for key, value in row.items() if value}
            rows.append({**values, "step": int(values["step"])})
    except (ValueError, TypeError, KeyError, OverflowError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged after {len(rows)} rows ({str(error)[:80]}): mend it or delete it, for "
            "training goes on without it"
        ) from None
    return rows


class _LogFile(logging.FileHandler):
    """A log file whose failure ends the training, as any other, instead of filling the screen."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        with disk_errors(Path(self.baseFilename), size=len(self.format(record))):
            raise error


@contextlib.contextmanager
def log_file(path: Path):
    """Write this repository's log messages to `path` too while the block runs."""
    with disk_errors(path):
        handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger(ROOT_LOGGER)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        with contextlib.suppress(OSError):  # what could not be written has been said
            handler.close()


def is_due(step: int, config, what: str) -> bool:
    """Return whether `step` is a multiple of a `TrainConfig`'s `<what>_every`, or the last."""
    return step == config.num_steps or step % getattr(config, f"{what}_every") == 0


class Report:
    """Report on training, on the main process alone: metrics.csv, tracker, validation, previews.

    Args:
        state, loss_fn, config, preview: those of `Training.fit`.
    """

    def __init__(self, state, loss_fn, config, run_dir, validation_loader, preview):
        self.state, self.loss_fn, self.config = state, loss_fn, config
        self.validation_loader, self.preview = validation_loader, preview
        self.main = state.accelerator.is_main_process
        names = loss_fn.metric_names
        if self.main:
            self.metrics = MetricsFile(run_dir / "metrics.csv", state.step, names)
            self.tracker = Tracker(state.accelerator, run_dir, state.step)
        self._restart_clock()

    def log(self, loss: float, grad_norm: float) -> None:
        """Write the loss since the last call, and the speed."""
        if not self.main:
            return
        steps, seconds = self.state.step - self.clock_step, time.perf_counter() - self.clock
        clips = steps * self.config.batch_size * self.config.grad_accumulation
        rate = clips * self.state.accelerator.num_processes / seconds
        lr = self.state.scheduler.get_last_lr()[0]
        self._write("training", loss=loss, lr=lr, grad_norm=grad_norm, samples_per_second=rate)
        self._restart_clock()

    def validate_and_preview(self) -> None:
        """Validate and preview the EMA model when due; that time does not count in the speed."""
        due = {
            name: self.main and is_due(self.state.step, self.config, name) for name in ("validate", "preview")
        }
        start, network = time.perf_counter(), self.state.ema.module.eval()
        if due["validate"]:
            scores = self.loss_fn.validate(network, self.validation_loader)
            self._write("validation", **scores)
            summary = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
            logger.info("step %d: %s", self.state.step, summary)
        if due["preview"] and self.preview is not None:
            shown = self.preview(self.state.step, network)
            if shown is not None:
                self.tracker.show(self.state.step, shown)
        self.clock += time.perf_counter() - start

    def close(self) -> None:
        """Let the tracker write what it still has in memory."""
        if self.main:
            self.tracker.close()

    def _write(self, group: str, **values: float) -> None:
        self.metrics.write(self.state.step, **values)
        self.tracker.write(self.state.step, group, values)

    def _restart_clock(self) -> None:
        self.clock, self.clock_step = time.perf_counter(), self.state.step
