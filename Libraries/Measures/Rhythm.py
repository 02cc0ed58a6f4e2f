"""Rhythm, from the onsets that the transcriber hears: how clear the pulse is, how even the times between."""

import librosa
import numpy as np

from Libraries.Measures.Distances import Values, values_per_clip
from Libraries.Measures.Notes import HOP, SAMPLE_RATE, Notes, Posteriors

CHORD_SECONDS = 0.05  # onsets that near to one another are one event
SLOWEST, FASTEST = 60.0, 480.0  # pulses a minute: from a beat to its quarters
LONGEST_WINDOW = 4.0  # s in which one tempo is looked for
RESTING = 0.3  # what the model says of onsets where there may be none
FEWEST_EVENTS = 4  # in a clip: three intervals


def rhythm_measures(notes: Notes, posteriors: Posteriors) -> dict[str, Values]:
    """Return pulse clarity and the spread of inter-onset intervals, of clips with four events or more."""
    events = [event_times(notes, clip) for clip in range(notes.clips)]
    strength = onset_strength(posteriors)
    clarity = [pulse_clarity(*clip) for clip in zip(events, strength, strict=True)]
    spread = [interval_spread(times) for times in events]
    return {
        "pulse clarity": values_per_clip(np.array(clarity)),
        "spread of intervals": values_per_clip(np.array(spread)),
    }


def event_times(notes: Notes, clip: int) -> np.ndarray:
    """Return when something is struck in one clip, in s; the notes of a chord are one event."""
    times = np.sort(notes.start[(notes.clip == clip) & notes.struck])
    kept: list[float] = []
    for time in times:
        if not kept or time - kept[-1] > CHORD_SECONDS:
            kept.append(time)
    return np.array(kept)


def onset_strength(posteriors: Posteriors) -> np.ndarray:
    """Return how much begins in each frame: (B, T), the model's onsets less its resting level, over keys."""
    return np.maximum(posteriors.onset - RESTING, 0).sum(axis=2)


def pulse_clarity(times: np.ndarray, strength: np.ndarray) -> float:
    """Return how much higher the predominant local pulse stands at the events of a clip than on average.

    The pulse (Grosche and Müller 2011; `librosa.beat.plp`) is the sinusoid that locally fits the onsets best,
    its positive half, from 0 to 1. Events on an even pulse give about 0.6, events anywhere less.

    Args:
        times: of the events in s.
        strength: (T,), from `onset_strength`.

    Returns:
        NaN for fewer than four events.
    """
    if len(times) < FEWEST_EVENTS:
        return float("nan")
    pulse = librosa.beat.plp(
        onset_envelope=strength,
        sr=SAMPLE_RATE,
        hop_length=HOP,
        win_length=min(round(LONGEST_WINDOW * SAMPLE_RATE / HOP), len(strength)),
        tempo_min=SLOWEST,
        tempo_max=FASTEST,
    )
    at_events = np.interp(times * SAMPLE_RATE / HOP, np.arange(len(pulse)), pulse)
    return float(at_events.mean() - pulse.mean())


def interval_spread(times: np.ndarray) -> float:
    """Return the deviation of the natural logarithm of the times between events; NaN for fewer than four.

    0 is a clockwork, about 0.35 quarters and eighths in turn, 1 events at random times (about).
    """
    return float(np.log(np.diff(times)).std()) if len(times) >= FEWEST_EVENTS else float("nan")
