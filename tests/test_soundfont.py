"""The SoundFont player: in tune, without clicks or aliases, and clear about broken files."""

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from Libraries.DemoMusic.Ensembles import ENSEMBLES, INSTRUMENTS
from Libraries.DemoMusic.Fonts import BUILT_IN, installed_soundfonts, open_soundfont
from Libraries.DemoMusic.SoundFont import Note, SoundFont, SoundFontError

RATE = 32_000


@pytest.fixture(scope="module")
def font():
    return open_soundfont(BUILT_IN)


def chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def make_font(
    path, sample, rate=44_100, key=69, loop=None, generators=(), modulators=(), compressed=False
) -> SoundFont:
    """Write a SoundFont of one preset, one instrument and one sample (float, within [-1, 1]), and open it."""
    loop = loop or (0, 0)
    wave = np.round(np.asarray(sample) * 32767).astype("<i2")
    size, kind, wave = (len(sample), 1, wave.tobytes()) if not compressed else vorbis(wave, rate)
    zone = [*generators, (54, int(loop[1] > 0)), (53, 0)]
    records = {
        b"phdr": struct.pack("<20s3H3I", b"one", 0, 0, 0, 0, 0, 0)
        + struct.pack("<20s3H3I", b"EOP", 0, 0, 1, 0, 0, 0),
        b"pbag": struct.pack("<4H", 0, 0, 1, 0),
        b"pmod": bytes(10),
        b"pgen": struct.pack("<4H", 41, 0, 0, 0),
        b"inst": struct.pack("<20sH", b"one", 0) + struct.pack("<20sH", b"EOI", 1),
        b"ibag": struct.pack("<4H", 0, 0, len(zone), len(modulators)),
        b"imod": b"".join(struct.pack("<2HhHH", *modulator) for modulator in modulators) + bytes(10),
        b"igen": b"".join(struct.pack("<Hh", *pair) for pair in zone) + bytes(4),
        b"shdr": struct.pack("<20s5IBbHH", b"one", 0, size, *loop, rate, key, 0, 0, kind) + bytes(46),
    }
    lists = b"".join(chunk(name, data) for name, data in records.items())
    body = b"sfbk" + chunk(b"LIST", b"sdta" + chunk(b"smpl", wave)) + chunk(b"LIST", b"pdta" + lists)
    path.write_bytes(chunk(b"RIFF", body))
    return SoundFont(path)


def vorbis(wave, rate):
    """Return size in bytes, type and bytes of a sample in Ogg Vorbis; the size is odd, as it often is."""
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="OGG", subtype="VORBIS")
    data = file.getvalue()
    return len(data), 0x11, data + b"\0" * (1 - len(data) % 2)


def sine(frequency, n_samples, rate=44_100):
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(n_samples) / rate)


