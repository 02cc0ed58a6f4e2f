"""The small spectrogram: exact relations between its maps, what an upsampler is told, what is refused."""

from dataclasses import replace

import pytest
import torch

from Conf import BASE, CPU, ORIGIN, SMOKE, in_space
from Libraries.Runs.Settings import changed
from Libraries.Sound.LowResolution import DETAIL_STD, VIEWS, LowResolution, ViewConfig
from Libraries.Sound.Spectrogram import Spectrogram

SHAPE = SMOKE.spectrogram.shape


def low(kind="smaller", rows=2, frames=2, **changes):
    view = replace(SMOKE.upsampler.view, kind=kind, kept_rows=24, row_factor=rows, frame_factor=frames)
    return LowResolution(view, replace(SMOKE.spectrogram, **changes))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


EVERY = [low("lower_bands"), low(), low(rows=1, frames=4), low(rows=4, frames=1), low(rows=3, frames=8)]
BY_NAME = {"argvalues": EVERY, "ids": lambda each: "x".join(map(str, each.shape))}


@pytest.mark.parametrize("each", **BY_NAME)
def test_a_view_survives_every_way_back_to_full_size(each):
    v = draw(2, *each.shape)
    for back in (each.fill, each.spread, each.draw, lambda v: each.project(draw(2, *SHAPE, seed=1), v)):
        assert back(v).shape == (2, *SHAPE)
        assert torch.allclose(each.view(back(v)), v, atol=1e-5)


@pytest.mark.parametrize("each", **BY_NAME)
def test_projection_changes_least_and_what_fits_already_not_at_all(each):
    """The residual of the least change is orthogonal to whatever has no view."""
    x0, v = draw(2, *SHAPE, seed=1), draw(2, *each.shape)
    moved = each.project(x0, v)
    free = draw(2, *SHAPE, seed=2)
    unseen = free - each.fill(each.view(free))
    assert torch.allclose(((moved - x0) * unseen).sum(), torch.zeros(()), atol=1e-2)
    assert torch.allclose(each.project(moved, v), moved, atol=1e-5)


@pytest.mark.parametrize("each", **BY_NAME)
def test_held_to_its_view_x0_hardly_leaves_the_range(each):
    x0 = draw(2, *SHAPE)
    v = each.view(draw(2, *SHAPE, seed=1).clamp(-1, 1))
    held = each.hold(x0, v)
    assert torch.allclose(each.view(held), v, atol=1e-5)
    once = each.view(each.project(x0, v).clamp(-1, 1))
    assert (each.view(held.clamp(-1, 1)) - v).abs().mean() <= 0.2 * (once - v).abs().mean()


def test_view_is_the_mean_of_boxes_or_the_lower_rows():
    x0 = draw(1, *SHAPE)
    assert torch.allclose(low().view(x0)[0, 0, 3, 5], x0[0, 0, 6:8, 10:12].mean())
    assert torch.equal(low("lower_bands").view(x0), x0[:, :, :24])


def test_interpolation_is_smooth_where_the_music_is():
    """A ramp over rows and frames, which boxes turn into steps, comes back but at the edges."""
    ramp = torch.linspace(-1, 1, SHAPE[1])[:, None] * 0.5 + torch.linspace(-1, 1, SHAPE[2])[None] * 0.5
    ramp, inner = ramp[None, None], (..., slice(4, -4), slice(4, -4))
    each = low()
    error = (each.spread(each.view(ramp)) - ramp)[inner].abs().max()
    assert error < 1e-5 < (each.fill(each.view(ramp)) - ramp)[inner].abs().max()


@pytest.mark.parametrize(
    ("values", "floor"), [("minus_one_to_one", -1), ("zero_to_one", 0), ("unit_variance", 0)]
)
def test_above_the_kept_rows_interpolation_is_silent(values, floor):
    each = low("lower_bands", value_range=values)
    assert (each.spread(draw(1, *each.shape))[:, :, 24:] == floor).all()


@pytest.mark.parametrize("each", **BY_NAME)
def test_without_noise_all_of_the_view_is_told_and_with_full_noise_none_of_it(each):
    v, other, noise = (draw(2, *each.shape, seed=seed) for seed in range(3))
    told = each.told_of_view(v, torch.zeros(2), noise)
    assert torch.allclose(each.view(told[:, :1]), v, atol=1e-5)
    full = each.told_of_view(v, torch.ones(2), noise)
    assert torch.equal(full, each.told_of_view(other, torch.ones(2), noise)) and (full[:, 1] == 0).all()
    known = each.fill(torch.ones_like(v))[:, 0]
    assert torch.equal(told[:, 1], known)
    half = each.told_of_view(v, torch.tensor([0.25, 0.5]), noise)[:, 1]
    assert torch.allclose(half, known * torch.tensor([0.75, 0.5]).view(2, 1, 1))


def test_noise_keeps_the_variance_whatever_its_strength():
    each, strength = low("lower_bands"), torch.tensor([0.0, 0.3, 0.7, 1.0])
    v, noise = draw(4, *each.shape), draw(4, *each.shape, seed=1)
    told = each.told_of_view(v, strength, noise)[:, 0, :24]
    assert torch.allclose(told.flatten(1).var(dim=1), torch.ones(4), atol=0.1)


def test_the_guess_is_the_best_linear_one_and_nothing_where_nothing_is_known():
    each, strength = low("lower_bands"), torch.tensor([0.0, 0.4, 0.8, 1.0])
    v, noise = 0.5 * draw(4, *each.shape), draw(4, *each.shape, seed=1)
    guess, _ = each.expected(each.told_of_view(v, strength, noise))
    assert (
        torch.allclose(guess[0, :, :24], v[0], atol=1e-6)
        and (guess[3] == 0).all()
        and (guess[:, :, 24:] == 0).all()
    )
    for part, clip in zip(guess[:, :, :24], v, strict=True):  # what is left is not in the guess any more
        assert abs(((clip - part) * part).mean()) < 0.01


