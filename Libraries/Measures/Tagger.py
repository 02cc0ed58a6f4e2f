"""A music tagger as an embedding: musicnn (Pons and Serra 2019, arXiv 1909.06654), on MagnaTagATune's tags.

The weights are the authors' (ISC licence), converted by `benchmarks/convert_tagger.py`. Listeners wrote the
50 tags: instruments, tempo, mood, style. What the network needs in order to tell them apart is what the
distances of `Distances.py` compare.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from Libraries.Sound.FilterBanks import mel_matrix

WEIGHTS = Path(__file__).resolve().parents[2] / "Models" / "released" / "tagger" / "tagger.safetensors"

SAMPLE_RATE = 16_000  # Hz
N_FFT, HOP, N_MELS = 512, 256, 96
PATCH_FRAMES = 187  # 3 s, what the network was trained on
SHORTEST_SECONDS = 0.1
_EPSILON = 1e-3  # TensorFlow's of batch normalisation; torch has 1e-5

# fmt: off
TAGS = (
    "guitar", "classical", "slow", "techno", "strings", "drums", "electronic", "rock", "fast", "piano",
    "ambient", "beat", "violin", "vocal", "synth", "female", "indian", "opera", "male", "singing",
    "vocals", "no vocals", "harpsichord", "loud", "quiet", "flute", "woman", "male vocal", "no vocal", "pop",
    "soft", "sitar", "solo", "man", "classic", "choir", "voice", "new age", "dance", "male voice",
    "female vocal", "beats", "harp", "cello", "no voice", "weird", "country", "metal", "female voice",
    "choral",
)
# fmt: on


class Heard(NamedTuple):
    """What the tagger makes of patches or clips, all float32."""

    tags: Tensor  # (B, 50) probabilities, in the order of TAGS
    embedding: Tensor  # (B, 200), the penultimate layer
    features: Tensor  # (B, 753), the mean over time of every layer before it


class Tagger(nn.Module):
    """Wide and tall filters over the mel bands, three layers over time, pooling, two dense layers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1, _EPSILON)
        timbral = (_Front(204, bands=0.4, frames=7), _Front(204, bands=0.7, frames=7))
        temporal = (_Front(51, bands=0, frames=frames) for frames in (128, 64, 32))
        self.front = nn.ModuleList([*timbral, *temporal])
        self.middle = nn.ModuleList([_Middle(channels) for channels in (561, 64, 64)])
        self.pool_norm = nn.BatchNorm1d(2 * 753, _EPSILON)
        self.dense = nn.Linear(2 * 753, 200)
        self.dense_norm = nn.BatchNorm1d(200, _EPSILON)
        self.output = nn.Linear(200, len(TAGS))

    def forward(self, mel: Tensor) -> Heard:
        """Hear log-mel patches (B, 1, 96, T) float32, as `log_mel` and `patches` make them."""
        x = self.norm(mel)
        front = torch.cat([layer(x) for layer in self.front], dim=1)  # (B, 561, T)
        first = self.middle[0](front)
        second = self.middle[1](first) + first
        third = self.middle[2](second) + second
        layers = torch.cat([front, first, second, third], dim=1)  # (B, 753, T)
        features = layers.mean(2)
        pooled = torch.stack([layers.amax(2), features], dim=2).flatten(1)  # greatest, mean, greatest, ...
        embedding = self.dense_norm(F.relu(self.dense(self.pool_norm(pooled))))
        return Heard(self.output(embedding).sigmoid(), embedding, features)


class _Front(nn.Module):
    """Filters over a share of the bands (0: a single one) and some frames, then the greatest over bands."""

    def __init__(self, filters: int, bands: float, frames: int):
        super().__init__()
        self.conv = nn.Conv2d(1, filters, (max(1, int(bands * N_MELS)), frames))
        self.norm = nn.BatchNorm2d(filters, _EPSILON)
        self.padding = (frames - 1) // 2, frames // 2  # TensorFlow pads the end by one more

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 96, T) -> (B, filters, T): the greatest over bands of norm(relu(conv(x))).

        Both are monotone, so the greatest is looked for first, which spares them all bands but one; where the
        normalisation turns a filter's sign, that is the filter's least.
        """
        sign = torch.where(self.norm.weight < 0, -1.0, 1.0)
        kernel, bias = self.conv.weight * sign[:, None, None, None], self.conv.bias * sign
        greatest = F.conv2d(F.pad(x, self.padding), kernel, bias).amax(2, keepdim=True)  # (B, filters, 1, T)
        return self.norm(F.relu(greatest * sign[:, None, None]))[:, :, 0]


class _Middle(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv1d(channels, 64, 7, padding=3)
        self.norm = nn.BatchNorm1d(64, _EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) -> (B, 64, T)."""
        return self.norm(F.relu(self.conv(x)))


