"""Rules on the noise schedule and the sampler: does noise hide the data, and do the steps follow the path.

Each rule takes a `Case` and returns a `Finding`, or None if what it looked at is sound.
"""

import math
from dataclasses import replace

from torch import Tensor

from Libraries.Doctor.Case import FEWEST_SAMPLES, Case, Finding
from Libraries.Sampling.Loop import SamplerConfig, inference_timesteps, switch_sampler

LEFT_SIGNAL = 0.05  # sqrt(ᾱ) at the last timestep; Stable Diffusion's is .068, of which Lin et al. 2023 warn
VISIBLE = 3.0  # standard errors by which the mean clip stands out of the noise; under 3 it is guesswork
LARGEST_FACTOR = 1_000.0  # of an error of eps in x0; at 1,000 an error of 1 % is an x0 of ±10
WITHOUT_NOISE = {"ddpm": "ddim", "dpmpp_2m_sde": "dpmpp_2m"}  # each stochastic sampler's deterministic form
REFERENCE = "dpmpp_2m", 50  # what all deterministic samplers converge to; 100 steps change it by 1 %
LARGEST_ERROR = 0.12  # deviations of the data; 10 steps of ddim on the demo miss by .08, 5 by .15
BETTER = 0.6  # of the error, where another spacing pays


def noise_leaves_signal(case: Case) -> Finding | None:
    """Find a schedule under whose last timestep the data can still be seen.

    Sampling starts from noise alone, where training has never been: Lin et al. 2023, "Common diffusion noise
    schedules and sample steps are flawed".
    """
    signal = case.schedule.signal[-1].item()
    visible = signal * case.encoded.mean(0).norm().item()
    if signal <= LEFT_SIGNAL and visible <= VISIBLE:
        return None
    return Finding(
        f"at the last timestep {signal:.3f} of the signal is left, and the mean clip stands {visible:.1f} "
        "standard errors out of the noise, but sampling starts from noise alone",
        "set schedule='cosine', zero_terminal_snr=True with v_prediction, or more num_train_timesteps",
        {"signal": signal, "visible": visible},
    )


def epsilon_without_signal(case: Case) -> Finding | None:
    """Find predicted noise where (almost) no signal is left to tell it from.

    x0 = (x_t - s·eps)/a divides by a. Journal, 06.03.2025: "switched to a linear noise schedule as the cosine
    is not working somehow"; Lin et al. 2023, section 3.2.
    """
    if case.settings.diffusion.prediction_type != "epsilon":
        return None
    sampler = case.settings.sampler
    first = inference_timesteps(case.schedule, sampler.num_inference_steps, sampler.spacing)[0]
    signal = case.schedule.signal[first].item()
    factor = case.schedule.noise_level[first].item() / signal if signal else math.inf
    if factor <= LARGEST_FACTOR:
        return None
    return Finding(
        f"the network predicts noise, and at the first sampling step (t = {first}) an error of 1 % in it is "
        f"one of {0.01 * factor:.0f} in x0",
        "set prediction_type='v_prediction', or schedule='linear'",
        {"factor": factor, "timestep": first},
    )


def too_few_sampling_steps(case: Case) -> Finding | None:
    """Find samples that are far from what the same noise becomes with many steps.

    Journal, 03.03.2025: "it takes 47 minutes to create a single Sample", which invites to save steps;
    huggingface/diffusers#7401. A stochastic sampler is judged without its noise.
    """
    suited = switch_sampler(*_without_noise(case))
    error = _error(case, suited)
    if error <= LARGEST_ERROR:
        return None
    return Finding(
        f"with {suited.num_inference_steps} steps samples miss their goal by {error:.2f} deviations",
        "raise num_inference_steps of the sampler",
        {"error": error, "steps": suited.num_inference_steps},
    )


def spacing_does_not_suit(case: Case) -> Finding | None:
    """Find sampling steps that stand at the wrong timesteps for this sampler and schedule.

    Lin et al. 2023, section 3.3: "leading" never visits the last timestep; solvers in σ are spoilt by steps
    even in t, whose first jump from the cosine's σ of 20,000 is most of the way. huggingface/diffusers#7401
    and #12588: results differ greatly between spacings.
    """
    own, name, steps = _without_noise(case)
    suited = switch_sampler(own, name, steps)
    if suited.spacing == own.spacing:
        return None
    error, best = _error(case, replace(suited, spacing=own.spacing)), _error(case, suited)
    if error <= LARGEST_ERROR or best > BETTER * error:
        return None
    return Finding(
        f"with spacing={own.spacing!r} samples miss their goal by {error:.2f} deviations of the data, with "
        f"{suited.spacing!r} by {best:.2f}",
        f"set spacing={suited.spacing!r} in the sampler",
        {"error": error, "best": best},
    )


def _without_noise(case: Case) -> tuple[SamplerConfig, str, int]:
    """Return the arguments of `switch_sampler` for the deterministic form of a sampler."""
    case.require_denoising()
    config = case.settings.sampler
    return config, WITHOUT_NOISE.get(config.name, config.name), config.num_inference_steps


def _error(case: Case, config: SamplerConfig) -> float:
    """Return the RMS distance of samples from what the same noise becomes with many steps, in deviations."""
    goal = _sampled(case, switch_sampler(config, *REFERENCE))
    return ((_sampled(case, config) - goal).square().mean().sqrt() / case.clips("train").std()).item()


def _sampled(case: Case, config: SamplerConfig) -> Tensor:
    """Return four clips by a sampler; each sampler samples once."""
    if config not in case.sampled:
        case.affordable(config.num_inference_steps, FEWEST_SAMPLES)
        case.sampled[config] = case.sample(config, FEWEST_SAMPLES)
    return case.sampled[config]


SETTING_RULES = (
    noise_leaves_signal,
    epsilon_without_signal,
    too_few_sampling_steps,
    spacing_does_not_suit,
)
