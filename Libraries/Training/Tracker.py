"""What training shows in a tracker that people know, TensorBoard or Trackio, through Accelerate.

It is for people to look at: what the code reads is in metrics.csv, and the numbers here are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from Libraries.Utils import require

TRACKERS = ("none", "tensorboard", "trackio")
PROJECT = "MA_DDPM"  # in Trackio
HEARD = 4  # clips of a preview


@dataclass(frozen=True)
class Shown:
    """What a preview has drawn."""

    name: str  # such as "samples"
    figure: Figure
    sound: Callable[[], tuple[Tensor, int]] | None = None  # makes waveforms (N, C, L) and their rate, Hz


def require_installed(tracker: str) -> None:
    """Raise a ValueError that says what to install if the tracker is not installed."""
    require(TRACKERS, tracker=tracker)
    if tracker != "none" and find_spec(tracker) is None:
        raise ValueError(
            f"tracker={tracker!r} is not installed: `pip install {tracker}`, or set tracker='none'"
        )


class Tracker:
    """A run in the tracker that `accelerator` was made with; without one, everything here does nothing.

    TensorBoard's files are in `tensorboard` in the run's folder, those of Trackio where `TRACKIO_DIR` says.

    Args:
        step: of the optimiser, from which training goes on; TensorBoard drops what a killed one wrote later.
    """

    def __init__(self, accelerator: Accelerator, run_dir: Path, step: int):
        self.kind = str(accelerator.log_with[0]) if accelerator.log_with else "none"
        if self.kind == "none":
            return
        project = "tensorboard" if self.kind == "tensorboard" else PROJECT
        accelerator.init_trackers(project, init_kwargs={self.kind: _options(self.kind, run_dir, step)})
        self.tracker = accelerator.trackers[0]

    def write(self, step: int, group: str, values: dict[str, float]) -> None:
        """Write numbers as `group`/name."""
        if self.kind != "none":
            self.tracker.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def show(self, step: int, shown: Shown) -> None:
        """Write a preview's picture, and the first of its sounds, both channels mixed."""
        if self.kind == "none":
            return
        waveforms, rate = shown.sound() if shown.sound else ((), 0)
        picture, sounds = _pixels(shown.figure), [w.mean(0).clamp(-1, 1).numpy() for w in waveforms[:HEARD]]
        if self.kind == "tensorboard":
            writer = self.tracker.writer
            writer.add_image(shown.name, picture, step, dataformats="HWC")
            for i, sound in enumerate(sounds):
                writer.add_audio(f"{shown.name}/{i}", sound[None], step, sample_rate=rate)
            writer.flush()
            return
        import trackio

        audio = {f"{shown.name}/{i}": trackio.Audio((32767 * sound).astype(np.int16), sample_rate=rate)
                 for i, sound in enumerate(sounds)}  # fmt: skip
        self.tracker.log({shown.name: trackio.Image(picture), **audio}, step=step)

    def close(self) -> None:
        """Write what is still in memory."""
        if self.kind != "none":
            self.tracker.finish()


def _options(kind: str, run_dir: Path, step: int) -> dict:
    if kind == "tensorboard":
        return {"purge_step": step + 1}
    # nothing but what training says: no page in the notebook, no load of the machine
    quiet = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
    return {"name": f"{run_dir.parent.name}-{run_dir.name}", "resume": "allow", **quiet}


def _pixels(figure: Figure) -> np.ndarray:
    """Return a figure as uint8 (height, width, 3)."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
