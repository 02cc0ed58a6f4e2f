"""One training loop for every model: mixed precision, accumulation, EMA, exact resume.

A step is a pure function of the state and the step number: batches, timesteps and noise are derived from
(seed, position in the stream of samples), dropout from (seed, micro-batch). So a run that is killed and
resumed computes what an uninterrupted run computes. Processes share the micro-batches of a step, and compute
what one process computes that accumulates them. Cut into smaller micro-batches, a run sees the same samples
under the same noise, and computes the same but for two things: dropout draws other masks, and BatchNorm
normalises by other batches.
"""

import atexit
import contextlib
import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from Libraries.Disk import hold, remove_leftovers
from Libraries.Training.Checkpoint import find_checkpoints
from Libraries.Training.DiskSpace import log_disk_space
from Libraries.Training.Interrupt import DeferredInterrupt
from Libraries.Training.PostHocEMA import power_average, running_average
from Libraries.Training.RunLog import Report, is_due, log_file
from Libraries.Training.State import TrainState
from Libraries.Training.Tracker import Shown, require_installed
from Libraries.Training.TrainConfig import TrainConfig
from Libraries.Utils import derive_seed, get_logger, resolve_precision

logger = get_logger("Training")

MAIN_WORKS_ALONE = timedelta(days=2)  # while the others wait: builds, previews, validation
SMALLEST_SCALE = 1e-4  # of fp16's loss, after 30 steps in a row whose gradients were not finite
LET_GO = 10.0  # s in which the loader workers of a killed training end, and with them its hold on the run


class Loss(Protocol):
    """The loss to minimise; `positions` (B,) int64 number the stream's samples and decide all randomness."""

    metric_names: tuple[str, ...]

    def __call__(self, model: nn.Module, batch: tuple[Tensor, ...], positions: Tensor) -> Tensor:
        """Return the loss of each sample, (B,)."""

    def validate(self, model: nn.Module, batches) -> dict[str, float]:
        """Return the values of `metric_names` over the validation batches, with fixed noise."""


# (batch_size, seed, start_step, rank, world_size, ...) -> (train, validation)
LoaderFactory = Callable[..., tuple]
Preview = Callable[[int, nn.Module], Shown | None]  # (step, EMA model): plots what it likes


class TrainingDiverged(RuntimeError):
    """The loss or the gradients are not finite; the last state on disk is from before that."""


def fit(
    model: nn.Module,
    loss_fn: Loss,
    make_loaders: LoaderFactory,
    config: TrainConfig,
    run_dir: Path,
    preview: Preview | None = None,
) -> nn.Module:
    """Train `model` in `run_dir`, resuming from the newest state there if there is one.

    On Ctrl-C, the notebook's stop button or SIGTERM, training finishes the step, saves and stops. With
    `config.processes`, a run may be resumed by another number of processes: a step stays the same.

    Args:
        model: freshly built on the CPU, with the run's settings and seed if it is resumed.
        loss_fn: the loss, as `Loss`.
        make_loaders: called with batch_size, seed, start_step, rank, world_size, num_workers and device;
            returns an endless loader of training batches and a finite one for validation.
        run_dir: receives metrics.csv, log.txt, state-<step>.pth, ema-<step>.pth and snapshot-<step>.pth.
        preview: called every `preview_every` steps with the EMA model, and at the end.

    Returns:
        The network with its EMA weights, in evaluation mode.

    Raises:
        TrainingDiverged: the loss is not finite, or with fp16 the gradients never are.
        ValueError: the processes cannot share the batches of a step evenly (`TrainConfig.on`), or the tracker
            is not installed.
        FolderInUse: another process trains in `run_dir`.
        DiskError: the disk is full, forbidden, gone or broken; call again to resume.
        KeyboardInterrupt: training was interrupted; the state is saved.
    """
    config = config.on(process_state().num_processes)
    accelerator = make_accelerator(config, run_dir)
    fork_devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with (
        hold(run_dir, wait=LET_GO) if accelerator.is_main_process else contextlib.nullcontext(),
        log_file(run_dir / "log.txt"),
        DeferredInterrupt() as interrupt,
        torch.random.fork_rng(fork_devices),
    ):
        state = _make_state(model, config, accelerator)
        states = find_checkpoints(run_dir, "state")
        if states:
            state.load(states[-1][1])
            logger.info("resuming %s at step %d", run_dir.name, state.step)
        if accelerator.is_main_process:
            remove_leftovers(run_dir)
            log_disk_space(state, config, run_dir)
        on_device = config.dataset_on_device and accelerator.device.type == "cuda"
        train_loader, validation_loader = make_loaders(
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=state.step * config.grad_accumulation,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            num_workers=config.num_workers,
            device=accelerator.device if on_device else None,
        )
        report = Report(state, loss_fn, config, run_dir, validation_loader, preview)
        with contextlib.closing(report):
            _loop(state, loss_fn, iter(train_loader), config, run_dir, report, interrupt)
    return state.ema.module.eval()


