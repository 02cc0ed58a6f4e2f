"""Examine a trained run; name the mistakes that were made, their evidence and what to change.

    ma-ddpm doctor Models/diffusion/00000-CPU

The exit code is 0 if no mistake was found, 1 if one was, and 2 if the folder is not a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from Commands.Options import Folder, read, refuse
from Libraries.Doctor import doctor
from Libraries.Training import CheckpointError


@dataclass(frozen=True)
class Doctor:
    """The options."""

    run: Folder  # folder of a run of any kind, below Models


def main(arguments: Sequence[str]) -> int:
    """Examine the run, print what was found, and return the exit code."""
    options = read(Doctor, arguments, __doc__)
    try:
        diagnosis = doctor(options.run)
    except CheckpointError as error:
        refuse(error)
    print(diagnosis)
    return 1 if diagnosis.findings else 0
