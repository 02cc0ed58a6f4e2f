"""Edits: masked parts stay, closed forms for Gaussian data, one seed a clip, what is refused."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from test_diffusion import make_schedule
from test_guidance import MEANS, STD, Classes
from test_samplers import DENOISING, SHAPE, gaussian_denoiser, make_config, run, wavy_denoiser

from Libraries.Diffusion import PREDICTION_TYPES
from Libraries.Sampling.Editing import Editor, interpolate, invert, mask_outside, slerp
from Libraries.Sampling.Guidance import classifier_free_guidance
from Libraries.Sampling.Loop import inference_timesteps, sample
from Libraries.Sampling.Steps import SAMPLERS
from Libraries.Utils import SampleNoise

ODES = ("ddim", "euler", "heun", "dpmpp_2m", "unipc")


def make_editor(
    name="ddim", denoiser=None, schedule=None, steps=5, spacing="trailing", clip=1.0, resamplings=0
):
    schedule = schedule or make_schedule()
    config = make_config(name, steps, spacing, clip)
    return Editor(denoiser or wavy_denoiser(schedule), schedule, config, resamplings)


def deterministic(config):
    """The same sampler without noise, where it has a choice."""
    return replace(config, **{"ddim": {"eta": 0.0}, "heun": {"churn": 0.0}}.get(config.name, {}))


def clips(count=3, shape=SHAPE):
    return SampleNoise(range(50, 50 + count))(shape).clamp(-1, 1)


def free_sample(editor, seeds):
    options = {"batch_size": len(seeds), "progress": False}
    return sample(editor.denoiser, editor.schedule, editor.config, seeds, SHAPE, **options)


class Correlated:
    """The exact denoiser of frames from N(0, covariance), every row for itself."""

    def __init__(self, schedule, covariance):
        self.schedule, self.covariance = schedule, covariance

    def __call__(self, x_t, t):
        abar = self.schedule.alphas_cumprod[t[0]].item()
        noisy = abar * self.covariance + (1 - abar) * torch.eye(len(self.covariance), dtype=torch.float64)
        return x_t @ (abar**0.5 * torch.linalg.solve(noisy, self.covariance)).to(x_t.dtype)


@pytest.mark.parametrize("resamplings", [0, 2])
@pytest.mark.parametrize("box", [{"frames": (2, 5)}, {"rows": (0, 1)}, {"rows": (1, 3), "frames": (3, 6)}])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_masked_part_comes_back_and_the_rest_is_inpainted(name, box, resamplings):
    x0, mask = clips(), mask_outside(SHAPE, **box)
    found = make_editor(name, resamplings=resamplings).inpaint(x0, mask, [1, 2, 3])
    assert torch.equal(found[:, mask], x0[:, mask])
    assert (found[:, ~mask] != x0[:, ~mask]).any(1).all() and found.isfinite().all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_full_mask_gives_the_clip_and_an_empty_one_a_free_sample(name):
    x0, editor = clips(), make_editor(name)
    assert torch.equal(editor.inpaint(x0, torch.ones(SHAPE, dtype=torch.bool), [1, 2, 3]), x0)
    free = free_sample(editor, [1, 2, 3])
    nothing = torch.zeros(SHAPE, dtype=torch.bool)
    assert torch.allclose(editor.inpaint(x0, nothing, [1, 2, 3]), free, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_values_outside_the_mask_have_no_effect(name):
    x0, mask = clips(), mask_outside(SHAPE, frames=(2, 4))
    editor = make_editor(name, resamplings=1)
    blank = torch.where(mask, x0, 0.0)
    assert torch.equal(editor.inpaint(x0, mask, [1, 2, 3]), editor.inpaint(blank, mask, [1, 2, 3]))


@pytest.mark.parametrize("name", SAMPLERS)
def test_variation_goes_from_the_clip_to_a_free_sample(name):
    x0, editor = clips(), make_editor(name, steps=10)
    assert torch.equal(editor.vary(x0, 0.0, [1, 2, 3]), x0)
    free = free_sample(editor, [1, 2, 3])
    assert torch.allclose(editor.vary(x0, 1.0, [1, 2, 3]), free, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_variation_keeps_what_the_mask_keeps(name):
    x0, mask, editor = clips(), mask_outside(SHAPE, frames=(2, 5)), make_editor(name)
    made = editor.vary(x0, 0.6, [1, 2, 3], mask)
    assert torch.equal(made[:, mask], x0[:, mask]) and (made[:, ~mask] != x0[:, ~mask]).any()
    assert torch.equal(editor.vary(x0, 1.0, [1, 2, 3], mask), editor.inpaint(x0, mask, [1, 2, 3]))


@pytest.mark.parametrize("name", ODES)
def test_variation_of_gaussian_data_is_the_closed_form(name):
    """An ODE keeps (x_t - a·mean)/sqrt(a²std² + s²); x_t of a clip is a·clip + s·noise."""
    schedule, mean, std, strength = make_schedule(), 0.3, 0.4, 0.6
    denoiser, x0 = gaussian_denoiser(schedule, mean, std), clips().double()
    editor = make_editor(name, denoiser, schedule, steps=100, clip=None)
    editor = replace(editor, config=deterministic(editor.config))
    abar = schedule.alphas_cumprod[inference_timesteps(schedule, 100, "trailing")[40]]
    x_t = abar.sqrt() * x0 + (1 - abar).sqrt() * SampleNoise([1, 2, 3], dtype=torch.float64)(SHAPE)
    wanted = mean + std * (x_t - abar.sqrt() * mean) / (abar * std**2 + 1 - abar).sqrt()
    assert torch.allclose(editor.vary(x0, strength, [1, 2, 3]), wanted, atol=0.05)


def edits(editor, x0, seeds):
    mask = mask_outside(SHAPE, frames=(2, 4))
    yield editor.inpaint(x0, mask, seeds)
    yield editor.vary(x0, 0.6, seeds)
    yield editor.extend(x0, 11, 2, seeds)
    yield editor.loop(x0, 11, 2, seeds)


@pytest.mark.parametrize("name", SAMPLERS)
def test_same_seed_same_result_whatever_the_batch(name):
    editor, x0 = make_editor(name, resamplings=1), clips(5)
    among, alone = edits(editor, x0, [3, 4, 5, 6, 7]), edits(editor, x0[2:3], [5])
    other = edits(editor, x0[2:3], [8])
    for many, one, different in zip(among, alone, other, strict=True):
        assert torch.allclose(many[2:3], one, atol=1e-5)
        assert not torch.allclose(one, different, atol=1e-2)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_edits_do_not_depend_on_what_the_network_predicts(prediction_type):
    found = []
    for kind in ("sample", prediction_type):
        schedule = make_schedule(prediction_type=kind)
        editor = make_editor("ddim", gaussian_denoiser(schedule, 0.3, 0.4), schedule)
        found.append(torch.cat(list(edits(editor, clips().double(), [1, 2, 3])), dim=-1))
    assert torch.allclose(*found, atol=1e-8)


def inpainted_pairs(name, rho, resamplings):
    """Return (slope/ρ, variance/(1 - ρ²)) of values inpainted beside masked ones; exact would be (1, 1)."""
    schedule, count = make_schedule(), 6000
    covariance = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    spacing = (
        "karras" if name == "heun" else "trailing"
    )  # which starts at σ = 20000, too long a step for Heun
    denoiser = Correlated(schedule, covariance)
    editor = make_editor(name, denoiser, schedule, 50, spacing, clip=None, resamplings=resamplings)
    editor = replace(editor, config=deterministic(editor.config))
    x0 = SampleNoise([9], dtype=torch.float64)((1, count, 2))
    found = editor.inpaint(x0, mask_outside((1, count, 2), frames=(1, 2)), [1])[0, 0]
    beside, made = found.unbind(-1)
    slope = (beside * made).mean() / beside.square().mean()
    return slope.item() / rho, (made - slope * beside).square().mean().item() / (1 - rho**2)


# Exact is 1 and 1. An ODE carries what it began with, an SDE forgets it; resamplings bring both nearer.
@pytest.mark.parametrize(
    ("resamplings", "slope_ode", "slope_sde", "variance_ode", "variance_sde"),
    [(0, 0.42, 0.60, 3.0, 2.1), (8, 0.78, 0.82, 1.6, 1.4)],
)
@pytest.mark.parametrize("name", DENOISING)
def test_inpainting_of_gaussian_pairs_is_this_far_from_exact(
    name, resamplings, slope_ode, slope_sde, variance_ode, variance_sde
):
    slope, variance = inpainted_pairs(name, 0.9, resamplings)
    print(f"\n{name:12} resamplings {resamplings}: slope {slope:.2f}, variance {variance:.2f} of the exact")
    assert (slope_ode if name in ODES else slope_sde) < slope < 1.05
    assert 0.9 < variance < (variance_ode if name in ODES else variance_sde)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_replacing_x0_follows_the_masked_part_as_closely_as_replacing_x_t(eta):
    """RePaint without going back, against this module, both with DDIM."""
    schedule, rho, shape = make_schedule(), 0.9, (1, 6000, 2)
    denoiser = Correlated(schedule, torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64))
    noise, x0 = SampleNoise([1], dtype=torch.float64), SampleNoise([9], dtype=torch.float64)(shape)
    mask, x = mask_outside(shape, frames=(1, 2)), noise(shape)
    for t, t_next in pairwise([*inference_timesteps(schedule, 50, "trailing"), None]):
        abar = 1.0 if t_next is None else schedule.alphas_cumprod[t_next].item()
        x = one_ddim_step(denoiser, schedule, x, noise(shape), t, abar, eta)
        x = torch.where(mask, abar**0.5 * x0 + (1 - abar) ** 0.5 * noise(shape), x)
    beside, made = x[0, 0].unbind(-1)
    slope = (beside * made).mean() / beside.square().mean() / rho
    variance = (made - slope * rho * beside).square().mean() / (1 - rho**2)
    print(f"\nRePaint, eta {eta}: slope {slope:.2f}, variance {variance:.2f} of the exact")
    editor = make_editor("ddim", denoiser, schedule, 50, clip=None)
    editor = replace(editor, config=replace(editor.config, eta=eta))
    ours = editor.inpaint(x0, mask, [1])[0, 0, :, 1]
    assert (beside * ours).mean() / beside.square().mean() / rho == pytest.approx(slope.item(), abs=0.03)


def one_ddim_step(denoiser, schedule, x, noise, t, abar_next, eta):
    """Equation 12 of Song et al. 2021."""
    abar = schedule.alphas_cumprod[t].item()
    batch = torch.full((len(x),), t)
    x0 = denoiser(x, batch)
    sigma = eta * ((1 - abar_next) / (1 - abar) * (1 - abar / abar_next)) ** 0.5
    direction = (1 - abar_next - sigma**2) ** 0.5 * schedule.to_eps(x0, x, batch)
    return abar_next**0.5 * x0 + direction + sigma * noise


@pytest.mark.parametrize("name", SAMPLERS)
def test_edits_of_a_guided_denoiser(name):
    """Guidance moves the mean of the inpainted part, as it does without a mask."""
    schedule, scale, shape = make_schedule(), 1.5, (1, 60, 40)
    denoiser = classifier_free_guidance(Classes(schedule), torch.tensor([1]), 2, scale)
    editor = make_editor(name, denoiser, schedule, 100, "log_snr", clip=None)
    made = editor.inpaint(torch.zeros(1, *shape), mask_outside(shape, frames=(0, 39)), [1])
    assert (made[..., 39] == 0).all()
    assert abs(made[..., :39].mean().item() - scale * MEANS[1]) < 4 * STD / 2340**0.5 + 0.005


@pytest.mark.parametrize("name", DENOISING)
def test_inpainting_of_independent_values_is_exact(name):
    _, variance = inpainted_pairs(name, 1e-9, 0)
    assert abs(variance - 1) < 4 * (2 / 6000) ** 0.5 + 0.16  # DDPM's 50 steps leave 12 %


def autoregressive(n_frames, rho=0.8):
    index = torch.arange(n_frames)
    return rho ** (index[:, None] - index).abs().double()


def test_continuation_begins_with_the_clip_and_may_be_shorter_than_it():
    editor, x0 = make_editor(), clips()
    long = editor.extend(x0, 21, 2, [1, 2, 3])
    assert long.shape == (3, 1, 4, 21) and torch.equal(long[..., :6], x0)
    assert torch.equal(editor.extend(x0, 4, 2, [1, 2, 3]), x0[..., :4])


def roughness(x):
    """Mean square of the step from one frame to the next, every place for itself."""
    return x.diff(dim=-1).square().mean((0, 1, 2))


def test_continuation_and_loop_are_as_smooth_at_their_seams_as_inside():
    """Stationary frames of correlation .8: a step has the mean square 0.4; without a seam it would be 2."""
    schedule, T, overlap, rows = make_schedule(), 16, 8, 400
    denoiser = Correlated(schedule, autoregressive(T))
    editor = make_editor("ddpm", denoiser, schedule, 50, clip=None, resamplings=6)
    x0 = sample(denoiser, schedule, editor.config, [1], (1, rows, T), batch_size=1, progress=False)
    loop = editor.loop(x0, 40, overlap, [2])
    steps = roughness(torch.cat([loop, loop[..., :1]], dim=-1))
    long = roughness(editor.extend(x0, 40, overlap, [2]))
    print(f"\nclip's ends {steps[15]:.2f}, {steps[39]:.2f}, the loop's rest {steps[16:39].mean():.2f}")
    assert loop.shape == (1, 1, rows, 40) and torch.equal(loop[..., :T], x0)
    assert steps[[15, 39]].max() < 0.8 and long[15] < 0.8
    for made in (steps[16:39], long[16:]):
        assert abs(made.mean() - 0.4) < 0.1 and made.max() < 1.3 * made.mean()


@pytest.mark.parametrize("zero_terminal", [False, True])
def test_round_trip_of_inversion_is_close(zero_terminal):
    """Of Gaussian data with correlated frames; twice the iterations halve the error, or better."""
    schedule, shape = make_schedule(zero_terminal=zero_terminal), (1, 4, 8)
    denoiser, steps = Correlated(schedule, autoregressive(8)), inference_timesteps(schedule, 50, "trailing")
    x0 = SampleNoise([1, 2], dtype=torch.float64)(shape) @ torch.linalg.cholesky(autoregressive(8)).T
    errors = []
    for iterations in (1, 2, 4, 8):
        x_T = invert(denoiser, schedule, x0, steps, iterations)
        back = run("ddim", denoiser, schedule, lambda _, x_T=x_T: x_T, shape, steps)
        errors.append(((back - x0).square().mean() / x0.square().mean()).sqrt().item())
    print("\nround trip:", *(f"{error:.1e}" for error in errors))
    assert errors[0] < 0.03 and errors[-1] < 1e-9
    assert all(after < before / 2 for before, after in pairwise(errors))


def test_interpolation_goes_from_clip_to_clip_with_the_spread_of_the_data():
    schedule, shape = make_schedule(), (1, 40, 8)
    denoiser, steps = Correlated(schedule, autoregressive(8)), inference_timesteps(schedule, 50, "trailing")
    pair = SampleNoise([1, 2], dtype=torch.float64)(shape) @ torch.linalg.cholesky(autoregressive(8)).T
    path = interpolate(denoiser, schedule, pair, torch.linspace(0, 1, 5), steps, iterations=8)
    assert path.shape == (5, *shape)
    assert torch.allclose(path[[0, 4]], pair, atol=1e-6)
    assert torch.allclose(path.square().mean((1, 2, 3)), pair.square().mean(), rtol=0.25)


def test_slerp_keeps_the_norm_and_has_no_arc_between_parallels():
    first, second = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 3.0])
    assert torch.allclose(slerp(first, second, 1 / 3), 3 * torch.tensor([3**0.5 / 2, 0.5]))
    assert torch.allclose(slerp(first, first, 0.3), first)


BOX = mask_outside(SHAPE, frames=(2, 4))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda e: e.inpaint(clips()[0], BOX, [1]), r"x0 must be float32 \(B, C, F, T\)"),
        (lambda e: e.inpaint(clips().half(), BOX, [1, 2, 3]), "x0 must be float32.*float16"),
        (lambda e: e.inpaint(clips(), BOX.float(), [1, 2, 3]), "mask must be bool, True where x0 is kept"),
        (lambda e: e.inpaint(clips(), BOX[..., :5], [1, 2, 3]), r"a mask of \(1, 4, 5\) does not fit x0 of"),
        (lambda e: e.inpaint(clips(), BOX, [1, 2]), "2 seeds for 3 clips"),
        (lambda e: e.vary(clips(), 1.2, [1, 2, 3]), r"strength=1.2 must be within \[0, 1\]"),
        (lambda e: e.extend(clips(), 20, 6, [1, 2, 3]), "overlap=6 must be 1 to 5"),
        (lambda e: e.loop(clips(), 5, 1, [1, 2, 3]), "n_frames=5 at least 6"),
        (lambda e: replace(e, resamplings=-1), "resamplings=-1 must be 0 or more"),
        (lambda e: mask_outside(SHAPE, rows=(3, 3)), r"rows=\(3, 3\) must rise within 0 and 4"),
        (lambda e: mask_outside(SHAPE, frames=(0, 7)), r"frames=\(0, 7\) must rise within 0 and 6"),
        (lambda e: invert(e.denoiser, e.schedule, clips(), [500], 0), "1 or more iterations"),
        (
            lambda e: interpolate(e.denoiser, e.schedule, clips(), torch.ones(1), [500], iterations=1),
            r"clips must be \(2, C, F, T\)",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(edit, says):
    with pytest.raises(ValueError, match=says):
        edit(make_editor())