def _loop(
    state: TrainState,
    loss_fn: Loss,
    batches,
    config: TrainConfig,
    run_dir: Path,
    report: Report,
    interrupt: DeferredInterrupt,
) -> None:
    """Step until `num_steps`, reporting and saving on the way; stop after a step when asked to."""
    main = state.accelerator.is_main_process
    bar = tqdm(total=config.num_steps, initial=state.step, desc="training", unit="step", disable=not main)
    with bar:
        while state.step < config.num_steps:
            grad_norm = optimizer_step(state, loss_fn, batches, config)
            bar.update()
            stopping = _any_is_stopping(state.accelerator, interrupt.requested)
            saving = stopping or is_due(state.step, config, "save")
            snapshot = bool(config.power_ema) and is_due(state.step, config, "snapshot")
            if saving or snapshot or is_due(state.step, config, "log"):
                loss = _mean_loss(state, grad_norm)  # raises before anything that is not finite is saved
                _require_updates(state, config)
                bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
                report.log(loss, float(grad_norm))
            # the state comes last, so that a run killed before it does all of this again
            if not stopping:  # who asks it to stop may not wait for its validation
                report.validate_and_preview()
            if snapshot:
                state.save_snapshot(run_dir)
            if saving:
                state.save(run_dir)
            if stopping:
                report.validate_and_preview()
            if stopping and state.step < config.num_steps:
                logger.info("stopped at step %d; run again to resume", state.step)
                raise KeyboardInterrupt


def optimizer_step(state: TrainState, loss_fn: Loss, batches, config: TrainConfig) -> Tensor:
    """Accumulate gradients over `grad_accumulation` batches and update once; return the gradient norm."""
    accelerator = state.accelerator
    state.model.train()
    grad_norm = torch.zeros(())
    for micro in range(config.grad_accumulation):
        micro_step = state.step * config.grad_accumulation + micro
        number = micro_step * accelerator.num_processes + accelerator.process_index  # in the stream
        torch.manual_seed(derive_seed(config.seed, number))  # only dropout draws from the global generator
        batch = tuple(part.to(accelerator.device, non_blocking=True) for part in next(batches))
        first = number * config.batch_size
        positions = torch.arange(first, first + config.batch_size)
        with accelerator.accumulate(state.model):
            loss = loss_fn(state.model, batch, positions).mean()
            accelerator.backward(loss)
            state.recent_losses.append(loss.detach())
            if accelerator.sync_gradients:
                grad_norm = accelerator.clip_grad_norm_(state.model.parameters(), config.max_grad_norm)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
    if not state.optimizer.step_was_skipped:  # fp16 skips a step whose gradients overflowed
        state.scheduler.step()
        for average in (state.ema, *state.power_ema.values()):
            average.update_parameters(state.network)
    state.step += 1
    return grad_norm


def process_state() -> PartialState:
    """Return this process's rank among all processes; without a GPU they communicate over gloo."""
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=MAIN_WORKS_ALONE)
    if state.num_processes > 1:
        atexit.unregister(_leave_group)
        atexit.register(_leave_group)
    return state


def _leave_group() -> None:
    """End the threads that communicate; one that outlives the interpreter aborts a process that is done."""
    PartialState().destroy_process_group()


