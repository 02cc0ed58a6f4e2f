"""Build datasets from broken files of every format: each is read, or skipped with a reason, and nothing else.

    python benchmarks/fuzz.py --files 10000 --seed 1 [--keep FOLDER]

Files of every format and encoding that libsndfile writes, and containers where PyAV is installed, are mutated
in header, body and length and spliced with each other (`mutated_bytes.py`); one in twenty is left whole. A
process builds a dataset from a thousand at a time, as a user would. Printed are the files read, those skipped
by reason, the peak of memory and the time, and whatever should not be: a reason that is only the type of an
error, a process that ended, a message of a decoder, a whole file that was not read, a spectrogram that is not
finite. The exit status is 1 if there is any.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import soundfile

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "MainScripts"), str(REPOSITORY / "benchmarks")]

from mutated_bytes import mutate  # noqa: E402

from Conf import BASE  # noqa: E402
from Libraries.Dataset import build_dataset, load_manifest  # noqa: E402
from Libraries.Sound.Audio import READABLE_SUFFIXES, AudioError  # noqa: E402

SECONDS = 1.3  # of each file; a clip has one second
PER_BUILD = 1000  # files
WHOLE_EVERY = 20  # files; these are not mutated
HEADERLESS = ("RAW", "SD2")  # a file of these is not known by its content
SUFFIXES = {
    "IRCAM": ".sf",
    "WAVEX": ".wav",
}  # the others have their own name for one, or are known by content
RATES = {"OPUS": 48_000, "DPCM_8": 44_100, "DPCM_16": 44_100}  # Hz; the only ones of these encodings
UNEXPECTED = re.compile(r"^(cannot be read: |ends the process|has no finite spectrogram)")
PROGRESS = re.compile(r"(Encoding|Joining): ")
SPECTROGRAM = replace(
    BASE.spectrogram, phase="pghi", sample_rate=8000, clip_seconds=1.0, n_fft=256, win_length=256,
    hop_length=64, n_bands=48, narrow_frequency=500.0, max_frequency=3900.0, size_multiple=8,
)  # fmt: skip
DATASET = replace(BASE.dataset, name="fuzz", num_workers=0)


@dataclass
class Findings:
    """What became of the files."""

    read: int = 0
    skipped: Counter = field(default_factory=Counter)  # by reason, numbers left out
    others: list[str] = field(default_factory=list)  # what should not be
    peak_mib: float = 0.0

    def __str__(self) -> str:
        rows = [
            f"{self.read:7} read",
            *(f"{count:7} {reason}" for reason, count in self.skipped.most_common()),
        ]
        return "\n".join(
            [*rows, f"{len(self.others):7} anything else", *(f"        {o}" for o in self.others)]
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the files, which are else deleted")
    parser.add_argument("--build", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        print(json.dumps(build(*args.build)))
        return
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        findings = fuzz(args.files, args.seed, args.keep or Path(temporary))
    print(findings)
    print(f"peak memory {findings.peak_mib:.0f} MiB, {time.perf_counter() - start:.0f} s")
    sys.exit(bool(findings.others))


def fuzz(files: int, seed: int, folder: Path) -> Findings:
    """Write, build and count; the folder keeps the files of each build."""
    seeds, findings = whole_files(), Findings()
    for first in range(0, files, PER_BUILD):
        music = folder / f"files-{seed}-{first:06d}"
        whole = write_files(music, seeds, range(first, min(first + PER_BUILD, files)), seed)
        count(built_by_a_process(music, findings), whole, findings)
        print(f"{first + PER_BUILD} of {files}: {len(findings.others)} others", file=sys.stderr, flush=True)
    return findings


def whole_files() -> dict[str, bytes]:
    """Return a file of every format and encoding that can be written and read, by name with a suffix."""
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in sorted(soundfile.available_formats().keys() - set(HEADERLESS)):
            suffix = SUFFIXES.get(name, f".{name.lower()}")
            suffix = suffix if suffix in READABLE_SUFFIXES else ".wav"  # known by content, whatever the name
            for subtype in soundfile.available_subtypes(name):
                path = Path(folder, f"{name}-{subtype}{suffix}")
                if _written(path, name, subtype):
                    files[path.name] = path.read_bytes()
    return files | container_files()


def container_files() -> dict[str, bytes]:
    """Return a file of every container that PyAV writes here, by name with a suffix; none without PyAV."""
    if importlib.util.find_spec("av") is None:
        return {}
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from test_audio import music
    from test_containers import TRACKS, write_track

    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (encoder, _)) in enumerate(TRACKS.items()):
            path = write_track(Path(folder, name), music(SECONDS, channels=2), encoder)
            files[f"PyAV-{number}{path.suffix}"] = path.read_bytes()
    return files


def _written(path: Path, name: str, subtype: str) -> bool:
    """Write a decaying tone in noise; return whether this encoding can be written."""
    rate = RATES.get(subtype, 8_000)
    n = round(SECONDS * rate)
    wave = 0.4 * np.sin(np.arange(n) * 2 * np.pi * 440 / rate) * np.exp(-np.arange(n) / rate)
    wave = wave + 0.02 * np.random.default_rng(0).standard_normal(n)
    channels = 2 if subtype in ("PCM_16", "VORBIS") else 1
    for samples in (np.stack([wave] * channels, axis=1), wave):  # some formats have one channel alone
        try:
            soundfile.write(path, samples, rate, subtype, format=name)
            return len(soundfile.read(path)[0]) >= n
        except (soundfile.LibsndfileError, ValueError):
            continue
    return False


def write_files(folder: Path, seeds: dict[str, bytes], numbers: range, seed: int) -> set[str]:
    """Write one file for each number, a function of it and the seed; return the names of the whole ones."""
    folder.mkdir(parents=True)
    names, contents, whole = list(seeds), list(seeds.values()), set()
    for number in numbers:
        rng = np.random.default_rng((seed, number))
        kind = rng.integers(len(names))
        name, content = f"{number:06d}-{names[kind]}", contents[kind]
        if number % WHOLE_EVERY:
            content = mutate(content, contents, rng)
        else:
            whole.add(name)
        (folder / name).write_bytes(content)
    return whole


def built_by_a_process(music: Path, findings: Findings) -> dict:
    """Return what `build` printed, run again as a user would if its process ends before."""
    command = [sys.executable, __file__, "--build", str(music), str(music.with_name(f"{music.name}-dataset"))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(100):
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        said = [line for line in result.stderr.splitlines() if line.strip() and not PROGRESS.search(line)]
        findings.others += [f"stderr: {line[:200]}" for line in said[-3:]]
        if result.returncode == 0:
            return json.loads(result.stdout.splitlines()[-1])
        findings.others.append(f"a build of {music} ended with status {result.returncode}")
        if result.returncode > 0:  # an exception would come again
            break
    return {"skipped": {}, "read": [], "peak_mib": 0.0}


def build(music: Path, out: Path) -> dict:
    """Build a dataset; return the files read, those skipped with their reasons, and the peak of memory."""
    try:
        report = build_dataset(music, out, SPECTROGRAM, DATASET)
    except AudioError as error:  # none of them can be used
        sys.exit(str(error))
    rows = np.load(out / "spectrograms.npy", mmap_mode="r", allow_pickle=False)
    clips = load_manifest(out)["clips"]
    broken = [clip["source"] for row, clip in zip(rows, clips, strict=True) if not np.isfinite(row).all()]
    skipped = dict(report.skipped) | {file: "has no finite spectrogram on disk" for file in broken}
    read = sorted({clip["source"] for clip in clips} - set(broken))
    return {"read": read, "skipped": skipped, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """Return the peak of this process's memory so far in MiB, NaN where it is not known."""
    status = Path("/proc/self/status")
    if not status.exists():  # ru_maxrss would inherit the parent's
        return float("nan")
    return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024


def count(built: dict, whole: set[str], findings: Findings) -> None:
    """Add a build to the findings."""
    findings.read += len(built["read"])
    findings.peak_mib = max(findings.peak_mib, built["peak_mib"])
    findings.others += [
        f"{file}: whole, but {reason}" for file, reason in built["skipped"].items() if file in whole
    ]
    for file, reason in built["skipped"].items():
        if UNEXPECTED.match(reason):
            findings.others.append(f"{file} {reason}")
        else:
            findings.skipped[re.sub(r"-?\d[\d.]*(e\+?\d+)?", "N", reason)] += 1


if __name__ == "__main__":
    main()
