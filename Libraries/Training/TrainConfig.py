"""The settings of `Training.fit`, checked when they are made."""

from dataclasses import dataclass, replace

from Libraries.Training.PostHocEMA import LONGEST
from Libraries.Training.Tracker import TRACKERS
from Libraries.Utils import require

PRECISIONS = ("auto", "no", "fp16", "bf16")
LR_SCHEDULES = ("constant", "cosine", "step")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained; the values live in `Conf.py`.

    Raises:
        ValueError: a name is unknown or a number is impossible.
    """

    num_steps: int  # optimiser steps
    batch_size: int  # clips per forward pass and process
    grad_accumulation: int  # forward passes per optimiser step
    learning_rate: float  # of AdamW, after the warm-up
    lr_schedule: str  # constant | cosine (to zero) | step (a tenth at 60 % and at 85 %)
    warmup_steps: int  # optimiser steps of linear rise
    betas: tuple[float, float]  # of AdamW
    weight_decay: float  # of AdamW
    max_grad_norm: float  # a longer gradient is cut to it
    ema_decay: float  # per step, once warmed up
    mixed_precision: str  # auto | no | fp16 | bf16
    compile: bool = False  # torch.compile, on CUDA
    dataset_on_device: bool  # keep the whole dataset on the GPU when it fits
    num_workers: int = 0  # processes that read batches
    processes: int | None = None  # of which fewer accumulate more, so that a step stays the same; None: any
    seed: int  # of the first weights, the order of clips and the noise
    log_every: int  # optimiser steps
    validate_every: int  # optimiser steps
    num_validation_clips: int  # scored clips of the validation split
    save_every: int  # optimiser steps
    preview_every: int  # fixed-seed samples as a plot
    power_ema: tuple[float, ...] = ()  # lengths of stored averages, fractions of the steps so far; (): none
    snapshot_every: int  # optimiser steps between stored averages
    tracker: str = "none"  # none | tensorboard | trackio: shows what metrics.csv holds, and previews

    def __post_init__(self) -> None:
        require(PRECISIONS, mixed_precision=self.mixed_precision)
        require(LR_SCHEDULES, lr_schedule=self.lr_schedule)
        require(TRACKERS, tracker=self.tracker)
        whole = ("num_steps", "batch_size", "grad_accumulation", "num_validation_clips")
        periods = (f"{what}_every" for what in ("log", "validate", "save", "preview", "snapshot"))
        for name in (*whole, *periods):
            require("[1, inf)", **{name: getattr(self, name)})
        require("[0, 1)", ema_decay=self.ema_decay)
        lengths = self.power_ema
        if len(set(lengths)) < len(lengths) or not all(0 < length <= LONGEST for length in lengths):
            raise ValueError(f"power_ema={lengths} must be different numbers above 0, at most {LONGEST:.4f}")
        require("(0, inf)", learning_rate=self.learning_rate, max_grad_norm=self.max_grad_norm)
        require("[0, inf)", warmup_steps=self.warmup_steps)
        if self.processes is not None:
            require("[1, inf)", processes=self.processes)

    def on(self, processes: int) -> "TrainConfig":
        """Return the settings for so many processes, with which a step sees as many clips as planned.

        Raises:
            ValueError: they cannot share the batches of a step evenly.
        """
        if self.processes is None:
            return self
        batches = self.grad_accumulation * self.processes
        if batches % processes:
            raise ValueError(
                f"{processes} processes cannot share the {batches} batches of a step (grad_accumulation="
                f"{self.grad_accumulation}, processes={self.processes}): start a number that divides them"
            )
        return replace(self, grad_accumulation=batches // processes, processes=processes)
