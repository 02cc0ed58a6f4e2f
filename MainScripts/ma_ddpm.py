"""Everything from a terminal, one command each: `ma-ddpm COMMAND --help` lists its options.

    ma-ddpm generate -o choir.flac --label choir --seconds 60 --seed 3
    ma-ddpm tune ~/my-songs --train.num-steps 2000
    ma-ddpm train --preset BASE --train.batch-size 8 --resume newest

`pip install .` or `pip install -e .` puts `ma-ddpm` on the path; `python -m ma_ddpm` is the same, and so is
`python MainScripts/ma_ddpm.py` in a copy that is not installed.

The exit code is 0, or 1 where something could not be done and 2 where the options do not fit, each with the
reason on stderr, and 130 after Ctrl-C. `--log-level LIGHT_DEBUG` shows the lines that led to the reason.
"""

import ast
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMANDS = (
    *("prepare", "train", "tune", "generate", "edit", "evaluate", "doctor", "app", "export"),
    *("experiments", "demo"),
)
INTERRUPTED, PIPE_CLOSED = 130, 141  # 128 and the number of the signal, as shells have it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code.

    Args:
        arguments: the command and its options; None: those of this process.
    """
    name, *options = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
        return 0
    if name not in COMMANDS:
        print(f"ma-ddpm: there is no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return run(name, options)
    except KeyboardInterrupt:
        print(f"ma-ddpm {name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def run(name: str, options: Sequence[str]) -> int:
    """Import a command and run it; return its exit code, 1 after a refusal, whose sentence goes to stderr."""
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    sys.argv = [f"ma-ddpm {name}", *options]
    try:
        return importlib.import_module(f"Commands.{name.capitalize()}").main(options) or 0
    except BrokenPipeError:
        raise
    except refusals() as error:
        from Libraries.Utils import LIGHT_DEBUG, get_logger

        get_logger("ma_ddpm").log(LIGHT_DEBUG, "what led to this:", exc_info=True)
        print(f"ma-ddpm {name}: {error}", file=sys.stderr)
        return 1


def refusals() -> tuple[type[Exception], ...]:
    """Return the errors whose message is a sentence for the user."""
    from Libraries.Disk import FolderInUse
    from Libraries.Sound.Decoding import AudioError
    from Libraries.Training.Checkpoint import CheckpointError
    from Libraries.Training.Loop import TrainingDiverged

    return ValueError, OSError, FolderInUse, AudioError, CheckpointError, TrainingDiverged


def overview() -> str:
    """Return the help: what this file says, and the first line of every command's."""
    return f"{__doc__}\ncommands:\n" + "\n".join(f"  {name:<12} {summary(name)}" for name in COMMANDS)


def summary(name: str) -> str:
    """Return the first line of what a command's file says, without importing torch, which takes seconds."""
    source = (HERE / "Commands" / f"{name.capitalize()}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
