"""Train the autoencoder that comes with the repository: any music at the preset CPU's scale.

    python benchmarks/autoencoder.py [--root folder] [--steps 6000] [--release]

It hears five hours of eleven ensembles that play none of the scores of the preset's demo music, half of the
clips with another one on top. Music, dataset and run are below --root, and a second call resumes an
interrupted run. The learning rate stays constant and the weights are averaged, so a longer training begins
with the same steps as a shorter one. `--release` wrote `Models/released/vae-cpu`; `benchmarks/stages.py`
says what it is worth.
"""

import argparse
from dataclasses import replace
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


def settings_of(root: Path, steps: int) -> Settings:
    """Return the settings of the training."""
    train = replace(
        CPU.vae.train, num_steps=steps, batch_size=16, learning_rate=1e-3, lr_schedule="constant",
        warmup_steps=100, ema_decay=0.999, log_every=50, validate_every=250, num_validation_clips=64,
        save_every=250, preview_every=1_000,
    )  # fmt: skip
    dataset = replace(CPU.dataset, name=NAME, split=(0.94, 0.03, 0.03), mix=0.5)
    return changed(replace(CPU, preset=NAME, root=root), {"dataset": dataset, "vae.train": train})


def train_or_resume(settings: Settings) -> Path:
    """Return the finished run, after rendering, building and training what is missing."""
    music, scores = settings.root / "Data" / f"music-{NAME}", settings.score_cache_dir
    pieces = render_demo_music(music, MUSIC, scores)
    demo = render_demo_music(settings.root / "Data" / "demo_music-CPU", CPU.demo_music, scores)
    shared = {piece.score_id for piece in pieces} & {piece.score_id for piece in demo}
    if shared:
        raise SystemExit(f"{len(shared)} scores are also in the demo ({min(shared)}): choose other ensembles")
    build_dataset(music, settings.dataset_dir, settings.spectrogram, settings.dataset)
    known = find_run([vae_recipe(settings).parent], "conf.json", lambda run: run.name.endswith(f"-{NAME}"))
    return train_vae(settings, known and known.folder)


def main() -> None:
    """Parse the arguments, train, and release if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=CPU.root, help="parent of Data and Models")
    parser.add_argument("--steps", type=int, default=6_000, help="of the optimiser (default 6000)")
    parser.add_argument("--release", action="store_true", help="write Models/released/vae-cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run_dir = train_or_resume(settings_of(args.root, args.steps))
    if args.release:
        release_vae(run_dir, RELEASED / "vae-cpu")


if __name__ == "__main__":
    main()