def pitch(wave, near):
    """Return the frequency of the strongest partial within a semitone of `near`, in Hz, by interpolation."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 18))
    bins = np.arange(len(spectrum)) * RATE / (1 << 18)
    i = np.argmax(np.where(abs(np.log2(bins.clip(1) / near)) < 1 / 12, spectrum, 0))
    a, b, c = np.log(spectrum[i - 1 : i + 2])
    return (i + (a - c) / (a - 2 * b + c) / 2) * RATE / (1 << 18)


def decibel(wave):
    return 20 * np.log10(np.sqrt(np.mean(np.square(wave))) + 1e-12)


@pytest.mark.parametrize("program", [0, 1, 6, 10, 19, 21, 24, 40, 42, 56, 68, 71, 74, 105])
def test_a4_is_440_hz_within_five_cents(font, program):
    wave = font.note(program, 69, 100, 2.0, RATE)[int(0.2 * RATE) : int(1.5 * RATE)]
    assert abs(1200 * np.log2(pitch(wave, 440) / 440)) < 5


@pytest.mark.parametrize("key", [45, 57, 81])
def test_made_font_is_in_tune_at_every_key(tmp_path, key):
    font = make_font(tmp_path / "a.sf2", sine(441, 44_100), loop=(0, 44_100), generators=[(52, -4)])
    expected = 441 * 2 ** ((100 * (key - 69) - 4) / 1200)
    assert abs(1200 * np.log2(pitch(font.note(0, key, 100, 1.0, RATE)[:RATE], expected) / expected)) < 0.1


def test_pitching_up_does_not_alias(tmp_path):
    font = make_font(tmp_path / "a.sf2", sine(12_000, 44_100), loop=(0, 44_100))
    same, up = (font.note(0, key, 127, 1.0, RATE)[2000:30_000] for key in (69, 81))  # 24 kHz cannot be had
    assert decibel(up) < decibel(same) - 80


def test_loop_sustains_without_click_or_hole(tmp_path):
    font = make_font(tmp_path / "a.sf2", sine(441, 1000), loop=(500, 900))
    wave = font.note(0, 69, 127, 4.0, RATE)[RATE // 10 : 4 * RATE]
    levels = [decibel(block) for block in np.array_split(wave, 60)]
    assert max(levels) - min(levels) < 0.1
    assert (
        np.abs(np.diff(wave)).max() < 1.01 * wave.max() * 2 * np.pi * 441 / RATE
    )  # a sine's own steepest slope


@pytest.mark.parametrize("program", [19, 40, 56, 73])
def test_sustained_programs_hold_their_level(font, program):
    wave = font.note(program, 67, 100, 8.0, RATE)[RATE // 2 : 8 * RATE]
    levels = [decibel(block) for block in np.array_split(wave, 30)]
    assert max(levels) - min(levels) < 8


@pytest.mark.parametrize("program", [1, 19, 24, 40, 52, 73])
def test_release_reaches_silence(font, program):
    held = font.note(program, 60, 100, 0.5, RATE)
    assert np.abs(held[-20:]).max() < 1e-4 * np.abs(held).max()
    assert held.dtype == np.float32 and len(held) > 0.5 * RATE


def test_envelope_follows_attack_decay_and_sustain(tmp_path):
    one_second, tenth = 0, -3986  # timecents
    generators = [(34, tenth), (36, one_second), (37, 200), (38, tenth)]
    font = make_font(tmp_path / "a.sf2", sine(4410, 44_100), loop=(0, 44_100), generators=generators)
    wave = font.note(0, 69, 127, 2.0, RATE)
    peak = decibel(sine(4410, 44_100))
    assert abs(decibel(wave[1550:1650]) - peak + 6) < 0.3  # half way up the attack
    assert abs(decibel(wave[6300:6500]) - peak + 10) < 0.3  # 0.1 s into a decay of 100 dB a second
    assert abs(decibel(wave[RATE : 2 * RATE]) - peak + 20) < 0.1  # 200 cB below
    assert abs(decibel(wave[int(2.05 * RATE) - 50 : int(2.05 * RATE) + 50]) - peak + 70) < 1


def test_low_pass_is_three_db_down_at_its_cutoff(tmp_path):
    cutoff = round(1200 * np.log2(1000 / 8.176))
    frequencies = np.array([100, 1000, 8000])
    levels = []
    for frequency in frequencies:
        font = make_font(
            tmp_path / "a.sf2", sine(frequency, 44_100), loop=(0, 44_100), generators=[(8, cutoff)]
        )
        levels.append(decibel(font.note(0, 69, 127, 1.0, RATE)[3200:RATE]) - decibel(sine(frequency, 44_100)))
    assert abs(levels[0]) < 0.1 and abs(levels[1] + 3.01) < 0.1 and levels[2] < -34


@pytest.mark.parametrize("key", [54, 73, 84, 96])
def test_piano_filter_that_opens_at_once_does_not_click(font, key):
    wave = font.note(1, key, 100, 0.3, RATE)
    power = np.abs(np.fft.rfft(wave)) ** 2
    above = np.fft.rfftfreq(len(wave), 1 / RATE) > 11_000  # its samples end at 11 kHz or lower
    assert 10 * np.log10(power[above].sum() / power.sum()) < -55


def test_level_goes_with_the_square_of_velocity(font):
    loud, soft = (font.note(24, 60, velocity, 0.5, RATE) for velocity in (120, 60))
    np.testing.assert_allclose(loud, 4 * soft, rtol=1e-5)


def test_note_does_not_depend_on_what_was_played_before(font):
    fresh = open_soundfont(BUILT_IN).note(40, 60, 90, 0.7, RATE)
    font.note(40, 60, 90, 5.0, RATE)
    np.testing.assert_array_equal(font.note(40, 60, 90, 0.7, RATE), fresh)


def test_play_starts_notes_in_their_place_and_cuts_at_the_end(font):
    wave = font.play([Note(0.5, 1.0, 24, 60, 100), Note(9.0, 1.0, 24, 60, 100)], RATE, RATE)
    assert len(wave) == RATE
    assert not wave[: RATE // 2].any()
    np.testing.assert_array_equal(wave[RATE // 2 :], font.note(24, 60, 100, 1.0, RATE)[: RATE // 2])


def test_missing_program_names_those_there_are(tmp_path):
    font = make_font(tmp_path / "a.sf2", sine(441, 1000))
    with pytest.raises(SoundFontError, match=r"a.sf2 has no program 7; it has 0"):
        font.note(7, 60, 100, 1.0, RATE)


def test_a_gap_between_zones_is_played_by_the_nearest_and_a_key_far_outside_is_an_error(tmp_path):
    zone = [(43, 60 | 70 << 8), (44, 20 | 127 << 8)]  # keys 60 to 70, velocities 20 to 127
    font = make_font(tmp_path / "a.sf2", sine(441, 1000), generators=zone)
    for key, velocity in ((65, 100), (72, 100), (58, 100), (65, 1)):
        assert font.note(0, key, velocity, 0.1, RATE).any()
    with pytest.raises(SoundFontError, match="no sound at key 73"):
        font.note(0, 73, 100, 0.1, RATE)


def test_broken_files_say_what_is_wrong(tmp_path):
    path = tmp_path / "a.sf2"
    make_font(path, sine(441, 1000))
    whole = path.read_bytes()
    for content, message in [
        (b"RIFFxxxxWAVE", "is not a SoundFont"),
        (whole[:1500], "cut short"),
        (whole.replace(b"shdr", b"xxxx"), "it lacks shdr"),
        (whole.replace(b"smpl", b"xxxx"), "it lacks smpl"),
    ]:
        path.write_bytes(content)
        with pytest.raises(SoundFontError, match=message):
            SoundFont(path)


@pytest.mark.parametrize(
    ("after", "at", "content", "message"),
    [
        (b"phdr", 38 + 24, b"\x05\x00", "'phdr' leaves the order of 'pbag'"),
        (b"pbag", 4, b"\xff\xff", "'pbag' leaves the order of 'pgen'"),
        (b"inst", 20, b"\x02\x00", "'inst' leaves the order of 'ibag'"),
        (b"pgen", 2, b"\x09\x00", "there is no number 9 in 'inst'"),
        (b"igen", 4 + 2, b"\xff\xff", "there is no number -1 in 'shdr'"),
        (b"shdr", 24, b"\xff\xff\xff\x7f", "a sample from 0 to 2147483647 is not in it"),
        (b"shdr", 36, b"\xff\xff\xff\xff", "a zone is broken: its 4294967295 Hz are moved by 0.0 octaves"),
        (b"shdr", 36, bytes(4), "a zone is broken: its 0 Hz"),
        (b"shdr", 44, b"\x11\x00", "a compressed sample cannot be decoded"),
        (b"ibag", 6, b"\x09\x00", "'ibag' leaves the order of 'imod'"),
    ],
)
def test_places_and_numbers_that_cannot_be_are_refused(tmp_path, after, at, content, message):
    path = tmp_path / "a.sf2"
    make_font(path, sine(441, 1000))
    whole = bytearray(path.read_bytes())
    place = whole.index(after) + 8 + at
    whole[place : place + len(content)] = content
    path.write_bytes(whole)
    with pytest.raises(SoundFontError, match=message):
        SoundFont(path).note(0, 69, 100, 0.1, RATE)


def test_absurd_generators_neither_fill_the_memory_nor_fail_otherwise(tmp_path):
    with pytest.raises(SoundFontError, match="moved by 327"):
        make_font(tmp_path / "a.sf2", sine(441, 1000), generators=[(51, 3932)]).note(0, 69, 100, 0.1, RATE)
    longest = make_font(tmp_path / "b.sf2", sine(441, 1000), generators=[(38, 32767)])
    assert len(longest.note(0, 69, 100, 0.1, 1000)) < 103 * 1000


@pytest.mark.parametrize("padded", [True, False])
def test_sf3_sounds_like_its_sf2(tmp_path, padded):
    options = {"loop": (0, 22_050), "generators": [(38, -3986)]}
    waves = []
    for compressed in (False, True):
        font = make_font(tmp_path / "a.sf3", sine(441, 22_050), compressed=compressed, **options)
        if compressed and not padded:  # as MuseScore writes it
            whole = font.path.read_bytes()
            end = whole.index(b"LIST", 20 + whole.index(b"smpl"))
            font.path.write_bytes(whole[: end - 1] + whole[end:])
            resized = bytearray(font.path.read_bytes())
            at = resized.index(b"sdta") - 4
            resized[4:8] = struct.pack("<I", len(resized) - 8)
            resized[at : at + 4] = struct.pack("<I", struct.unpack("<I", resized[at : at + 4])[0] - 1)
            font.path.write_bytes(resized)
            font = SoundFont(font.path)
        waves.append(font.note(0, 69, 100, 1.5, RATE))
    assert decibel(waves[1] - waves[0]) < decibel(waves[0]) - 35


def test_a_cut_vorbis_stream_ends_in_a_sentence(tmp_path):
    font = make_font(tmp_path / "a.sf3", sine(441, 22_050), compressed=True)
    whole = font.path.read_bytes()
    at = whole.index(b"OggS")
    font.path.write_bytes(whole[:at] + b"OggX" + whole[at + 4 :])
    with pytest.raises(SoundFontError, match=r"a.sf3 is broken: a compressed sample cannot be decoded"):
        SoundFont(font.path).note(0, 69, 100, 0.2, RATE)


def test_velocity_follows_the_default_modulator_until_the_font_says_otherwise(tmp_path):
    sound = {"sample": sine(441, 44_100), "loop": (0, 44_100)}
    loud, soft = (make_font(tmp_path / "a.sf2", **sound).note(0, 69, v, 0.5, RATE) for v in (127, 50))
    np.testing.assert_allclose(soft, loud * (50 / 127) ** 2, rtol=1e-4, atol=1e-7)
    off = (0x0502, 48, 0, 0, 0)  # the default one's identity, without an amount
    flat = make_font(tmp_path / "b.sf2", **sound, modulators=[off])
    np.testing.assert_allclose(flat.note(0, 69, 50, 0.5, RATE), loud, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("source", "velocity", "cents"),
    [
        (0x0002, 127, 1200),  # linear
        (0x0102, 127, 0),  # from above
        (0x0202, 0, -1200),  # from -1 to 1
        (0x0C02, 63, 0),  # a switch
        (0x0C02, 64, 1200),
        (0x0801, 100, 0),  # a source that there is not
        (0x0081, 100, 0),  # the modulation wheel, at rest
        (0x0000, 100, 1200),  # no source: always
    ],
)
def test_a_modulator_moves_the_pitch_by_its_source(tmp_path, source, velocity, cents):
    flat = (0x0502, 48, 0, 0, 0)
    font = make_font(
        tmp_path / "a.sf2", sine(441, 44_100), loop=(0, 44_100), modulators=[flat, (source, 52, 1200, 0, 0)]
    )
    expected = 441 * 2 ** (cents / 1200)
    assert abs(1200 * np.log2(pitch(font.note(0, 69, velocity, 1.0, RATE)[:RATE], expected) / expected)) < 0.5


def test_resonance_lowers_what_passes_by_half_of_it(tmp_path):
    for cutoff in (13_500, 11_000):  # open, and 4.7 kHz
        levels = [
            decibel(
                make_font(
                    tmp_path / "a.sf2", sine(441, 44_100), loop=(0, 44_100), generators=[(8, cutoff), (9, q)]
                ).note(0, 69, 127, 0.5, RATE)[3200:16_000]
            )
            for q in (0, 60)
        ]
        assert abs(levels[0] - levels[1] - 3) < 0.15


def test_tremolo_is_louder_while_its_oscillator_is_up(tmp_path):
    slow = round(1200 * np.log2(1 / 8.176))  # once a second
    font = make_font(
        tmp_path / "a.sf2",
        sine(4410, 44_100),
        loop=(0, 44_100),
        generators=[(13, 60), (21, -12_000), (22, slow)],
    )
    wave = font.note(0, 69, 127, 1.0, RATE)
    up, down = (decibel(wave[int(at * RATE) - 200 : int(at * RATE) + 200]) for at in (0.25, 0.75))
    assert abs(up - down - 12) < 0.3


def test_vibrato_moves_the_pitch_by_its_depth_and_after_its_delay(tmp_path):
    cents, hertz = 60, 5.0
    generators = [(6, cents), (23, 0), (24, round(1200 * np.log2(hertz / 8.176)))]  # after a second
    font = make_font(tmp_path / "a.sf2", sine(882, 44_100), loop=(0, 44_100), generators=generators)
    wave = font.note(0, 69, 127, 3.0, RATE)[: 3 * RATE]
    assert abs(1200 * np.log2(pitch(wave[:RATE], 882) / 882)) < 0.5
    angle = np.unwrap(np.angle(analytic(wave)))[2000:-2000]
    moved = 1200 * np.log2(np.diff(angle) * RATE / (2 * np.pi * 882))[RATE:]
    smooth = np.convolve(moved, np.ones(200) / 200, "valid")
    assert 50 < smooth.max() < 62 and -62 < smooth.min() < -50
    assert abs(np.sum(np.diff(np.sign(smooth)) > 0) - 2 * hertz) <= 1


def analytic(wave):
    """Return the analytic signal: the same without negative frequencies."""
    spectrum = np.fft.fft(wave)
    spectrum[len(wave) // 2 :] = 0
    return np.fft.ifft(2 * spectrum)


def test_mono_is_both_sides_together(tmp_path):
    font = make_font(tmp_path / "a.sf2", sine(441, 44_100), generators=[(17, 300)])
    left, right = font.note(0, 69, 100, 0.5, RATE, channels=2)
    np.testing.assert_allclose((left + right) / np.sqrt(2), font.note(0, 69, 100, 0.5, RATE), atol=1e-6)
    assert decibel(right) > decibel(left) + 6


@pytest.mark.slow
@pytest.mark.parametrize("path", installed_soundfonts() or [None], ids=lambda path: path and path.name)
def test_installed_fonts_play_every_ensemble(path):
    if path is None:
        pytest.skip("no SoundFont but the built-in one is installed here")
    font = SoundFont(path)
    for name in {name for ensemble in ENSEMBLES.values() for name in ensemble.instruments}:
        program, low, high = INSTRUMENTS[name]
        for key, velocity in ((low, 20), ((low + high) // 2, 80), (high, 124)):
            wave = font.note(program, key, velocity, 0.2, 8000)
            assert np.isfinite(wave).all() and wave.any(), (name, key, velocity)


@pytest.mark.slow
@pytest.mark.parametrize("path", installed_soundfonts()[:1] or [None], ids=lambda path: path and path.name)
def test_notes_sound_as_by_fluidsynth(path, monkeypatch):
    import shutil

    if path is None or shutil.which("fluidsynth") is None:
        pytest.skip("needs fluidsynth and a SoundFont such as FluidR3_GM.sf2, which are not installed here")
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import soundfonts as benchmark

    theirs = benchmark.played_by_fluidsynth(["piano", "violin", "trumpet", "flute"], path)
    for name, found in benchmark.compare(SoundFont(path), theirs).items():
        assert abs(found.level) < 0.5 and found.spectrum < 1 and abs(found.length) < 0.05, (name, found)
