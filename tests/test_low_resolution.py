"""Low resolution: exact relations between its maps, the conditioning of an upsampler, what is refused."""

from dataclasses import replace

import pytest
import torch

from Conf import BASE, CPU, ORIGIN, SMOKE, in_space
from Libraries.Runs.Settings import changed
from Libraries.Sound.LowResolution import DETAIL_STD, KINDS, LowResolution, LowResolutionConfig
from Libraries.Sound.Spectrogram import Spectrogram

SHAPE = SMOKE.spectrogram.shape


def low(kind="smaller", rows=2, frames=2, **changes):
    view = replace(
        SMOKE.upsampler.low_resolution, kind=kind, kept_rows=24, row_factor=rows, frame_factor=frames
    )
    return LowResolution(view, replace(SMOKE.spectrogram, **changes))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


EVERY = [low("lower_bands"), low(), low(rows=1, frames=4), low(rows=4, frames=1), low(rows=3, frames=8)]
BY_NAME = {"argvalues": EVERY, "ids": lambda each: "x".join(map(str, each.shape))}


@pytest.mark.parametrize("each", **BY_NAME)
def test_low_resolution_survives_every_way_back_to_full_size(each):
    y = draw(2, *each.shape)
    ways = each.pseudo_inverse, each.interpolate, each.enlarge
    for back in (*ways, lambda y: each.project(draw(2, *SHAPE, seed=1), y)):
        assert back(y).shape == (2, *SHAPE)
        assert torch.allclose(each.downsample(back(y)), y, atol=1e-5)


@pytest.mark.parametrize("each", **BY_NAME)
def test_projection_changes_least_and_what_fits_already_not_at_all(each):
    """The residual of the least change is orthogonal to whatever downsampling does not see."""
    x0, y = draw(2, *SHAPE, seed=1), draw(2, *each.shape)
    moved = each.project(x0, y)
    free = draw(2, *SHAPE, seed=2)
    unseen = free - each.pseudo_inverse(each.downsample(free))
    assert torch.allclose(((moved - x0) * unseen).sum(), torch.zeros(()), atol=1e-2)
    assert torch.allclose(each.project(moved, y), moved, atol=1e-5)


@pytest.mark.parametrize("each", **BY_NAME)
def test_x0_consistent_with_its_low_resolution_hardly_leaves_the_range(each):
    x0 = draw(2, *SHAPE)
    y = each.downsample(draw(2, *SHAPE, seed=1).clamp(-1, 1))
    consistent = each.consistent(x0, y)
    assert torch.allclose(each.downsample(consistent), y, atol=1e-5)
    once = each.downsample(each.project(x0, y).clamp(-1, 1))
    assert (each.downsample(consistent.clamp(-1, 1)) - y).abs().mean() <= 0.2 * (once - y).abs().mean()


def test_low_resolution_is_the_mean_of_boxes_or_the_lower_rows():
    x0 = draw(1, *SHAPE)
    assert torch.allclose(low().downsample(x0)[0, 0, 3, 5], x0[0, 0, 6:8, 10:12].mean())
    assert torch.equal(low("lower_bands").downsample(x0), x0[:, :, :24])


def test_interpolation_is_smooth_where_the_music_is():
    """A ramp over rows and frames, which boxes turn into steps, comes back but at the edges."""
    ramp = torch.linspace(-1, 1, SHAPE[1])[:, None] * 0.5 + torch.linspace(-1, 1, SHAPE[2])[None] * 0.5
    ramp, inner = ramp[None, None], (..., slice(4, -4), slice(4, -4))
    each = low()
    error = (each.interpolate(each.downsample(ramp)) - ramp)[inner].abs().max()
    assert error < 1e-5 < (each.pseudo_inverse(each.downsample(ramp)) - ramp)[inner].abs().max()


@pytest.mark.parametrize(
    ("values", "floor"), [("minus_one_to_one", -1), ("zero_to_one", 0), ("unit_variance", 0)]
)
def test_above_the_kept_rows_interpolation_is_silent(values, floor):
    each = low("lower_bands", value_range=values)
    assert (each.interpolate(draw(1, *each.shape))[:, :, 24:] == floor).all()


