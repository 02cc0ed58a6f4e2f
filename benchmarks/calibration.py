"""Print how each measure responds to real music damaged in known ways: which measure sees what.

    python benchmarks/calibration.py                  # 128 clips per damage
    python benchmarks/calibration.py --clips 256

The music is demo music of six ensembles. Each piece is in one set only: training, reference or the clips to
damage. A value is printed as !value! if it is further from the floor than these clips could show by chance.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy.signal import butter, sosfiltfilt
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "MainScripts")]

from Conf import CPU  # noqa: E402
from Libraries.DemoMusic.Ensembles import ENSEMBLES  # noqa: E402
from Libraries.DemoMusic.Fonts import BUILT_IN, open_soundfont  # noqa: E402
from Libraries.DemoMusic.Playing import perform  # noqa: E402
from Libraries.DemoMusic.Scores import SOURCES, list_scores, load_score  # noqa: E402
from Libraries.DemoMusic.SoundFont import Note  # noqa: E402
from Libraries.Measures import Measures, Yardstick  # noqa: E402
from Libraries.Sound.Spectrogram import Spectrogram  # noqa: E402

PLAYED = ("solo_piano", "string_quartet", "church_organ", "acoustic_guitar", "fiddle", "flute")
OTHER = "accordion"
SPECTROGRAM = CPU.spectrogram
RATE, CLIP_SAMPLES = SPECTROGRAM.sample_rate, SPECTROGRAM.clip_samples
CLIPS_PER_PIECE = 4
SKIPPED_SECONDS = 2.0  # the beginning of a piece is thinner than the rest
RMS, PEAK = 0.14, 0.9  # -17 dB of full scale, or less if the peak would be higher
VIBRATO_HZ = 5.5
PIECE_SECONDS = 0.25  # of the shuffled pieces


@dataclass(frozen=True, eq=False)
class Piece:
    """A score as performed by an ensemble."""

    name: str
    ensemble: str
    notes: list[Note]


@dataclass(frozen=True, eq=False)
class Clips:
    """Waveforms (N, 1, L), and the piece and the ensemble of each."""

    waveforms: Tensor
    pieces: np.ndarray
    ensembles: np.ndarray

    def take(self, indices: np.ndarray) -> "Clips":
        return Clips(self.waveforms[torch.as_tensor(indices)], self.pieces[indices], self.ensembles[indices])


def draw_pieces(counts: dict[str, int], seed: int, cache_dir: Path) -> list[Piece]:
    """Assign each score to one ensemble at most, and perform it.

    Raises:
        ValueError: an ensemble's sources have no scores left.
    """
    rng = np.random.default_rng(seed)
    orders = {source: iter(rng.permutation(list(list_scores(source)))) for source in SOURCES}
    seconds = SKIPPED_SECONDS + CLIPS_PER_PIECE * CLIP_SAMPLES / RATE
    pieces = []
    for ensemble, count in counts.items():
        scores = (
            load_score(str(name), source, cache_dir)
            for source in ENSEMBLES[ensemble].sources
            for name in orders[source]
        )
        played = (
            Piece(score.score_id, ensemble, perform(score, ENSEMBLES[ensemble].instruments, rng))
            for score in scores
            if score is not None
        )
        found = list(islice((piece for piece in played if _seconds(piece) > seconds), count))
        if len(found) < count:
            raise ValueError(
                f"{ensemble} has {len(found)} scores of {seconds:.0f} s, not {count}: fewer --clips"
            )
        pieces += found
    return pieces


def _seconds(piece: Piece) -> float:
    return max(note.start + note.seconds for note in piece.notes)


def render(pieces: Sequence[Piece], held: float = 1.0) -> Clips:
    """Render four clips of each piece; `held` is the fraction of its length that a note sounds."""
    font, waves = open_soundfont(BUILT_IN), []
    start = round(SKIPPED_SECONDS * RATE)
    for piece in pieces:
        notes = [note._replace(seconds=held * note.seconds) for note in piece.notes]
        wave = font.play(notes, start + CLIPS_PER_PIECE * CLIP_SAMPLES, RATE)[start:]
        gain = min(RMS / np.sqrt(np.mean(wave**2)), PEAK / np.abs(wave).max())
        waves.append(gain * wave.reshape(CLIPS_PER_PIECE, 1, CLIP_SAMPLES))
    names, ensembles = (
        np.repeat([getattr(piece, field) for piece in pieces], CLIPS_PER_PIECE)
        for field in ("name", "ensemble")
    )
    return Clips(torch.from_numpy(np.concatenate(waves)).float(), names, ensembles)


def coded(waveforms: Tensor, error: float) -> Tensor:
    """Return waveforms encoded and decoded by the CPU preset's spectrogram, with a Gaussian error on x0."""
    spectrogram = Spectrogram(SPECTROGRAM)
    x0, gain = spectrogram.encode_with_gain(waveforms)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    return spectrogram.decode(x0 + error * noise, gain)


