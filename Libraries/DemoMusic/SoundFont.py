"""Play notes with a SoundFont: its samples, loops, envelopes, low-pass filter and LFOs, in NumPy.

Follows the SoundFont Technical Specification 2.04 (Creative/E-mu 2005); generator numbers are those of its
section 8.1.2. Left out: effect sends, and exclusive classes, which no instrument of the ensembles has.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import ceil, cos, pi, sin, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
from numba import njit

from Libraries.DemoMusic.FontFile import FontFile, Sample, SoundFontError, Zone
from Libraries.DemoMusic.Modulators import modulation

_MOD_LFO_TO_PITCH, _VIBRATO_TO_PITCH, _MOD_ENV_TO_PITCH = 5, 6, 7
_FILTER_CUTOFF, _FILTER_Q, _MOD_LFO_TO_CUTOFF, _MOD_ENV_TO_CUTOFF, _MOD_LFO_TO_VOLUME, _PAN = (
    8,
    9,
    10,
    11,
    13,
    17,
)
_MOD_LFO, _VIBRATO = 21, 23  # first of: delay, frequency
# first of: delay, attack, hold, decay, sustain, release, key to hold, key to decay
_MOD_ENV, _VOLUME_ENV = 25, 33
_KEY, _VELOCITY, _ATTENUATION = 46, 47, 48
_COARSE_TUNE, _FINE_TUNE, _SCALE_TUNING = 51, 52, 56
_DEFAULTS = (
    {_FILTER_CUTOFF: 13500, _SCALE_TUNING: 100, _MOD_LFO: -12000, _VIBRATO: -12000}
    | {first + stage: -12000 for first in (_MOD_ENV, _VOLUME_ENV) for stage in (0, 1, 2, 3, 5)}
    | {_KEY: -1, _VELOCITY: -1}
)

_SHORTEST_RELEASE = 0.01  # s; the specification's 1 ms clicks
_LONGEST_RELEASE = 8000  # timecents, 100 s (section 8.1.3)
_GAP = 2  # keys outside all zones that the nearest still plays
_FASTEST = 384_000 * 8  # source samples per second: a high rate, three octaves up
_ATTENUATION_SCALE = 0.4  # that of the EMU hardware, for which SoundFonts are voiced
_FILTER_BLOCK = 32  # samples per setting of the filter: 1 ms at 32 kHz
_FILTER_AHEAD = 0.002  # s; twice the shortest stage of an envelope
_BODIES_KEPT = 600  # rendered notes in memory, about 100 MB
_FURTHEST_BEND = 2400  # cents, by LFOs and envelope
_DEEPEST_TREMOLO = 960  # centibels (section 8.1.3)
_BEND_POINTS = 32  # of the windowed sinc that reads between samples


class Note(NamedTuple):
    """One note: start and length in seconds, General MIDI program (from 0), MIDI key and velocity (1-127).

    `seat` is the number of the player in the ensemble.
    """

    start: float
    seconds: float
    program: int
    key: int
    velocity: int
    seat: int = 0


@dataclass(frozen=True, eq=False)
class _Voice:
    """A zone as it plays a note: its sample, and its generators with what modulators add."""

    zone: Zone
    sample: Sample
    key: int
    added: dict[int, float]  # by modulators

    def value(self, generator: int) -> float:
        own = self.zone.generators.get(generator, _DEFAULTS.get(generator, 0))
        return own + self.added[generator] if generator in self.added else own

    @property
    def octaves(self) -> float:
        """How far the sample is moved from its own pitch."""
        tuning = 100 * self.value(_COARSE_TUNE) + self.value(_FINE_TUNE) + self.sample.correction
        return ((self.key - self.sample.root) * self.value(_SCALE_TUNING) + tuning) / 1200

    @property
    def release(self) -> float:
        """Seconds of sound after key up."""
        timecents = min(self.value(_VOLUME_ENV + 5), _LONGEST_RELEASE)
        return max(_SHORTEST_RELEASE, 2 ** (timecents / 1200))

    @cached_property
    def pan(self) -> tuple[float, float]:
        """The constant-power pan to the left and right."""
        angle = (np.clip(self.value(_PAN), -500, 500) / 1000 + 0.5) * pi / 2
        return cos(angle), sin(angle)

    @property
    def gain(self) -> float:
        """The zone's level as heard in mono: both sides of the pan, added."""
        own = self.zone.generators.get(_ATTENUATION, 0)
        level = 10 ** (-_ATTENUATION_SCALE * max(0, own) / 200)
        left, right = self.pan
        return level * (right + left) / sqrt(2)

    @property
    def sides(self) -> np.ndarray:
        """What each channel has of the mono sound, float32 (2, 1): mono is their sum, divided by sqrt(2)."""
        pan = np.array(self.pan)
        return (pan * sqrt(2) / pan.sum())[:, None].astype(np.float32)

    @property
    def level(self) -> np.float32:
        """What modulators, such as that of velocity, leave of the level; theirs are true centibels."""
        return np.float32(10 ** (-max(0.0, self.added.get(_ATTENUATION, 0.0)) / 200))

    @property
    def content(self) -> tuple:
        """All that decides the sound but its level, length and sample rate."""
        added = ((generator, value) for generator, value in self.added.items() if generator != _ATTENUATION)
        return id(self.zone), self.key, tuple(sorted(added))

    def stages(self, first: int, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how far an envelope has risen (0 to 1) and then fallen (0 to 1 - sustain) at each time."""
        timecents = [self.value(first + stage) for stage in range(4)]
        timecents[2] += (60 - self.key) * self.value(first + 6)
        timecents[3] += (60 - self.key) * self.value(first + 7)
        delay, attack, hold, decay = (2 ** (cents / 1200) for cents in timecents)
        rise = np.clip((seconds - delay) / attack, 0, 1)
        fall = np.clip((seconds - delay - attack - hold) / decay, 0, self.value(first + 4) / 1000)
        return rise, fall

    def oscillate(self, first: int, seconds: np.ndarray) -> np.ndarray:
        """Return a low-frequency oscillator at each time: a triangle from 0 upwards, after its delay."""
        delay, frequency = 2 ** (self.value(first) / 1200), 8.176 * 2 ** (self.value(first + 1) / 1200)
        return 2 / pi * np.arcsin(np.sin(2 * pi * frequency * np.maximum(0, seconds - delay)))

    def bend(self, seconds: np.ndarray) -> np.ndarray | None:
        """Return how the pitch moves, in cents at each time; None if it stays."""
        lfos = ((_VIBRATO_TO_PITCH, _VIBRATO), (_MOD_LFO_TO_PITCH, _MOD_LFO))
        parts = [self.value(depth) * self.oscillate(lfo, seconds) for depth, lfo in lfos if self.value(depth)]
        if depth := self.value(_MOD_ENV_TO_PITCH):
            rise, fall = self.stages(_MOD_ENV, seconds)
            parts.append(depth * (rise - fall))
        return np.clip(sum(parts), -_FURTHEST_BEND, _FURTHEST_BEND) if parts else None


class SoundFont:
    """A SoundFont file, ready to play.

    Args:
        path: the `.sf2` or `.sf3` file.
        modulated: play modulators, LFOs and the pitch envelope too; otherwise velocity sets the level alone.

    Raises:
        SoundFontError: the file is not a SoundFont, or is cut short.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path, modulated: bool = True) -> None:
        self.path, self.modulated = Path(path), modulated
        self._file = FontFile(self.path, _DEFAULTS)
        self._zones: dict[int, list[Zone]] = {}
        self._samples: dict[int, Sample] = {}
        self._bodies: dict[tuple, np.ndarray] = {}

    @property
    def programs(self) -> dict[int, str]:
        """Names of the programs of bank 0, by number from 0."""
        return self._file.programs

    def note(
        self, program: int, key: int, velocity: int, seconds: float, sample_rate: int, channels: int = 1
    ) -> np.ndarray:
        """Render one note, held for `seconds` and then released.

        Args:
            program: General MIDI program from 0, in bank 0.
            key, velocity: MIDI numbers; a note in a gap between zones or just beyond them is played by the
                nearest. The level follows the square of the velocity (section 8.4.1), unless the font says
                otherwise.
            seconds: from key down to key up.
            sample_rate: of the output, in Hz.
            channels: 1, or 2 for the font's own left and right.

        Returns:
            float32 (L,), or (2, L), as long as the note and its release; full scale is 1 and may be exceeded.

        Raises:
            SoundFontError: there is no such program, or it has no sound near this key.
        """
        if program not in self._zones:
            self._zones[program] = self._file.zones(program)
        distances = [zone.distance(key, velocity) for zone in self._zones[program]]
        nearest = min(distances, default=(_GAP + 1, 0))
        if nearest[0] > _GAP:
            raise SoundFontError(f"program {program} has no sound at key {key}, velocity {velocity}")
        zones = [zone for zone, own in zip(self._zones[program], distances, strict=True) if own == nearest]
        voices = [self._voice(zone, key, velocity) for zone in zones]
        held = max(1, round(seconds * sample_rate))
        tails = [ceil(voice.release * sample_rate) for voice in voices]
        wave = np.zeros((channels, held + max(tails)), np.float32)
        for voice, tail in zip(voices, tails, strict=True):
            body = self._body(voice, held + tail, sample_rate)
            body = body * voice.level if self.modulated else body
            body = body * voice.sides if channels == 2 else body[None]
            wave[:, :held] += body[:, :held]
            wave[:, held : held + tail] += body[:, held : held + tail] * _release(tail)
        if not self.modulated:
            wave *= np.float32((velocity / 127) ** 2)
        return wave[0] if channels == 1 else wave

    def play(self, notes: Iterable[Note], n_samples: int, sample_rate: int, channels: int = 1) -> np.ndarray:
        """Mix notes into float32 (n_samples,), or (2, n_samples) with two channels.

        Notes that start later are left out, longer ones cut.
        """
        wave = np.zeros((n_samples,) if channels == 1 else (channels, n_samples), np.float32)
        for note in notes:
            start = round(note.start * sample_rate)
            if start < n_samples:
                sound = self.note(note.program, note.key, note.velocity, note.seconds, sample_rate, channels)
                wave[..., start : start + sound.shape[-1]] += sound[..., : n_samples - start]
        return wave

    def _voice(self, zone: Zone, key: int, velocity: int) -> _Voice:
        if id(zone) not in self._samples:
            self._samples[id(zone)] = self._file.sample(zone)
        added = {}
        if self.modulated:
            fixed = (zone.generators.get(generator, -1) for generator in (_KEY, _VELOCITY))
            key, velocity = (
                own if own >= 0 else played for own, played in zip(fixed, (key, velocity), strict=True)
            )
            added = modulation(zone, key, velocity)
        return _Voice(zone, self._samples[id(zone)], key, added)

    def _body(self, voice: _Voice, n_samples: int, sample_rate: int) -> np.ndarray:
        """Return at least `n_samples` of a held key, float32, rendered once per power of two."""
        length = 1 << (n_samples - 1).bit_length()
        name = *voice.content, length, sample_rate
        if name not in self._bodies:
            if len(self._bodies) >= _BODIES_KEPT:
                self._bodies.clear()
            self._bodies[name] = _render(voice, length, sample_rate, self.modulated)
        return self._bodies[name]


