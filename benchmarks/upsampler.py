"""Compare the cascade with interpolation and with generation at full size, for the same total training time.

    python benchmarks/upsampler.py [--minutes 10] [--root folder] [--kinds smaller lower_bands] [--clips 256]

The dataset is that of the CPU preset, which is built first if it is missing. Half of the minutes train the
upsampler and half the first model; a diffusion on spectrograms with its own network gets all of them. A timed
step finds how many steps fit, so that the learning-rate schedules end with the minutes. Runs are in `Models`:
a second call resumes interrupted runs and keeps finished ones.

LSD: log-spectral distance of real clips upsampled from their small spectrograms, above the cut if there is
one. The other measures are of generated clips. Both are against the validation split. Seconds are per
generated clip, without decoding to audio. For each kind, the same seeds three ways and a restored test file
stored at 8 kHz go to the run's results.
"""

import argparse
from pathlib import Path

from common import machine_line, make_dataset, train_or_find

from Conf import CPU, in_space
from Libraries.Dataset.SpectrogramDataset import load_manifest
from Libraries.Evaluation.Comparison import validation_yardstick
from Libraries.Evaluation.Restoration import restore_file
from Libraries.Evaluation.UpsamplerEvaluation import (
    cascade_table,
    compare_cascade,
    save_restored,
    save_three_ways,
    with_codec,
)
from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import diffusion_recipe
from Libraries.Runs.Preparation import find_music
from Libraries.Runs.Settings import Settings, changed
from Libraries.Runs.Upsampling import LowResolutionCodec, load_upsampler, upsampler_recipe
from Libraries.Sound.Audio import load_audio, save_audio
from Libraries.Sound.LowResolution import KINDS
from Libraries.Sound.Metrics import log_spectral_distance
from Libraries.Utils import pick_device

STORED_RATE = 8_000  # Hz, of the file that is restored
DIRECT = "directly at full size"


def main() -> None:
    """Parse the arguments, train what is not trained yet, print a table for each kind."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of training in total, per way")
    parser.add_argument("--root", type=Path, default=CPU.root, help="parent of Data and Models")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--clips", type=int, default=256, help="per way")
    args = parser.parse_args()
    changes = {"root": args.root, "evaluation.compared_clips": args.clips}
    settings = changed(in_space(CPU, "spectrogram"), changes)
    make_dataset(settings)
    direct = DiffusionRun.load(train_directly(settings, args.minutes))
    yardstick = validation_yardstick(direct, settings)
    print(f"\n{machine_line(pick_device())}\n{args.minutes:g} minutes each way, {settings.spectrogram.shape}")
    for kind in args.kinds:
        own = changed(in_space(settings, "small"), {"upsampler.low_resolution.kind": kind})
        model = load_cascade(train_cascade(own, args.minutes), own)
        print(f"\n{kind}, {own.spectrogram.shape} from {model.shape}\n")
        rows = compare_cascade(model, own, yardstick, {DIRECT: direct})
        print(cascade_table(rows, "way"))
        print(f"\n{save_examples(model, own)}")


def train_directly(settings: Settings, minutes: float) -> Path:
    """Return the run of a diffusion on spectrograms, trained for the minutes."""
    settings = changed(settings, {"preset": f"direct-{minutes:g}min"})
    return train_or_find(diffusion_recipe, settings, "train", minutes)


def train_cascade(settings: Settings, minutes: float) -> Path:
    """Train an upsampler and a first model for half of the minutes each; return the first model's run."""
    settings = changed(settings, {"preset": f"{settings.upsampler.low_resolution.kind}-{minutes:g}min"})
    train_or_find(upsampler_recipe, settings, "upsampler.train", minutes / 2)
    return train_or_find(diffusion_recipe, settings, "train", minutes / 2)


def load_cascade(first_dir: Path, settings: Settings) -> DiffusionRun:
    """Return a first model with the upsampler trained with it, not the newest of its kind."""
    _, _, preset = first_dir.name.partition("-")
    upsampler = load_upsampler(sorted((settings.models_dir / "upsampler").glob(f"*-{preset}"))[-1])
    return with_codec(DiffusionRun.load(first_dir), LowResolutionCodec(upsampler.low, upsampler))


def save_examples(model: DiffusionRun, settings: Settings) -> str:
    """Write the same seeds three ways and a restored 8 kHz file to the first model's results; return text."""
    folder, rate = model.run.results_dir / "benchmark", settings.spectrogram.sample_rate
    save_three_ways(model, settings, range(4), folder)
    upsampler, manifest = model.codec.upsampler, load_manifest(settings.dataset_dir)
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


if __name__ == "__main__":
    main()
