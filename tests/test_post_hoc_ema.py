"""Averages of any length after the training: profiles, their least squares, snapshots of a run."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training import CONFIG, assert_same, network, train, weights
from torch import nn

from Libraries.Training.Checkpoint import CheckpointError, find_checkpoints, load_checkpoint, save_checkpoint
from Libraries.Training.Loop import TrainState
from Libraries.Training.PostHocEMA import (
    LONGEST,
    gamma_of,
    inner_product,
    power_average,
    reconstruct,
    save_snapshot,
    solve_coefficients,
)

STORED = (0.05, 0.10)


def profile(time, sigma_rel, num_steps):
    """The share of every step 1 ... num_steps in the average at `time`: tau^gamma summed over each step."""
    edges = np.minimum(np.arange(num_steps + 1) / time, 1.0)
    return np.diff(edges ** (gamma_of(sigma_rel) + 1))


def stored_profiles(times, lengths=STORED):
    """The (time, gamma) of snapshots, float64 (N,) each, in the order of the files."""
    gammas = [gamma_of(length) for length in lengths]
    return np.repeat(np.array(times, dtype=np.float64), len(lengths)), np.tile(gammas, len(times))


def walk(num_steps, size=64):
    """A trajectory (num_steps, size) as training makes it: a slow drift, and noise about it."""
    generator = torch.Generator().manual_seed(0)
    drift = torch.linspace(0, 1, num_steps)[:, None].sqrt() * torch.randn(size, generator=generator)
    return drift + 0.02 * torch.randn(num_steps, size, generator=generator).cumsum(0)


class Holder(nn.Module):
    """Some weights, a buffer and an integer."""

    def __init__(self, size=64):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.register_buffer("scale", torch.full((2,), 1 / 3))
        self.register_buffer("count", torch.tensor(0))

    def at(self, weight, step):
        self.weight.data.copy_(weight)
        self.count.fill_(step)
        return self


def record(run_dir, trajectory, every, lengths=STORED):
    """Average a trajectory and store snapshots as training does; returns the averages."""
    holder = Holder(trajectory.shape[1])
    averages = {length: power_average(holder, length) for length in lengths}
    for step, weight in enumerate(trajectory, 1):
        for average in averages.values():
            average.update_parameters(holder.at(weight, step))
        if step % every == 0:
            save_snapshot(run_dir, step, averages)
    return averages


def direct(trajectory, sigma_rel, time=None):
    """The average of a trajectory by its definition, in float64."""
    weights = profile(time or len(trajectory), sigma_rel, len(trajectory))
    return torch.from_numpy(weights @ trajectory.double().numpy())


def relative_error(value, truth):
    return ((value - truth).norm() / truth.norm()).item()


def test_gamma_inverts_the_formula_and_agrees_with_the_paper():
    for gamma in (0.0, 0.5, 3.0, 6.94, 16.97, 100.0):
        sigma_rel = ((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) ** 0.5
        assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=1e-6)
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    assert gamma_of(LONGEST) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.29, 1.0])
def test_impossible_lengths_say_what_is_allowed(sigma_rel, tmp_path):
    with pytest.raises(ValueError, match=r"above 0 and at most 0\.2887"):
        gamma_of(sigma_rel)
    with pytest.raises(ValueError, match=r"power_ema=.* at most 0\.2887"):
        replace(CONFIG, power_ema=(0.05, sigma_rel))


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.10, LONGEST])
def test_running_average_is_the_weighted_sum_with_the_power_profile(sigma_rel):
    holder, trajectory = Holder(), walk(1_000)
    average = power_average(holder, sigma_rel)
    for step, weight in enumerate(trajectory, 1):
        average.update_parameters(holder.at(weight, step))
        if step == 1:
            assert torch.equal(average.module.weight.data, weight)
    assert relative_error(average.module.weight.data, direct(trajectory, sigma_rel)) < 1e-6
    assert average.module.count == 1_000  # buffers follow


def test_late_steps_still_move_the_average_by_the_right_share():
    holder = Holder(1)
    average = power_average(holder, 0.05)
    average.n_averaged.fill_(9_999_999)
    average.update_parameters(holder.at(torch.ones(1), 10_000_000))
    assert average.module.weight.item() == pytest.approx((gamma_of(0.05) + 1) / 1e7, rel=1e-5)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.10, 0.25])
def test_measured_deviation_of_the_weights_is_sigma_rel(sigma_rel):
    """Averaging the age of each step, and its square, measures the profile."""
    holder, num_steps = Holder(2), 2_000
    average = power_average(holder, sigma_rel)
    for step in range(1, num_steps + 1):
        age = (num_steps + 0.5 - step) / num_steps
        average.update_parameters(holder.at(torch.tensor([age, age**2]), step))
    mean, square = average.module.weight.double().tolist()
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-3)
    assert mean == pytest.approx(1 / (gamma_of(sigma_rel) + 2), rel=1e-3)


def test_inner_products_are_those_of_the_explicit_profiles():
    num_steps = 20_000
    for (time_a, a), (time_b, b) in [((5_000, 0.05), (20_000, 0.1)), ((20_000, 0.2), (20_000, 0.05))]:
        summed = profile(time_a, a, num_steps) @ profile(time_b, b, num_steps)
        assert inner_product(time_a, gamma_of(a), time_b, gamma_of(b)) == pytest.approx(summed, rel=1e-4)
        assert inner_product(time_b, gamma_of(b), time_a, gamma_of(a)) == pytest.approx(summed, rel=1e-4)
    assert np.isfinite(inner_product(1.0, gamma_of(0.01), 1e9, gamma_of(0.01)))


@pytest.mark.parametrize("sigma_rel", [0.03, 0.075, 0.15, 0.2])
def test_shares_are_those_of_least_squares_on_the_explicit_profiles(sigma_rel):
    times, num_steps = range(2_000, 20_001, 2_000), 20_000
    columns = [profile(time, length, num_steps) for time in times for length in STORED]
    target = profile(num_steps, sigma_rel, num_steps)
    expected = np.linalg.lstsq(np.stack(columns, 1), target, rcond=None)[0]
    shares, error = solve_coefficients(*stored_profiles(times), num_steps, gamma_of(sigma_rel))
    assert np.allclose(shares, expected / expected.sum(), atol=2e-3)
    rebuilt = np.stack(columns, 1) @ shares
    assert error == pytest.approx(np.linalg.norm(rebuilt - target) / np.linalg.norm(target), rel=1e-2)


def test_stored_profile_needs_no_other_and_later_ones_add_nothing():
    earlier, all_of_them = stored_profiles(range(100, 601, 100)), stored_profiles(range(100, 1_001, 100))
    shares, error = solve_coefficients(*earlier, 600.0, gamma_of(0.10))
    assert np.allclose(shares, np.eye(12)[11], atol=1e-10) and error < 1e-6
    some, _ = solve_coefficients(*earlier, 600.0, gamma_of(0.03))
    more, _ = solve_coefficients(*all_of_them, 600.0, gamma_of(0.03))
    assert np.allclose(more, [*some, *np.zeros(8)], atol=1e-10)


def test_the_same_snapshot_twice_does_no_harm():
    once, _ = solve_coefficients(*stored_profiles([100, 200]), 200.0, gamma_of(0.15))
    twice, _ = solve_coefficients(*stored_profiles([100, 100, 200]), 200.0, gamma_of(0.15))
    assert np.allclose(twice[:2] + twice[2:4], once[:2]) and np.allclose(twice[4:], once[2:])


@pytest.mark.parametrize("step", [400, 1_000])
def test_stored_length_at_a_stored_step_comes_back(tmp_path, step):
    trajectory = walk(1_000)
    record(tmp_path, trajectory, every=200)
    for length in STORED:
        rebuilt = reconstruct(tmp_path, length, step)["weight"]
        stored = load_checkpoint(tmp_path / f"snapshot-{step:08d}.pth")["parameters"][length]["weight"]
        assert torch.allclose(rebuilt, stored.float(), rtol=1e-6, atol=1e-9)
        assert relative_error(rebuilt, direct(trajectory, length, step)) < 5e-4  # float16


@pytest.mark.parametrize(("sigma_rel", "few", "many"), [
    (0.03, 0.02, 0.005), (0.075, 0.005, 0.001), (0.15, 0.02, 0.001), (0.2, 0.04, 0.001)
])  # fmt: skip
def test_other_lengths_come_near_and_nearer_with_more_snapshots(tmp_path, sigma_rel, few, many):
    trajectory = walk(1_000)
    errors = {}
    for every in (200, 100, 25):
        (tmp_path / str(every)).mkdir()
        record(tmp_path / str(every), trajectory, every)
        rebuilt = reconstruct(tmp_path / str(every), sigma_rel)["weight"]
        errors[every] = relative_error(rebuilt, direct(trajectory, sigma_rel))
    assert errors[200] < few and errors[25] < many and errors[25] < errors[200]


def test_buffers_and_integers_are_those_of_the_snapshot(tmp_path):
    record(tmp_path, walk(100), every=20)
    rebuilt = reconstruct(tmp_path, 0.07, step=60)
    assert rebuilt["count"] == 60 and rebuilt["count"].dtype == torch.int64
    assert torch.equal(rebuilt["scale"], torch.full((2,), 1 / 3))  # not rounded
    assert {name: value.dtype for name, value in rebuilt.items()}["weight"] == torch.float32
    Holder().load_state_dict(rebuilt)


def test_weights_that_do_not_move_stay_as_they_are(tmp_path):
    record(tmp_path, torch.full((50, 64), 0.25), every=10)
    assert torch.allclose(reconstruct(tmp_path, 0.25)["weight"], torch.full((64,), 0.25), atol=1e-6)


def test_a_length_out_of_reach_is_warned_of(tmp_path, capsys):
    record(tmp_path, walk(100), every=20)
    reconstruct(tmp_path, 0.04)
    assert capsys.readouterr().out == ""
    reconstruct(tmp_path, 0.01)
    assert "sigma_rel=0.01 misses its profile by 61 %" in capsys.readouterr().out


def test_missing_snapshots_say_what_there_is(tmp_path):
    with pytest.raises(CheckpointError, match="train it with power_ema set"):
        reconstruct(tmp_path, 0.1)
    record(tmp_path, walk(100), every=20)
    for step, nearest in ((10, "20 or 40"), (55, "40 or 60"), (120, "80 or 100")):
        with pytest.raises(CheckpointError, match=rf"choose {nearest} \(the first is 20, the last 100\)"):
            reconstruct(tmp_path, 0.1, step)
    (tmp_path / "snapshot-00000040.pth").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"00000040\.pth cannot be read"):
        reconstruct(tmp_path, 0.1)


def test_skipped_updates_are_not_counted_as_time(tmp_path):
    """fp16 skips steps; the averages stand still then, and no snapshot is written before the first update."""
    trajectory, holder = walk(90), Holder()
    averages = {length: power_average(holder, length) for length in STORED}
    for step in range(1, 101):
        if step > 10:
            for average in averages.values():
                average.update_parameters(holder.at(trajectory[step - 11], step))
        if step % 10 == 0:
            save_snapshot(tmp_path, step, averages)
    assert find_checkpoints(tmp_path, "snapshot")[0][0] == 20
    assert relative_error(reconstruct(tmp_path, 0.15)["weight"], direct(trajectory, 0.15)) < 0.01


def test_training_stores_its_averages_and_returns_any_length(tmp_path):
    config = replace(
        CONFIG, num_steps=100, log_every=100, save_every=100, validate_every=100, snapshot_every=10
    )
    with_average = train(tmp_path / "run", replace(config, power_ema=(0.05, 0.10, 0.2)))
    for _, path in find_checkpoints(tmp_path / "run", "snapshot"):  # keep 0.2 apart: the last is the truth
        content = load_checkpoint(path)
        truth = torch.cat([value.float().flatten() for value in content["parameters"].pop(0.2).values()])
        save_checkpoint(path, content)
    model = network()
    model.load_state_dict(reconstruct(tmp_path / "run", 0.2))
    assert relative_error(weights(model), truth) < 0.02
    without = train(tmp_path / "off", replace(config, power_ema=()))
    assert not find_checkpoints(tmp_path / "off", "snapshot")
    assert_same(with_average.state_dict(), without.state_dict())  # they watch, and change nothing


def test_snapshot_is_on_disk_before_the_state_that_goes_on_from_it(tmp_path, monkeypatch):
    def killed(state, run_dir):
        raise SystemExit

    monkeypatch.setattr(TrainState, "save", killed)
    with pytest.raises(SystemExit):
        train(tmp_path / "run", replace(CONFIG, save_every=4, snapshot_every=4))
    assert [step for step, _ in find_checkpoints(tmp_path / "run", "snapshot")] == [4]