def load_tagger(path: Path = WEIGHTS) -> Tagger:
    """Return the released tagger, ready to use, on the CPU.

    Raises:
        FileNotFoundError: there are no weights at `path`; the sentence says what makes them.
        ValueError: the file is damaged, or holds other weights.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: python benchmarks/convert_tagger.py WHEEL writes it")
    tagger = Tagger()
    try:
        tagger.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} does not hold the tagger ({reason}): restore it from git") from None
    return tagger.eval().requires_grad_(False)


@torch.no_grad()
def hear(tagger: Tagger, waveforms: Tensor, sample_rate: int, batch_size: int = 16) -> Heard:
    """Hear clips of any one length: what is heard of each clip is the mean over its patches.

    Args:
        waveforms: (B, 1, L) float32 in [-1, 1], at least 0.1 s.
        sample_rate: Hz; resampled to 16 kHz where it differs.
        batch_size: clips at a time.

    Raises:
        ValueError: the waveforms are not (B, 1, L) or too short.
    """
    batches = resample(waveforms, sample_rate, SAMPLE_RATE).split(batch_size)
    heard = [_hear_batch(tagger, batch.to(tagger.dense.weight.device)) for batch in batches]
    return Heard(*(torch.cat(parts).cpu() for parts in zip(*heard, strict=True)))


def _hear_batch(tagger: Tagger, waveforms: Tensor) -> Heard:
    cut = patches(log_mel(waveforms))  # (B, P, 1, 96, 187)
    return Heard(*(part.unflatten(0, cut.shape[:2]).mean(1) for part in tagger(cut.flatten(0, 1))))


def resample(waveforms: Tensor, sample_rate: int, target_rate: int) -> Tensor:
    """Return waveforms (B, 1, L) float32 at another rate in Hz, on the CPU.

    Raises:
        ValueError: the waveforms are not (B, 1, L) or shorter than 0.1 s.
    """
    if waveforms.ndim != 3 or waveforms.shape[1] != 1 or waveforms.shape[2] < SHORTEST_SECONDS * sample_rate:
        shape = tuple(waveforms.shape)
        raise ValueError(f"waveforms have shape {shape}; expected (B, 1, L) of {SHORTEST_SECONDS} s or more")
    waveforms = waveforms.detach().cpu().float()
    if sample_rate == target_rate:
        return waveforms
    clips = [soxr.resample(clip, sample_rate, target_rate) for clip in waveforms[:, 0].numpy()]
    return torch.from_numpy(np.stack(clips))[:, None]


def log_mel(waveforms: Tensor) -> Tensor:
    """Return log10(1 + 10000 S) of the power S in 96 mel bands: (B, 1, L) at 16 kHz -> (B, 1, 96, T)."""
    window = torch.hann_window(N_FFT, device=waveforms.device)
    spectrum = torch.stft(waveforms[:, 0], N_FFT, HOP, window=window, return_complex=True)
    power = _mel_filters().to(waveforms.device) @ spectrum.abs().square()
    return torch.log10(1 + 10_000 * power)[:, None]


def patches(mel: Tensor) -> Tensor:
    """Cut (B, 1, 96, T) into patches of 187 frames: (B, P, 1, 96, 187), spread from the start to the end.

    A clip that is shorter goes round until it fills a patch, as in the network's training ("repeat-pad").
    """
    n_frames = mel.shape[-1]
    if n_frames < PATCH_FRAMES:
        return mel[..., torch.arange(PATCH_FRAMES) % n_frames][:, None]
    count = -(-n_frames // PATCH_FRAMES)
    starts = np.linspace(0, n_frames - PATCH_FRAMES, count).astype(int)
    return torch.stack([mel[..., start : start + PATCH_FRAMES] for start in starts], dim=1)


@lru_cache
def _mel_filters() -> Tensor:
    return mel_matrix(N_MELS, N_FFT, SAMPLE_RATE, SAMPLE_RATE / 2).float()
