"""What a font's modulators add to its generators for a note: section 8 of the specification 2.04.

Notes are played with all controllers at rest, so only key and velocity vary.
"""

import math
from collections import defaultdict

from Libraries.DemoMusic.FontFile import Modulator, Zone

_ATTENUATION = 48
_NONE, _VELOCITY, _KEY, _PITCH_WHEEL, _WHEEL_RANGE = 0, 2, 3, 14, 16  # general sources; others are 0 at rest
_CONTROLLERS = {7: 100, 10: 64, 11: 127}  # MIDI controllers that are not 0 at rest: volume, pan, expression

# Of the ten default modulators of section 8.4 only those of velocity count while controllers rest. The one to
# the filter's cutoff is left out: FluidSynth does without it, and fonts are voiced by that (FluidR3 switches
# it off itself).
_DEFAULTS = {m.identity: m for m in [Modulator(0x0502, _ATTENUATION, 960, 0, 0)]}


def modulation(zone: Zone, key: int, velocity: int) -> dict[int, float]:
    """Return what is added to a zone's generators for a note, by generator, in the generators' units."""
    own = {m.identity: m for m in zone.modulators}
    added = defaultdict(float)
    for modulator in (*(_DEFAULTS | own).values(), *zone.added_modulators):
        amount = modulator.amount * _source(modulator.source, key, velocity)
        amount *= _source(modulator.by, key, velocity)
        added[modulator.target] += abs(amount) if modulator.transform == 2 else amount
    return {target: amount for target, amount in added.items() if amount}


def _source(source: int, key: int, velocity: int) -> float:
    """Return what a source gives, -1 to 1: section 8.2.

    Seven bits choose the source, one says that it is a MIDI controller; then follow direction, polarity and
    six bits of shape.
    """
    index = source & 127
    if source & 0x80:
        value = _CONTROLLERS.get(index, 0) / 127
    elif index == _NONE:
        return 1.0
    else:
        known = {_VELOCITY: velocity / 127, _KEY: key / 127, _PITCH_WHEEL: 0.5, _WHEEL_RANGE: 2 / 127}
        value = known.get(index, 0.0)
    value = 1 - value if source & 0x100 else value
    shape = source >> 10
    if not source & 0x200:
        return _shaped(shape, value)
    return math.copysign(_shaped(shape, abs(2 * value - 1)), 2 * value - 1)


def _shaped(shape: int, value: float) -> float:
    """Return a value from 0 to 1 bent by a shape: linear, concave, convex, switch; another counts for 0."""
    if shape == 1:
        return _concave(value)
    if shape == 2:
        return 1 - _concave(1 - value)
    return (value, 0.0, 0.0, float(value >= 0.5))[shape] if shape < 4 else 0.0


def _concave(value: float) -> float:
    """Return -20/96 log10((1 - value)²), at most 1: what makes attenuation follow the square of velocity."""
    return min(1.0, -40 / 96 * math.log10(1 - value)) if value < 1 else 1.0
