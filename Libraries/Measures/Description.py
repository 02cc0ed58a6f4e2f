"""What the measures need to know of a set of clips: heard, transcribed and pictured once."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from Libraries.Measures.Copies import level_pictures
from Libraries.Measures.Distances import Values
from Libraries.Measures.Notes import find_notes, note_measures, transcribe
from Libraries.Measures.Rhythm import rhythm_measures
from Libraries.Measures.Sound import sound_measures
from Libraries.Measures.Tagger import Tagger, hear
from Libraries.Sound.Metrics import log_mel_statistics
from Libraries.Sound.Stereo import downmix

_AT_A_TIME = 32  # clips: what is held in memory grows with it

UNITS = {  # of the quantities that are compared as distributions, in the order of the table
    "note length": "s",
    "note steadiness": "cents",
    "distance to the grid": "cents",
    "onsets": "a second",
    "polyphony": "notes",
    "notes in the best key": "%",
    "pulse clarity": "",
    "spread of intervals": "log",
    "spectral tilt": "dB/octave",
    "level above 5 kHz": "dB",
    "loudness": "dB",
    "clipping": "% of samples",
    "silence": "% of frames",
    "DC": "% of full scale",
}
STEREO_UNITS = {"stereo width": "dB", "channel correlation": ""}  # of what two channels have beside these


@dataclass(frozen=True, eq=False)
class Described:
    """A set of clips as the measures see it; real sets are described once and compared often."""

    embedding: np.ndarray  # (N, 200), the tagger's
    log_mel: np.ndarray  # (N, R, 64), `Metrics.log_mel_statistics` of each clip
    pictures: Tensor  # (N, 32, T), `Copies.level_pictures`
    values: dict[str, Values]  # by the names of UNITS

    def __len__(self) -> int:
        return len(self.embedding)

    def select(self, indices: np.ndarray) -> "Described":
        """Return the description of some of the clips, each named once."""
        return Described(
            self.embedding[indices],
            self.log_mel[indices],
            self.pictures[torch.as_tensor(indices)],
            {name: values.select(indices) for name, values in self.values.items()},
        )


def describe(waveforms: Tensor, sample_rate: int, tagger: Tagger) -> Described:
    """Return the description of clips (N, C, L) float32 in [-1, 1]; Hz. Two channels are heard as their mean.

    Only `sound_measures` hears them apart.
    """
    waveforms = waveforms.detach().cpu().float()
    sound, waveforms = sound_measures(waveforms, sample_rate), downmix(waveforms)
    posteriors = transcribe(waveforms, sample_rate)
    notes = find_notes(posteriors)
    rows = torch.cat([log_mel_statistics(batch, sample_rate) for batch in waveforms.split(_AT_A_TIME)])
    return Described(
        hear(tagger, waveforms, sample_rate).embedding.double().numpy(),
        rows.unflatten(0, (len(waveforms), -1)).double().numpy(),
        level_pictures(waveforms, sample_rate),
        note_measures(notes) | rhythm_measures(notes, posteriors) | sound,
    )
