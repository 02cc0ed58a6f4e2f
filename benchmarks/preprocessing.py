"""Measure how fast audio becomes a dataset, and how much memory that takes.

    python benchmarks/preprocessing.py [--audio FOLDER] [--minutes 60] [--clips 100 500 2000]

First table: seconds of audio encoded per second, by a plain librosa loop (load, stft, dB, all clips kept in a
list), and by `build_dataset` in one process and in several. Second table: time and peak memory against the
number of clips. Every figure is from a fresh process, without its imports but with the start of its workers.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "MainScripts")]

MINUTES_PER_FILE = 1.0


def main() -> None:
    """Parse the arguments; print both tables, or as a child process measure one way of encoding."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--audio", type=Path, help="folder of music; by default music is synthesised")
    parser.add_argument("--minutes", type=float, default=60.0, help="of synthesised music in the first table")
    parser.add_argument("--clips", type=int, nargs="+", default=[100, 500, 2000], help="of the second table")
    parser.add_argument("--workers", type=int, default=2, help="processes to compare with one")
    parser.add_argument(
        "--measure", nargs=4, metavar=("HOW", "AUDIO", "OUT", "SETTINGS"), help=argparse.SUPPRESS
    )
    arguments = parser.parse_args()
    if arguments.measure:
        how, audio, out, settings = arguments.measure
        print(json.dumps(measure(how, Path(audio), Path(out), json.loads(settings))))
        return
    with tempfile.TemporaryDirectory() as folder:
        print_speed(Path(folder), arguments)
        print_growth(Path(folder), arguments.clips)


def print_speed(folder: Path, arguments: argparse.Namespace) -> None:
    """Print seconds of audio per second for each way."""
    audio = arguments.audio or make_audio(folder / "speed", arguments.minutes)
    print(f"{'way':<36}{'audio s':>10}{'time s':>10}{'audio s/s':>11}{'peak MB':>10}")
    ways = {
        "librosa loop, 1 process": ("librosa", 1),
        "build_dataset, 1 process": ("build", 1),
        f"build_dataset, {arguments.workers} processes": ("build", arguments.workers),
    }
    for name, (how, workers) in ways.items():
        result = run_fresh(how, audio, folder / f"{how}{workers}", workers)
        rate = result["audio_seconds"] / result["seconds"]
        row = f"{result['audio_seconds']:>10.0f}{result['seconds']:>10.1f}{rate:>11.1f}"
        print(f"{name:<36}{row}{result['peak_mb']:>10.0f}", flush=True)


def print_growth(folder: Path, sizes: list[int]) -> None:
    """Print time and peak memory against the number of clips, in one process."""
    print(f"\n{'clips':>8}{'time s':>10}{'clips/s':>10}{'peak MB':>10}{'dataset MB':>12}")
    for size in sizes:
        minutes = size * conf_values()["spectrogram"]["clip_seconds"] / 60
        audio = make_audio(folder / f"growth{size}", minutes, suffix="flac")
        result = run_fresh("build", audio, folder / f"clips{size}", workers=1)
        rate = result["clips"] / result["seconds"]
        row = f"{result['clips']:>8}{result['seconds']:>10.1f}{rate:>10.1f}{result['peak_mb']:>10.0f}"
        print(f"{row}{result['dataset_mb']:>12.1f}", flush=True)


def make_audio(folder: Path, minutes: float, suffix: str = "wav") -> Path:
    """Write `minutes` of 44.1 kHz stereo in files of a minute: decaying notes over noise."""
    folder.mkdir(parents=True)
    rate, generator = 44100, np.random.default_rng(0)
    for number in range(max(3, round(minutes / MINUTES_PER_FILE))):
        t = np.arange(round(min(minutes / 3, MINUTES_PER_FILE) * 60 * rate)) / rate
        pitch = 220 * 2 ** (generator.integers(0, 24, 600)[(t * 4).astype(int)] / 12)
        note = 0.5 * np.exp(-6 * (t % 0.25)) * np.sin(2 * np.pi * pitch * t)
        samples = note[:, None] + 0.01 * generator.standard_normal((len(t), 2))
        soundfile.write(folder / f"{number:05d}.{suffix}", samples, rate)
    return folder


def conf_values() -> dict:
    """Return the BASE settings of the spectrogram and the dataset as JSON values."""
    import Conf  # here, because a measured process does not need these imports

    return {name: dataclasses.asdict(getattr(Conf.BASE, name)) for name in ("spectrogram", "dataset")}


def run_fresh(how: str, audio: Path, out: Path, workers: int) -> dict:
    """Return the result of `measure` in a process of its own."""
    settings = conf_values()
    settings["dataset"]["num_workers"] = workers
    command = [sys.executable, __file__, "--measure", how, str(audio), str(out), json.dumps(settings)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{how} failed:\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def measure(how: str, audio: Path, out: Path, settings: dict) -> dict:
    """Encode `audio` one way; return seconds, seconds of audio, clips and peak memory."""
    encode = encode_with_librosa if how == "librosa" else encode_with_build_dataset
    start = time.perf_counter()
    seconds, clips, counted_from = encode(audio, out, settings)
    return {
        "seconds": time.perf_counter() - (counted_from or start),
        "audio_seconds": seconds,
        "clips": clips,
        "peak_mb": peak_mb(),
        "dataset_mb": sum(file.stat().st_size for file in out.rglob("*.npy")) / 1e6,
    }


def encode_with_build_dataset(audio: Path, out: Path, settings: dict) -> tuple[float, int, float]:
    """Build the dataset; return seconds of audio, clips, and when the imports were done."""
    from Libraries.Dataset.SpectrogramDataset import DatasetConfig, build_dataset
    from Libraries.Sound.SpectrogramConfig import SpectrogramConfig

    spectrogram, config = SpectrogramConfig(**settings["spectrogram"]), DatasetConfig(**settings["dataset"])
    start = time.perf_counter()
    report = build_dataset(audio, out, spectrogram, config)
    return report.seconds, sum(report.clips.values()), start


def encode_with_librosa(audio: Path, out: Path, settings: dict) -> tuple[float, int, float]:
    """Do what a first script would: load each file whole, transform its clips, keep all, save at the end."""
    import librosa

    spectrogram = settings["spectrogram"]
    rate, n_fft, hop = (spectrogram[name] for name in ("sample_rate", "n_fft", "hop_length"))
    length = round(spectrogram["clip_seconds"] * rate)
    librosa.resample(np.zeros(1000, np.float32), orig_sr=44100, target_sr=rate)  # lazy imports
    librosa.stft(np.zeros(4 * n_fft, np.float32), n_fft=n_fft, hop_length=hop)
    start = time.perf_counter()
    rows, samples = [], 0
    for path in sorted(audio.rglob("*.*")):
        waveform, _ = librosa.load(path, sr=rate)
        samples += len(waveform)
        for first in range(0, len(waveform) - length + 1, length):
            magnitude = np.abs(librosa.stft(waveform[first : first + length], n_fft=n_fft, hop_length=hop))
            rows.append(librosa.amplitude_to_db(magnitude, ref=np.max).astype(np.float16))
    out.mkdir(parents=True)
    np.save(out / "spectrograms.npy", np.stack(rows))
    return samples / rate, len(rows), start


def peak_mb() -> float:
    """Return the peak resident memory of this process in MB, without its workers."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
