"""A room to play in: early reflections and a tail, as an impulse response made from a seed.

The early reflections are the image sources of a box (Allen and Berkley 1979); the tail is Gaussian noise that
decays exponentially (Polack 1988), as strong as the images that it stands for: a source whose sound has the
energy 1/r² at a distance of r metres leaves 4πc/V·exp(-13.8 t/T) per second in a room of V cubic metres.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from scipy.signal import butter, lfilter, oaconvolve

from Libraries.DemoMusic.Ensembles import Seat

_SOUND = 343.0  # m/s
_EARLY = 0.06  # s after the direct sound, until which images are counted one by one
_ORDER = 3  # of the images in each direction; they reach beyond `_EARLY`
_DIFFUSE = 1 / 3  # of the energy from all directions that a cardioid hears
_TURNED = math.radians(50)  # each of two microphones, away from the middle
_EAR_HEIGHT = 1.8  # m
_WALL = 0.5  # m that everybody keeps from the walls
_BRIGHT = 2_000.0  # Hz; above it, walls and air damp more


@dataclass(frozen=True)
class Room:
    """A box with walls that are alike."""

    size: tuple[float, float, float]  # m: width, depth, height
    decay: float  # s until a sound is 60 dB down
    bright_decay: float  # s, likewise above `_BRIGHT`
    nearer: float  # what distances are multiplied by: how near microphones are

    @property
    def volume(self) -> float:
        """In cubic metres."""
        return math.prod(self.size)

    @property
    def reflection(self) -> float:
        """What a wall leaves of an amplitude, after Eyring (1930)."""
        width, depth, height = self.size
        surface = 2 * (width * depth + width * height + depth * height)
        return math.exp(-12 * math.log(10) * self.volume / (_SOUND * surface * self.decay))


ROOMS = {
    "dry": None,
    "chamber": Room((9.0, 13.0, 5.0), decay=0.7, bright_decay=0.45, nearer=0.8),
    "hall": Room((20.0, 32.0, 13.0), decay=1.6, bright_decay=0.9, nearer=1.2),
    "church": Room((16.0, 45.0, 18.0), decay=3.0, bright_decay=1.5, nearer=1.2),
}


def place_in_room(
    dry: Iterable[tuple[Seat, np.ndarray]], room: str, channels: int, sample_rate: int, seed: int
) -> np.ndarray:
    """Return what microphones hear of instruments at their seats, float32 (channels, L).

    Args:
        dry: the seat of each instrument, with its sound (L,).
        room: a name from `ROOMS`, but not "dry".
        channels: 1, a cardioid that faces the stage; or 2, turned to the left and to the right.
        sample_rate: in Hz.
        seed: of the room: the same seed is the same room.
    """
    heard = 0.0
    for seat, wave in dry:
        response = impulse_response(room, seat, channels, sample_rate, seed)
        heard = heard + oaconvolve(wave[None], response, axes=1)[:, : len(wave)]
    return heard.astype(np.float32)


@lru_cache(maxsize=64)
def impulse_response(room: str, seat: Seat, channels: int, sample_rate: int, seed: int) -> np.ndarray:
    """Return the response of a room to a seat, float32 (channels, L), from the direct sound to -60 dB."""
    box = ROOMS[room]
    rng = np.random.default_rng([seed, *room.encode(), round(seat.azimuth) + 180, round(100 * seat.distance)])
    length = math.ceil((_EARLY + box.decay) * sample_rate)
    offset, listener = _positions(box, seat)
    delays, gains = _images(box, offset, listener, channels, rng)
    first = np.linalg.norm(offset) / _SOUND
    places = np.round((delays - first) * sample_rate).astype(int)
    direct, early = (np.zeros((channels, length)) for _ in range(2))
    direct[:, 0] = _hear(offset[None], channels)[:, 0] / np.linalg.norm(offset)
    soon = (places > 0) & (places < _EARLY * sample_rate)
    for channel in range(channels):
        np.add.at(early[channel], places[soon], gains[channel, soon])
    low = _low(early, sample_rate)
    early = low + (early - low) * box.bright_decay / box.decay
    return (direct + early + _tail(box, first, channels, length, sample_rate, rng)).astype(np.float32)


def _positions(box: Room, seat: Seat) -> tuple[np.ndarray, np.ndarray]:
    """Return where a seat is, seen from the listener, and where the listener is in the box, in m."""
    width, depth, _ = box.size
    listener = np.array([width / 2, depth / 3, _EAR_HEIGHT])
    angle, distance = math.radians(seat.azimuth), seat.distance * box.nearer
    source = listener + distance * np.array([math.sin(angle), math.cos(angle), 0.0])
    return np.clip(source, _WALL, np.array(box.size) - _WALL) - listener, listener


def _images(
    box: Room, offset: np.ndarray, listener: np.ndarray, channels: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the delay in s (N,) and the amplitude in each channel (channels, N) of all reflections.

    No wall is quite even: delays vary by 1 % and amplitudes by 10 %, so that no two rooms are the same.
    """
    size, source = np.array(box.size), listener + offset
    cells = np.array([cell for cell in product(range(-_ORDER, _ORDER + 1), repeat=3) if any(cell)])
    images = cells * size + np.where(cells % 2, size - source, source) - listener
    distance = np.linalg.norm(images, axis=1)
    gains = box.reflection ** np.abs(cells).sum(1) / distance * rng.normal(1, 0.1, len(cells))
    return distance / _SOUND * rng.normal(1, 0.01, len(cells)), gains * _hear(images, channels)


def _hear(places: np.ndarray, channels: int) -> np.ndarray:
    """Return what the microphones leave of sounds from places (N, 3) around them: (channels, N)."""
    turned = np.array([0.0] if channels == 1 else [-_TURNED, _TURNED])
    facing = np.stack([np.sin(turned), np.cos(turned), np.zeros(channels)], axis=1)
    return 0.5 + 0.5 * facing @ places.T / np.linalg.norm(places, axis=1)


def _tail(
    box: Room, first: float, channels: int, length: int, sample_rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the sum of all later images, (channels, length): independent noise in each channel."""
    seconds = first + np.arange(length) / sample_rate  # since the sound left its source
    power = _DIFFUSE * 4 * np.pi * _SOUND / box.volume / sample_rate
    noise = rng.normal(0, math.sqrt(power), (channels, length))
    low = _low(noise, sample_rate)
    parts = ((low, box.decay), (noise - low, box.bright_decay))
    sound = sum(part * 10 ** (-3 * seconds / decay) for part, decay in parts)
    return sound * np.clip((seconds - first) / _EARLY - 0.5, 0, 0.5) * 2  # where the images thin out


def _low(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return what is below `_BRIGHT`."""
    return lfilter(*butter(1, min(_BRIGHT, 0.45 * sample_rate), fs=sample_rate), wave)
