"""The benchmarks of the networks: the peer is the one they name, and models are timed in turns."""

import pytest
import torch

from benchmarks.common import Peer, machine_line, median_in_turns, print_table, size_of

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
