"""How a model is trained: the settings of `Training.fit`, checked when they are made."""

from dataclasses import dataclass

from Libraries.PostHocEMA import LONGEST

PRECISIONS = ("auto", "no", "fp16", "bf16")
LR_SCHEDULES = ("constant", "cosine", "step")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; the values live in `Conf.py`.

    Raises:
        ValueError: a name is unknown or a number impossible.
    """

    num_steps: int  # optimiser steps
    batch_size: int  # clips of one forward pass, a process
    grad_accumulation: int  # forward passes an optimiser step
    learning_rate: float
    lr_schedule: str  # constant | cosine (to zero) | step (a tenth at 60 % and at 85 %)
    warmup_steps: int  # optimiser steps of linear rise
    betas: tuple[float, float]  # of AdamW
    weight_decay: float
    max_grad_norm: float
    ema_decay: float  # a step, once warmed up
    mixed_precision: str  # auto | no | fp16 | bf16
    compile: bool  # torch.compile, on CUDA
    dataset_on_device: bool  # keep the whole dataset on the GPU when it fits
    num_workers: int  # processes that read batches; 0: none
    seed: int
    log_every: int  # optimiser steps
    validate_every: int
    save_every: int
    preview_every: int  # fixed-seed samples as a plot
    power_ema: tuple[float, ...]  # lengths of the stored averages, share of the steps so far; (): none
    snapshot_every: int  # optimiser steps between stored averages

    def __post_init__(self):
        for name, known in (("mixed_precision", PRECISIONS), ("lr_schedule", LR_SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(known)}"
                )
        whole = ("num_steps", "batch_size", "grad_accumulation")
        periods = (f"{what}_every" for what in ("log", "validate", "save", "preview", "snapshot"))
        for name in (*whole, *periods):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be within [0, 1)")
        lengths = self.power_ema
        if len(set(lengths)) < len(lengths) or not all(0 < length <= LONGEST for length in lengths):
            raise ValueError(f"power_ema={lengths} must be different numbers above 0, at most {LONGEST:.4f}")
        if self.learning_rate <= 0 or self.max_grad_norm <= 0 or self.warmup_steps < 0:
            raise ValueError("learning_rate and max_grad_norm must be positive, warmup_steps 0 or more")
