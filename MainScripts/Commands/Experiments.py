"""Run the work journal's experiments (`Journal.py`); `Experiments.ipynb` does so cell by cell.

    ma-ddpm experiments                                          # all, at the small scale of TRIAL
    ma-ddpm experiments --only 06-norm 07-activation
    ma-ddpm experiments --preset BASE                            # at full scale, on a GPU

Interrupt it at any time: finished trainings are kept, and the next call resumes. Two calls at the same time
need different experiments, and one call must first have trained the preset, which all experiments share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from Commands.Options import read, refuse
from Journal import choose_experiments, journal_experiments
from Libraries.Studies import run_experiment, write_index, write_report


@dataclass(frozen=True)
class Experiments:
    """The options."""

    preset: str = "TRIAL"  # or one of Conf.py's
    only: tuple[str, ...] = ()  # names of experiments; none: all


def main(arguments: Sequence[str]) -> None:
    """Run the experiments, write their pages to Results."""
    options = read(Experiments, arguments, __doc__)
    settings, trials = choose_experiments(options.preset)
    experiments = journal_experiments(settings)
    if unknown := set(options.only) - experiments.keys():
        there = f"there are {', '.join(experiments)}"
        refuse(ValueError(f"no experiment {', '.join(sorted(unknown))}; {there}"))
    for name in options.only or experiments:
        outcomes = run_experiment(experiments[name], settings, trials)
        text, _ = write_report(experiments[name], outcomes, settings, trials)
        print(text)
    write_index(experiments.values(), settings)
