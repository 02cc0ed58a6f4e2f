"""How much a training will write, and whether the disk has room for it."""

from pathlib import Path

from Libraries.Disk import free_bytes, in_units
from Libraries.Training.Checkpoint import num_bytes
from Libraries.Training.PostHocEMA import snapshot_content
from Libraries.Training.RunLog import is_due
from Libraries.Training.State import TrainState
from Libraries.Training.TrainConfig import TrainConfig
from Libraries.Utils import get_logger

logger = get_logger("DiskSpace")


def log_disk_space(state: TrainState, config: TrainConfig, run_dir: Path) -> None:
    """Log how much the rest of a training writes, and warn if the disk has less room."""
    rest = range(state.step + 1, config.num_steps + 1)
    averages = sum(is_due(step, config, "save") for step in rest)
    snapshots = sum(is_due(step, config, "snapshot") for step in rest) if config.power_ema else 0
    states = min(averages, 1 if state.step else 2)  # the next is written before the last is deleted
    snapshot = num_bytes(snapshot_content(state.step, state.power_ema)) if snapshots else 0
    sizes = {
        f"{averages} averages": averages * num_bytes(state.ema_content()),
        f"{snapshots} snapshots": snapshots * snapshot,
        "states": states * _bytes_of_state(state),
    }
    needed, free = sum(sizes.values()), free_bytes(run_dir)
    parts = ", ".join(f"{in_units(size)} of {name}" for name, size in sizes.items() if size)
    if not needed:
        return
    logger.info("this training writes %s (%s) beside log and pictures", in_units(needed), parts)
    if needed > free:
        logger.warning(
            "%s has %s free and this training writes %s: make room, or raise save_every and snapshot_every",
            run_dir, in_units(free), in_units(needed),
        )  # fmt: skip


def _bytes_of_state(state: TrainState) -> int:
    """Return the size of a state; AdamW makes its two moments of each parameter in the first step."""
    moments = 2 * num_bytes(list(state.network.parameters())) if state.step == 0 else 0
    return num_bytes(state.content()) + moments
