"""Pictures: titles, units, shared colours."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from Conf import CPU, SMOKE
from Libraries.Diffusion import NoiseSchedule
from Libraries.Plots.Choosing import chosen_stretch, plot_to_choose, save_film
from Libraries.Plots.CurvePlots import plot_metrics, plot_sampler_curves, plot_schedules, plot_values
from Libraries.Plots.SpectrogramPlots import (
    plot_comparison,
    plot_noising,
    plot_reconstructions,
    plot_tensors,
    plot_trajectory,
    plot_waveform_spectrograms,
    save_figure,
)

X0 = torch.rand(3, *SMOKE.spectrogram.shape) * 2 - 1
SCHEDULE = NoiseSchedule(SMOKE.diffusion)
NO_TERMINAL_SIGNAL = NoiseSchedule(replace(SMOKE.diffusion, zero_terminal_snr=True))


def pictures(figure):
    return [axis for axis in figure.axes if axis.images]


FIGURES = {
    "tensors": lambda: plot_tensors(X0, ["a", "b", "c"], SMOKE.spectrogram, "title"),
    "waveforms": lambda: plot_waveform_spectrograms(
        [torch.randn(8000)] * 3, ["a", "b", "c"], 16_000, "title"
    ),
    "comparison": lambda: plot_comparison(torch.randn(4, 1, 8000), torch.randn(9, 1, 8000), 16_000, "title"),
    "trajectory": lambda: plot_trajectory(
        [(9, X0[:1], X0[1:2]), (0, X0[1:2], X0[2:])], SMOKE.spectrogram, "title"
    ),
    "noising": lambda: plot_noising(X0[0], SCHEDULE, SMOKE.spectrogram, "title"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_spectrograms_have_units_and_one_colour_scale(name, tmp_path):
    figure = FIGURES[name]()
    axes = pictures(figure)
    assert figure.get_suptitle() and len(axes) >= 3
    assert all(
        "(s)" in axis.get_xlabel() and "Hz)" in axis.get_ylabel() and axis.get_title() for axis in axes
    )
    assert len({image.get_clim() for axis in axes for image in axis.images}) == 1
    assert any("dB" in axis.get_ylabel() or "value" in axis.get_ylabel() for axis in figure.axes)
    save_figure(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000


STEREO = replace(SMOKE.spectrogram, channels=2)
STEREO_FIGURES = {
    "tensors": lambda: plot_tensors(X0[:, [0, 0]], ["a", "b", "c"], STEREO, "title", columns=2),
    "waveforms": lambda: plot_waveform_spectrograms(
        [torch.randn(2, 8000)] * 3, ["a", "b", "c"], 16_000, "title", columns=2
    ),
}


@pytest.mark.parametrize("name", STEREO_FIGURES)
def test_of_stereo_every_row_of_mids_has_the_row_of_their_sides_below_it(name):
    axes = pictures(STEREO_FIGURES[name]())
    places = {axis.get_title(): axis.get_subplotspec().rowspan.start for axis in axes}
    assert places == {"a, mid": 0, "b, mid": 0, "a, side": 1, "b, side": 1, "c, mid": 2, "c, side": 3}


def test_the_side_that_is_drawn_is_that_of_the_tensor_and_of_the_waveform():
    x0 = torch.stack([torch.zeros(SMOKE.spectrogram.shape[1:]), X0[0, 0]])[None]
    mid, side = pictures(plot_tensors(x0, ["a"], STEREO, "title"))
    assert (mid.images[0].get_array() == 0).all()
    np.testing.assert_array_equal(side.images[0].get_array(), X0[0, 0].numpy())
    mono = torch.randn(8000).expand(2, -1)
    mid, side = pictures(plot_waveform_spectrograms([mono], ["a"], 16_000, "title"))
    assert mid.images[0].get_array().max() == 0 and side.images[0].get_array().max() < -100


def test_reconstructions_of_stereo_have_a_row_each_of_mids_and_of_sides():
    x0 = X0[:, [0, 0]]
    axes = pictures(plot_reconstructions(x0, x0 + 0.1, STEREO, "title", count=2))
    titles = [axis.get_title() for axis in axes]
    assert len(titles) == 12 and titles[:4] == [
        f"original {i}{s}" for s in (", mid", ", side") for i in (0, 1)
    ]


def test_low_frequencies_are_at_the_bottom():
    low = torch.sin(2 * np.pi * 500 * torch.arange(16_000) / 16_000)
    (axis,) = pictures(plot_waveform_spectrograms([low], ["low"], 16_000, "title"))
    image = axis.images[0]
    assert image.origin == "lower" and np.argmax(np.asarray(image.get_array()).mean(1)) < 40
    assert axis.get_xlim()[1] == pytest.approx(1.0, abs=0.05) and axis.get_ylim()[1] == pytest.approx(8.0)


@pytest.mark.parametrize("representation", ["bands", "magnitude", "mel", "complex", "mdct"])
def test_rows_are_labelled_with_rising_frequencies(representation):
    config = replace(CPU.spectrogram, representation=representation)
    frequencies = config.row_frequencies
    assert len(frequencies) == config.n_rows and (np.diff(frequencies) > 0).all()
    assert frequencies[-1] == pytest.approx(config.kept_frequency, rel=0.06)
    (axis, *_) = pictures(plot_tensors(torch.zeros(1, *config.shape), ["a"], config, "title"))
    assert [int(label.get_text()) for label in axis.get_yticklabels()] == sorted(
        int(label.get_text()) for label in axis.get_yticklabels()
    )


def test_curves_are_labelled():
    rows = [{"step": 1, "loss": 1.0, "lr": 1e-3}, {"step": 2, "val_loss": 0.9, "val_loss_t0-249": 1.2}]
    for figure in (
        plot_metrics(rows, "run"),
        plot_schedules({"cosine": SCHEDULE, "without signal at the end": NO_TERMINAL_SIGNAL}),
        plot_values(X0, "values"),
    ):
        assert all(axis.get_xlabel() and axis.get_ylabel() and axis.get_title() for axis in figure.axes)
        assert all(np.isfinite(axis.get_ylim()).all() for axis in figure.axes)


def test_sampler_curves_show_intervals_and_the_floor_as_a_band():
    points = [(5, 0.1, 200.0, 150.0, 280.0), (20, 0.4, -2.0, -9.0, 12.0)]  # the distance may be below 0
    figure = plot_sampler_curves({"ddim": points, "heun": points}, (6.0, 2.0), "title")
    left, right = figure.axes
    for axis, place in ((left, [5, 20]), (right, [0.1, 0.4])):
        assert len(axis.containers) == 2
        curve, _, (bars,) = axis.containers[0]
        assert curve.get_xdata().tolist() == place and curve.get_ydata().tolist() == [200, -2]
        ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
        assert ends == [[150, 280], [-9, 12]]
        (band,) = axis.patches
        assert (band.get_y(), band.get_y() + band.get_height()) == (4, 8)
    assert "kernel distance" in left.get_ylabel()


def test_a_box_on_the_picture_is_the_stretch_that_it_covers():
    rate, seconds = 16_000, 4.0
    figure = plot_to_choose(torch.randn(1, int(rate * seconds)), rate)
    figure.canvas.draw()
    axis, (width, height) = figure.axes[0], figure.get_size_inches() * figure.dpi
    corners = axis.transData.transform([(1.0, 2.0), (3.0, 6.0)])  # s, kHz
    box = [value for x, y in corners for value in (x / width, 1 - y / height)]
    assert chosen_stretch(box, seconds, rate) == pytest.approx((1.0, 3.0, 2_000, 6_000), abs=20)
    backwards = [*box[2:], *box[:2]]
    assert chosen_stretch(backwards, seconds, rate) == chosen_stretch(box, seconds, rate)
    assert chosen_stretch((-1, -1, 2, 2), seconds, rate) == (0.0, seconds, 0.0, 8_000.0)


def test_a_film_has_a_frame_for_every_step_and_stays_on_its_last(tmp_path):
    config = SMOKE.spectrogram
    states = [(t, torch.randn(1, *config.shape), torch.zeros(1, *config.shape)) for t in (900, 500, 100)]
    save_film(states, config, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        durations = []
        for number in range(film.n_frames):
            film.seek(number)
            durations.append(film.info["duration"])
    assert durations == [400, 400, 2_000]