@pytest.mark.parametrize("each", **BY_NAME)
def test_conditioning_has_all_of_it_without_noise_and_none_of_it_at_level_one(each):
    y, other, noise = (draw(2, *each.shape, seed=seed) for seed in range(3))
    conditioning = each.conditioning_from_low_resolution(y, torch.zeros(2), noise)
    assert torch.allclose(each.downsample(conditioning[:, :1]), y, atol=1e-5)
    full = each.conditioning_from_low_resolution(y, torch.ones(2), noise)
    assert torch.equal(full, each.conditioning_from_low_resolution(other, torch.ones(2), noise))
    assert (full[:, 1] == 0).all()
    covered = each.pseudo_inverse(torch.ones_like(y))[:, 0]
    assert torch.equal(conditioning[:, 1], covered)
    half = each.conditioning_from_low_resolution(y, torch.tensor([0.25, 0.5]), noise)[:, 1]
    assert torch.allclose(half, covered * torch.tensor([0.75, 0.5]).view(2, 1, 1))


def test_noise_keeps_the_variance_at_every_augmentation_level():
    each, augmentation = low("lower_bands"), torch.tensor([0.0, 0.3, 0.7, 1.0])
    y, noise = draw(4, *each.shape), draw(4, *each.shape, seed=1)
    conditioning = each.conditioning_from_low_resolution(y, augmentation, noise)[:, 0, :24]
    assert torch.allclose(conditioning.flatten(1).var(dim=1), torch.ones(4), atol=0.1)


def test_the_estimate_is_the_best_linear_one_and_nothing_where_there_is_no_conditioning():
    each, augmentation = low("lower_bands"), torch.tensor([0.0, 0.4, 0.8, 1.0])
    y, noise = 0.5 * draw(4, *each.shape), draw(4, *each.shape, seed=1)
    estimate, _ = each.estimate(each.conditioning_from_low_resolution(y, augmentation, noise))
    assert (
        torch.allclose(estimate[0, :, :24], y[0], atol=1e-6)
        and (estimate[3] == 0).all()
        and (estimate[:, :, 24:] == 0).all()
    )
    for part, clip in zip(estimate[:, :, :24], y, strict=True):  # the rest is orthogonal to the estimate
        assert abs(((clip - part) * part).mean()) < 0.01


def test_the_error_that_is_expected_of_the_estimate_is_the_one_it_makes():
    each, augmentation = low("lower_bands"), torch.tensor([0.3, 0.6, 1.0])
    y, noise = 0.5 * draw(3, *each.shape), draw(3, *each.shape, seed=1)
    conditioning = each.conditioning_from_low_resolution(y, augmentation, noise)
    estimate, error = (part[:, :, :24] for part in each.estimate(conditioning))
    detail = DETAIL_STD * draw(3, *each.shape, seed=2)
    residual = (y + detail - estimate) / error
    assert torch.allclose(residual.flatten(1).std(dim=1), torch.ones(3), atol=0.05)
    assert (error[0] < error[1]).all() and (error[1] < error[2]).all() and error[0].min() > DETAIL_STD


def test_attenuated_values_are_those_of_quieter_music_beside_a_loud_place():
    sound = 0.1 * draw(1, 1, SMOKE.spectrogram.clip_samples)
    sound[..., :4000] *= 5  # sets the top of the range, whatever comes after
    soft = torch.cat([sound[..., :4000], 10 ** (-12 / 20) * sound[..., 4000:]], dim=-1)
    for value_range, scale in (("minus_one_to_one", "db"), ("zero_to_one", "db"), ("zero_to_one", "linear")):
        each = low(value_range=value_range, scale=scale)
        loud, quiet = (Spectrogram(each.spectrogram).encode(music)[..., 24:] for music in (sound, soft))
        assert torch.allclose(each.attenuate(loud, torch.tensor([12.0])), quiet, atol=1e-4), (
            value_range,
            scale,
        )
    x0 = draw(2, *SHAPE).clamp(-1, 1)
    assert torch.equal(low(value_range="unit_variance").attenuate(x0, torch.tensor([3.0, 20.0])), x0)
    assert torch.equal(low().attenuate(x0, torch.zeros(2)), x0)


