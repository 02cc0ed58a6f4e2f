"""Read a SoundFont file, SF2 or SF3: its presets as zones, and their samples.

Follows the SoundFont Technical Specification 2.04 (Creative/E-mu 2005), section 7; generator numbers are
those of its section 8.1.2. SF3 is the same with samples in Ogg Vorbis, one stream per sample, as MuseScore
writes it: start and end of a sample are bytes then, and its loop counts from the sample's own start.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

_NAME = ("name", "S20")
_BAG = [("gen", "<u2"), ("mod", "<u2")]
_GENERATOR = [("oper", "<u2"), ("amount", "<i2")]
_MODULATOR = [("source", "<u2"), ("target", "<u2"), ("amount", "<i2"), ("by", "<u2"), ("transform", "<u2")]
_RECORDS = {  # section 7: the "hydra" of nine lists
    "phdr": [_NAME, ("program", "<u2"), ("bank", "<u2"), ("bag", "<u2"), ("unused", "<u4", 3)],
    "pbag": _BAG,
    "pmod": _MODULATOR,
    "pgen": _GENERATOR,
    "inst": [_NAME, ("bag", "<u2")],
    "ibag": _BAG,
    "imod": _MODULATOR,
    "igen": _GENERATOR,
    "shdr": [_NAME, ("start", "<u4"), ("end", "<u4"), ("loop_start", "<u4"), ("loop_end", "<u4"),
             ("rate", "<u4"), ("key", "u1"), ("correction", "i1"), ("link", "<u2"), ("type", "<u2")],
}  # fmt: skip

INSTRUMENT, KEY_RANGE, VELOCITY_RANGE, SAMPLE, SAMPLE_MODES, ROOT_KEY = 41, 43, 44, 53, 54, 58
_START, _END, _LOOP_START, _LOOP_END = (0, 4), (1, 12), (2, 45), (3, 50)  # offsets: fine, coarse (in 32768)
_COMPRESSED = 0x10  # of a sample's type: Ogg Vorbis
_LONGEST_SAMPLE = 1 << 26  # values; 23 minutes at 48 kHz


class SoundFontError(ValueError):
    """A SoundFont file is broken, or lacks what was asked for."""


class Modulator(NamedTuple):
    """What adds to a generator: `amount`, times `source`, times `by` (section 8.2)."""

    source: int
    target: int  # a generator
    amount: int  # in the generator's unit
    by: int  # a second source
    transform: int

    @property
    def identity(self) -> tuple[int, ...]:
        """All but the amount: of two with the same identity one takes the other's place."""
        return self.source, self.target, self.by, self.transform


@dataclass(frozen=True, eq=False)
class Zone:
    """The keys and velocities that a sample plays, and how: generators and modulators."""

    generators: dict[int, int]
    modulators: tuple[Modulator, ...]  # of the instrument
    added_modulators: tuple[Modulator, ...]  # of the preset
    keys: tuple[int, int]
    velocities: tuple[int, int]

    def distance(self, key: int, velocity: int) -> tuple[int, int]:
        """Return by how many keys and how much velocity a note is outside this zone; (0, 0) in it."""
        keys, velocities = (
            max(low - value, value - high, 0)
            for value, (low, high) in ((key, self.keys), (velocity, self.velocities))
        )
        return keys, velocities


@dataclass(frozen=True, eq=False)
class Sample:
    """The sample of a zone."""

    values: np.ndarray  # int16
    loop: tuple[int, int] | None
    rate: int  # Hz
    root: int  # MIDI key at which the sample sounds at its own rate
    correction: int  # cents


