"""All measures in one call: the table, JSON, the picture, and what it says of planted failures."""

import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from Libraries.Measures import (
    Row,
    Yardstick,
    compare,
    describe,
    load_tagger,
    number,
    plot_measures,
    sets_table,
)
from Libraries.Measures.Description import UNITS

RATE = 16_000
CLIPS = 12


def melodies(clips, seed, octave=0):
    """Five random tones a second with harmonics, 2 s: (clips, 1, 32000)."""
    rng = np.random.default_rng(seed)
    seconds = np.arange(2 * RATE) / RATE
    keys = rng.choice([0, 2, 4, 5, 7, 9, 11], (clips, 10)) + 12 * octave
    phase = 2 * np.pi * 262 * 2 ** (keys[:, (seconds * 5).astype(int)] / 12) * seconds
    wave = sum(np.sin(h * phase) / h**2 for h in range(1, 5)) * np.exp(-4 * (seconds % 0.2)) * 0.3
    return torch.from_numpy(wave).float()[:, None]


@pytest.fixture(scope="module")
def described():
    """Sets of melodies as `describe` gives them: generated, reference, training; and their waveforms."""
    tagger = load_tagger()
    waves = {
        "generated": melodies(CLIPS, 0),
        "reference": melodies(CLIPS, 1),
        "training": melodies(2 * CLIPS, 2),
    }
    return {name: describe(own, RATE, tagger) for name, own in waves.items()}, waves, tagger


def compared(described, generated=None):
    sets, _, tagger = described
    own = sets["generated"] if generated is None else describe(generated, RATE, tagger)
    pieces = np.arange(CLIPS) // 3
    return compare(own, sets["reference"], sets["training"], pieces, seed=0)


@pytest.fixture(scope="module")
def honest(described):
    return compared(described)


def test_every_measure_has_a_row_with_its_floor(honest):
    names = [row.name for row in honest.rows]
    assert names[:5] == ["kernel distance", "Frechet distance", "precision", "recall", "log-mel distance"]
    assert names[5:-3] == list(UNITS)
    assert names[-3:] == ["copies by spectrogram", "copies by embedding", "repeats"]
    for row in honest.rows:
        assert row.low <= row.value <= row.high, row
        assert np.isfinite(row.floor), row


def test_clips_of_the_same_kind_are_at_the_floor(honest):
    beyond = [row.name for row in honest.rows if abs(row.value - row.floor) > 1.5 * row.unseen > 0]
    assert not beyond


def test_a_yardstick_describes_and_compares(described, honest):
    waves = described[1]
    pieces = np.arange(CLIPS) // 3
    yardstick = Yardstick(waves["reference"], waves["training"], RATE, pieces, seed=0)
    assert yardstick.measure(waves["generated"]).table() == honest.table()


def test_the_table_has_a_line_a_measure_and_says_what_it_could_not_see(honest):
    lines = honest.table().splitlines()
    assert lines[2].startswith("| kernel distance |")
    assert len({line.count("|") for line in lines[: 2 + len(honest.rows)]}) == 1
    assert f"{CLIPS} clips: a kernel distance within" in honest.table()


def test_json_is_plain_and_holds_the_smallest_distances(honest):
    found = json.loads(honest.to_json())
    assert found["clips"] == CLIPS
    assert len(found["rows"]) == len(honest.rows)
    smallest = found["nearest"]["spectrogram"]["generated"]
    assert smallest == sorted(smallest)
    assert "NaN" not in honest.to_json()


def test_the_picture_shows_every_measure(honest):
    figure = plot_measures(honest, "Melodies")
    assert isinstance(figure, Figure)
    overview = figure.axes[0]
    assert [label.get_text() for label in overview.get_yticklabels()][::-1] == [
        row.name for row in honest.rows
    ]


def test_copies_and_repeats_are_found_by_their_rows_alone(described):
    waves = described[1]
    shift = 8 * 256
    planted = waves["generated"].clone()
    planted[:3, :, shift:] = waves["training"][:3, :, :-shift]
    planted[6:8] = planted[8:10]
    found = compared(described, planted)
    assert found["copies by spectrogram"].value >= 100 * 3 / CLIPS
    assert found["repeats"].value >= 100 * 4 / CLIPS
    assert found["kernel distance"].value < found["kernel distance"].floor + found["kernel distance"].unseen


def test_music_of_another_kind_is_far_from_the_floor(described):
    found = compared(described, melodies(CLIPS, 3, octave=2))
    row = found["kernel distance"]
    assert row.value > row.floor + row.unseen
    assert found["recall"].value < 0.3


def test_silence_breaks_nothing(described):
    found = compared(described, torch.zeros(CLIPS, 1, 2 * RATE))
    assert np.isnan(found["note length"].value)
    assert found["silence"].value > 50
    assert "–" in found.table()
    json.loads(found.to_json())
    plot_measures(found, "Silence")


def test_sets_that_are_too_small_or_pieces_that_are_too_few_are_refused(described):
    sets = described[0]
    one = sets["generated"].select(np.array([0]))
    with pytest.raises(ValueError, match="2 are needed"):
        compare(one, sets["reference"], sets["training"], range(CLIPS), seed=0)
    with pytest.raises(ValueError, match="each clip needs one"):
        compare(sets["generated"], sets["reference"], sets["training"], [1], seed=0)


def test_a_table_of_sets_has_a_line_each_and_one_floor(described, honest):
    other = compared(described, melodies(CLIPS, 3, octave=2))
    lines = sets_table("melodies", {"low": honest, "high": other}, extra={"s": ["1", "2"]}).splitlines()
    assert lines[0].startswith("| melodies | kernel distance | precision | recall | note length (s) |")
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert lines[2].startswith("| low | ") and lines[3].startswith("| high | ") and lines[3].endswith("| 2 |")
    floor = honest["kernel distance"]
    assert f"| {number(floor.floor)} ± {number(floor.floor_deviation)} |" in lines[4]
    unseen = max(set_["kernel distance"].unseen for set_ in (honest, other))
    assert f"{CLIPS} clips: a kernel distance within {number(unseen)} of the floor" in lines[-1]


def test_a_difference_is_surer_than_the_two_values_because_both_saw_the_same_pieces(described, honest):
    row = honest["kernel distance"]
    same = row.minus(compared(described)["kernel distance"])
    assert same == (0, 0, 0)
    louder = compared(described, 0.9 * described[1]["generated"])["kernel distance"]
    value, low, high = louder.minus(row)
    assert low <= value <= high and high - low < 0.5 * (row.high - row.low)


def test_a_row_comes_back_from_json(honest):
    content = json.loads(json.dumps(honest.summary()))
    assert content["clips"] == CLIPS
    assert all(Row.read(content[row.name]) == row for row in honest.rows)
    unknown = Row("x", "", 1.0, *4 * [float("nan")])
    assert np.isnan(Row.read(json.loads(json.dumps(unknown.content()))).unseen)


def test_an_unknown_row_names_the_known(honest):
    with pytest.raises(KeyError, match="there are kernel distance"):
        honest["loveliness"]
