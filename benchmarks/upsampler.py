"""The cascade against interpolation and against generation at full size, at the same total training time.

    python benchmarks/upsampler.py [--minutes 10] [--root folder] [--kinds smaller lower_bands] [--clips 48]

On the CPU preset's dataset, which is made first if it is not there. Half of the minutes train the upsampler,
half the first model, all of them a diffusion on spectrograms with the preset's `unet`; the number of steps of
each is what a timed step says fits in, so that the schedule of the learning rate ends with them. Runs lie in
`Models`: a second call goes on with those that were interrupted and trains none again.

LSD: log-spectral distance of real test clips made from their small spectrograms, above the cut where there is
one. FD: log-mel Frechet distance of generated clips to the test split, for three sets of seeds; the floor is
real training music. Seconds: a generated clip, with all it takes but its sound. Of each kind the same seeds
three ways, and a file of the test split that was stored with 8 kHz, go to the run's results.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from common import machine_line, make_dataset, print_table, train_or_find

from Conf import CPU
from Libraries.Dataset.SpectrogramDataset import SpectrogramDataset, load_manifest
from Libraries.Diffusion import NoiseSchedule
from Libraries.Evaluation.Restoration import restore_file
from Libraries.Evaluation.Samples import distances, spread_clips
from Libraries.Evaluation.UpsamplerEvaluation import (
    CascadeRow,
    compare_cascade,
    save_restored,
    save_three_ways,
    with_codec,
)
from Libraries.Runs.Cascade import ViewCodec
from Libraries.Runs.Generator import Generator
from Libraries.Runs.Pipeline import build_network, make_loss, open_codec, train_diffusion
from Libraries.Runs.Preparation import find_music
from Libraries.Runs.Run import results_of
from Libraries.Runs.Settings import Settings
from Libraries.Runs.Upsampling import build_upsampler, load_upsampler, train_upsampler
from Libraries.Sound.Audio import load_audio, save_audio
from Libraries.Sound.LowResolution import KINDS, LowResolution
from Libraries.Sound.Metrics import log_spectral_distance
from Libraries.Upsampler import UpsamplerLoss
from Libraries.Utils import pick_device

SETS = 3  # of seeds
STORED_RATE = 8_000  # Hz, of the file that is restored
DIRECT = "directly at full size"


def main() -> None:
    """Parse the arguments, train what is not trained yet, print a table for each kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of training in all, each way")
    parser.add_argument("--root", type=Path, default=CPU.root, help="where Data and Models lie")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--clips", type=int, default=48, help="of each way and set of seeds")
    args = parser.parse_args()
    comparison = replace(CPU.comparison, clips=args.clips)
    settings = replace(CPU, root=args.root, vae_run=None, comparison=comparison)
    make_dataset(settings)
    direct = Generator.load(train_directly(settings, args.minutes))
    print(f"\n{machine_line(pick_device())}\n{args.minutes:g} minutes each way, {settings.spectrogram.shape}")
    for kind in args.kinds:
        own = replace(settings, cascade=True, view=replace(settings.view, kind=kind))
        generator = load_cascade(train_cascade(own, args.minutes), own)
        print(f"\n{kind}, {own.spectrogram.shape} from {generator.shape}\n")
        print_table(*table(generator, own, direct))
        print(f"\n{save_examples(generator, own)}")


def train_directly(settings: Settings, minutes: float) -> Path:
    """Return the run of a diffusion on spectrograms that was trained for the minutes."""
    settings = replace(settings, preset=f"direct-{minutes:g}min")

    def timed():
        return build_network(settings), make_loss(settings), settings.spectrogram.shape

    return train_or_find(train_diffusion, settings, settings.models_dir, "train", minutes, timed)


def train_cascade(settings: Settings, minutes: float) -> Path:
    """Return the run of a first model whose upsampler is trained too, for half of the minutes each."""
    settings = replace(settings, preset=f"{settings.view.kind}-{minutes:g}min")
    low = LowResolution(settings.view, settings.spectrogram)

    def upsampler():
        schedule, seed = NoiseSchedule(settings.diffusion), settings.upsampler_train.seed
        loss_fn = UpsamplerLoss(schedule, seed, low, settings.upsampler)
        return build_upsampler(settings), loss_fn, settings.spectrogram.shape

    def first():
        return build_network(settings, open_codec(settings)), make_loss(settings), low.shape

    half = minutes / 2
    train_or_find(train_upsampler, settings, settings.upsampler_dir, "upsampler_train", half, upsampler)
    return train_or_find(train_diffusion, settings, settings.models_dir, "view_train", half, first)


def load_cascade(first_dir: Path, settings: Settings) -> Generator:
    """Return the generator of a first model and the upsampler trained with it, not the newest of its kind."""
    _, _, preset = first_dir.name.partition("-")
    upsampler = load_upsampler(sorted(settings.upsampler_dir.glob(f"*-{preset}"))[-1])
    return with_codec(Generator.load(first_dir), ViewCodec(upsampler.low, upsampler))


def table(generator: Generator, settings: Settings, direct: Generator) -> tuple[list[str], list[list[str]]]:
    """Return header and lines: every way, over three sets of seeds."""
    count = settings.comparison.clips
    splits = {name: SpectrogramDataset(settings.dataset_dir, name) for name in ("train", "test")}
    clips = {name: spread_clips(split, count) for name, split in splits.items()}
    sets = [
        compare_cascade(generator, settings, clips["test"], {DIRECT: direct}, first_seed=number * count)
        for number in range(SETS)
    ]
    sound = {name: generator.to_audio(x0) for name, x0 in clips.items()}
    rate = settings.spectrogram.sample_rate
    floor = distances({"train": sound["train"]}, sound["test"], rate)["train_to_test"]
    header = ["way", "LSD dB", f"FD (floor {floor:.1f})", "s/clip"]
    return header, [_line(rows) for rows in zip(*sets, strict=True)]


def save_examples(generator: Generator, settings: Settings) -> str:
    """Write the same seeds three ways and a restored file of 8 kHz to the first model's results; say what."""
    folder, rate = results_of(settings, generator.run_dir) / "benchmark", settings.spectrogram.sample_rate
    save_three_ways(generator, settings, range(4), folder)
    upsampler, manifest = generator.codec.upsampler, load_manifest(settings.dataset_dir)
    source = next(clip["source"] for clip in manifest["clips"] if clip["split"] == "test")
    music = find_music(settings)
    original = load_audio(music / source, rate)
    stored = folder / "audio" / "8khz.wav"
    save_audio(stored, load_audio(music / source, STORED_RATE), STORED_RATE)
    restored = restore_file(upsampler, stored)
    save_restored(restored, original, rate, folder)
    above = rate, settings.spectrogram.kept_frequency, STORED_RATE / 2
    lsd = [
        log_spectral_distance(original[None], waveform[None], *above).item()
        for waveform in (restored.original, restored.waveform)
    ]
    return (
        f"{source} at {STORED_RATE} Hz: LSD above {STORED_RATE // 2} Hz {lsd[0]:.1f} dB, restored "
        f"{lsd[1]:.1f} dB; pictures and sound in {folder}"
    )


def _line(rows: tuple[CascadeRow, ...]) -> list[str]:
    first = rows[0]
    lsd = "-" if first.spectral_distance is None else f"{first.spectral_distance:.2f}"
    seconds = min(row.seconds for row in rows)  # the least disturbed
    return [first.name, lsd, ", ".join(f"{row.distance:.1f}" for row in rows), f"{seconds:.2f}"]


if __name__ == "__main__":
    main()
