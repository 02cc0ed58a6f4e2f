"""Logging, seeds and run folders."""

import logging

import pytest
import torch

from Libraries.Disk import write_then_rename
from Libraries.Runs.Run import latest_run, new_run_dir
from Libraries.Utils import (
    LIGHT_DEBUG,
    SampleNoise,
    derive_seed,
    get_logger,
    require,
    resolve_precision,
    set_log_level,
    spread_indices,
)


@pytest.fixture
def log_level():
    yield
    set_log_level("INFO")


def test_light_debug_shows_our_details_and_no_library_flood(capsys, log_level):
    set_log_level("LIGHT_DEBUG")
    ours, theirs = get_logger("Somewhere"), logging.getLogger("some_library")
    ours.log(LIGHT_DEBUG, "a detail")
    ours.debug("too much")
    theirs.debug("flood")
    out = capsys.readouterr().out
    assert "a detail" in out and "LIGHT_DEBUG" not in out
    assert "too much" not in out and "flood" not in out
    set_log_level("INFO")
    ours.log(LIGHT_DEBUG, "a detail")
    assert capsys.readouterr().out == ""
    assert logging.getLevelName(LIGHT_DEBUG) == "LIGHT_DEBUG"
    assert logging.DEBUG < LIGHT_DEBUG < logging.INFO


def test_unknown_log_level_lists_the_known():
    with pytest.raises(ValueError, match="LIGHT_DEBUG, INFO"):
        set_log_level("CHATTY")


def test_runs_are_numbered_and_never_reused(tmp_path):
    runs = [new_run_dir(tmp_path / "models", "a").name for _ in range(3)]
    assert runs == ["00000-a", "00001-a", "00002-a"]
    (tmp_path / "models" / "00007-other").mkdir()
    assert new_run_dir(tmp_path / "models", "b").name == "00008-b"


@pytest.mark.parametrize("name", ["", "a/b", "../up", "with space"])
def test_run_names_that_are_paths_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="must be letters"):
        new_run_dir(tmp_path, name)


def test_emulated_bf16_is_not_taken_for_fast(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has_it, precision in ((False, "fp16"), (True, "bf16")):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, own=has_it: including_emulation or own,
        )
        assert resolve_precision("auto") == precision


def test_latest_run_is_the_newest_with_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="train a model first"):
        latest_run(tmp_path)
    first, _ = new_run_dir(tmp_path, "a"), new_run_dir(tmp_path, "b")
    (first / "ema-00000001.pth").touch()
    assert latest_run(tmp_path, "ema-*.pth") == first


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_then_rename(tmp_path / "file.txt", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_is_not_allowed_is_named_with_what_is():
    require(("a", "b"), kind="b")
    with pytest.raises(ValueError, match="kind='c' is unknown; choose one of a, b"):
        require(("a", "b"), kind="c")
    for interval, allowed, refused, says in (
        ("[0, 1)", (0, 0.5), (-0.1, 1, float("nan")), r"must be within \[0, 1\)"),
        ("(0, inf)", (0.1, float("inf")), (0, -1), "must be above 0"),
        ("[1, inf)", (1, 7, float("inf")), (0, float("nan")), "must be 1 or more"),
    ):
        for value in allowed:
            require(interval, number=value)
        for value in refused:
            with pytest.raises(ValueError, match=f"^number={value} {says}$"):
                require(interval, number=value)


def test_noise_of_a_sample_depends_on_its_seed_alone():
    many, one = SampleNoise([3, 7, 9]), SampleNoise([7])
    for _ in range(3):
        assert torch.equal(many((2, 4))[1], one((2, 4))[0])


def test_noise_is_standard_normal_and_seeds_are_independent():
    noise = SampleNoise([derive_seed(0, position) for position in range(2000)])((50,))
    assert abs(noise.mean().item()) < 0.02 and abs(noise.std().item() - 1) < 0.02
    neighbours = (noise[:-1] * noise[1:]).mean(1)
    assert abs(neighbours.mean().item()) < 4 / (2000 * 50) ** 0.5


def test_derived_seeds_differ_in_every_part():
    seeds = {derive_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900 and all(0 <= seed < 2**32 for seed in seeds)


def test_indices_are_spread_from_the_first_to_the_last():
    assert spread_indices(10, 4) == [0, 3, 6, 9]
    assert spread_indices(3, 100) == [0, 1, 2] and spread_indices(5, 1) == [0]
