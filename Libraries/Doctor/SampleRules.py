"""Rules on generated clips: are they noise, are the highs gone, are they copies of training clips.

Each rule takes a `Case` and returns a `Finding`, or None if what it looked at is sound.
"""

from torch import Tensor

from Libraries.Doctor.Case import CannotLook, Case, Finding
from Libraries.Doctor.CurveRules import level_of_a_constant
from Libraries.Doctor.DataRules import COPY, nearest_in_training
from Libraries.Measures.Sound import N_FFT, mean_spectrum
from Libraries.Sound.Metrics import log_mel_distance

LEARNED = 0.9  # of the loss of a constant, above which nothing has been learned that samples could show
NOISY = 0.4  # of the way from real clips (0) to decoded noise (1); healthy runs of minutes reach .02
COPIED = 0.5  # of the distance of clips never heard; the nearest of the demo has .75 or more
HIGHS = 0.5  # of the band that is kept: what lies above is called high here
MISSING_DB = 10.0  # of power in the highs, medians over clips; two sets of real clips differ by 1 to 3 dB


def samples_are_noise(case: Case) -> Finding | None:
    """Find samples that sound like noise although the loss fell.

    Journal, 03.03.2025: "Second training run also ends in no senseful data, noise too high but training
    seemed fine"; lucidrains/imagen-pytorch#25: random noise though both losses go down. Log-mel distances say
    where samples lie between real clips and decoded noise.
    """
    loss, level = case.final_loss, level_of_a_constant(case)
    if loss > LEARNED * level:
        raise CannotLook(
            f"the loss is {loss:.2f}, not below the {level:.2f} of a constant: samples must be noise"
        )
    sound = case.sound
    count, rate = min(map(len, sound.values())), case.settings.spectrogram.sample_rate
    samples, floor, noise = (
        log_mel_distance(sound[name][:count], sound["held_out"][:count], rate)
        for name in ("samples", "train", "noise")
    )
    way = (samples - floor) / max(noise - floor, 1e-9)
    if way <= NOISY:
        return None
    return Finding(
        f"the loss fell to {loss:.2f}, but samples lie {way:.0%} of the way from music to noise (log-mel "
        f"distance {samples:.1f}, of real clips {floor:.1f}, of noise {noise:.1f})",
        "look at the other findings on sampler, data and EMA first; if there are none, train longer",
        {"way": way, "distance": samples},
    )


def highs_removed(case: Case) -> Finding | None:
    """Find samples whose upper half of the band is much weaker than that of real clips.

    Journal, 24.03.2025: "seemingly training is not completely stable as after some epochs all highs seem to
    get removed".
    """
    frequency = HIGHS * case.settings.spectrogram.kept_frequency
    ours, theirs = (_highs(case, case.sound[name], frequency) for name in ("samples", "held_out"))
    if ours >= theirs - MISSING_DB:
        return None
    return Finding(
        f"above {frequency:.0f} Hz samples are {theirs - ours:.0f} dB weaker than real clips",
        "train longer or with a wider network, or weight low noise levels more (loss_weighting)",
        {"samples_db": ours, "real_db": theirs},
    )


def copies_among_samples(case: Case) -> Finding | None:
    """Find samples that are training clips, at any shift in time.

    Somepalli et al. 2023, "Diffusion art or digital forgery?"; Carlini et al. 2023.
    """
    nearest = nearest_in_training(case, case.samples)
    held_out = nearest_in_training(case, case.held_out).median().item()
    copies = int((nearest < max(COPY, COPIED * held_out)).sum())
    if not copies:
        return None
    return Finding(
        f"{copies} of {len(nearest)} samples are copies of training clips ({nearest.min():.2f} deviations "
        f"away; clips never heard {held_out:.2f})",
        "add music, stop earlier, use a smaller network or dropout",
        {"copies": copies, "nearest": nearest.min().item(), "held_out": held_out},
    )


def _highs(case: Case, waveforms: Tensor, frequency: float) -> float:
    """Return the median over clips of the power above a frequency against the whole, in dB."""
    power = mean_spectrum(waveforms)
    first = int(frequency * N_FFT / case.settings.spectrogram.sample_rate) + 1
    share = power[:, first:].sum(1) / power.sum(1).clamp(min=1e-12)
    return 10 * share.median().clamp(min=1e-12).log10().item()


SAMPLE_RULES = (samples_are_noise, highs_removed, copies_among_samples)
