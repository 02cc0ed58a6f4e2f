"""Compare how SoundFonts are played here and by FluidSynth, and show what a font and a room change.

    python benchmarks/soundfonts.py                     # all fonts of this machine, a table each
    python benchmarks/soundfonts.py --fonts FluidR3_GM.sf2
    python benchmarks/soundfonts.py --gallery           # Results/gallery/orchestra.html

For every instrument of the ensembles both play the same six notes: three keys of its range, loud and soft,
for 0.8 s each. FluidSynth (Debian's package fluidsynth) plays without reverb and chorus. Printed are, as
medians of the notes: the level against FluidSynth's, after the difference of all instruments together; the
spectral distance, which is the mean difference of 64 mel bands up to 14 kHz in dB where either is within
60 dB of the note's loudest, with levels made equal; how much longer a note is heard, until it is 40 dB below
its loudest. "Plain" is this player without modulators, LFOs and pitch envelope: as for the built-in font.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.signal import correlate, stft

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "MainScripts")]

from gallery import Page  # noqa: E402

from Libraries.DemoMusic.Corpus import play_ensemble  # noqa: E402
from Libraries.DemoMusic.Ensembles import ENSEMBLES, INSTRUMENTS  # noqa: E402
from Libraries.DemoMusic.Fonts import (  # noqa: E402
    BUILT_IN,
    find_soundfont,
    installed_soundfonts,
    open_soundfont,
)
from Libraries.DemoMusic.Playing import perform  # noqa: E402
from Libraries.DemoMusic.Scores import Score, load_score  # noqa: E402
from Libraries.DemoMusic.SoundFont import Note, SoundFont  # noqa: E402
from Libraries.Plots.SpectrogramPlots import plot_waveform_spectrograms  # noqa: E402
from Libraries.Sound.FilterBanks import mel_matrix  # noqa: E402

RATE = 32_000
HELD, APART = 0.8, 2.0  # s
VELOCITIES = (50, 100)
SMALLEST = 1e-9
WINDOW, HOP = 2048, 320  # samples
RANGE_DB, HEARD_DB = 60.0, 40.0
LATENCY = 0.03  # s by which the players may start at different times
GALLERY = ROOT / "Results" / "gallery"


@dataclass(frozen=True)
class Difference:
    """How an instrument differs from FluidSynth's, as medians of its notes."""

    level: float  # dB
    spectrum: float  # dB
    length: float  # s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fonts", nargs="+", help="names of files, of those found on this machine")
    parser.add_argument("--gallery", action="store_true", help="write players and spectrograms instead")
    args = parser.parse_args()
    if args.gallery:
        write_gallery(GALLERY)
        return
    if shutil.which("fluidsynth") is None:
        raise SystemExit("there is no fluidsynth to compare with: apt install fluidsynth")
    for path in [*installed_soundfonts(), find_soundfont(BUILT_IN)]:
        if not args.fonts or path.name in args.fonts:
            print_comparison(path)


def print_comparison(path: Path) -> None:
    """Print the table of a font."""
    theirs = played_by_fluidsynth(list(INSTRUMENTS), path)
    full, plain = (compare(SoundFont(path, modulated=modulated), theirs) for modulated in (True, False))
    print(
        f"\n{path.name}\n\n| instrument | level, dB | spectrum, dB | plain, dB | length, s |"
        "\n|---|---|---|---|---|"
    )
    for name, found in full.items():
        cells = (
            f"{found.level:+.1f}",
            f"{found.spectrum:.1f}",
            f"{plain[name].spectrum:.1f}",
            f"{found.length:+.2f}",
        )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def notes_of(instrument: str) -> list[Note]:
    """Return six notes: three keys of the instrument's range, soft and loud."""
    program, low, high = INSTRUMENTS[instrument]
    keys = [round(low + part * (high - low)) for part in (0.2, 0.5, 0.8)]
    pairs = [(key, velocity) for key in keys for velocity in VELOCITIES]
    return [Note(i * APART, HELD, program, *pair) for i, pair in enumerate(pairs)]


def compare(font: SoundFont, theirs: dict[str, np.ndarray]) -> dict[str, Difference]:
    """Return how a font sounds here against FluidSynth's waves by instrument."""
    rows = {name: differences(by_us(notes_of(name), font), wave) for name, wave in theirs.items()}
    common = np.median([row[:, 0] for row in rows.values()])  # FluidSynth's gain is its own
    return {name: Difference(*(np.median(row, axis=0) - [common, 0, 0])) for name, row in rows.items()}


def by_us(notes: list[Note], font: SoundFont) -> np.ndarray:
    """Return notes as played here, (L,)."""
    return font.play(notes, round((notes[-1].start + APART) * RATE), RATE)


def played_by_fluidsynth(names: list[str], font: Path) -> dict[str, np.ndarray]:
    """Return the test notes of instruments as FluidSynth plays them, one after another: (L,) each."""
    played = [notes_of(name) for name in names]
    seconds = played[0][-1].start + APART
    notes = [n._replace(start=n.start + i * seconds) for i, own in enumerate(played) for n in own]
    parts = by_fluidsynth(notes, font).reshape(len(names), -1)
    return dict(zip(names, parts, strict=True))