def decided_once(decide: Callable[[], Any]) -> Any:
    """Return what `decide` returns in the main process, in all processes of a launch."""
    state, found = process_state(), [None]
    if state.is_main_process:
        found = [decide()]
    if state.num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def make_accelerator(config: TrainConfig, run_dir: Path | None = None) -> Accelerator:
    """Return an Accelerator with the configured precision, for one process or for `accelerate launch`.

    Args:
        run_dir: where the configured tracker may write; None: there is no tracker.

    Raises:
        ValueError: fp16 without a GPU, or a tracker that is not installed.
    """
    state, tracker = process_state(), config.tracker if run_dir else "none"
    require_installed(tracker)
    if config.mixed_precision == "fp16" and state.device.type != "cuda":
        raise ValueError("mixed_precision='fp16' needs a CUDA device; set 'auto', 'bf16' or 'no'")
    # Accelerate keeps one precision per process; a notebook may train with one, then with another.
    AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=resolve_precision(config.mixed_precision),
        gradient_accumulation_steps=config.grad_accumulation,
        cpu=state.device.type == "cpu",
        log_with=None if tracker == "none" else tracker,
        project_dir=run_dir,
    )


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Return the factor of the learning rate at `step`: linear warm-up times the schedule."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = step / config.num_steps
    if config.lr_schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if config.lr_schedule == "step":
        return warmup * 0.1 ** ((progress >= 0.6) + (progress >= 0.85))
    return warmup


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of the weights.

    The decay warms up as min(decay, (1 + n)/(10 + n)), so that the first random weights are soon forgotten.
    """
    return running_average(model, lambda n: 1 - ((1 + n) / (10 + n)).clamp(max=decay))


def _make_state(model: nn.Module, config: TrainConfig, accelerator: Accelerator) -> TrainState:
    model = model.to(accelerator.device)
    if accelerator.device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
        torch.set_float32_matmul_precision("high")  # TF32
        torch.backends.cudnn.benchmark = True
    ema = make_ema(model, config.ema_decay)
    power_ema = {length: power_average(model, length) for length in config.power_ema}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )
    network = model
    if config.compile and accelerator.device.type == "cuda":
        model = torch.compile(model)
    # before `prepare`, which replaces the optimizer's step: else torch takes it for one that was never called
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, config))
    model, optimizer = accelerator.prepare(model, optimizer)
    return TrainState(model, network, ema, optimizer, scheduler, accelerator, power_ema)


def _any_is_stopping(accelerator: Accelerator, stopping: bool) -> bool:
    """Return whether any process was asked to stop, so that all stop at the same step."""
    if accelerator.num_processes == 1:
        return stopping
    return bool(accelerator.reduce(torch.tensor(float(stopping), device=accelerator.device)).item())


def _mean_loss(state: TrainState, grad_norm: Tensor) -> float:
    """Return the mean loss since the last call, over all processes.

    Raises:
        TrainingDiverged: the loss or the last gradients are not finite (fp16 skips such a step instead).
    """
    loss = state.accelerator.reduce(torch.stack(state.recent_losses).mean(), reduction="mean").item()
    state.recent_losses.clear()
    if state.accelerator.scaler is None and not math.isfinite(grad_norm):
        loss = math.nan
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"the loss is {loss} at step {state.step}: lower learning_rate, raise warmup_steps, or set "
            "mixed_precision to 'bf16' or 'no'; the last saved state is from before, and fit resumes from it"
        )
    return loss


def _require_updates(state: TrainState, config: TrainConfig) -> None:
    """Raise a TrainingDiverged if fp16, which skips steps whose gradients are not finite, skips all."""
    scaler, updates = state.accelerator.scaler, state.scheduler.last_epoch
    if scaler is None:
        return
    if scaler.get_scale() < SMALLEST_SCALE or (state.step == config.num_steps and updates == 0):
        raise TrainingDiverged(
            f"the gradients in fp16 are not finite at step {state.step}, however small the loss is scaled; "
            f"only {updates} steps have changed the weights: set mixed_precision to 'bf16' or 'no', or lower "
            "learning_rate"
        )
