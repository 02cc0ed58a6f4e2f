"""What a training step changes: saved, so that a run resumes from it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from Libraries.Training.Checkpoint import delete_earlier, load_checkpoint, load_weights, save_checkpoint
from Libraries.Training.PostHocEMA import save_snapshot
from Libraries.Utils import LIGHT_DEBUG, get_logger

logger = get_logger("Training")


@dataclass
class TrainState:
    """Everything that a step changes."""

    model: nn.Module  # as Accelerate and torch.compile wrap it
    network: nn.Module  # the same without the wrappers, whose weights are saved
    ema: AveragedModel
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    accelerator: Accelerator
    power_ema: dict[float, AveragedModel]  # by sigma_rel
    step: int = 0
    recent_losses: list[Tensor] = field(default_factory=list)

    def save(self, run_dir: Path) -> None:
        """Write state-<step>.pth and ema-<step>.pth, then delete older states (the EMA weights stay)."""
        if not self.accelerator.is_main_process or self.step == 0:
            return
        save_checkpoint(run_dir / f"ema-{self.step:08d}.pth", self.ema_content())
        save_checkpoint(run_dir / f"state-{self.step:08d}.pth", self.content())
        delete_earlier(run_dir, "state", self.step)
        logger.log(LIGHT_DEBUG, "saved step %d in %s", self.step, run_dir)

    def save_snapshot(self, run_dir: Path) -> None:
        """Write snapshot-<step>.pth, from which averages of other lengths are rebuilt."""
        if self.accelerator.is_main_process:
            save_snapshot(run_dir, self.step, self.power_ema)

    def content(self) -> dict[str, Any]:
        """Return what is needed to resume."""
        return {
            "step": self.step,
            "model": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "power_ema": {length: average.state_dict() for length, average in self.power_ema.items()},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else {},
        }

    def ema_content(self) -> dict[str, Any]:
        """Return the weights to sample with."""
        return {"step": self.step, "weights": self.ema.module.state_dict()}

    def load(self, path: Path) -> None:
        """Resume from a state-<step>.pth."""
        content = load_checkpoint(path)  # on the CPU, where AdamW keeps its count of steps
        load_weights(self.network, content["model"], path)
        self.ema.load_state_dict(content["ema"])
        for length, average in self.power_ema.items():
            average.load_state_dict(content["power_ema"][length])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.load_state_dict(content["scheduler"])
        if self.accelerator.scaler and content["scaler"]:
            self.accelerator.scaler.load_state_dict(content["scaler"])
        self.step = content["step"]
