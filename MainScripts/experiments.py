"""Run the journal's experiments from a terminal; `Experiments.ipynb` does the same cell by cell.

    python MainScripts/experiments.py                         # all, at the small scale of TRIAL
    python MainScripts/experiments.py --only 06-norm 07-activation
    python MainScripts/experiments.py --preset BASE           # at full scale, on a GPU

Interrupt it at any time: finished trainings are kept, and the next call resumes. Two calls at the same time
need different experiments, and one call must first have trained the preset, which all experiments share.
"""

import argparse

from Conf import PRESETS
from Journal import choose_experiments, journal_experiments
from Libraries.Disk import exit_with_the_sentence
from Libraries.Studies import run_experiment, write_index, write_report


def main() -> None:
    """Read the arguments, run the experiments, write their pages to Results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=("TRIAL", *PRESETS), default="TRIAL")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of experiments (default: all)")
    arguments = parser.parse_args()
    settings, trials = choose_experiments(arguments.preset)
    experiments = journal_experiments(settings)
    if unknown := set(arguments.only or ()) - experiments.keys():
        parser.error(f"no experiment {', '.join(sorted(unknown))}; there are {', '.join(experiments)}")
    for name in arguments.only or experiments:
        outcomes = run_experiment(experiments[name], settings, trials)
        text, _ = write_report(experiments[name], outcomes, settings, trials)
        print(text)
    write_index(experiments.values(), settings)


if __name__ == "__main__":
    with exit_with_the_sentence():
        main()