def by_fluidsynth(notes: list[Note], font: Path) -> np.ndarray:
    """Return notes as FluidSynth plays them, both channels together: (L,)."""
    with tempfile.TemporaryDirectory() as folder:
        midi, out = Path(folder, "notes.mid"), Path(folder, "notes.wav")
        write_midi(notes, midi)
        command = ["fluidsynth", "-ni", "-q", "-R", "0", "-C", "0", "-g", "0.5", "-r", str(RATE)]
        subprocess.run([*command, "-O", "float", "-F", out, font, midi], check=True, capture_output=True)
        wave, _ = soundfile.read(out, dtype="float32")
    n_samples = round((notes[-1].start + APART) * RATE)
    wave = wave.sum(1)[:n_samples] / np.sqrt(2)
    return np.pad(wave, (0, n_samples - len(wave)))


def write_midi(notes: list[Note], path: Path) -> None:
    """Write notes that do not overlap as a MIDI file, with the channel's volume at its highest."""
    import mido  # of pretty_midi's requirements

    ticks, events = 1000, []  # a millisecond each, at 60 quarter notes a minute
    for note in notes:
        ends = note.start + note.seconds
        events.append((note.start, mido.Message("program_change", program=note.program)))
        events.append((note.start, mido.Message("note_on", note=note.key, velocity=note.velocity)))
        events.append((ends, mido.Message("note_off", note=note.key)))
    track = mido.MidiTrack(
        [
            mido.MetaMessage("set_tempo", tempo=1_000_000),
            mido.Message("control_change", control=7, value=127),
        ]
    )
    now = 0
    for seconds, message in sorted(events, key=lambda event: event[0]):
        track.append(message.copy(time=round(seconds * ticks) - now))
        now = round(seconds * ticks)
    track.append(mido.MetaMessage("end_of_track", time=3 * ticks))
    mido.MidiFile(ticks_per_beat=ticks, tracks=[track]).save(path)


def differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return level (dB), spectral distance (dB) and length (s) of each note against FluidSynth's: (N, 3)."""
    theirs = aligned(theirs, ours)
    notes = len(ours) // round(APART * RATE)
    pairs = zip(*(np.split(w[: notes * round(APART * RATE)], notes) for w in (ours, theirs)), strict=True)
    return np.array([difference(*pair) for pair in pairs])


def difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Return level, spectral distance and length of one note against FluidSynth's."""
    level = 20 * np.log10(rms(ours) / rms(theirs))
    spectra = [in_bands(wave / rms(wave)) for wave in (ours, theirs)]
    loudest = max(spectrum.max() for spectrum in spectra)
    ours_db, theirs_db = (np.maximum(spectrum, loudest - RANGE_DB) for spectrum in spectra)
    heard = np.maximum(ours_db, theirs_db) > loudest - RANGE_DB
    return level, np.abs(ours_db - theirs_db)[heard].mean(), length(ours) - length(theirs)


def rms(wave: np.ndarray) -> float:
    """Return the root mean square."""
    return float(np.sqrt(np.mean(np.square(wave))) + SMALLEST)


def in_bands(wave: np.ndarray) -> np.ndarray:
    """Return the level of 64 mel bands in dB, (64, T)."""
    _, _, spectrum = stft(wave, nperseg=WINDOW, noverlap=WINDOW - HOP)
    power = mel_matrix(64, WINDOW, RATE, 14_000.0).numpy() @ np.abs(spectrum) ** 2
    return 10 * np.log10(power + SMALLEST**2)


def length(wave: np.ndarray) -> float:
    """Return the seconds until a note is for good 40 dB below its loudest."""
    levels = np.array([rms(block) for block in np.split(wave[: len(wave) // HOP * HOP], len(wave) // HOP)])
    return np.flatnonzero(levels > levels.max() * 10 ** (-HEARD_DB / 20))[-1] * HOP / RATE


def aligned(wave: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return a wave moved by up to `LATENCY` to where it fits best."""
    most = round(LATENCY * RATE)
    likeness = correlate(reference, wave, method="fft")
    middle = len(wave) - 1
    shift = int(np.argmax(np.abs(likeness[middle - most : middle + most + 1]))) - most
    return np.roll(wave, shift)


def write_gallery(folder: Path) -> None:
    """Write players and spectrograms of the same eight bars (2/4) with each font, dry and in a room."""
    best = find_soundfont(None)
    with tempfile.TemporaryDirectory() as cache:
        score = load_score("mozart-k155-movement3", "quartets", Path(cache))
    notes = perform(
        first_quarters(score, 16), ENSEMBLES["string_quartet"].instruments, np.random.default_rng(3)
    )
    takes = {
        "orchestra-built-in": ("the built-in font", BUILT_IN, "dry"),
        "orchestra-dry": (f"{best.stem}, dry", None, "dry"),
        "orchestra-room": (f"{best.stem}, in a chamber", None, "chamber"),
    }
    page = Page(folder / "orchestra.html", score.title, RATE)
    for name, (title, setting, room) in takes.items():
        wave = torch.from_numpy(take(notes, open_soundfont(setting), room))
        page.add(name, title, wave, plot_waveform_spectrograms([wave.mean(0)], [title], RATE, "", 1, 4.5))
    page.write()


def first_quarters(score: Score, count: int) -> Score:
    """Return the beginning of a score: so many quarter notes."""
    return replace(score, notes=score.notes[score.notes[:, 0] < count])


def take(notes: list[Note], font: SoundFont, room: str) -> np.ndarray:
    """Return a stereo take (2, L) at -18 dB."""
    n_samples = round((max(note.start + note.seconds for note in notes) + 1.0) * RATE)
    wave = play_ensemble(font, ENSEMBLES["string_quartet"], notes, n_samples, RATE, room, 2, 0)
    return wave * min(10 ** (-18 / 20) / rms(wave), 0.9 / np.abs(wave).max())


if __name__ == "__main__":
    main()
