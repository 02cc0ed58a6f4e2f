"""The benchmarks of the networks: the peer is the one they name, and models are timed in turns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.common import Peer, machine_line, median_in_turns, print_table, size_of
from Conf import SMOKE
from Libraries.Generator import Generator

CPU = torch.device("cpu")


def test_peer_has_19_million_parameters_and_172_gflop_a_pass():
    pytest.importorskip("diffusers")
    parameters, gflop = size_of(Peer)
    assert (round(parameters, 1), round(gflop)) == (19.0, 172)


def test_models_are_timed_in_turns_after_a_warm_up():
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "ABC"}
    seconds = median_in_turns(calls, 2, CPU)
    assert "".join(called) == "ABC" * 3
    assert list(seconds) == ["A", "B", "C"]


def test_table_is_markdown(capsys):
    print_table(["model", "s"], [["BASE", "0.25"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["| model | s    |", "| ----- | ---- |", "| BASE  | 0.25 |"]


def test_machine_line_names_the_version_of_torch():
    assert torch.__version__ in machine_line(CPU)


def test_an_autoencoder_is_trained_once_and_measured(chords, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import vae as benchmark

    monkeypatch.setitem(benchmark.VAES, "residual_16", replace(SMOKE.vae, channels=(8, 16)))
    first, again = (benchmark.train_or_find("residual_16", chords, minutes=0.001) for _ in range(2))
    row = benchmark.measure("residual_16", first, chords)
    assert first == again and len(row) == len(benchmark.HEADER) and row[2:4] == ["4x12x16", "16"]
    journal = benchmark.variant("conv", chords, 1)
    assert (journal.vae_train.batch_size, journal.vae_train.learning_rate) == (32, 1e-4)


def test_a_cascade_and_its_rival_are_trained_once_and_compared(chords, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import upsampler as benchmark

    settings = replace(chords, comparison=replace(chords.comparison, clips=2, upsampler_steps=(1,)))
    direct, again = (benchmark.train_directly(settings, 0.001) for _ in range(2))
    assert direct == again
    cascade = replace(settings, cascade=True)
    first, again = (benchmark.train_cascade(cascade, 0.001) for _ in range(2))
    assert first == again and len(list(cascade.upsampler_dir.iterdir())) == 1
    header, lines = benchmark.table(Generator.load(first), cascade, Generator.load(direct))
    assert [line[0] for line in lines] == ["interpolation", "upsampler, 1 step", "directly at full size"]
    assert all(len(line) == len(header) == 4 for line in lines) and lines[-1][1] == "-"
