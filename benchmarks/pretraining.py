"""Train what a preset begins with: an autoencoder for any music, a diffusion, and the same for two steps.

    python benchmarks/pretraining.py [--preset CPU] [--root folder] [--scale 1] [--only vae] [--release]

CPU: all hear five hours of eleven ensembles that play none of the scores of the preset's demo music. BASE:
the preset's own demo music, fifteen ensembles in a room, by FluidR3 in the release. The autoencoder is
trained first without a critic, then with one, each stage from the weights of the one before, with another
clip on top of every second one. Music, dataset and runs are below --root, and a second call resumes an
interrupted run. `--release` writes what was trained to `Models/released`, where `vae.start` and `start` of
the preset find it: the diffusion is trained in the latents of the released autoencoder, and what needs two
steps is tuned from the released diffusion.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import REPOSITORY  # noqa: F401 - puts the repository on the path

from Conf import BASE, CPU, in_space
from Libraries.Dataset import DatasetConfig
from Libraries.Dataset.SpectrogramDataset import build_dataset
from Libraries.DemoMusic import ENSEMBLES, DemoMusicConfig, render_demo_music
from Libraries.Runs.Autoencoding import release_vae, vae_recipe
from Libraries.Runs.DiffusionTraining import diffusion_recipe, release_diffusion
from Libraries.Runs.Recipe import resumable, train
from Libraries.Runs.Run import RELEASED
from Libraries.Runs.Settings import Settings, changed
from Libraries.Sampling import SamplerConfig

PARTS = ("vae", "diffusion", "two-steps")
HIDDEN_LABELS = 0.3  # fraction; music that is tuned on may have none


@dataclass(frozen=True)
class Stage:
    """One training of the autoencoder, from the weights of the stage before."""

    name: str
    steps: int  # of the optimiser, 16 clips each
    learning_rate: float
    lr_schedule: str
    adversarial_weight: float
    warmup_steps: int  # of the learning rate
    ema_decay: float
    max_grad_norm: float


@dataclass(frozen=True)
class Pretraining:
    """What is trained for one preset."""

    preset: Settings
    name: str  # of music, dataset and runs
    music: DemoMusicConfig
    split: tuple[float, float, float]
    stages: tuple[Stage, ...]
    vae: str  # its name in Models/released
    diffusion: str  # likewise
    diffusion_steps: int  # of the optimiser
    batch_size: int  # clips, of the diffusion
    two_steps: str  # in Models/released: the diffusion, tuned to need two steps
    tuning_steps: int  # of the optimiser, 8 clips each

    @property
    def dataset(self) -> DatasetConfig:
        return replace(self.preset.dataset, name=self.name, split=self.split)


# the demo's guitar plays airs, and nothing else while they last
SOURCES = {ENSEMBLES[name].sources[0] for name in CPU.demo_music.ensembles}
PRETRAININGS = {
    "CPU": Pretraining(
        preset=CPU,
        name="any-music",
        music=DemoMusicConfig(
            clips=4_400,
            clip_seconds=4.0,  # s
            ensembles=tuple(name for name, own in ENSEMBLES.items() if own.sources[0] not in SOURCES),
            sample_rate=CPU.spectrogram.sample_rate,
            seed=1,
        ),
        split=(0.94, 0.03, 0.03),
        stages=(
            Stage("plain", 2_515, 1e-3, "constant", 0.0, 100, 0.999, 1.0),
            Stage("critic", 1_000, 5e-4, "constant", 0.03, 50, 0.995, 1.0),
            Stage("stronger", 1_800, 5e-4, "cosine", 0.05, 50, 0.995, 1.0),
        ),
        vae="vae-cpu",
        diffusion="diffusion-cpu",
        diffusion_steps=16_000,
        batch_size=16,
        two_steps="diffusion-cpu-two-steps",
        tuning_steps=4_000,
    ),
    "BASE": Pretraining(
        preset=BASE,
        name="base-music",
        music=BASE.demo_music,
        split=(0.9, 0.05, 0.05),
        stages=(
            Stage("plain", 1_200, 1e-3, "constant", 0.0, 50, 0.995, 1.0),
            Stage("critic", 1_500, 5e-4, "cosine", 0.05, 50, 0.998, 4.0),
        ),
        vae="vae-base",
        diffusion="diffusion-base",
        diffusion_steps=8_000,
        batch_size=8,
        two_steps="diffusion-base-two-steps",
        tuning_steps=2_000,
    ),
}


def stage_settings(what: Pretraining, stage: Stage, start: str | None, root: Path, scale: float) -> Settings:
    """Return the settings of a stage; `scale` shortens or lengthens it."""
    vae = what.preset.vae
    train = replace(
        vae.train, num_steps=round(scale * stage.steps), batch_size=16,
        learning_rate=stage.learning_rate, lr_schedule=stage.lr_schedule, warmup_steps=stage.warmup_steps,
        max_grad_norm=stage.max_grad_norm, ema_decay=stage.ema_decay, log_every=25, validate_every=250,
        num_validation_clips=64, save_every=250, preview_every=1_000,
    )  # fmt: skip
    loss = replace(
        vae.loss, adversarial_weight=stage.adversarial_weight, critic_channels=CPU.vae.loss.critic_channels,
        kl_warmup_steps=200 if start is None else 0,
    )  # fmt: skip
    changes = {
        "dataset": replace(what.dataset, mix=0.5), "vae.train": train, "vae.loss": loss, "vae.start": start,
        "vae.freeze_encoder": False,
    }  # fmt: skip
    return changed(replace(what.preset, preset=f"{what.name}-{stage.name}", root=root), changes)


def diffusion_settings(what: Pretraining, root: Path, scale: float) -> Settings:
    """Return the settings of the diffusion in the latents of the released autoencoder, encoded once."""
    preset = in_space(what.preset, "latent")
    train = replace(
        preset.train, num_steps=round(scale * what.diffusion_steps), batch_size=what.batch_size,
        learning_rate=1e-3, lr_schedule="constant", warmup_steps=100, ema_decay=0.999, log_every=50,
        validate_every=500, num_validation_clips=128, save_every=500, snapshot_every=500, preview_every=2_000,
        power_ema=(),
    )  # fmt: skip
    changes = {
        "dataset": what.dataset, "vae.run": what.vae, "train": train, "start": None, "encode_once": True,
        "network.num_classes": len(what.music.ensembles), "diffusion.label_dropout": HIDDEN_LABELS,
        "sampler": CPU.sampler, "guidance": CPU.guidance,
    }  # fmt: skip
    return changed(replace(preset, preset=f"{what.name}-diffusion", root=root), changes)


def two_steps_settings(what: Pretraining, root: Path, scale: float) -> Settings:
    """Return the settings of the consistency tuning that begins with the released diffusion."""
    diffusion = diffusion_settings(what, root, scale)
    changes = {
        "preset": f"{what.name}-two-steps", "start": what.diffusion, "diffusion.objective": "consistency",
        # Geng et al. 2024, of data of unit variance
        "diffusion.timestep_sampling": "log_normal", "diffusion.log_normal_mean": -0.41,
        "diffusion.log_normal_std": 2.0,
        "train": replace(
            diffusion.train, num_steps=round(scale * what.tuning_steps), batch_size=8, learning_rate=1e-4,
            max_grad_norm=1e9,
        ),
        "sampler": SamplerConfig("consistency", 2, spacing="karras_trailing", clip_x0=1.0),
        "guidance.method": "none",
    }  # fmt: skip
    return changed(diffusion, changes)


def prepare(what: Pretraining, root: Path) -> None:
    """Render the music and build its dataset, if that is missing."""
    settings = replace(what.preset, root=root, dataset=what.dataset)
    data, scores = root / "Data", settings.score_cache_dir
    pieces = render_demo_music(data / f"music-{what.name}", what.music, scores)
    if what.music != what.preset.demo_music:
        demo = render_demo_music(data / f"demo_music-{what.preset.preset}", what.preset.demo_music, scores)
        shared = {piece.score_id for piece in pieces} & {piece.score_id for piece in demo}
        if shared:
            raise SystemExit(
                f"{len(shared)} scores are also in the demo ({min(shared)}): choose other ensembles"
            )
    build_dataset(data / f"music-{what.name}", settings.dataset_dir, settings.spectrogram, settings.dataset)


def train_autoencoder(what: Pretraining, root: Path, scale: float) -> Path:
    """Train all stages; return the run of the last."""
    run_dir = None
    for stage in what.stages:
        recipe = vae_recipe(stage_settings(what, stage, run_dir and run_dir.name, root, scale))
        run_dir = train(recipe, resumable(recipe))
    return run_dir


def main() -> None:
    """Parse the arguments, train, and release what was trained if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRETRAININGS, default="CPU")
    parser.add_argument("--root", type=Path, default=CPU.root, help="parent of Data and Models")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps; .1 for a trial")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--release", action="store_true", help="write what was trained to Models/released")
    args = parser.parse_args()
    torch.set_num_threads(1)
    what = PRETRAININGS[args.preset]
    prepare(what, args.root)
    if "vae" in args.only:
        run_dir = train_autoencoder(what, args.root, args.scale)
        if args.release:
            release_vae(run_dir, RELEASED / what.vae)
    for part, make, name in (
        ("diffusion", diffusion_settings, what.diffusion), ("two-steps", two_steps_settings, what.two_steps)
    ):  # fmt: skip
        if part in args.only:
            recipe = diffusion_recipe(make(what, args.root, args.scale))
            run_dir = train(recipe, resumable(recipe))
            if args.release:
                release_diffusion(run_dir, RELEASED / name)


if __name__ == "__main__":
    main()
