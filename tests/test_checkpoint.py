"""Checkpoints: whole or absent, no code inside, and the right network."""

import pickle

import pytest
import torch
from torch import nn

from Libraries.Training.Checkpoint import (
    CheckpointError,
    find_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    load_weights,
    save_checkpoint,
    save_weights,
)


def test_what_was_saved_comes_back(tmp_path):
    content = {"step": 3, "weights": {"w": torch.randn(4)}, "nested": [1, (2.0, "three")]}
    save_checkpoint(tmp_path / "state-00000003.pth", content)
    loaded = load_checkpoint(tmp_path / "state-00000003.pth")
    assert torch.equal(loaded["weights"]["w"], content["weights"]["w"])
    assert (loaded["step"], loaded["nested"]) == (3, [1, (2.0, "three")])


def test_released_weights_come_back_from_safetensors_as_they_were(tmp_path):
    weights = {"w": torch.randn(4, 3).half().t(), "count": torch.tensor(7)}
    save_weights(tmp_path / "ema-00000003.safetensors", 3, weights)
    assert find_checkpoints(tmp_path, "ema") == [(3, tmp_path / "ema-00000003.safetensors")]
    loaded = load_checkpoint(tmp_path / "ema-00000003.safetensors")
    assert loaded["step"] == 3 and loaded["weights"].keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(loaded["weights"][name], value) and loaded["weights"][name].dtype == value.dtype


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, None])
def test_damaged_safetensors_are_one_clear_sentence(tmp_path, damage):
    path = tmp_path / "ema-00000001.safetensors"
    save_weights(path, 1, {"w": torch.randn(10_000)})
    path.write_bytes(path.read_bytes()[:5_000] if damage is None else damage)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "state-00000001.pth"
    save_checkpoint(path, {"step": 1})

    def half(content, target):
        target.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


class Malicious:
    def __reduce__(self):
        return print, ("code ran",)


def test_a_checkpoint_cannot_run_code(tmp_path, capsys):
    torch.save({"weights": Malicious()}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Malicious()))
    for name in ("a.pth", "b.pth"):
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            load_checkpoint(tmp_path / name)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("keep", [0, 10, 0.5])
def test_a_checkpoint_cut_short_is_one_clear_sentence(tmp_path, keep):
    path = tmp_path / "ema-00000001.pth"
    save_checkpoint(path, {"weights": torch.randn(10_000)})
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(CheckpointError, match="delete it or copy it again"):
        load_checkpoint(path)


def test_missing_checkpoints_say_so(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "ema-00000001.pth")
    with pytest.raises(CheckpointError, match="never saved"):
        latest_checkpoint(tmp_path, "ema")


def test_checkpoints_are_ordered_by_step(tmp_path):
    for step in (100, 20, 3):
        save_checkpoint(tmp_path / f"ema-{step:08d}.pth", {"step": step})
    (tmp_path / "ema-broken.pth").touch()
    assert [step for step, _ in find_checkpoints(tmp_path, "ema")] == [3, 20, 100]
    assert latest_checkpoint(tmp_path, "ema").name == "ema-00000100.pth"


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"weight is \(2, 3\) here and \(2, 4\) there"):
        load_weights(nn.Linear(3, 2), nn.Linear(4, 2).state_dict(), tmp_path / "ema.pth")
    with pytest.raises(CheckpointError, match="absent"):
        load_weights(nn.Linear(3, 2), nn.Linear(3, 2, bias=False).state_dict(), tmp_path / "ema.pth")