def test_the_error_that_is_expected_of_the_guess_is_the_one_it_makes():
    each, strength = low("lower_bands"), torch.tensor([0.3, 0.6, 1.0])
    v, noise = 0.5 * draw(3, *each.shape), draw(3, *each.shape, seed=1)
    guess, error = (part[:, :, :24] for part in each.expected(each.told_of_view(v, strength, noise)))
    detail = DETAIL_STD * draw(3, *each.shape, seed=2)
    residual = (v + detail - guess) / error
    assert torch.allclose(residual.flatten(1).std(dim=1), torch.ones(3), atol=0.05)
    assert (error[0] < error[1]).all() and (error[1] < error[2]).all() and error[0].min() > DETAIL_STD


def test_quieter_values_are_those_of_quieter_music_beside_a_loud_place():
    sound = 0.1 * draw(1, 1, SMOKE.spectrogram.clip_samples)
    sound[..., :4000] *= 5  # sets the top of the range, whatever comes after
    soft = torch.cat([sound[..., :4000], 10 ** (-12 / 20) * sound[..., 4000:]], dim=-1)
    for value_range, scale in (("minus_one_to_one", "db"), ("zero_to_one", "db"), ("zero_to_one", "linear")):
        each = low(value_range=value_range, scale=scale)
        loud, quiet = (Spectrogram(each.spectrogram).encode(music)[..., 24:] for music in (sound, soft))
        assert torch.allclose(each.quieter(loud, torch.tensor([12.0])), quiet, atol=1e-4), (
            value_range,
            scale,
        )
    x0 = draw(2, *SHAPE).clamp(-1, 1)
    assert torch.equal(low(value_range="unit_variance").quieter(x0, torch.tensor([3.0, 20.0])), x0)
    assert torch.equal(low().quieter(x0, torch.zeros(2)), x0)


def test_rows_above_the_known_ones_are_not_told():
    each, rows = low(), torch.tensor([24, 70])
    x0, noise, strength = draw(2, *SHAPE), draw(2, *SHAPE, seed=1), torch.tensor([0.0, 0.5])
    told = each.told_of_rows(x0, rows, strength, noise)
    for clip, count, trust in zip(told, rows.tolist(), (1.0, 0.5), strict=True):
        assert (clip[:, count:] == 0).all() and (clip[1, :count] == trust).all()
    assert torch.equal(told[0, 0, :24], x0[0, 0, :24])
    lower = low("lower_bands")
    both = lower.told_of_rows(x0, torch.tensor([24, 24]), strength, noise)
    assert torch.equal(both, lower.told_of_view(lower.view(x0), strength, lower.view(noise)))


@pytest.mark.parametrize("preset", [BASE, ORIGIN, CPU, SMOKE], ids=lambda preset: preset.preset)
@pytest.mark.parametrize("kind", VIEWS)
def test_every_preset_can_be_a_cascade_of_a_quarter_of_the_values(preset, kind):
    settings = changed(in_space(preset, "small"), {"upsampler.view.kind": kind})
    shape = LowResolution(settings.upsampler.view, settings.spectrogram).shape
    full = settings.spectrogram.shape
    assert 4 * shape[1] * shape[2] <= full[1] * full[2]


def test_what_has_no_small_spectrogram_is_refused():
    for kind in VIEWS:
        with pytest.raises(ValueError, match="representation='complex' has signs or phases"):
            low(kind, representation="complex")
    with pytest.raises(ValueError, match="a view of 48x128 is more than a quarter of 96x128"):
        low(rows=2, frames=1)
    with pytest.raises(ValueError, match="no boxes of row_factor=5 by frame_factor=4"):
        low(rows=5, frames=4)
    with pytest.raises(ValueError, match=r"kind='half' is unknown; choose one of lower_bands, smaller"):
        ViewConfig("half", 1, 1, 1)
    with pytest.raises(ValueError, match=r"frame_factor=0 must be 1 or more"):
        ViewConfig("smaller", 1, 1, 0)
    with pytest.raises(ValueError, match=r"x0 has shape \(1, 1, 95, 128\)"):
        low().view(draw(1, 1, 95, 128))
    with pytest.raises(ValueError, match=r"a view has shape \(1, 1, 96, 128\)"):
        low().spread(draw(1, *SHAPE))


def test_settings_of_an_upsampler_that_are_impossible_are_refused():
    with pytest.raises(ValueError, match=r"strength=1.5 must be within \[0, 1\]"):
        replace(SMOKE.upsampler.conditioning, strength=1.5)
    with pytest.raises(ValueError, match=r"strength=0.5 is more than max_strength=0.2"):
        replace(SMOKE.upsampler.conditioning, strength=0.5, max_strength=0.2)
    with pytest.raises(
        ValueError, match="'latent, small' is unknown; choose one of spectrogram, latent, small"
    ):
        replace(SMOKE, space="latent, small")
    with pytest.raises(ValueError, match="num_classes=2 of the upsampler's network must be 0"):
        changed(SMOKE, {"upsampler.network.num_classes": 2})
    with pytest.raises(ValueError, match="a small spectrogram of 24x128 does not fit"):
        changed(
            in_space(SMOKE, "small"),
            {"upsampler.view.kind": "lower_bands", "network.patch_size": (16, 16)},
        )
    with pytest.raises(ValueError, match="a spectrogram of 96x128 does not fit"):
        changed(in_space(SMOKE, "small"), {"upsampler.network.patch_size": (64, 64)})
