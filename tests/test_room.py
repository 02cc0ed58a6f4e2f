"""The room: direct sound first, reflections of a box, and a tail that decays as it says."""

import numpy as np
import pytest

from Libraries.DemoMusic.Ensembles import Seat
from Libraries.DemoMusic.Room import ROOMS, impulse_response, place_in_room

RATE = 16_000
ROOMY = [name for name, room in ROOMS.items() if room is not None]


@pytest.mark.parametrize("room", ROOMY)
def test_the_direct_sound_comes_first_and_falls_with_distance(room):
    near, far = (impulse_response(room, Seat(0, distance), 1, RATE, 0)[0, 0] for distance in (2.0, 4.0))
    assert near == pytest.approx(2 * far, rel=1e-3)


@pytest.mark.parametrize("room", ROOMY)
def test_the_tail_decays_by_60_db_in_its_time(room):
    responses = [impulse_response(room, Seat(0, 3.0), 1, RATE, seed)[0] for seed in range(8)]
    kernel = np.ones(32) / 32  # takes what is above 500 Hz away
    energy = np.mean([np.convolve(response, kernel, "same") ** 2 for response in responses], axis=0)
    decay = ROOMS[room].decay
    places = [round(part * decay * RATE) for part in (0.3, 0.8)]
    level = [10 * np.log10(energy[at - 400 : at + 400].mean()) for at in places]
    assert level[0] - level[1] == pytest.approx(30, abs=3)


@pytest.mark.parametrize("room", ROOMY)
def test_the_tail_goes_on_where_the_images_end(room):
    responses = [impulse_response(room, Seat(0, 3.0), 1, RATE, seed)[0] for seed in range(16)]
    energy = np.mean(np.square(responses), axis=0)
    before, after = (
        energy[round(a * RATE) : round(b * RATE)].mean() for a, b in ((0.03, 0.06), (0.06, 0.09))
    )
    assert abs(10 * np.log10(before / after)) < 6


def test_a_seat_on_the_left_is_louder_on_the_left_and_the_middle_is_even():
    for azimuth, louder in ((-40, 1), (0, 0), (40, -1)):
        left, right = impulse_response("chamber", Seat(azimuth, 3.0), 2, RATE, 0)[:, 0]
        assert np.sign(round(float(left - right), 6)) == louder


def test_the_same_seed_is_the_same_room_and_another_is_another():
    impulse_response.cache_clear()
    first = impulse_response("hall", Seat(10, 3.0), 2, RATE, 0)
    impulse_response.cache_clear()
    np.testing.assert_array_equal(impulse_response("hall", Seat(10, 3.0), 2, RATE, 0), first)
    assert np.abs(impulse_response("hall", Seat(10, 3.0), 2, RATE, 1) - first).max() > 1e-3


def test_sounds_of_all_seats_are_added_and_start_when_they_start():
    wave = np.zeros(RATE, np.float32)
    wave[100] = 1.0
    seats = (Seat(-20, 2.0), Seat(20, 3.0))
    both = place_in_room([(seat, wave) for seat in seats], "chamber", 2, RATE, 0)
    apart = [place_in_room([(seat, wave)], "chamber", 2, RATE, 0) for seat in seats]
    np.testing.assert_allclose(both, sum(apart), atol=1e-6)
    assert (
        both.shape == (2, RATE) and np.abs(both[:, :100]).max() < 1e-6 and np.argmax(np.abs(both[0])) == 100
    )