class FontFile:
    """The presets and samples of a SoundFont file.

    Args:
        path: the `.sf2` or `.sf3` file; 16-bit samples are read, a 24-bit extension is ignored.
        defaults: values of generators that a zone does not set.

    Raises:
        SoundFontError: the file is not a SoundFont, or is cut short.
        FileNotFoundError: there is no such file.
    """

    def __init__(self, path: Path, defaults: dict[int, int]) -> None:
        self.path, self._defaults = path, defaults
        chunks = _read_chunks(path)
        self._bytes = chunks["smpl"]
        self._samples = np.frombuffer(self._bytes[: len(self._bytes) // 2 * 2], "<i2")
        self._decoded: dict[int, np.ndarray] = {}
        self._lists = {name: _records(chunks[name], name, path) for name in _RECORDS}
        self._check_lists()
        headers = self._lists["phdr"][:-1]  # the last one only ends the list
        self._presets = {(int(row["bank"]), int(row["program"])): i for i, row in enumerate(headers)}

    def _check_lists(self) -> None:
        """Raise a SoundFontError unless every place that a list refers to exists."""
        for head, bag, gen, mod in (("phdr", "pbag", "pgen", "pmod"), ("inst", "ibag", "igen", "imod")):
            for upper, field, lower in ((head, "bag", bag), (bag, "gen", gen), (bag, "mod", mod)):
                places = self._lists[upper][field].astype(np.int64)
                if (np.diff(places) < 0).any() or places[-1] >= len(self._lists[lower]):
                    raise SoundFontError(
                        f"{self.path.name} is broken: {upper!r} leaves the order of {lower!r}"
                    )

    @property
    def programs(self) -> dict[int, str]:
        """Names of the programs of bank 0, by number from 0."""
        headers = self._lists["phdr"]
        names = {p: headers[i]["name"].decode("latin-1") for (b, p), i in self._presets.items() if b == 0}
        return dict(sorted(names.items()))

    def zones(self, program: int) -> list[Zone]:
        """Combine every zone of a preset of bank 0 with every zone of its instrument; its values are added.

        Raises:
            SoundFontError: there is no such program, or the file is broken.
        """
        if (0, program) not in self._presets:
            known = ", ".join(map(str, self.programs))
            raise SoundFontError(f"{self.path.name} has no program {program}; it has {known}")
        zones = []
        for above, added in self._parts("phdr", "p", self._presets[0, program], INSTRUMENT):
            self._require(above[INSTRUMENT], "inst")
            for below, modulators in self._parts("inst", "i", above[INSTRUMENT], SAMPLE):
                special = {INSTRUMENT, KEY_RANGE, VELOCITY_RANGE}
                extra = {k: v for k, v in above.items() if k not in special}
                total = below | {k: v + below.get(k, self._defaults.get(k, 0)) for k, v in extra.items()}
                ranges = (_common(above, below, g) for g in (KEY_RANGE, VELOCITY_RANGE))
                self._require(total[SAMPLE], "shdr")
                zones.append(Zone(total, modulators, added, *ranges))
        return zones

    def _parts(
        self, heads: str, letter: str, index: int, last: int
    ) -> list[tuple[dict[int, int], tuple[Modulator, ...]]]:
        """Return each zone's generators and modulators.

        A first zone without `last` (instrument, sample) applies to all others, where they say nothing else.
        """
        heads, bags = self._lists[heads], self._lists[f"{letter}bag"]
        gens, mods = self._lists[f"{letter}gen"], self._lists[f"{letter}mod"]
        zones, shared, shared_mods = [], {}, {}
        for bag in range(heads["bag"][index], heads["bag"][index + 1]):
            gen_rows = gens[bags["gen"][bag] : bags["gen"][bag + 1]]
            mod_rows = mods[bags["mod"][bag] : bags["mod"][bag + 1]]
            zone = {int(row["oper"]): int(row["amount"]) for row in gen_rows}
            own = {m.identity: m for m in (Modulator(*map(int, row)) for row in mod_rows)}
            if last in zone:
                zones.append((shared | zone, tuple((shared_mods | own).values())))
            elif not zones:
                shared, shared_mods = zone, own
        return zones

    def _require(self, index: int, name: str) -> None:
        if not 0 <= index < len(self._lists[name]) - 1:  # the last one only ends the list
            raise SoundFontError(f"{self.path.name} is broken: there is no number {index} in {name!r}")

    def sample(self, zone: Zone) -> Sample:
        """Return the sample of a zone; raise a SoundFontError if it is not in the file."""
        index = zone.generators[SAMPLE]
        header = self._lists["shdr"][index]

        def shift(offset: tuple[int, int]) -> int:
            fine, coarse = (zone.generators.get(generator, 0) for generator in offset)
            return fine + 32768 * coarse

        start, end, *loop = (int(header[name]) for name in ("start", "end", "loop_start", "loop_end"))
        samples = self._samples
        if header["type"] & _COMPRESSED:
            samples = self._decode(index, start, end)
            start, end = 0, len(samples)
        else:
            loop = [place - start for place in loop]
        first = shift(_START)
        loop = loop[0] + shift(_LOOP_START) - first, loop[1] + shift(_LOOP_END) - first
        start, end = start + first, end + shift(_END)
        looped = zone.generators.get(SAMPLE_MODES, 0) & 1 and 0 <= loop[0] < loop[1]
        if not 0 <= start < end <= len(samples) or (looped and start + loop[1] > len(samples)):
            raise SoundFontError(f"{self.path.name} is broken: a sample from {start} to {end} is not in it")
        root = zone.generators.get(ROOT_KEY, -1)
        return Sample(
            values=samples[start : max(end, start + loop[1] if looped else 0)],
            loop=loop if looped else None,
            rate=int(header["rate"]),
            root=int(header["key"]) if root < 0 else root,
            correction=int(header["correction"]),
        )

    def _decode(self, index: int, start: int, end: int) -> np.ndarray:
        """Return the values of a compressed sample from its bytes `start` to `end`, int16, decoded once."""
        if index not in self._decoded:
            if not 0 <= start < end <= len(self._bytes):
                raise SoundFontError(
                    f"{self.path.name} is broken: a compressed sample from {start} to {end} is not in it"
                )
            self._decoded[index] = _vorbis(bytes(self._bytes[start:end]), self.path)
        return self._decoded[index]


def _vorbis(data: bytes, path: Path) -> np.ndarray:
    """Return the first channel of an Ogg Vorbis stream, int16."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            if file.frames > _LONGEST_SAMPLE:
                raise SoundFontError(f"{path.name} is broken: a compressed sample has {file.frames} values")
            return np.ascontiguousarray(file.read(dtype="int16", always_2d=True)[:, 0])
    except soundfile.LibsndfileError as error:
        raise SoundFontError(
            f"{path.name} is broken: a compressed sample cannot be decoded ({error})"
        ) from None


def _common(above: dict[int, int], below: dict[int, int], generator: int) -> tuple[int, int]:
    """Return the lowest and highest number that both zones' ranges allow; without a range, 0 to 127."""
    ranges = [zone.get(generator, 127 << 8) for zone in (above, below)]  # low in one byte, high in the next
    return max(r & 255 for r in ranges), min(r >> 8 & 255 for r in ranges)


def _read_chunks(path: Path) -> dict[str, memoryview]:
    """Return the chunks in the three lists of the RIFF file, by name; the file is in memory once."""
    data = memoryview(path.read_bytes())
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


def _walk(data: memoryview, start: int, stop: int, path: Path):
    while start + 8 <= stop:
        name = bytes(data[start : start + 4]).decode("latin-1")
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        if start + 8 + size > stop:
            raise SoundFontError(f"{path.name} is cut short: its chunk {name!r} should have {size} bytes")
        yield name, start + 8, size
        start += 8 + size
        # An odd chunk is padded by a zero, but not by MuseScore; no name begins with one.
        start += size % 2 and start < len(data) and data[start] == 0


def _records(data: memoryview, name: str, path: Path) -> np.ndarray:
    dtype = np.dtype(_RECORDS[name])
    if not data or len(data) % dtype.itemsize:
        raise SoundFontError(
            f"{path.name} is broken: {name!r} is {len(data)} bytes, not records of {dtype.itemsize}"
        )
    return np.frombuffer(data, dtype)
