"""Read what else comes from outside, broken: one sentence, no traceback, no code run, little memory.

    python benchmarks/fuzz_documents.py --files 2000 --seed 1 [--keep FOLDER]

A small dataset, run and SoundFont are made; then one file at a time is mutated (`mutated_bytes.py`) and read
as the program reads it: manifest.json and spectrograms.npy by a dataset, conf.json and the weights by a run,
metrics.csv, the released tagger's weights, a SoundFont that plays a note. Some checkpoints are made to run
code. Printed are the files read and those refused by kind, how much memory grew, the time, and whatever
should not be: an error of another type, a message that is no sentence, code that ran. The exit status is 1 if
there is any.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "MainScripts"), str(REPOSITORY / "benchmarks")]

from fuzz import DATASET, SPECTROGRAM, peak_mib  # noqa: E402
from mutated_bytes import mutate, mutate_text  # noqa: E402

from Conf import SMOKE  # noqa: E402
from Libraries.Dataset import DatasetError, SpectrogramDataset, build_dataset  # noqa: E402
from Libraries.DemoMusic.SoundFont import SoundFont, SoundFontError  # noqa: E402
from Libraries.Measures.Tagger import WEIGHTS, load_tagger  # noqa: E402
from Libraries.Runs.Run import FORMAT, Run  # noqa: E402
from Libraries.Runs.Settings import to_dict  # noqa: E402
from Libraries.Training.Checkpoint import (  # noqa: E402
    CheckpointError,
    load_weights,
    save_checkpoint,
    save_json,
)
from Libraries.Training.RunLog import read_metrics  # noqa: E402

LONGEST_SENTENCE = 500  # characters, the path included
MEMORY_MIB = 300.0  # that reading all files may add: the longest note, a tagger
Kind = tuple[Path, Callable[[], object], type[Exception]]  # the file, its reader, the error that it may raise


class RunsCode:
    """A pickle of it writes a file where it is read without care."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the files that are not as they should be")
    args = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        counts, others, grown = fuzz(args.files, args.seed, Path(temporary), args.keep)
    for name, verdict in sorted(counts):
        print(f"{counts[name, verdict]:7} {name} {verdict}")
    print("\n".join([f"{len(others):7} anything else", *(f"        {other}" for other in others)]))
    print(f"memory grew by {grown:.0f} MiB, {time.perf_counter() - start:.0f} s")
    sys.exit(bool(others))


def fuzz(files: int, seed: int, folder: Path, keep: Path | None = None) -> tuple[Counter, list[str], float]:
    """Mutate and read; return the files by kind and verdict, what should not be, and the MiB of growth."""
    kinds, ran = make_kinds(folder), folder / "code-ran"
    contents = {name: path.read_bytes() for name, (path, _, _) in kinds.items()}
    contents["hostile"] = hostile(folder, ran)
    for _, read, _ in kinds.values():  # what is read once, such as the libraries, counts for nobody
        read()
    counts, others, before = Counter(), [], peak_mib()
    for number in range(files):
        rng = np.random.default_rng((seed, number))
        name = list(kinds)[number % len(kinds)]
        content = mutated(name, contents, rng)
        verdict, other = verdict_of(kinds[name], content, contents[name])
        counts[name, verdict] += 1
        if other or ran.exists():
            others.append(f"{name} {number}: {other or 'it ran code'}")
            if keep:
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{number:06d}-{kinds[name][0].name}").write_bytes(content)
    if (grown := peak_mib() - before) > MEMORY_MIB:
        others.append(f"memory grew by {grown:.0f} MiB")
    return counts, others, grown


def mutated(name: str, contents: dict[str, bytes], rng: np.random.Generator) -> bytes:
    """Return one broken file of a kind; one checkpoint in four was made to run code before it broke."""
    others = [
        content
        for other, content in contents.items()
        if other not in ("hostile", "sf2", "sf3", "safetensors")
    ]
    content = contents["hostile"] if name == "pth" and rng.random() < 0.25 else contents[name]
    return (mutate_text if name in ("manifest", "conf", "metrics") else mutate)(content, others, rng)


