"""Train what the preset CPU begins with: an autoencoder for any music, and a diffusion in its latents.

    python benchmarks/pretraining.py [--root folder] [--scale 1] [--only vae diffusion] [--release]

Both hear five hours of eleven ensembles that play none of the scores of the preset's demo music. The
autoencoder is trained first without a critic, then with one, each stage from the weights of the one before,
with another clip on top of every second one. Music, dataset and runs are below --root, and a second call
resumes an interrupted run. `--release` wrote `Models/released/vae-cpu` and `Models/released/diffusion-cpu`
(`vae.start` and `start` of the preset); the diffusion is trained in the latents of the released autoencoder.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import REPOSITORY  # noqa: F401 - puts the repository on the path

from Conf import CPU
from Libraries.Dataset.SpectrogramDataset import build_dataset
from Libraries.DemoMusic import ENSEMBLES, DemoMusicConfig, render_demo_music
from Libraries.Runs.Autoencoding import release_vae, vae_recipe
from Libraries.Runs.DiffusionTraining import diffusion_recipe, release_diffusion
from Libraries.Runs.Recipe import resumable, train
from Libraries.Runs.Run import RELEASED
from Libraries.Runs.Settings import Settings, changed

NAME = "any-music"
VAE, DIFFUSION = "vae-cpu", "diffusion-cpu"  # in Models/released
# the demo's guitar plays airs, and nothing else while they last
SOURCES = {ENSEMBLES[name].sources[0] for name in CPU.demo_music.ensembles}
MUSIC = DemoMusicConfig(
    clips=4_400,
    clip_seconds=4.0,  # s
    ensembles=tuple(name for name, ensemble in ENSEMBLES.items() if ensemble.sources[0] not in SOURCES),
    sample_rate=CPU.spectrogram.sample_rate,
    seed=1,
)
DATASET = replace(CPU.dataset, name=NAME, split=(0.94, 0.03, 0.03))
DIFFUSION_STEPS = 16_000  # of the optimiser, 16 clips each
HIDDEN_LABELS = 0.3  # fraction; music that is tuned on may have none


@dataclass(frozen=True)
class Stage:
    """One training, from the weights of the stage before."""

    name: str
    steps: int  # of the optimiser, 16 clips each
    learning_rate: float
    lr_schedule: str
    adversarial_weight: float
    warmup_steps: int  # of the learning rate, and of the KL
    ema_decay: float


STAGES = (
    Stage("plain", 2_515, 1e-3, "constant", 0.0, 100, 0.999),
    Stage("critic", 1_000, 5e-4, "constant", 0.03, 50, 0.995),
    Stage("stronger", 1_800, 5e-4, "cosine", 0.05, 50, 0.995),
)


def stage_settings(stage: Stage, start: str | None, root: Path, scale: float) -> Settings:
    """Return the settings of a stage; `scale` shortens or lengthens it."""
    train = replace(
        CPU.vae.train, num_steps=round(scale * stage.steps), batch_size=16,
        learning_rate=stage.learning_rate, lr_schedule=stage.lr_schedule, warmup_steps=stage.warmup_steps,
        ema_decay=stage.ema_decay, log_every=25, validate_every=250, num_validation_clips=64,
        save_every=250, preview_every=1_000,
    )  # fmt: skip
    loss = replace(CPU.vae.loss, adversarial_weight=stage.adversarial_weight, kl_warmup_steps=200)
    if start is not None:
        loss = replace(loss, kl_warmup_steps=0)
    changes = {
        "dataset": replace(DATASET, mix=0.5), "vae.train": train, "vae.loss": loss, "vae.start": start,
        "vae.freeze_encoder": False,
    }  # fmt: skip
    return changed(replace(CPU, preset=f"{NAME}-{stage.name}", root=root), changes)


def diffusion_settings(root: Path, scale: float) -> Settings:
    """Return the settings of the diffusion in the latents of the released autoencoder."""
    train = replace(
        CPU.train, num_steps=round(scale * DIFFUSION_STEPS), batch_size=16, lr_schedule="constant",
        warmup_steps=100, ema_decay=0.999, log_every=50, validate_every=500, num_validation_clips=64,
        save_every=500, snapshot_every=500, preview_every=2_000, power_ema=(),
    )  # fmt: skip
    changes = {
        "dataset": DATASET, "vae.run": VAE, "train": train, "start": None,
        "network.num_classes": len(MUSIC.ensembles), "diffusion.label_dropout": HIDDEN_LABELS,
    }  # fmt: skip
    return changed(replace(CPU, preset=f"{NAME}-diffusion", root=root), changes)


def prepare(settings: Settings) -> None:
    """Render the music and build its dataset, if that is missing."""
    music, scores = settings.root / "Data" / f"music-{NAME}", settings.score_cache_dir
    pieces = render_demo_music(music, MUSIC, scores)
    demo = render_demo_music(settings.root / "Data" / "demo_music-CPU", CPU.demo_music, scores)
    shared = {piece.score_id for piece in pieces} & {piece.score_id for piece in demo}
    if shared:
        raise SystemExit(f"{len(shared)} scores are also in the demo ({min(shared)}): choose other ensembles")
    build_dataset(music, settings.dataset_dir, settings.spectrogram, settings.dataset)


def train_autoencoder(root: Path, scale: float) -> Path:
    """Train all stages; return the run of the last."""
    run_dir = None
    for stage in STAGES:
        settings = stage_settings(stage, run_dir and run_dir.name, root, scale)
        recipe = vae_recipe(settings)
        run_dir = train(recipe, resumable(recipe))
    return run_dir


def main() -> None:
    """Parse the arguments, train, and release what was trained if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=CPU.root, help="parent of Data and Models")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps; .1 for a trial")
    parser.add_argument("--only", nargs="+", choices=("vae", "diffusion"), default=("vae", "diffusion"))
    parser.add_argument("--release", action="store_true", help=f"write Models/released/{VAE}, {DIFFUSION}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    prepare(diffusion_settings(args.root, args.scale))
    if "vae" in args.only:
        run_dir = train_autoencoder(args.root, args.scale)
        if args.release:
            release_vae(run_dir, RELEASED / VAE)
    if "diffusion" in args.only:
        recipe = diffusion_recipe(diffusion_settings(args.root, args.scale))
        run_dir = train(recipe, resumable(recipe))
        if args.release:
            release_diffusion(run_dir, RELEASED / DIFFUSION)


if __name__ == "__main__":
    main()
