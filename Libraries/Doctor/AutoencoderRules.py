"""Rules on an autoencoder: what its latent carries, and what it loses.

Each rule takes a `Case` and returns a `Finding`, or None if what it looked at is sound.
"""

from Libraries.Doctor.Case import Case, Finding
from Libraries.Evaluation.VAEChecks import Check, check_bands, check_collapse, check_decoder, check_standard
from Libraries.Evaluation.VAEEvaluation import reconstruct
from Libraries.Sound.Metrics import log_mel_distance

LOST = 2.0  # log-mel distance of reconstructions to their own originals; the demo's trained one has .4 to .9,
# and where it is 2 a music tagger hears reconstructions as other music than their originals


def latent_collapsed(case: Case) -> Finding | None:
    """Find an autoencoder whose latent carries nothing, or whose decoder does not listen to it.

    Bowman et al. 2016: posterior collapse; journal, 23.02.2025, weights the reproduction by 10,000.
    """
    x0 = case.held_out
    check = check_collapse(case.codec.posterior(x0))
    ignored = check_decoder(case.codec.decode, case.codec.encode(x0), x0)
    found = check if check.failed else ignored
    return _finding(found, "lower kl_weight or raise kl_warmup_steps in vae.loss, and train it again")


def latent_not_standard(case: Case) -> Finding | None:
    """Find latents that are not of mean 0 and deviation 1, under noise that is.

    Rombach et al. 2022, section 4.3.2 and appendix G: the scale of the latent decides the signal-to-noise
    ratio; asked in huggingface/diffusers#437 and Stability-AI/stable-audio-tools#62.
    """
    check = check_standard(case.codec.encode(case.clips("train")))
    return _finding(
        check, "measure the latents again: resume the autoencoder's run, and train the diffusion again"
    )


def autoencoder_is_the_limit(case: Case) -> Finding | None:
    """Find an autoencoder that loses the music before diffusion begins.

    Journal, 23.02.2025: "VAE does not seem to be the way to go, it induces too much noise and the error does
    not seem to get lower with lots of epochs".
    """
    x0 = case.held_out
    reconstruction = reconstruct(case.codec, x0)
    bands = check_bands(x0, reconstruction, case.settings.spectrogram)
    spectrogram = case.run.spectrogram(device=case.device)
    sound = (spectrogram.decode(clips) for clips in (reconstruction, x0))
    lost = log_mel_distance(*sound, spectrogram.config.sample_rate)
    if lost <= LOST and not bands.failed:
        return None
    return Finding(
        f"reconstructions are {lost:.1f} away from their own originals (log-mel distance), and "
        f"{bands.sentence}",
        "train the autoencoder longer, make it wider or its latent larger, or set space='spectrogram'",
        {"distance": lost, "error": sum(bands.values) / len(bands.values)},
    )


def _finding(check: Check, advice: str) -> Finding | None:
    return (
        Finding(check.sentence, advice, {f"value {i}": value for i, value in enumerate(check.values)})
        if check.failed
        else None
    )


AUTOENCODER_RULES = (latent_collapsed, latent_not_standard, autoencoder_is_the_limit)
