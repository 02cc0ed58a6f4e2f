"""Music of any length from a trained run."""

from torch import Tensor

from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Sampling.Editing import EditConfig
from Libraries.Sampling.Guidance import GuidanceConfig
from Libraries.Sampling.Loop import Callback, SamplerConfig


def make_music(
    model: DiffusionRun,
    seed: int,
    seconds: float | None,
    sampler: SamplerConfig,
    edit: EditConfig,
    *,
    label: Tensor | None = None,
    guidance: GuidanceConfig | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Return a waveform (channels, L): the clip of a seed, continued to its length or cut to it.

    Args:
        seconds: length in s, at least one hop; None: that of a clip.
        edit: gives `resamplings` and `overlap_seconds` of the continuation.
        label: int64 (1,), as in `DiffusionRun.denoiser`.
        callback: sees every step of every sampling.

    Raises:
        ValueError: `seconds` is too short, or as `DiffusionRun.denoiser`.
        CheckpointError: as `DiffusionRun.denoiser`.
    """
    spectrogram = model.spectrogram.config
    rate, hop = spectrogram.sample_rate, spectrogram.hop_length
    L = spectrogram.kept_samples if seconds is None else round(seconds * rate)
    if hop > L:
        raise ValueError(f"{seconds} s are shorter than a frame: ask for {hop / rate:.3f} s or more")
    options = {"labels": label, "guidance": guidance, "callback": callback}
    x0 = model.generate([seed], sampler, 1, **options)
    n_frames = -(-L // hop) + 1  # from the centre of the first frame to that of the last
    if n_frames > spectrogram.n_frames:
        editor = model.editor(sampler, edit.resamplings, **options)
        overlap = spectrogram.frames_in(edit.overlap_seconds)
        x0 = editor.extend(x0.to(model.device), n_frames, overlap, [seed])
    return model.to_audio(x0, any_length=True)[0, :, :L]