def vibrato(waveforms: Tensor, cents: float, sample_rate: int) -> Tensor:
    """Return waveforms whose pitch varies by ±`cents`, 5.5 times per second, read at moving positions."""
    seconds = np.arange(waveforms.shape[-1]) / sample_rate
    depth = np.log(2) * cents / 1200 / (2 * np.pi * VIBRATO_HZ)  # s
    places = (seconds + depth * np.sin(2 * np.pi * VIBRATO_HZ * seconds)) * sample_rate
    return torch.from_numpy(np.stack([_read_at(wave, places) for wave in waveforms[:, 0].numpy()]))[:, None]


def _read_at(wave: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Interpolate a wave (L,) between its samples by a windowed sinc of 32 points."""
    first = np.floor(places).astype(int)
    offsets = np.arange(-15, 17)
    distance = places[:, None] - (first[:, None] + offsets)
    weights = np.sinc(distance) * np.cos(np.pi * distance / 34) ** 2
    inside = np.clip(first[:, None] + offsets, 0, len(wave) - 1)
    return (wave[inside] * weights).sum(1).astype(np.float32)


def low_pass(waveforms: Tensor, frequency: float, sample_rate: int) -> Tensor:
    """Return waveforms without their band above a frequency in Hz (Butterworth, 16th order in total)."""
    filtered = sosfiltfilt(butter(8, frequency, fs=sample_rate, output="sos"), waveforms.numpy())
    return torch.from_numpy(filtered.copy()).float()


def shuffled(waveforms: Tensor, sample_rate: int, seed: int) -> Tensor:
    """Return waveforms with pieces of 0.25 s in random order; a shorter last piece stays at the end."""
    size = round(PIECE_SECONDS * sample_rate)
    whole = waveforms.shape[-1] // size * size
    pieces = waveforms[..., :whole].unflatten(-1, (-1, size))
    generator = torch.Generator().manual_seed(seed)
    mixed = [clip[:, torch.randperm(clip.shape[1], generator=generator)] for clip in pieces]
    return torch.cat([torch.stack(mixed).flatten(2), waveforms[..., whole:]], dim=-1)


def duplicated(clips: Clips) -> Clips:
    """Return the clips with every fourth clip replaced by the clip before it."""
    indices = np.arange(len(clips.pieces))
    indices[3::4] = indices[2::4][: len(indices[3::4])]
    return clips.take(indices)


def copied(clips: Clips, training: Tensor, samples: int) -> Clips:
    """Return the clips with every fourth clip replaced by training music, shifted by `samples`.

    Args:
        training: (K, 1, L), the four clips of each piece in order.
    """
    waveforms, length = clips.waveforms.clone(), training.shape[-1]
    places = range(3, len(waveforms), 4)
    firsts = np.linspace(0, len(training) // CLIPS_PER_PIECE - 1, len(places)).astype(int) * CLIPS_PER_PIECE
    for place, first in zip(places, firsts, strict=True):
        waveforms[place] = torch.cat([training[first], training[first + 1]], -1)[
            :, samples : samples + length
        ]
    return replace(clips, waveforms=waveforms)


def damages(held: list[Piece], other: list[Piece], training: Clips) -> dict[str, Callable[[], Clips]]:
    """Return a function per damage, by name, that makes the damaged set."""
    real = render(held)

    def changed(change: Callable[[Tensor], Tensor]) -> Callable[[], Clips]:
        return lambda: replace(real, waveforms=change(real.waveforms))

    return {
        "real": lambda: real,
        "coded": changed(lambda w: coded(w, 0.0)),
        **{f"error {error}": changed(lambda w, e=error: coded(w, e)) for error in (0.01, 0.03, 0.1)},
        **{f"vibrato {c}": changed(lambda w, c=c: vibrato(w, c, RATE)) for c in (5, 20, 50)},
        "notes halved": lambda: render(held, held=0.5),
        **{f"below {f // 1000} kHz": changed(lambda w, f=f: low_pass(w, f, RATE)) for f in (4_000, 2_000)},
        "shuffled": changed(lambda w: shuffled(w, RATE, seed=0)),
        "duplicated": lambda: duplicated(real),
        "copied": lambda: copied(real, training.waveforms, 8 * SPECTROGRAM.hop_length),
        "class left out": lambda: real.take(np.flatnonzero(real.ensembles != PLAYED[0])),
        "another class": lambda: render(other),
    }


def calibrate(clips: int, seed: int, cache_dir: Path) -> Iterator[tuple[str, Measures]]:
    """Yield the name and the measures of every damaged set, the undamaged one first."""
    count = max(1, clips // (CLIPS_PER_PIECE * len(PLAYED)))  # pieces per ensemble
    pieces = draw_pieces({name: 4 * count for name in PLAYED} | {OTHER: 6 * count}, seed, cache_dir)
    of = {name: [piece for piece in pieces if piece.ensemble == name] for name in (*PLAYED, OTHER)}
    training = render([piece for name in PLAYED for piece in of[name][: 2 * count]])
    reference = render([piece for name in PLAYED for piece in of[name][2 * count : 3 * count]])
    held = [piece for name in PLAYED for piece in of[name][3 * count :]]

    def cut(clips: Clips) -> Tensor:
        return clips.waveforms[..., : SPECTROGRAM.kept_samples]

    yardstick = Yardstick(cut(reference), cut(training), RATE, reference.pieces, seed)
    for name, make in damages(held, of[OTHER], training).items():
        own = make()
        yield name, yardstick.measure(cut(own), own.pieces)


def print_head(measures: Measures) -> None:
    """Print the names of the measures and their floors, as the head of a Markdown table."""
    floors = [f"{row.floor:.3g} ± {row.floor_deviation:.2g}" for row in measures.rows]
    print("| | " + " | ".join(row.name for row in measures.rows) + " |")
    print("|---" * (len(floors) + 1) + "|")
    print("| floor | " + " | ".join(floors) + " |", flush=True)


def print_row(damage: str, measures: Measures) -> None:
    seen = [abs(row.value - row.floor) > row.unseen for row in measures.rows]
    cells = (
        f"!{row.value:.3g}!" if beyond else f"{row.value:.3g}"
        for row, beyond in zip(measures.rows, seen, strict=True)
    )
    print(f"| {damage} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clips", type=int, default=128, help="per damaged set (default 128)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scores", type=Path, default=ROOT / "Data" / "demo_scores", help="cache of scores")
    parser.add_argument("--json", type=Path, help="file to write all rows to")
    args = parser.parse_args()
    content = {}
    for name, measures in calibrate(args.clips, args.seed, args.scores):
        if not content:
            print_head(measures)
        print_row(name, measures)
        content[name] = json.loads(measures.to_json())
    if args.json:
        args.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
