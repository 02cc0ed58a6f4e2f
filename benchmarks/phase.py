"""Measure what learned phase gains, on music like its training music and on other music.

    python benchmarks/phase.py [recordings] [--root folder] [--only magnitude bands] [--release]

For `magnitude` and for `bands` a network is trained on demo music of twelve ensembles; music, datasets and
runs are below --root, and a second call resumes an interrupted run and keeps finished ones. Then the round
trip, without a generative model, is measured for each inverse on up to three sets of clips: held-out scores
played by the same ensembles; three left-out ensembles with other instruments; and recordings, if a folder of
them is given. Seconds per clip are for decoding on one core. `--release` wrote the weights in
`Models/released`.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from common import machine_line

from Conf import BASE, CPU, ORIGIN
from Libraries.Dataset.SpectrogramDataset import build_dataset
from Libraries.DemoMusic import ENSEMBLES, DemoMusicConfig, render_demo_music
from Libraries.Runs.Phases import PhaseDataset, release_phase, train_phase
from Libraries.Runs.Preparation import load_example_clips
from Libraries.Runs.Run import RELEASED, load_phase
from Libraries.Runs.Settings import Settings
from Libraries.Sound.Audio import find_audio_files
from Libraries.Sound.Metrics import round_trip, round_trip_table
from Libraries.Sound.Spectrogram import Spectrogram
from Libraries.Training.Checkpoint import find_checkpoints
from Libraries.Utils import spread_indices

STEPS = {"magnitude": 9_000, "bands": 3_000}  # 50 and 30 minutes of one core
LEFT_OUT = ("brass_quartet", "choir", "banjo")
SHORT, BANDS = "magnitude 480/288", "bands 224, 1024/288 → NNLS +"
INVERSES = {  # name: representation, phase, Griffin-Lim iterations
    f"{SHORT} → Griffin-Lim 60": ("magnitude", "griffin_lim", 60),
    f"{SHORT} → PGHI": ("magnitude", "pghi", 0),
    f"{SHORT} → PGHI + GL 10": ("magnitude", "pghi", 10),
    f"{SHORT} → learned": ("magnitude", "learned", 0),
    f"{SHORT} → learned + GL 10": ("magnitude", "learned", 10),
    f"{BANDS} PGHI + GL 10": ("bands", "pghi", 10),
    f"{BANDS} learned + GL 10": ("bands", "learned", 10),
}
DEMO = DemoMusicConfig(
    clips=1_080,
    minutes=None,
    clip_seconds=4.0,
    ensembles=tuple(name for name in ENSEMBLES if name not in LEFT_OUT),
    sample_rate=32_000,
    seed=0,
)
BASES = {"magnitude": ORIGIN, "bands": BASE}


def settings_of(kind: str, root: Path, steps: int) -> Settings:
    """Return the settings of one training, whose preset names its runs."""
    base = BASES[kind]
    train = replace(CPU.phase.train, num_steps=steps, num_validation_clips=128)
    return replace(
        base,
        preset=kind,
        root=root,
        spectrogram=replace(base.spectrogram, clip_seconds=DEMO.clip_seconds),
        dataset=replace(base.dataset, name=kind, split=(0.8, 0.06, 0.14), overlap=0.0),
        phase=replace(base.phase, train=train),
    )


def train_or_find(settings: Settings, music_dir: Path) -> Path:
    """Return a trained run: a finished run, a resumed run or a new one."""
    build_dataset(music_dir, settings.dataset_dir, settings.spectrogram, settings.dataset)
    runs = sorted((settings.models_dir / "phase").glob(f"*-{settings.preset}"))
    if not runs:
        return train_phase(settings, music_dir)
    steps = [step for step, _ in find_checkpoints(runs[-1], "ema")]
    finished = bool(steps) and steps[-1] == settings.phase.train.num_steps
    return runs[-1] if finished else train_phase(settings, music_dir, runs[-1])


def sets_of_clips(settings: Settings, music_dir: Path, recordings: Path | None, count: int) -> dict:
    """Return up to `count` clips (N, 1, clip_samples) of each set by name."""
    held_out = PhaseDataset(settings, music_dir, "test")
    folders = {"other instruments": settings.root / "Data" / "demo_music-phase-others"}
    others = replace(DEMO, clips=120, ensembles=LEFT_OUT)
    render_demo_music(folders["other instruments"], others, settings.score_cache_dir)
    if recordings is not None:
        folders["recordings"] = recordings
    indices = spread_indices(len(held_out), count)
    sets = {"held-out scores": torch.stack([held_out.waveform(i) for i in indices])}
    for name, folder in folders.items():
        sets[name] = load_example_clips(settings.spectrogram, find_audio_files(folder), count)
    return sets


def rows_of(sets: dict, trained: dict[str, tuple[Settings, Path]]):
    """Yield the name of a set and its table."""
    for name, clips in sets.items():
        rows = {}
        for row, (kind, phase, iterations) in INVERSES.items():
            if kind in trained:
                settings, run_dir = trained[kind]
                config = replace(settings.spectrogram, phase=phase, griffin_lim_iterations=iterations)
                model = load_phase(run_dir, config) if phase == "learned" else None
                rows[row] = round_trip(Spectrogram(config, phase_model=model), clips)
        yield f"{name}, {len(clips)} clips", round_trip_table(rows)


def main() -> None:
    """Parse the arguments, render and train what is missing, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recordings", type=Path, nargs="?", help="a folder of music to try it on")
    parser.add_argument("--root", type=Path, default=BASE.root, help="parent of Data and Models")
    parser.add_argument("--only", nargs="+", choices=BASES, default=tuple(BASES))
    parser.add_argument("--steps", type=int, help=f"of each training (default: {STEPS})")
    parser.add_argument("--clips", type=int, default=40, help="per set, at most (default 40)")
    parser.add_argument("--release", action="store_true", help="write the weights to Models/released")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {kind: settings_of(kind, args.root, args.steps or STEPS[kind]) for kind in args.only}
    first = settings[args.only[0]]
    music_dir = args.root / "Data" / "demo_music-phase"
    render_demo_music(music_dir, DEMO, first.score_cache_dir)
    trained = {kind: (s, train_or_find(s, music_dir)) for kind, s in settings.items()}
    if args.release:
        for kind, (_, run_dir) in trained.items():
            release_phase(run_dir, RELEASED / f"phase-{kind}")
    print(machine_line(torch.device("cpu")))
    for name, table in rows_of(sets_of_clips(first, music_dir, args.recordings, args.clips), trained):
        print(f"\n{name}\n\n{table}", flush=True)


if __name__ == "__main__":
    main()
