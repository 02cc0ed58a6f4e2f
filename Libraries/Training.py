"""One training loop for every model: mixed precision, accumulation, EMA, exact resume.

A step is a pure function of the state and of its number: batches, timesteps, noise and dropout are
all derived from (seed, position in the stream of samples). So a run that was killed and resumed, split
over processes, or cut into smaller micro-batches computes what the uninterrupted one computes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from Libraries.Checkpoint import find_checkpoints, load_checkpoint, load_weights, save_checkpoint
from Libraries.Interrupt import DeferredInterrupt
from Libraries.RunLog import Report, is_due, log_file
from Libraries.Utils import LIGHT_DEBUG, derive_seed, get_logger

logger = get_logger("Training")

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

    def __post_init__(self):
        for name, known in (("mixed_precision", PRECISIONS), ("lr_schedule", LR_SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(known)}"
                )
        whole = ("num_steps", "batch_size", "grad_accumulation")
        for name in (*whole, "log_every", "validate_every", "save_every", "preview_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be within [0, 1)")
        if self.learning_rate <= 0 or self.max_grad_norm <= 0 or self.warmup_steps < 0:
            raise ValueError("learning_rate and max_grad_norm must be positive, warmup_steps 0 or more")


class Objective(Protocol):
    """What is minimised. `positions` (B,) int64 number the stream's samples; all randomness hangs on them."""

    metric_names: tuple[str, ...]

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...], positions: Tensor) -> Tensor:
        """Return the loss of each sample, (B,)."""

    def validate(self, model: nn.Module, batches) -> dict[str, float]:
        """Return the values of `metric_names` over the validation batches, with fixed noise."""


LoaderFactory = Callable[
    ..., tuple
]  # (batch_size, seed, start_step, rank, world_size, ...) -> (train, validation)
Preview = Callable[[int, nn.Module], None]  # (step, EMA model): draws what it likes


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number; the last state on disk is from before."""


@dataclass
class TrainState:
    """Everything that a step changes."""

    model: nn.Module
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    accelerator: Accelerator
    step: int = 0
    recent_losses: list[Tensor] = field(default_factory=list)

    def save(self, run_dir: Path) -> None:
        """Write state-<step>.pth and ema-<step>.pth, then drop older states (the EMA weights stay)."""
        if not self.accelerator.is_main_process or self.step == 0:
            return
        raw = _unwrap(self.accelerator, self.model)
        save_checkpoint(
            run_dir / f"ema-{self.step:08d}.pth", {"step": self.step, "weights": self.ema.module.state_dict()}
        )
        content = {
            "step": self.step,
            "model": raw.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
        }
        save_checkpoint(run_dir / f"state-{self.step:08d}.pth", content)
        for step, path in find_checkpoints(run_dir, "state"):
            if step < self.step:
                path.unlink()
        logger.log(LIGHT_DEBUG, "saved step %d in %s", self.step, run_dir)

    def load(self, path: Path) -> None:
        """Continue from a state-<step>.pth."""
        content = load_checkpoint(path, map_location=self.accelerator.device)
        load_weights(_unwrap(self.accelerator, self.model), content["model"], path)
        self.ema.load_state_dict(content["ema"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        if self.accelerator.scaler and content["scaler"]:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        self.step = content["step"]


def fit(
    model: nn.Module,
    objective: Objective,
    make_loaders: LoaderFactory,
    config: TrainConfig,
    run_dir: Path,
    preview: Preview | None = None,
) -> nn.Module:
    """Train `model` in `run_dir`, continuing from the newest state there if there is one.

    Ctrl-C, the notebook's stop button and SIGTERM finish the step, save, and then stop.

    Args:
        model: on the CPU, freshly built; the same settings and seed as the run's if it is resumed.
        objective: the loss, as `Objective`.
        make_loaders: called with batch_size, seed, start_step, rank, world_size, num_workers and device;
            gives an endless loader of training batches and a finite one for validation.
        run_dir: receives metrics.csv, log.txt, state-<step>.pth and ema-<step>.pth.
        preview: called every `preview_every` steps with the EMA model, and at the end.

    Returns:
        The network with its EMA weights, in evaluation mode.

    Raises:
        TrainingDiverged: the loss is not finite.
        KeyboardInterrupt: after the state was saved.
    """
    accelerator = make_accelerator(config)
    state = _make_state(model, config, accelerator)
    states = find_checkpoints(run_dir, "state")
    if states:
        state.load(states[-1][1])
        logger.info("resuming %s at step %d", run_dir.name, state.step)
    train_loader, validation_loader = make_loaders(
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=state.step * config.grad_accumulation,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=config.num_workers,
        device=accelerator.device if config.dataset_on_device and accelerator.device.type == "cuda" else None,
    )
    report = Report(state, objective, config, run_dir, validation_loader, preview)
    fork_devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with log_file(run_dir / "log.txt"), DeferredInterrupt() as interrupt, torch.random.fork_rng(fork_devices):
        _loop(state, objective, iter(train_loader), config, run_dir, report, interrupt)
    return state.ema.module.eval()


def _loop(
    state: TrainState,
    objective: Objective,
    batches,
    config: TrainConfig,
    run_dir: Path,
    report: Report,
    interrupt: DeferredInterrupt,
) -> None:
    """Step until `num_steps`; report and save on the way; stop after a step when asked to."""
    main = state.accelerator.is_main_process
    bar = tqdm(total=config.num_steps, initial=state.step, desc="training", unit="step", disable=not main)
    with bar:
        while state.step < config.num_steps:
            grad_norm = optimizer_step(state, objective, batches, config)
            bar.update()
            stopping = _agree(state.accelerator, interrupt.requested)
            saving = stopping or is_due(state.step, config, "save")
            if saving or is_due(state.step, config, "log"):
                loss = _mean_loss(state, grad_norm)  # raises before anything that is not finite is saved
                bar.set_postfix(loss=f"{loss:.4f}")
                report.log(loss, float(grad_norm))
            if saving:
                state.save(run_dir)
            report.validate_and_preview()
            if stopping and state.step < config.num_steps:
                logger.info("stopped at step %d; run again to go on from there", state.step)
                raise KeyboardInterrupt


def optimizer_step(state: TrainState, objective: Objective, batches, config: TrainConfig) -> Tensor:
    """Accumulate gradients over `grad_accumulation` batches and update once; return the gradient norm."""
    accelerator = state.accelerator
    state.model.train()
    grad_norm = torch.zeros(())
    for micro in range(config.grad_accumulation):
        micro_step = state.step * config.grad_accumulation + micro
        # dropout is the one thing that draws from the global generator
        torch.manual_seed(derive_seed(config.seed, micro_step, accelerator.process_index))
        batch = tuple(part.to(accelerator.device, non_blocking=True) for part in next(batches))
        first = (micro_step * accelerator.num_processes + accelerator.process_index) * config.batch_size
        positions = torch.arange(first, first + config.batch_size)
        with accelerator.accumulate(state.model):
            loss = objective.loss(state.model, batch, positions).mean()
            accelerator.backward(loss)
            state.recent_losses.append(loss.detach())
            if accelerator.sync_gradients:
                grad_norm = accelerator.clip_grad_norm_(state.model.parameters(), config.max_grad_norm)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
    if not state.optimizer.step_was_skipped:  # fp16 skips a step whose gradients overflowed
        state.scheduler.step()
        state.ema.update_parameters(_unwrap(accelerator, state.model))
    state.step += 1
    return grad_norm


def process_state() -> PartialState:
    """Return which process of how many this is; without a GPU they talk over gloo."""
    return PartialState(cpu=not torch.cuda.is_available())


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Return an Accelerator of the configured precision, alone or as launched by `accelerate launch`.

    Raises:
        ValueError: fp16 without a GPU.
    """
    state = process_state()
    if config.mixed_precision == "fp16" and state.device.type != "cuda":
        raise ValueError("mixed_precision='fp16' needs a CUDA device; set 'auto', 'bf16' or 'no'")
    # Accelerate keeps one precision a process; a notebook may train twice with two.
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=resolve_precision(config.mixed_precision),
        gradient_accumulation_steps=config.grad_accumulation,
        cpu=state.device.type == "cpu",
    )


