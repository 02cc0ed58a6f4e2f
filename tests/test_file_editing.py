"""Edits of files by a trained run: what is asked for is new, all else is the file, sample by sample."""

from dataclasses import replace

import pytest
import soundfile
import torch
from conftest import QUICK

from Libraries.Runs.DiffusionRun import DiffusionRun
from Libraries.Runs.DiffusionTraining import train_diffusion
from Libraries.Runs.FileEditing import FileEditor, Stretch, band_pass, load_short
from Libraries.Runs.Settings import changed
from Libraries.Sound.Audio import AudioError

SECONDS = 6


@pytest.fixture(scope="module")
def editor(chords):
    settings = replace(chords, train=changed(chords.train, QUICK))
    model = DiffusionRun.load(train_diffusion(settings))
    return FileEditor(model, model.editor(settings.sampler, resamplings=0))


@pytest.fixture(scope="module")
def rate(chords):
    return chords.spectrogram.sample_rate


@pytest.fixture(scope="module")
def music(rate):
    """Noise, so that every sample tells."""
    return 0.1 * torch.randn(1, SECONDS * rate, generator=torch.Generator().manual_seed(0))


def level(waveform):
    return waveform.square().mean().sqrt().item()


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("first", [0.0, 2.5, SECONDS - 0.5])
def test_a_stretch_is_made_anew_and_the_rest_is_the_file(editor, music, rate, first, strength):
    made = editor.remake(music, Stretch(first, first + 0.5), seed=1, strength=strength)
    start, end = round(first * rate), round((first + 0.5) * rate)
    assert made.shape == music.shape
    assert torch.equal(made[:, :start], music[:, :start]) and torch.equal(made[:, end:], music[:, end:])
    change = (made - music)[:, start:end]
    assert level(change) > 0.1 * level(music)
    again, other = (editor.remake(music, Stretch(first, first + 0.5), seed, strength) for seed in (1, 2))
    assert torch.equal(made, again) and not torch.equal(made, other)


def test_a_band_of_a_stretch_is_made_anew_and_the_rest_of_the_band_is_the_file(editor, music, rate):
    made = editor.remake(music, Stretch(2.0, 3.0, low=1_000, high=2_000), seed=1)
    assert torch.equal(made[:, : 2 * rate], music[:, : 2 * rate])
    inside = slice(round(2.1 * rate), round(2.9 * rate))
    hertz = torch.fft.rfftfreq(inside.stop - inside.start, 1 / rate)
    change, whole = (torch.fft.rfft(wave[0, inside] * torch.hann_window(len(hertz) * 2 - 2)).abs().square()
                     for wave in (made - music, music))  # fmt: skip
    band, outside = (hertz > 1_000) & (hertz < 2_000), (hertz < 800) | (hertz > 2_300)
    assert change[band].mean() > 0.1 * whole[band].mean()
    assert change[outside].mean() < 1e-4 * whole[outside].mean()


def test_music_shorter_than_a_clip_is_edited_too(editor, music, rate):
    short = music[:, : rate // 2]
    made = editor.remake(short, Stretch(0.1, 0.3), seed=1)
    assert made.shape == short.shape and torch.equal(made[:, : rate // 10], short[:, : rate // 10])
    longer = editor.extend(short, 1.0, 0.2, seed=1)
    assert longer.shape[1] == short.shape[1] + rate and torch.equal(
        longer[:, : rate // 4], short[:, : rate // 4]
    )


def test_music_is_continued_by_what_was_asked_for(editor, music, rate):
    config = editor.model.spectrogram.config
    long = editor.extend(music, 2.5, 0.5, seed=1)
    assert long.shape[1] == round((SECONDS + 2.5) * rate)
    kept = music.shape[1] - (config.clip_samples - config.kept_samples) - round(0.02 * rate) - 1
    assert torch.equal(long[:, :kept], music[:, :kept])
    assert level(long[:, music.shape[1] :]) > 0.01 * level(music)


def test_a_loop_begins_with_its_clip_and_leads_from_its_end_into_its_beginning(editor, music, rate):
    config = editor.model.spectrogram.config
    loop = editor.loop(music, 1.0, config.clip_seconds + 1, 0.5, seed=1)
    fade, last = round(0.02 * rate) + 1, config.kept_samples - round(0.02 * rate) - 1
    assert torch.equal(loop[:, fade:last], music[:, rate + fade : rate + last])
    assert loop.shape[1] % config.hop_length == 0 and loop.shape[1] >= config.clip_samples


def test_a_loop_goes_round_without_a_jump_though_no_round_has_the_phase_of_another(
    editor, music, rate, monkeypatch
):
    """What is decoded never repeats here; its third round goes on after the last sample of the loop."""
    monkeypatch.setattr(
        FileEditor, "_decoded", lambda self, x0, gain: torch.arange(x0.shape[-1] * 256.0)[None] / rate
    )
    assert editor.model.spectrogram.config.hop_length == 256
    loop = editor.loop(0 * music, 1.0, 8.0, 0.5, seed=1)
    L, fade = loop.shape[1], round(0.02 * rate)
    assert loop[0, -1] == (2 * L - 1) / rate and loop[0, 0] == 2 * L / rate
    assert loop[0, fade:rate].abs().max() == 0  # the clip
    after = editor.model.spectrogram.config.kept_samples
    assert torch.equal(loop[0, after:], torch.arange(L + after, 2 * L) / rate)


@pytest.mark.parametrize(
    ("stretch", "sentence"),
    [
        (lambda: Stretch(2.0, 2.0), "must begin at 0 or later, and end after"),
        (lambda: Stretch(1.0, 2.0, 3_000, 1_000), "3000 to 1000 Hz must begin"),
        (lambda: Stretch(0.0, 5.5), "s at a time"),
        (lambda: Stretch(7.0, 8.0), "s at a time"),
        (lambda: Stretch(1.0, 2.0, 1_003, 1_004), "choose a wider band"),
    ],
)
def test_an_impossible_stretch_is_refused_in_a_sentence(editor, music, stretch, sentence):
    with pytest.raises(ValueError, match=sentence):
        editor.remake(music, stretch(), seed=1)


def test_a_loop_of_too_little_music_is_refused(editor, music):
    with pytest.raises(ValueError, match=r"from 5\.50 s on the music has only 0\.50 s"):
        editor.loop(music, 5.5, 4.0, 0.5, seed=1)


def test_a_band_that_is_all_of_the_music_is_the_music_itself(music, rate):
    assert torch.equal(band_pass(music, 0.0, float("inf"), rate), music)


def test_a_file_that_is_too_long_is_refused(tmp_path, rate):
    path = tmp_path / "long.wav"
    soundfile.write(path, torch.zeros(13 * rate).numpy(), rate)
    with pytest.raises(AudioError, match=r"is longer than 0\.2 minutes"):
        load_short(path, 1, rate, 12.0)
    assert load_short(path, 1, rate, 13.0).shape == (1, 13 * rate)
