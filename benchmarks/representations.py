"""Print what every representation loses from waveform to model tensor and back, and what an error costs.

    python benchmarks/representations.py Data/music          # your own music
    python benchmarks/representations.py                     # demo music, rendered first

With noise 0 the table shows the inverse alone; with more it shows how a model's error would sound.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from Libraries.Audio import find_audio_files, load_audio  # noqa: E402
from Libraries.DemoMusic import ENSEMBLES, DemoMusicConfig, render_demo_music  # noqa: E402
from Libraries.Metrics import round_trip, round_trip_table  # noqa: E402
from Libraries.Spectrogram import Spectrogram  # noqa: E402
from Libraries.SpectrogramConfig import SpectrogramConfig  # noqa: E402

SAMPLE_RATE, CLIP_SECONDS = 32_000, 4.0

BANDS = SpectrogramConfig(
    representation="bands",
    sample_rate=SAMPLE_RATE,  # Hz
    clip_seconds=CLIP_SECONDS,  # s
    n_fft=1024,  # samples = 32 ms
    win_length=1024,  # samples
    hop_length=288,  # samples = 9 ms
    n_bands=224,
    narrow_frequency=4_000.0,  # Hz = bin 128
    max_frequency=14_900.0,  # Hz = bin 476
    size_multiple=32,
    scale="db",
    db_range=80.0,  # dB
    compression=0.4,
    normalisation="per_sample",
    value_range="minus_one_to_one",
    phase="pghi",
    band_inverse="pinv",
    griffin_lim_iterations=10,
)
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


def load_clips(folder: Path, most: int) -> torch.Tensor:
    """Return up to `most` clips (B, 1, L) from the middles of the files, evenly over the sorted files."""
    files = find_audio_files(folder)
    length = round(SAMPLE_RATE * CLIP_SECONDS)
    clips = []
    for path in files[:: max(1, len(files) // most)][:most]:
        waveform = load_audio(path, SAMPLE_RATE)
        start = (waveform.shape[-1] - length) // 2
        if start >= 0:
            clips.append(waveform[:, start : start + length])
    if not clips:
        sys.exit(f"no audio file of at least {CLIP_SECONDS:g} s in {folder}")
    return torch.stack(clips)


def demo_folder(clips: int) -> Path:
    """Render the demo music, if it is not there, and return its folder."""
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
    clips = load_clips(args.folder or demo_folder(args.clips), args.clips)
    print(f"{len(clips)} clips of {CLIP_SECONDS:g} s at {SAMPLE_RATE} Hz\n")
    print_round_trips(clips)
    print_robustness(clips)


if __name__ == "__main__":
    main()
