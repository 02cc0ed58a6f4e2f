"""Who plays: instruments with their ranges, and ensembles with their scores and seats."""

from dataclasses import dataclass

INSTRUMENTS = {  # General MIDI program from 0, lowest and highest key
    "piano": (1, 28, 96),
    "harpsichord": (6, 29, 89),
    "music box": (10, 60, 96),
    "organ": (19, 36, 91),
    "accordion": (21, 53, 89),
    "guitar": (24, 40, 83),
    "violin": (40, 55, 96),
    "viola": (41, 48, 84),
    "cello": (42, 36, 76),
    "choir": (52, 41, 81),
    "trumpet": (56, 54, 82),
    "trombone": (57, 40, 72),
    "tuba": (58, 29, 60),
    "horn": (60, 40, 77),
    "oboe": (68, 58, 89),
    "bassoon": (70, 34, 72),
    "clarinet": (71, 50, 89),
    "flute": (73, 60, 96),
    "recorder": (74, 65, 98),
    "banjo": (105, 48, 86),
    "fiddle": (110, 55, 93),
}


@dataclass(frozen=True)
class Seat:
    """Where an instrument is, seen from the listener."""

    azimuth: float  # degrees to the right
    distance: float  # m


_FRONT = (Seat(0, 2.5),)
_ARC = (Seat(-40, 3.0), Seat(-15, 3.5), Seat(15, 3.5), Seat(40, 3.0))
_FAR_ARC = (Seat(-40, 4.5), Seat(-15, 5.0), Seat(15, 5.0), Seat(40, 4.5))


@dataclass(frozen=True)
class Ensemble:
    """Who plays what, and where."""

    sources: tuple[str, ...]  # names from SOURCES, the next when one runs out of scores
    instruments: tuple[str, ...]  # names from INSTRUMENTS, divided among the voices, first to last
    seats: tuple[Seat, ...] = _FRONT  # of the instruments


_PARTS, _HYMNS = ("quartets", "chorales"), ("chorales", "quartets")
_AIRS, _DANCES = ("airs", "fiddle_tunes"), ("fiddle_tunes", "airs")
ENSEMBLES = {
    "solo_piano": Ensemble(_PARTS, ("piano",)),
    "harpsichord": Ensemble(_PARTS, ("harpsichord",)),
    "string_quartet": Ensemble(_PARTS, ("violin", "violin", "viola", "cello"), _ARC),
    "woodwind_quartet": Ensemble(_PARTS, ("flute", "oboe", "clarinet", "bassoon"), _ARC),
    "flute_and_guitar": Ensemble(
        _PARTS, ("flute", "guitar", "guitar", "guitar"), (Seat(-25, 2.5), *[Seat(25, 2.5)] * 3)
    ),
    "church_organ": Ensemble(_HYMNS, ("organ",), (Seat(0, 8.0),)),
    "choir": Ensemble(_HYMNS, ("choir",) * 4, _FAR_ARC),
    "brass_quartet": Ensemble(_HYMNS, ("trumpet", "horn", "trombone", "tuba"), _FAR_ARC),
    "flute": Ensemble(_AIRS, ("flute",)),
    "recorder": Ensemble(_AIRS, ("recorder",)),
    "acoustic_guitar": Ensemble(_AIRS, ("guitar",)),
    "music_box": Ensemble(_AIRS, ("music box",)),
    "fiddle": Ensemble(_DANCES, ("fiddle",)),
    "accordion": Ensemble(_DANCES, ("accordion",)),
    "banjo": Ensemble(_DANCES, ("banjo",)),
}
