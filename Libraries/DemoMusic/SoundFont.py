"""Play notes with a SoundFont 2 file: its samples, loops, envelopes and low-pass filter, in NumPy.

Follows the SoundFont Technical Specification 2.04 (Creative/E-mu 2005); generator numbers are those of its
section 8.1.2. Left out, because a dataset does not need them: modulators other than velocity to level,
the two LFOs (vibrato, tremolo), pitch envelopes, effect sends and exclusive classes. Output is mono.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, cos, pi, sin, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
from numba import njit

_NAME = ("name", "S20")
_RECORDS = {  # section 7: the "hydra" of nine lists; the two of modulators are not read
    "phdr": [_NAME, ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("unused", "<u4", 3)],
    "pbag": [("gen", "<u2"), ("mod", "<u2")],
    "pgen": [("oper", "<u2"), ("amount", "<i2")],
    "inst": [_NAME, ("bag", "<u2")],
    "ibag": [("gen", "<u2"), ("mod", "<u2")],
    "igen": [("oper", "<u2"), ("amount", "<i2")],
    "shdr": [_NAME, ("start", "<u4"), ("end", "<u4"), ("loop_start", "<u4"), ("loop_end", "<u4"),
             ("rate", "<u4"), ("key", "u1"), ("correction", "i1"), ("link", "<u2"), ("type", "<u2")],
}  # fmt: skip

_FILTER_CUTOFF, _FILTER_Q, _MOD_ENV_TO_CUTOFF, _PAN = 8, 9, 11, 17
# first of: delay, attack, hold, decay, sustain, release, key to hold, key to decay
_MOD_ENV, _VOLUME_ENV = 25, 33
_INSTRUMENT, _KEY_RANGE, _VELOCITY_RANGE, _ATTENUATION = 41, 43, 44, 48
_COARSE_TUNE, _FINE_TUNE, _SAMPLE, _SAMPLE_MODES, _SCALE_TUNING, _ROOT_KEY = 51, 52, 53, 54, 56, 58
_START, _END, _LOOP_START, _LOOP_END = (0, 4), (1, 12), (2, 45), (3, 50)  # offsets: fine, coarse (in 32768)
_DEFAULTS = {_FILTER_CUTOFF: 13500, _SCALE_TUNING: 100} | {
    first + stage: -12000 for first in (_MOD_ENV, _VOLUME_ENV) for stage in (0, 1, 2, 3, 5)
}

_SHORTEST_RELEASE = 0.01  # s; the specification's 1 ms clicks
_LONGEST_RELEASE = 8000  # timecents, 100 s (section 8.1.3)
_COMPRESSED = 0x10  # of a sample's type: Ogg Vorbis, as in SoundFont 3
_FASTEST = 384_000 * 8  # source samples per second: a high rate, three octaves up
_ATTENUATION_SCALE = 0.4  # that of the EMU hardware, for which SoundFonts are voiced
_FILTER_BLOCK = 32  # samples per setting of the filter: 1 ms at 32 kHz
_FILTER_AHEAD = 0.002  # s; twice the shortest stage of an envelope
_BODIES_KEPT = 600  # rendered notes in memory, about 100 MB


class SoundFontError(ValueError):
    """A SoundFont file is broken, or lacks what was asked for."""


class Note(NamedTuple):
    """One note: start and length in seconds, General MIDI program (from 0), MIDI key and velocity (1-127)."""

    start: float
    seconds: float
    program: int
    key: int
    velocity: int


@dataclass(frozen=True, eq=False)
class _Zone:
    """One sample, the keys and velocities that it plays, and its generators."""

    generators: dict[int, int]
    keys: tuple[int, int]
    velocities: tuple[int, int]
    sample: np.ndarray  # int16, a view into the file
    loop: tuple[int, int] | None
    rate: int  # Hz
    root: int  # MIDI key at which the sample sounds at its own rate
    correction: int  # cents

    def plays(self, key: int, velocity: int) -> bool:
        return self.keys[0] <= key <= self.keys[1] and self.velocities[0] <= velocity <= self.velocities[1]

    def value(self, generator: int) -> int:
        return self.generators.get(generator, _DEFAULTS.get(generator, 0))

    def cents(self, key: int) -> float:
        tuning = 100 * self.value(_COARSE_TUNE) + self.value(_FINE_TUNE) + self.correction
        return (key - self.root) * self.value(_SCALE_TUNING) + tuning

    def release(self) -> float:
        timecents = min(self.value(_VOLUME_ENV + 5), _LONGEST_RELEASE)
        return max(_SHORTEST_RELEASE, 2 ** (timecents / 1200))

    def gain(self) -> float:
        """Return the zone's level as heard in mono: both sides of the constant-power pan, added."""
        angle = (np.clip(self.value(_PAN), -500, 500) / 1000 + 0.5) * pi / 2
        level = 10 ** (-_ATTENUATION_SCALE * max(0, self.value(_ATTENUATION)) / 200)
        return level * (sin(angle) + cos(angle)) / sqrt(2)

    def stages(self, first: int, key: int, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how far an envelope has risen (0 to 1) and then fallen (0 to 1 - sustain) at each time."""
        timecents = [self.value(first + stage) for stage in range(4)]
        timecents[2] += (60 - key) * self.value(first + 6)
        timecents[3] += (60 - key) * self.value(first + 7)
        delay, attack, hold, decay = (2 ** (cents / 1200) for cents in timecents)
        rise = np.clip((seconds - delay) / attack, 0, 1)
        fall = np.clip((seconds - delay - attack - hold) / decay, 0, self.value(first + 4) / 1000)
        return rise, fall


class SoundFont:
    """A SoundFont 2 file, ready to play.

    Args:
        path: the `.sf2` file; 16-bit samples are read, a 24-bit extension is ignored.

    Raises:
        SoundFontError: the file is not a SoundFont, or is cut short.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        chunks = _read_chunks(self.path)
        self._samples = np.frombuffer(chunks["smpl"][: len(chunks["smpl"]) // 2 * 2], "<i2")
        self._lists = {name: _records(chunks[name], name, self.path) for name in _RECORDS}
        self._check_lists()
        headers = self._lists["phdr"][:-1]  # the last one only ends the list
        self._presets = {(int(row["bank"]), int(row["program"])): i for i, row in enumerate(headers)}
        self._zones: dict[tuple[int, int], list[_Zone]] = {}
        self._bodies: dict[tuple, np.ndarray] = {}

    def _check_lists(self) -> None:
        """Raise a SoundFontError unless every place that a list refers to exists."""
        order = ("phdr", "pbag", "pgen"), ("inst", "ibag", "igen")
        for upper, lower in (pair for lists in order for pair in pairwise(lists)):
            places = self._lists[upper]["gen" if upper.endswith("bag") else "bag"].astype(np.int64)
            if (np.diff(places) < 0).any() or places[-1] >= len(self._lists[lower]):
                raise SoundFontError(f"{self.path.name} is broken: {upper!r} leaves the order of {lower!r}")
        if (self._lists["shdr"]["type"] & _COMPRESSED).any():
            raise SoundFontError(
                f"{self.path.name} has compressed samples (SoundFont 3), which are not read: use an sf2"
            )

    @property
    def programs(self) -> dict[int, str]:
        """Names of the programs of bank 0, by number from 0."""
        headers = self._lists["phdr"]
        names = {p: headers[i]["name"].decode("latin-1") for (b, p), i in self._presets.items() if b == 0}
        return dict(sorted(names.items()))

    def note(self, program: int, key: int, velocity: int, seconds: float, sample_rate: int) -> np.ndarray:
        """Render one note, held for `seconds` and then released.

        Args:
            program: General MIDI program from 0, in bank 0.
            key, velocity: MIDI numbers; the level follows the square of the velocity (section 8.4.1).
            seconds: from key down to key up.
            sample_rate: of the output, in Hz.

        Returns:
            float32 (L,), as long as the note and its release; full scale is 1 and may be exceeded.

        Raises:
            SoundFontError: there is no such program, or it has no sound at this key and velocity.
        """
        zones = [zone for zone in self._preset(program) if zone.plays(key, velocity)]
        if not zones:
            raise SoundFontError(f"program {program} has no sound at key {key}, velocity {velocity}")
        held = max(1, round(seconds * sample_rate))
        tails = [ceil(zone.release() * sample_rate) for zone in zones]
        wave = np.zeros(held + max(tails), np.float32)
        for zone, tail in zip(zones, tails, strict=True):
            body = self._body(zone, key, held + tail, sample_rate)
            wave[:held] += body[:held]
            wave[held : held + tail] += body[held : held + tail] * _release(tail)
        return wave * np.float32((velocity / 127) ** 2)

    def play(self, notes: Iterable[Note], n_samples: int, sample_rate: int) -> np.ndarray:
        """Mix notes into float32 (n_samples,); notes that start later are left out, longer ones cut."""
        wave = np.zeros(n_samples, np.float32)
        for note in notes:
            start = round(note.start * sample_rate)
            if start < n_samples:
                sound = self.note(note.program, note.key, note.velocity, note.seconds, sample_rate)
                wave[start : start + len(sound)] += sound[: n_samples - start]
        return wave

    def _preset(self, program: int) -> list[_Zone]:
        if (0, program) not in self._presets:
            known = ", ".join(map(str, self.programs))
            raise SoundFontError(f"{self.path.name} has no program {program}; it has {known}")
        if (0, program) not in self._zones:
            self._zones[0, program] = self._read_preset(self._presets[0, program])
        return self._zones[0, program]

    def _read_preset(self, index: int) -> list[_Zone]:
        """Combine every zone of a preset with every zone of its instrument; the preset's values are added."""
        zones = []
        for above in self._generators("phdr", "pbag", "pgen", index, _INSTRUMENT):
            self._require(above[_INSTRUMENT], "inst")
            for below in self._generators("inst", "ibag", "igen", above[_INSTRUMENT], _SAMPLE):
                special = {_INSTRUMENT, _KEY_RANGE, _VELOCITY_RANGE}
                extra = {k: v for k, v in above.items() if k not in special}
                total = below | {k: v + below.get(k, _DEFAULTS.get(k, 0)) for k, v in extra.items()}
                keys, velocities = (_common(above, below, g) for g in (_KEY_RANGE, _VELOCITY_RANGE))
                zones.append(self._zone(total, keys, velocities))
        return zones

    def _generators(self, heads: str, bags: str, gens: str, index: int, last: int) -> list[dict[int, int]]:
        """Return each zone's generators; a first zone without `last` (instrument, sample) applies to all."""
        heads, bags, gens = self._lists[heads], self._lists[bags], self._lists[gens]
        zones, shared = [], {}
        for bag in range(heads["bag"][index], heads["bag"][index + 1]):
            rows = gens[bags["gen"][bag] : bags["gen"][bag + 1]]
            zone = {int(row["oper"]): int(row["amount"]) for row in rows}
            if last in zone:
                zones.append(shared | zone)
            elif not zones:
                shared = zone
        return zones

    def _require(self, index: int, name: str) -> None:
        if not 0 <= index < len(self._lists[name]) - 1:  # the last one only ends the list
            raise SoundFontError(f"{self.path.name} is broken: there is no number {index} in {name!r}")

    def _zone(self, generators: dict[int, int], keys: tuple, velocities: tuple) -> _Zone:
        self._require(generators[_SAMPLE], "shdr")
        header = self._lists["shdr"][generators[_SAMPLE]]

        def place(field: str, offset: tuple[int, int]) -> int:
            fine, coarse = (generators.get(generator, 0) for generator in offset)
            return int(header[field]) + fine + 32768 * coarse

        start, end = place("start", _START), place("end", _END)
        loop = place("loop_start", _LOOP_START) - start, place("loop_end", _LOOP_END) - start
        looped = generators.get(_SAMPLE_MODES, 0) & 1 and 0 <= loop[0] < loop[1]
        if not 0 <= start < end <= len(self._samples) or (looped and start + loop[1] > len(self._samples)):
            raise SoundFontError(f"{self.path.name} is broken: a sample from {start} to {end} is not in it")
        root = generators.get(_ROOT_KEY, -1)
        return _Zone(
            generators, keys, velocities,
            sample=self._samples[start : max(end, start + loop[1] if looped else 0)],
            loop=loop if looped else None,
            rate=int(header["rate"]),
            root=int(header["key"]) if root < 0 else root,
            correction=int(header["correction"]),
        )  # fmt: skip

    def _body(self, zone: _Zone, key: int, n_samples: int, sample_rate: int) -> np.ndarray:
        """Return at least `n_samples` of a held key, float32, rendered once per power of two."""
        length = 1 << (n_samples - 1).bit_length()
        name = id(zone), key, length, sample_rate
        if name not in self._bodies:
            if len(self._bodies) >= _BODIES_KEPT:
                self._bodies.clear()
            self._bodies[name] = _render(zone, key, length, sample_rate)
        return self._bodies[name]


def _render(zone: _Zone, key: int, n_samples: int, sample_rate: int) -> np.ndarray:
    """Render a zone with its key held for (n_samples,): oscillator, filter, amplifier."""
    octaves = zone.cents(key) / 1200
    speed = zone.rate * 2**octaves if abs(octaves) < 100 else 0.0  # source samples per second
    if not 1 <= speed <= _FASTEST:
        raise SoundFontError(f"a zone is broken: its {zone.rate} Hz are moved by {octaves:.1f} octaves")
    source = _unroll(zone.sample, zone.loop, ceil(n_samples * speed / sample_rate) + 64)
    # Band-limited resampling keeps high keys free of aliases; interpolation would not.
    wave = soxr.resample(source.astype(np.float32) / 32768, speed, sample_rate)[:n_samples]
    wave = np.pad(wave, (0, n_samples - len(wave)))
    seconds = np.arange(n_samples) / sample_rate
    # With the look-ahead, a fast filter is open from the first sample; a later jump would click.
    rise, fall = zone.stages(_MOD_ENV, key, seconds[::_FILTER_BLOCK] + _FILTER_AHEAD)
    cents = zone.value(_FILTER_CUTOFF) + zone.value(_MOD_ENV_TO_CUTOFF) * (rise - fall)
    cutoff = 8.176 * 2 ** (cents / 1200)  # Hz, from cents above 8.176 Hz
    if cutoff.min() < 0.45 * sample_rate:
        cutoff = np.clip(cutoff / sample_rate, 1e-3, 0.45)
        wave = _low_pass(wave, cutoff, 10 ** ((zone.value(_FILTER_Q) / 10 - 3.01) / 20))
    rise, fall = zone.stages(_VOLUME_ENV, key, seconds)
    return (wave * rise * 10 ** (-5 * fall) * zone.gain()).astype(np.float32)  # a fall of 1 is 100 dB


def _unroll(sample: np.ndarray, loop: tuple[int, int] | None, length: int) -> np.ndarray:
    if loop is None or length <= loop[1]:
        return sample[:length]
    cycle = sample[loop[0] : loop[1]]
    return np.concatenate([sample[: loop[1]], np.resize(cycle, length - loop[1])])


def _release(n_samples: int) -> np.ndarray:
    """Return the fade after key up, float32 (n_samples,): 100 dB, linear in dB."""
    return np.exp(np.linspace(0, -5 * np.log(10), n_samples, dtype=np.float32))


@njit(cache=True)
def _low_pass(wave, cutoff, q):
    """Apply a two-pole filter whose cutoff (a fraction of the sample rate) moves once per `_FILTER_BLOCK`.

    The bilinear biquad of R. Bristow-Johnson's cookbook, divided by sqrt(q) as section 8.1.3 requires for
    resonance, in transposed direct form II, which stays quiet while its coefficients move.
    """
    out = np.empty_like(wave)
    s1 = s2 = 0.0
    for block in range(len(cutoff)):
        w = 2 * np.pi * cutoff[block]
        alpha = np.sin(w) / (2 * q)
        a1, a2 = -2 * np.cos(w) / (1 + alpha), (1 - alpha) / (1 + alpha)
        b1 = (1 - np.cos(w)) / (1 + alpha) / max(1.0, np.sqrt(q))
        for i in range(block * _FILTER_BLOCK, min(len(wave), (block + 1) * _FILTER_BLOCK)):
            x = wave[i]
            y = b1 / 2 * x + s1
            s1 = b1 * x - a1 * y + s2
            s2 = b1 / 2 * x - a2 * y
            out[i] = y
    return out


def _common(above: dict[int, int], below: dict[int, int], generator: int) -> tuple[int, int]:
    """Return the lowest and highest number that both zones' ranges allow; without a range, 0 to 127."""
    ranges = [zone.get(generator, 127 << 8) for zone in (above, below)]  # low in one byte, high in the next
    return max(r & 255 for r in ranges), min(r >> 8 & 255 for r in ranges)


def _read_chunks(path: Path) -> dict[str, bytes]:
    """Return the chunks in the three lists of the RIFF file, by name."""
    data = path.read_bytes()
    if data[:4] != b"RIFF" or data[8:12] != b"sfbk":
        raise SoundFontError(f"{path.name} is not a SoundFont: it does not begin with RIFF and sfbk")
    chunks = {}
    for name, start, size in _walk(data, 12, len(data), path):
        if name == "LIST":
            inner = _walk(data, start + 4, start + size, path)
            chunks |= {name: data[at : at + n] for name, at, n in inner}
    missing = {"smpl", *_RECORDS} - chunks.keys()
    if missing:
        raise SoundFontError(f"{path.name} is a broken SoundFont: it lacks {', '.join(sorted(missing))}")
    return chunks


def _walk(data: bytes, start: int, stop: int, path: Path):
    while start + 8 <= stop:
        name, size = (
            data[start : start + 4].decode("latin-1"),
            int.from_bytes(data[start + 4 : start + 8], "little"),
        )
        if start + 8 + size > stop:
            raise SoundFontError(f"{path.name} is cut short: its chunk {name!r} should have {size} bytes")
        yield name, start + 8, size
        start += 8 + size + size % 2


def _records(data: bytes, name: str, path: Path) -> np.ndarray:
    dtype = np.dtype(_RECORDS[name])
    if not data or len(data) % dtype.itemsize:
        raise SoundFontError(
            f"{path.name} is broken: {name!r} is {len(data)} bytes, not records of {dtype.itemsize}"
        )
    return np.frombuffer(data, dtype)