def _render(voice: _Voice, n_samples: int, sample_rate: int, modulated: bool) -> np.ndarray:
    """Render a zone with its key held for (n_samples,): oscillator, filter, amplifier."""
    seconds = np.arange(n_samples) / sample_rate
    bend = voice.bend(seconds) if modulated else None
    wave = _oscillate(voice, n_samples, sample_rate) if bend is None else _bent(voice, bend, sample_rate)
    # With the look-ahead, a fast filter is open from the first sample; a later jump would click.
    ahead = seconds[::_FILTER_BLOCK] + _FILTER_AHEAD
    rise, fall = voice.stages(_MOD_ENV, ahead)
    cents = voice.value(_FILTER_CUTOFF) + voice.value(_MOD_ENV_TO_CUTOFF) * (rise - fall)
    if modulated and (depth := voice.value(_MOD_LFO_TO_CUTOFF)):
        cents = cents + depth * voice.oscillate(_MOD_LFO, ahead)
    cutoff = 8.176 * 2 ** (cents / 1200)  # Hz, from cents above 8.176 Hz
    q = 10 ** ((voice.value(_FILTER_Q) / 10 - 3.01) / 20)
    loss = 10 ** (voice.value(_FILTER_Q) / 400) if modulated else max(1.0, np.sqrt(q))  # half of Q, in dB
    if cutoff.min() < 0.45 * sample_rate:
        wave = _low_pass(wave, np.clip(cutoff / sample_rate, 1e-3, 0.45), q, loss)
    elif modulated:
        wave = wave / loss
    rise, fall = voice.stages(_VOLUME_ENV, seconds)
    wave = wave * rise * 10 ** (-5 * fall) * voice.gain  # a fall of 1 is 100 dB
    if modulated and (depth := voice.value(_MOD_LFO_TO_VOLUME)):
        depth = np.clip(depth, -_DEEPEST_TREMOLO, _DEEPEST_TREMOLO)
        wave = wave * 10 ** (depth / 200 * voice.oscillate(_MOD_LFO, seconds))  # centibels
    return wave.astype(np.float32)