def verdict_of(kind: Kind, content: bytes, whole: bytes) -> tuple[str, str]:
    """Return read or refused, and what should not have been; the file is whole again afterwards."""
    path, read, expected = kind
    path.write_bytes(content)
    try:
        read()
        return "read", ""
    except expected as error:
        message = str(error)
        bad = "\n" in message or not 20 < len(message) < LONGEST_SENTENCE
        return "refused", f"no sentence: {message[:300]!r}" if bad else ""
    except Exception as error:  # what this looks for
        return "failed", f"{type(error).__name__}: {str(error)[:200]!r}"
    finally:
        path.write_bytes(whole)


def make_kinds(folder: Path) -> dict[str, Kind]:
    """Make one whole file of each kind, with what reads it."""
    dataset, run = make_dataset(folder), make_run(folder)
    tagger, font, compressed = folder / "tagger.safetensors", folder / "font.sf2", folder / "font.sf3"
    tagger.write_bytes(WEIGHTS.read_bytes())
    font.write_bytes(small_font())
    compressed.write_bytes(small_font(compressed=True))

    def read_dataset() -> None:
        split = SpectrogramDataset(dataset, "train", DATASET)
        split.__getitems__([(i, i) for i in range(min(4, len(split)))])

    def read_conf() -> None:
        opened = Run(run)
        opened.settings, opened.config("spectrogram"), opened.config("network")

    def read_weights() -> None:
        load_weights(torch.nn.Linear(5, 3), Run(run).weights(), run)

    return {
        "manifest": (dataset / "manifest.json", read_dataset, DatasetError),
        "npy": (dataset / "spectrograms.npy", read_dataset, DatasetError),
        "conf": (run / "conf.json", read_conf, CheckpointError),
        "metrics": (run / "metrics.csv", lambda: read_metrics(run / "metrics.csv"), ValueError),
        "pth": (run / "ema-00000001.pth", read_weights, CheckpointError),
        "safetensors": (tagger, lambda: load_tagger(tagger), ValueError),
        "sf2": (font, lambda: SoundFont(font).note(0, 69, 100, 0.2, 8000), SoundFontError),
        "sf3": (compressed, lambda: SoundFont(compressed).note(0, 69, 100, 0.2, 8000), SoundFontError),
    }


def make_dataset(folder: Path) -> Path:
    """Build a dataset of three pieces of noise."""
    for number in range(3):
        path = folder / "music" / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(number).standard_normal(2 * 8000)
        soundfile.write(path, (0.1 * noise).astype(np.float32), 8000)
    build_dataset(folder / "music", folder / "dataset", SPECTROGRAM, DATASET)
    return folder / "dataset"


def make_run(folder: Path) -> Path:
    """Make a run's settings, metrics and weights."""
    run = folder / "Models" / "diffusion" / "00000-fuzz"
    run.mkdir(parents=True)
    save_json(run / "conf.json", {"format": FORMAT, "settings": to_dict(SMOKE), "gain": [0.0, 1.0]})
    rows = [f"{step},{1 / step},0.001,0.5,{100 / step},{2 / step}" for step in range(1, 40)]
    text = "\n".join(["step,loss,lr,grad_norm,samples_per_second,val_loss", *rows, ""])
    (run / "metrics.csv").write_text(text, encoding="utf-8")
    weights = torch.nn.Linear(5, 3).state_dict()
    save_checkpoint(run / "ema-00000001.pth", {"step": 1, "weights": weights})
    return run


def hostile(folder: Path, ran: Path) -> bytes:
    """Return a checkpoint that makes the folder `ran` if its code is run."""
    path = folder / "hostile.pth"
    torch.save({"step": 1, "weights": {"weight": RunsCode(ran)}}, path)
    return path.read_bytes()


def small_font(compressed: bool = False) -> bytes:
    """Return a SoundFont of one preset, one instrument, one sample and one modulator; compressed, an SF3."""
    sys.path.insert(0, str(REPOSITORY / "tests"))
    from test_soundfont import make_font, sine

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.sf2")
        options = {"generators": [(36, 0), (38, -3986)], "modulators": [(0x0502, 48, 900, 0, 0)]}
        make_font(path, sine(441, 4000), loop=(0, 4000), compressed=compressed, **options)
        return path.read_bytes()


if __name__ == "__main__":
    main()
