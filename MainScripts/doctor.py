"""Examine a trained run, and name the mistakes that were made, each with its evidence and what to change.

    python MainScripts/doctor.py Models/diffusion/00000-CPU

The exit code is 0 if no mistake was found, 1 if one was, and 2 if the folder is not a run.
"""

import argparse
import sys
from pathlib import Path

from Conf import conf
from Libraries.Doctor import doctor
from Libraries.Training import CheckpointError


def main() -> int:
    """Read the arguments, examine the run, print what was found, and return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help=f"the folder of a run, below {conf.models_dir}")
    arguments = parser.parse_args()
    try:
        diagnosis = doctor(arguments.run)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return 2
    print(diagnosis)
    return 1 if diagnosis.findings else 0


if __name__ == "__main__":
    sys.exit(main())