def resolve_precision(mixed_precision: str) -> str:
    """Turn `auto` into what is fast here: bf16 where the hardware has it, else fp16 on CUDA, else fp32."""
    if mixed_precision != "auto":
        return mixed_precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "no"


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Return what the learning rate is multiplied with at `step`: linear warm-up, then the schedule."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = step / config.num_steps
    if config.lr_schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if config.lr_schedule == "step":
        return warmup * 0.1 ** ((progress >= 0.6) + (progress >= 0.85))
    return warmup


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of the weights.

    The decay warms up, min(decay, (1 + n)/(10 + n)), so that the first random weights are soon forgotten.
    """

    @torch.no_grad()
    def average(ema: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        # stays a tensor: reading the count would make a GPU wait at every step
        step_decay = ((1 + num_averaged) / (10 + num_averaged)).clamp(max=decay)
        difference = torch._foreach_sub(current, ema)
        torch._foreach_mul_(difference, 1 - step_decay)
        torch._foreach_add_(ema, difference)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=False)


def _make_state(model: nn.Module, config: TrainConfig, accelerator: Accelerator) -> TrainState:
    model = model.to(accelerator.device)
    if accelerator.device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
        torch.set_float32_matmul_precision("high")  # TF32
        torch.backends.cudnn.benchmark = True
    ema = make_ema(model, config.ema_decay)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    if config.compile and accelerator.device.type == "cuda":
        model = torch.compile(model)
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer.optimizer, lambda step: learning_rate_factor(step, config)
    )
    return TrainState(model, ema, optimizer, scheduler, accelerator)


def _unwrap(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    return accelerator.unwrap_model(model, keep_torch_compile=False)


def _agree(accelerator: Accelerator, stopping: bool) -> bool:
    """True when any process was asked to stop, so that all stop at the same step."""
    if accelerator.num_processes == 1:
        return stopping
    return bool(accelerator.reduce(torch.tensor(float(stopping), device=accelerator.device)).item())


def _mean_loss(state: TrainState, grad_norm: Tensor) -> float:
    """Return the mean loss since the last call, over all processes.

    Raises:
        TrainingDiverged: it is not finite, or the last gradients were not (fp16 has skipped such a step).
    """
    loss = state.accelerator.reduce(torch.stack(state.recent_losses).mean(), reduction="mean").item()
    state.recent_losses.clear()
    if state.accelerator.scaler is None and not math.isfinite(grad_norm):
        loss = math.nan
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"the loss is {loss} at step {state.step}: lower learning_rate, raise warmup_steps, or set "
            "mixed_precision to 'bf16' or 'no'; the last saved state is from before and fit goes on from it"
        )
    return loss