def _oscillate(voice: _Voice, n_samples: int, sample_rate: int) -> np.ndarray:
    """Return the sample at its key's pitch, looped as it says, (n_samples,)."""
    sample, octaves = voice.sample, voice.octaves
    speed = sample.rate * 2**octaves if abs(octaves) < 100 else 0.0  # source samples per second
    if not 1 <= speed <= _FASTEST:
        raise SoundFontError(f"a zone is broken: its {sample.rate} Hz are moved by {octaves:.1f} octaves")
    source = _unroll(sample.values, sample.loop, ceil(n_samples * speed / sample_rate) + 64)
    # Band-limited resampling keeps high keys free of aliases; interpolation would not.
    wave = soxr.resample(source.astype(np.float32) / 32768, speed, sample_rate)[:n_samples]
    return np.pad(wave, (0, n_samples - len(wave)))


def _bent(voice: _Voice, cents: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the sample at a pitch that moves by `cents` (n_samples,), read at moving places."""
    places = np.concatenate([[0.0], np.cumsum(2 ** (cents[:-1] / 1200))])
    wave = _oscillate(voice, ceil(places[-1]) + _BEND_POINTS, sample_rate)
    return _read_between(wave.astype(np.float32), places)


@njit(cache=True)
def _read_between(wave, places):
    """Return a wave at places between its samples, by a windowed sinc of `_BEND_POINTS` points."""
    out = np.zeros(len(places), np.float32)
    half = _BEND_POINTS // 2
    for n in range(len(places)):
        first = int(np.floor(places[n]))
        for i in range(max(0, first - half + 1), min(len(wave), first + half + 1)):
            distance = places[n] - i
            out[n] += wave[i] * np.sinc(distance) * np.cos(np.pi * distance / (_BEND_POINTS + 2)) ** 2
    return out


def _unroll(sample: np.ndarray, loop: tuple[int, int] | None, length: int) -> np.ndarray:
    if loop is None or length <= loop[1]:
        return sample[:length]
    cycle = sample[loop[0] : loop[1]]
    return np.concatenate([sample[: loop[1]], np.resize(cycle, length - loop[1])])


def _release(n_samples: int) -> np.ndarray:
    """Return the fade after key up, float32 (n_samples,): 100 dB, linear in dB."""
    return np.exp(np.linspace(0, -5 * np.log(10), n_samples, dtype=np.float32))


@njit(cache=True)
def _low_pass(wave, cutoff, q, loss):
    """Apply a two-pole filter whose cutoff (a fraction of the sample rate) moves once per `_FILTER_BLOCK`.

    The bilinear biquad of R. Bristow-Johnson's cookbook, divided by `loss` as section 8.1.3 requires for
    resonance, in transposed direct form II, which stays quiet while its coefficients move.
    """
    out = np.empty_like(wave)
    s1 = s2 = 0.0
    for block in range(len(cutoff)):
        w = 2 * np.pi * cutoff[block]
        alpha = np.sin(w) / (2 * q)
        a1, a2 = -2 * np.cos(w) / (1 + alpha), (1 - alpha) / (1 + alpha)
        b1 = (1 - np.cos(w)) / (1 + alpha) / loss
        for i in range(block * _FILTER_BLOCK, min(len(wave), (block + 1) * _FILTER_BLOCK)):
            x = wave[i]
            y = b1 / 2 * x + s1
            s1 = b1 * x - a1 * y + s2
            s2 = b1 / 2 * x - a2 * y
            out[i] = y
    return out