def test_conditioning_has_no_values_above_the_given_rows():
    each, rows = low(), torch.tensor([24, 70])
    x0, noise, augmentation = draw(2, *SHAPE), draw(2, *SHAPE, seed=1), torch.tensor([0.0, 0.5])
    conditioning = each.conditioning_from_rows(x0, rows, augmentation, noise)
    for clip, count, reliability in zip(conditioning, rows.tolist(), (1.0, 0.5), strict=True):
        assert (clip[:, count:] == 0).all() and (clip[1, :count] == reliability).all()
    assert torch.equal(conditioning[0, 0, :24], x0[0, 0, :24])
    lower = low("lower_bands")
    both = lower.conditioning_from_rows(x0, torch.tensor([24, 24]), augmentation, noise)
    y, own = lower.downsample(x0), lower.downsample(noise)
    assert torch.equal(both, lower.conditioning_from_low_resolution(y, augmentation, own))


@pytest.mark.parametrize("preset", [BASE, ORIGIN, CPU, SMOKE], ids=lambda preset: preset.preset)
@pytest.mark.parametrize("kind", KINDS)
def test_every_preset_can_be_a_cascade_of_a_quarter_of_the_values(preset, kind):
    settings = changed(in_space(preset, "small"), {"upsampler.low_resolution.kind": kind})
    shape = LowResolution(settings.upsampler.low_resolution, settings.spectrogram).shape
    full = settings.spectrogram.shape
    assert 4 * shape[1] * shape[2] <= full[1] * full[2]


def test_what_has_no_small_spectrogram_is_refused():
    for kind in KINDS:
        with pytest.raises(ValueError, match="representation='complex' has signs or phases"):
            low(kind, representation="complex")
    with pytest.raises(ValueError, match="48x128 has more than a quarter of the values of 96x128"):
        low(rows=2, frames=1)
    with pytest.raises(ValueError, match="does not divide into boxes of row_factor=5 by frame_factor=4"):
        low(rows=5, frames=4)
    with pytest.raises(ValueError, match=r"kind='half' is unknown; choose one of lower_bands, smaller"):
        LowResolutionConfig("half", 1, 1, 1)
    with pytest.raises(ValueError, match=r"frame_factor=0 must be 1 or more"):
        LowResolutionConfig("smaller", 1, 1, 0)
    with pytest.raises(ValueError, match=r"x0 has shape \(1, 1, 95, 128\)"):
        low().downsample(draw(1, 1, 95, 128))
    with pytest.raises(ValueError, match=r"a low-resolution spectrogram has shape \(1, 1, 96, 128\)"):
        low().interpolate(draw(1, *SHAPE))


def test_settings_of_an_upsampler_that_are_impossible_are_refused():
    with pytest.raises(ValueError, match=r"augmentation=1.5 must be within \[0, 1\]"):
        replace(SMOKE.upsampler.conditioning, augmentation=1.5)
    with pytest.raises(ValueError, match=r"augmentation=0.5 is more than max_augmentation=0.2"):
        replace(SMOKE.upsampler.conditioning, augmentation=0.5, max_augmentation=0.2)
    with pytest.raises(
        ValueError, match="'latent, small' is unknown; choose one of spectrogram, latent, small"
    ):
        replace(SMOKE, space="latent, small")
    with pytest.raises(ValueError, match="num_classes=2 of the upsampler's network must be 0"):
        changed(SMOKE, {"upsampler.network.num_classes": 2})
    with pytest.raises(ValueError, match="a small spectrogram of 24x128 does not fit"):
        changed(
            in_space(SMOKE, "small"),
            {"upsampler.low_resolution.kind": "lower_bands", "network.patch_size": (16, 16)},
        )
    with pytest.raises(ValueError, match="a spectrogram of 96x128 does not fit"):
        changed(in_space(SMOKE, "small"), {"upsampler.network.patch_size": (64, 64)})
