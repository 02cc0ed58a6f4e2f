"""Print what every representation loses from waveform to model tensor and back, and what an error costs.

    python benchmarks/representations.py Data/music          # your own music
    python benchmarks/representations.py                     # demo music, rendered first

With noise 0 the table shows the inverse alone; with more noise it shows how a model's error would sound.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "MainScripts")]

from Conf import BASE  # noqa: E402
from Libraries.DemoMusic import ENSEMBLES, DemoMusicConfig, render_demo_music  # noqa: E402
from Libraries.Runs.Preparation import load_example_clips  # noqa: E402
from Libraries.Sound.Audio import find_audio_files  # noqa: E402
from Libraries.Sound.Metrics import round_trip, round_trip_table  # noqa: E402
from Libraries.Sound.Spectrogram import Spectrogram  # noqa: E402

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
    args = parser.parse_args()
    torch.set_num_threads(1)  # s/clip on one core
    files = find_audio_files(args.folder or demo_folder(args.clips))
    clips = load_example_clips(BANDS, files, args.clips)
    print(f"{len(clips)} clips of {CLIP_SECONDS:g} s at {SAMPLE_RATE} Hz\n")
    print_round_trips(clips)
    print_robustness(clips)


if __name__ == "__main__":
    main()
