"""Seams that step are told apart from the rest, seams that do not are not."""

import pytest
import torch

from Libraries.Evaluation.Seams import measure_seams

RATE = 16_000


def notes(pitches, seconds=0.25):
    """Decaying tones, one after the other: music that steps at every onset."""
    time = torch.arange(round(seconds * RATE)) / RATE
    return torch.cat([torch.sin(2 * torch.pi * pitch * time) * torch.exp(-4 * time) for pitch in pitches])


@pytest.fixture
def music():
    generator = torch.Generator().manual_seed(0)
    pitches = 200 * 2 ** (torch.randint(0, 24, (160,), generator=generator) / 12)
    return 0.3 * notes(pitches.tolist())  # 40 s


def test_places_without_a_seam_are_told_apart_by_chance_alone(music):
    seams = torch.arange(1.1, 39, 0.77).tolist()
    report = measure_seams(music, seams, RATE)
    assert report.seams == len(seams)
    assert abs(report.level_told_apart - 0.5) < 0.15 and abs(report.spectrum_told_apart - 0.5) < 0.15


def test_a_step_in_level_is_found_and_is_as_large_as_it_is(music):
    seams = [8.1, 16.1, 24.1, 32.1]
    steady = 0.1 * torch.randn(40 * RATE, generator=torch.Generator().manual_seed(1))
    gain = torch.ones(40 * RATE)
    for first, last in ((0, 1), (2, 3)):
        gain[round(seams[first] * RATE) : round(seams[last] * RATE)] = 0.5
    report = measure_seams(steady * gain, seams, RATE)
    assert report.level_told_apart > 0.99
    assert report.level_step == pytest.approx(6.02, abs=0.7) and report.level_step_elsewhere < 0.5


def test_a_step_in_spectrum_is_found():
    noise = torch.randn(40 * RATE, generator=torch.Generator().manual_seed(1))
    dull = torch.nn.functional.avg_pool1d(noise[None], 9, 1, padding=4)[0] * 3
    seams = [10.0, 20.0, 30.0]
    parts = [noise[: 10 * RATE], dull[10 * RATE : 20 * RATE], noise[20 * RATE : 30 * RATE], dull[30 * RATE :]]
    report = measure_seams(0.1 * torch.cat(parts), seams, RATE)
    assert report.spectrum_told_apart > 0.99 and report.spectrum_step > 3 * report.spectrum_step_elsewhere


def test_seams_at_the_very_ends_are_left_out_and_none_left_says_so(music):
    assert measure_seams(music, [0.0, 20.0, 40.0], RATE).seams == 1
    with pytest.raises(ValueError, match=r"none of the seams \[0.0\] is 0.1 s from both ends"):
        measure_seams(music, [0.0], RATE)
