"""The demo corpus: reproducible, exact in length, by ensemble, and fit to hear."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from Libraries.DemoMusic.Corpus import (
    DemoMusicConfig,
    corpus_soundfont,
    render_demo_music,
    write_example,
)
from Libraries.DemoMusic.Ensembles import ENSEMBLES, INSTRUMENTS
from Libraries.DemoMusic.Fonts import BUILT_IN, find_soundfont, installed_soundfonts
from Libraries.DemoMusic.Playing import PlayingConfig, perform
from Libraries.DemoMusic.Scores import Score, list_scores

CONFIG = DemoMusicConfig(
    clips=24,
    minutes=None,
    clip_seconds=4.0,  # s
    ensembles=("church_organ", "fiddle", "music_box"),
    sample_rate=16_000,  # Hz
    seed=3,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, render_demo_music(folder, CONFIG, cache)


PLAYING = PlayingConfig(
    timing=0.012,  # s
    dynamics=18.0,  # velocity steps
    rubato=0.12,
    tempo_spread=0.2,
    phrase=(6.0, 14.0),  # quarter notes
    any_key=True,
)


def make_score(notes, bpm=120.0) -> Score:
    return Score("made", "Made", "Nobody", bpm, (4.0, 6.0), np.array(notes, np.float64))


def test_same_seed_gives_same_bytes(corpus, cache, tmp_path):
    folder, pieces = corpus
    again = render_demo_music(tmp_path, CONFIG, cache)
    assert [p.score_id for p in again] == [p.score_id for p in pieces]
    assert all(a.path.read_bytes() == b.path.read_bytes() for a, b in zip(again, pieces, strict=True))
    assert (tmp_path / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()


def test_other_seed_gives_other_music(corpus, cache, tmp_path):
    config = replace(CONFIG, seed=4, clips=3)
    pieces = render_demo_music(tmp_path, config, cache)
    assert not {p.score_id for p in pieces} & {p.score_id for p in corpus[1]}


def test_clips_are_reached_exactly_and_evenly(corpus):
    for ensemble in CONFIG.ensembles:
        lengths = [soundfile.info(p.path).frames for p in corpus[1] if p.ensemble == ensemble]
        assert sum(lengths) == 8 * CONFIG.clip_samples
        assert all(length % CONFIG.clip_samples == 0 for length in lengths)


def test_minutes_round_up_to_whole_clips(cache, tmp_path):
    config = replace(CONFIG, clips=None, minutes=0.15, ensembles=("fiddle",))
    pieces = render_demo_music(tmp_path, config, cache)
    assert sum(p.seconds for p in pieces) == 12.0


def test_folder_is_the_label_and_stem_the_score(corpus):
    folder, pieces = corpus
    for piece in pieces:
        assert piece.path == folder / piece.ensemble / f"{piece.score_id}.flac"
        info = soundfile.info(piece.path)
        assert (info.samplerate, info.channels, info.subtype) == (CONFIG.sample_rate, 1, "PCM_16")
    assert len({p.score_id for p in pieces}) == len(pieces)  # as long as there are enough scores


def test_manifest_tells_what_was_played(corpus):
    folder, pieces = corpus
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["settings"]["seed"] == CONFIG.seed
    assert [row["score_id"] for row in manifest["pieces"]] == [p.score_id for p in pieces]
    assert all((folder / row["path"]).is_file() and row["composer"] for row in manifest["pieces"])


def test_every_clip_is_loud_enough_and_none_clips(corpus):
    for piece in corpus[1]:
        wave, _ = soundfile.read(piece.path)
        assert np.abs(wave).max() <= 0.901
        assert -21 < 10 * np.log10(np.mean(wave**2)) < -13
        for clip in wave.reshape(-1, CONFIG.clip_samples):
            assert 10 * np.log10(np.mean(clip**2)) > -30
        assert np.abs(wave[: CONFIG.sample_rate // 5]).max() > 0.01  # no silence to begin with


def test_second_call_resumes_and_rewrites_only_what_is_missing_or_broken(cache, tmp_path):
    config = replace(CONFIG, clips=3)
    first, second, third = (p.path for p in render_demo_music(tmp_path, config, cache))
    whole = second.read_bytes()
    before = first.stat().st_mtime_ns
    second.write_bytes(b"not audio")
    third.unlink()
    render_demo_music(tmp_path, config, cache)
    assert first.stat().st_mtime_ns == before
    assert second.read_bytes() == whole and third.is_file()
    assert not list(tmp_path.rglob("*tmp*"))


def test_a_finished_corpus_is_not_planned_again(corpus, cache, monkeypatch):
    folder, pieces = corpus
    monkeypatch.setattr("Libraries.DemoMusic.Corpus._plan", None)
    assert render_demo_music(folder, CONFIG, cache) == pieces


def test_folder_of_other_settings_is_refused(cache, tmp_path):
    render_demo_music(tmp_path, replace(CONFIG, clips=3), cache)
    with pytest.raises(ValueError, match=r"was made with \{'seed': 3\}: choose another folder"):
        render_demo_music(tmp_path, replace(CONFIG, clips=3, seed=9), cache)


def test_scores_are_shared_out_again_only_when_they_run_out(cache, tmp_path, monkeypatch):
    few = dict(list(list_scores("fiddle_tunes").items())[:4])
    monkeypatch.setattr(
        "Libraries.DemoMusic.Corpus.list_scores", lambda source: few if source == "fiddle_tunes" else {}
    )
    config = replace(CONFIG, clips=6, ensembles=("fiddle", "banjo"), clip_seconds=2.0)
    pieces = render_demo_music(tmp_path, config, cache)
    assert {p.score_id for p in pieces} == set(few)
    with pytest.raises(ValueError, match="no score left for"):
        render_demo_music(tmp_path / "more", replace(config, clips=10_000), cache)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"clips": None}, "exactly one must be a number"),
        ({"minutes": 1.0}, "exactly one must be a number"),
        ({"clips": 0}, "clips=0 must be more than 0"),
        ({"clip_seconds": -1.0}, "clip_seconds=-1.0"),
        ({"ensembles": ("kazoo",)}, "must be some of solo_piano, harpsichord"),
        ({"ensembles": ("fiddle", "fiddle")}, "each once"),
        ({"ensembles": ()}, "each once"),
        ({"room": "cellar"}, "dry, chamber, hall, church"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_every_instrument_stays_in_its_range(ensemble):
    rng = np.random.default_rng(0)
    score = make_score([(i, 1, 30 + 2 * (i % 35), i % 4) for i in range(200)])
    ranges = {INSTRUMENTS[name][0]: INSTRUMENTS[name][1:] for name in ENSEMBLES[ensemble].instruments}
    for note in perform(score, ENSEMBLES[ensemble].instruments, rng):
        low, high = ranges[note.program]
        assert low <= note.key <= high and 1 <= note.velocity <= 127


def test_performance_keeps_intervals_and_order():
    notes = perform(
        make_score([(0, 1, 60, 0), (1, 1, 64, 0), (2, 2, 67, 0)]), ("piano",), np.random.default_rng(1)
    )
    assert [note.key - notes[0].key for note in notes] == [0, 4, 7]
    assert notes[0].start == 0 and abs(notes[1].start - 0.5) < 0.1  # 120 quarter notes a minute, about


def test_long_rests_are_cut_to_a_second():
    first, last = perform(make_score([(0, 1, 60, 0), (40, 1, 60, 0)]), ("piano",), np.random.default_rng(0))
    assert 0.9 < last.start - first.seconds < 1.1


def test_example_is_nine_seconds_of_music(tmp_path):
    path = tmp_path / "music_file.wav"
    write_example(path)
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.frames, info.subtype) == (32_000, 1, 288_000, "PCM_16")
    wave, _ = soundfile.read(path)
    assert path.stat().st_size < 700_000 and -21 < 10 * np.log10(np.mean(wave**2)) < -13


def test_the_manifest_names_the_font_and_a_corpus_is_not_mixed_from_two(cache, tmp_path, monkeypatch):
    config = replace(CONFIG, clips=2, ensembles=("fiddle",), clip_seconds=1.0)
    pieces = render_demo_music(tmp_path / "corpus", config, cache)
    assert corpus_soundfont(tmp_path / "corpus")["name"] == "TimGM6mb.sf2"
    other = tmp_path / "Other.sf2"
    other.write_bytes(find_soundfont(BUILT_IN).read_bytes() + b"\0")
    sentence = "was played with the SoundFont TimGM6mb.sf2, and now Other.sf2 would play: set soundfont"
    with pytest.raises(ValueError, match=sentence):  # whole
        render_demo_music(tmp_path / "corpus", replace(config, soundfont=str(other)), cache)
    monkeypatch.setattr("Libraries.DemoMusic.Fonts.installed_soundfonts", lambda: [other])
    best = replace(config, soundfont=None)
    assert render_demo_music(tmp_path / "corpus", best, cache) == pieces  # whole, so nothing is mixed
    pieces[0].path.unlink()
    with pytest.raises(ValueError, match=sentence):
        render_demo_music(tmp_path / "corpus", best, cache)


def test_a_corpus_of_before_these_settings_is_taken_as_it_is(cache, tmp_path):
    config = replace(CONFIG, clips=1, ensembles=("fiddle",), clip_seconds=1.0)
    pieces = render_demo_music(tmp_path, config, cache)
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    del manifest["soundfont"]
    for name in ("soundfont", "room", "playing", "channels"):
        del manifest["settings"][name]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert render_demo_music(tmp_path, config, cache) == pieces
    with pytest.raises(ValueError, match=r"was made with \{'room': 'dry'\}"):
        render_demo_music(tmp_path, replace(config, room="hall"), cache)


def test_a_font_that_is_not_there_is_named(cache, tmp_path):
    config = replace(CONFIG, soundfont=str(tmp_path / "none.sf2"))
    with pytest.raises(FileNotFoundError, match=r"there is no SoundFont .*none.sf2: correct soundfont"):
        render_demo_music(tmp_path / "corpus", config, cache)


def test_the_best_font_of_the_usual_folders_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("Libraries.DemoMusic.Fonts.FOLDERS", (str(tmp_path / "a"), str(tmp_path / "b")))
    assert installed_soundfonts() == [] and find_soundfont(None) == find_soundfont(BUILT_IN)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name in ("a/Unknown.sf2", "a/MuseScore_General.sf3", "b/FluidR3_GM.sf2"):
        (tmp_path / name).touch()
    assert [path.name for path in installed_soundfonts()] == ["FluidR3_GM.sf2", "MuseScore_General.sf3"]
    assert find_soundfont(None).name == "FluidR3_GM.sf2"


def test_two_channels_in_a_room_are_as_loud_as_one_dry(cache, tmp_path):
    config = replace(CONFIG, clips=1, ensembles=("woodwind_quartet",), clip_seconds=2.0)
    (dry,) = render_demo_music(tmp_path / "dry", config, cache)
    (roomy,) = render_demo_music(tmp_path / "hall", replace(config, room="hall"), cache, channels=2)
    one, two = (soundfile.read(piece.path)[0] for piece in (dry, roomy))
    assert two.shape == (len(one), 2)
    assert abs(10 * np.log10(np.mean(two**2) / np.mean(one**2))) < 0.1
    assert np.corrcoef(two.T)[0, 1] < 0.95


def test_free_playing_keeps_the_notes_and_their_order_in_a_voice():
    notes = [(i / 2, 0.5, 60 + i % 12, 0) for i in range(120)]
    played = perform(make_score(notes), ("guitar",), np.random.default_rng(0), PLAYING)
    assert [note.key - played[0].key for note in played] == [key - 60 for _, _, key, _ in notes]
    starts = np.array([note.start for note in played])
    assert (np.diff(starts) > 0.05).all()
    level = np.convolve([note.velocity for note in played], np.ones(5) / 5, "valid")
    assert np.ptp(level) > 10 and np.std(np.diff(starts)) / np.mean(np.diff(starts)) > 0.05


def test_a_strict_player_is_a_metronome():
    strict = replace(PLAYING, timing=0.0, dynamics=0.0, rubato=0.0, tempo_spread=0.0)
    played = perform(
        make_score([(i, 1, 60, 0) for i in range(40)]), ("guitar",), np.random.default_rng(0), strict
    )
    np.testing.assert_allclose(np.diff([note.start for note in played]), 0.5, atol=1e-6)  # 120 a minute
    assert len({note.velocity for note in played}) == 1


def test_any_key_keeps_every_voice_in_range_without_moving_notes_by_octaves():
    notes = [(i, 1, key, voice) for i in range(8) for voice, key in enumerate((72, 64, 60, 45 + i))]
    instruments, shifts = ENSEMBLES["string_quartet"].instruments, set()
    for seed in range(300):
        played = perform(make_score(notes), instruments, np.random.default_rng(seed), PLAYING)
        moved = {note.key - key for note, (_, _, key, _) in zip(played, notes, strict=True)}
        assert len(moved) == 1
        shifts |= moved
    assert (
        min(shifts) == -9 and max(shifts) == 24
    )  # the cello's lowest note, and the violin's and the cello's highest


@pytest.mark.parametrize(
    ("change", "message"),
    [({"timing": -1}, "timing=-1 must be from 0"), ({"phrase": (9.0, 3.0)}, "phrase=")],
)
def test_impossible_playing_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(PLAYING, **change)
