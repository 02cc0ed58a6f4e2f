"""Train the autoencoder that comes with the repository: any music at the preset CPU's scale.

    python benchmarks/autoencoder.py [--root folder] [--scale 1] [--release]

It hears five hours of eleven ensembles that play none of the scores of the preset's demo music, half of the
clips with another one on top: first without a critic, then with one, each stage from the weights of the one
before. Music, dataset and runs are below --root, and a second call resumes an interrupted run. `--release`
wrote `Models/released/vae-cpu`, from which training in the preset CPU begins (`vae.start`).
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import REPOSITORY  # noqa: F401 - puts the repository on the path

from Conf import CPU
from Libraries.Dataset.SpectrogramDataset import build_dataset
from Libraries.DemoMusic.Corpus import ENSEMBLES, DemoMusicConfig, render_demo_music
from Libraries.Runs.Autoencoding import release_vae, train_vae, vae_recipe
from Libraries.Runs.Run import RELEASED, find_run
from Libraries.Runs.Settings import Settings, changed

NAME = "any-music"
# the demo's guitar plays airs, and nothing else while they last
SOURCES = {ENSEMBLES[name].sources[0] for name in CPU.demo_music.ensembles}
MUSIC = DemoMusicConfig(
    clips=4_400,
    clip_seconds=4.0,  # s
    ensembles=tuple(name for name, ensemble in ENSEMBLES.items() if ensemble.sources[0] not in SOURCES),
    sample_rate=CPU.spectrogram.sample_rate,
    seed=1,
)


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


def settings_of(stage: Stage, start: str | None, root: Path, scale: float) -> Settings:
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
    dataset = replace(CPU.dataset, name=NAME, split=(0.94, 0.03, 0.03), mix=0.5)
    changes = {"dataset": dataset, "vae.train": train, "vae.loss": loss, "vae.start": start}
    return changed(replace(CPU, preset=f"{NAME}-{stage.name}", root=root), changes)


def prepare(settings: Settings) -> None:
    """Render the music and build its dataset, if that is missing."""
    music, scores = settings.root / "Data" / f"music-{NAME}", settings.score_cache_dir
    pieces = render_demo_music(music, MUSIC, scores)
    demo = render_demo_music(settings.root / "Data" / "demo_music-CPU", CPU.demo_music, scores)
    shared = {piece.score_id for piece in pieces} & {piece.score_id for piece in demo}
    if shared:
        raise SystemExit(f"{len(shared)} scores are also in the demo ({min(shared)}): choose other ensembles")
    build_dataset(music, settings.dataset_dir, settings.spectrogram, settings.dataset)


def train_or_resume(settings: Settings) -> Path:
    """Return the finished run of a stage."""
    parent = vae_recipe(settings).parent
    known = find_run([parent], "conf.json", lambda run: run.name.endswith(f"-{settings.preset}"))
    return train_vae(settings, known and known.folder)


def main() -> None:
    """Parse the arguments, train the stages, and release the last if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=CPU.root, help="parent of Data and Models")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps; .1 for a trial")
    parser.add_argument("--release", action="store_true", help="write Models/released/vae-cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    prepare(settings_of(STAGES[0], None, args.root, args.scale))
    run_dir = None
    for stage in STAGES:
        run_dir = train_or_resume(settings_of(stage, run_dir and run_dir.name, args.root, args.scale))
    if args.release:
        release_vae(run_dir, RELEASED / "vae-cpu")


if __name__ == "__main__":
    main()
