"""Print what every representation loses from waveform to model tensor and back, and what an error costs.

    python benchmarks/representations.py Data/music          # your own music
    python benchmarks/representations.py                     # demo music, rendered first
    python benchmarks/representations.py --stereo            # demo music, panned and in reverb
    python benchmarks/representations.py Data/music --stereo

With noise 0 the table shows the inverse alone; with more noise it shows how a model's error would sound. With
--stereo it shows what becomes of width and correlation, also of the preset STEREO.
"""

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.signal import fftconvolve

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "MainScripts")]

from Conf import BASE, STEREO  # noqa: E402
from Libraries.DemoMusic import ENSEMBLES, DemoMusicConfig, render_demo_music  # noqa: E402
from Libraries.Runs.Preparation import load_example_clips  # noqa: E402
from Libraries.Sound.Audio import find_audio_files  # noqa: E402
from Libraries.Sound.Metrics import round_trip, round_trip_table  # noqa: E402
from Libraries.Sound.Spectrogram import Spectrogram  # noqa: E402
from Libraries.Sound.SpectrogramConfig import SpectrogramConfig  # noqa: E402

SAMPLE_RATE, CLIP_SECONDS = 32_000, 4.0

BANDS = replace(BASE.spectrogram, clip_seconds=CLIP_SECONDS, phase="pghi", band_inverse="pinv")
ORIGIN = replace(BANDS, representation="magnitude", n_fft=480, win_length=480, griffin_lim_iterations=0)
COMPLEX = replace(ORIGIN, representation="complex")
MDCT = replace(BANDS, representation="mdct", compression=0.5, max_frequency=12_450.0)  # Hz: 224 of 288

ROUND_TRIPS = {
    "magnitude 480/288 -> Griffin-Lim 60": replace(ORIGIN, phase="griffin_lim", griffin_lim_iterations=60),
    "magnitude 480/288 -> PGHI": ORIGIN,
    "magnitude 1024/512 -> PGHI + GL 60": replace(
        BANDS,
        representation="magnitude",
        hop_length=512,
        max_frequency=13_000.0,  # Hz
        size_multiple=26,  # the nearest to 224 x 416 values at this hop: 416 x 234
        griffin_lim_iterations=60,
    ),
    "mel 128, 1024/288 -> NNLS + PGHI + GL 30": replace(
        BANDS, representation="mel", n_bands=128, band_inverse="nnls", griffin_lim_iterations=30
    ),
    "bands 224, 1024/288 -> pinv + PGHI + GL 10": BANDS,
    "bands 224, 1024/288 -> NNLS + PGHI + GL 30": replace(
        BANDS, band_inverse="nnls", griffin_lim_iterations=30
    ),
    "complex 480/288, power .4 -> exact": COMPLEX,
    "MDCT of 288, power .5 -> exact": MDCT,
}
DISTURBED = {
    "magnitude 480/288, linear": replace(ORIGIN, scale="linear"),
    "magnitude 480/288, dB": ORIGIN,
    "bands, dB": BANDS,
    "complex, power .4": COMPLEX,
    "MDCT, power .5": MDCT,
}
NOISES = (0.01, 0.03, 0.1)
VOICES = 3  # clips in a mix
REVERB_SECONDS, REVERB_DB = 1.0, -12.0  # s until it has fallen by 60 dB; its level below the mix


def demo_folder(clips: int) -> Path:
    """Render the demo music if it is missing, and return its folder."""
    folder = ROOT / "Data" / f"demo_music-benchmark-{clips}"
    config = DemoMusicConfig(
        clips=clips,
        minutes=None,
        clip_seconds=CLIP_SECONDS,
        ensembles=tuple(ENSEMBLES),
        sample_rate=SAMPLE_RATE,
        seed=0,
    )
    render_demo_music(folder, config, cache_dir=ROOT / "Data" / "demo_scores")
    return folder


def print_round_trips(clips: torch.Tensor) -> None:
    rows = {name: round_trip(Spectrogram(config), clips) for name, config in ROUND_TRIPS.items()}
    print(round_trip_table(rows), flush=True)


def panned_mixes(clips: torch.Tensor, sample_rate: int, seed: int = 0) -> torch.Tensor:
    """Return stereo mixes (N, 2, L) of three mono clips (N, 1, L) each, panned and in reverb.

    Panning keeps the power; the reverb is noise that decays exponentially, unrelated on both sides.
    """
    rng, waves, mixes = np.random.default_rng(seed), clips[:, 0].numpy(), []
    decay = 10 ** (-3 * np.arange(round(REVERB_SECONDS * sample_rate)) / (REVERB_SECONDS * sample_rate))
    for i in range(len(waves)):
        angles = rng.uniform(0, math.pi / 2, VOICES)
        voices = waves[[i, *rng.integers(len(waves), size=VOICES - 1)]]
        dry = np.stack([np.cos(angles), np.sin(angles)]) @ voices
        wet = fftconvolve(voices.mean(0)[None], rng.standard_normal((2, len(decay))) * decay, axes=1)
        wet = wet[:, : dry.shape[1]]
        mix = dry + wet * 10 ** (REVERB_DB / 20) * math.sqrt(np.mean(dry**2) / np.mean(wet**2))
        mixes.append(0.5 * mix / np.abs(mix).max())
    return torch.from_numpy(np.stack(mixes)).float()


def stereo_clips(config: SpectrogramConfig, folder: Path | None, count: int) -> torch.Tensor:
    """Return clips (N, 2, clip_samples) of stereo files, or mixes of the demo music."""
    if folder:
        return load_example_clips(config, find_audio_files(folder), count)
    files = find_audio_files(demo_folder(count))
    mono = load_example_clips(replace(config, channels=1), files, count)
    return panned_mixes(mono, config.sample_rate)


def print_stereo(folder: Path | None, count: int) -> None:
    """Print the table of round trips in stereo, and a row of the preset STEREO at its own rate."""
    configs = {name: replace(config, channels=2) for name, config in ROUND_TRIPS.items()}
    configs["preset STEREO, 1536/416 at 44.1 kHz"] = STEREO.spectrogram
    by_rate = {config.sample_rate: config for config in configs.values()}
    clips = {rate: stereo_clips(config, folder, count) for rate, config in by_rate.items()}
    rows = {name: round_trip(Spectrogram(own), clips[own.sample_rate]) for name, own in configs.items()}
    print(f"{count} clips in stereo\n\n{round_trip_table(rows)}", flush=True)


def print_robustness(clips: torch.Tensor) -> None:
    print("\n| mel error in dB / FD at noise | " + " | ".join(f"{noise:g}" for noise in NOISES) + " |")
    print("|---" * (len(NOISES) + 1) + "|")
    for name, config in DISTURBED.items():
        rows = [round_trip(Spectrogram(config), clips, noise=noise) for noise in NOISES]
        cells = [f"{row.mel_error:.2f} / {row.frechet_distance:.2f}" for row in rows]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="audio files; without it demo music")
    parser.add_argument("--clips", type=int, default=30, help="how many (default 30; the README's: 100)")
    parser.add_argument("--stereo", action="store_true", help="round trips of two channels")
    args = parser.parse_args()
    torch.set_num_threads(1)  # s/clip on one core
    if args.stereo:
        print_stereo(args.folder, args.clips)
        return
    files = find_audio_files(args.folder or demo_folder(args.clips))
    clips = load_example_clips(BANDS, files, args.clips)
    print(f"{len(clips)} clips of {CLIP_SECONDS:g} s at {SAMPLE_RATE} Hz\n")
    print_round_trips(clips)
    print_robustness(clips)


if __name__ == "__main__":
    main()
