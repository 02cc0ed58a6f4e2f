"""What training writes for people to read: metrics.csv and log.txt of its run folder."""

import contextlib
import csv
import logging
import time
from pathlib import Path

from Libraries.Utils import ROOT_LOGGER, get_logger, write_then_rename

logger = get_logger("RunLog")


class MetricsFile:
    """The metrics.csv of a run, one line per report; lines after the resumed step are dropped."""

    def __init__(self, path: Path, step: int, metric_names: tuple[str, ...]):
        self.path = path
        self.fields = ["step", "loss", "lr", "grad_norm", "samples_per_second", *metric_names]
        rows = [row for row in read_metrics(path) if row["step"] <= step] if path.exists() else []
        write_then_rename(path, lambda temporary: self._write_all(temporary, rows))

    def write(self, step: int, **values: float) -> None:
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.fields).writerow({"step": step, **values})

    def _write_all(self, path: Path, rows: list[dict]) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.fields)
            writer.writeheader()
            writer.writerows(rows)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of a metrics.csv, each with only the values it has; "step" is an int.

    Raises:
        ValueError: the file is damaged; the message says where.
    """
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        try:
            for row in csv.DictReader(file):
                values = {key: float(value) for key, value in row.items() if value}
                rows.append({**values, "step": int(values["step"])})
        except (ValueError, TypeError, KeyError, OverflowError, csv.Error) as error:
            raise ValueError(
                f"{path} is damaged after {len(rows)} rows ({str(error)[:80]}): mend it or delete it, for "
                "training goes on without it"
            ) from None
    return rows


@contextlib.contextmanager
def log_file(path: Path):
    """Write this repository's log messages to `path` too while the block runs."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger(ROOT_LOGGER)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def is_due(step: int, config, what: str) -> bool:
    """Return whether `step` is a multiple of a `TrainConfig`'s `<what>_every`, or the last."""
    return step == config.num_steps or step % getattr(config, f"{what}_every") == 0


class Report:
    """Report on training, on the main process alone: lines of metrics.csv, validation, previews.

    Args:
        state, loss_fn, config, preview: those of `Training.fit`.
    """

    def __init__(self, state, loss_fn, config, run_dir, validation_loader, preview):
        self.state, self.loss_fn, self.config = state, loss_fn, config
        self.validation_loader, self.preview = validation_loader, preview
        self.main = state.accelerator.is_main_process
        names = loss_fn.metric_names
        self.metrics = MetricsFile(run_dir / "metrics.csv", state.step, names) if self.main else None
        self._restart_clock()

    def log(self, loss: float, grad_norm: float) -> None:
        """Write the loss since the last call, and the speed."""
        if not self.main:
            return
        steps, seconds = self.state.step - self.clock_step, time.perf_counter() - self.clock
        clips = steps * self.config.batch_size * self.config.grad_accumulation
        rate = clips * self.state.accelerator.num_processes / seconds
        lr = self.state.scheduler.get_last_lr()[0]
        self.metrics.write(self.state.step, loss=loss, lr=lr, grad_norm=grad_norm, samples_per_second=rate)
        self._restart_clock()

    def validate_and_preview(self) -> None:
        """Validate and preview the EMA model when due; that time does not count in the speed."""
        due = {
            name: self.main and is_due(self.state.step, self.config, name) for name in ("validate", "preview")
        }
        start, network = time.perf_counter(), self.state.ema.module.eval()
        if due["validate"]:
            scores = self.loss_fn.validate(network, self.validation_loader)
            self.metrics.write(self.state.step, **scores)
            summary = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
            logger.info("step %d: %s", self.state.step, summary)
        if due["preview"] and self.preview is not None:
            self.preview(self.state.step, network)
        self.clock += time.perf_counter() - start

    def _restart_clock(self) -> None:
        self.clock, self.clock_step = time.perf_counter(), self.state.step
