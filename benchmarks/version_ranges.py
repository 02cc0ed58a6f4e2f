"""Try one end of the ranges in requirements.txt: an environment of its own, and tests in it.

    python benchmarks/version_ranges.py oldest
    python benchmarks/version_ranges.py newest tests/test_spectrogram.py tests/test_audio.py
    python benchmarks/version_ranges.py oldest --keep torch==2.13.0     # where its old wheels are too large

The oldest versions are the lower bounds themselves, of what requirements.txt names; the newest are what pip
finds today. The environment is of the Python that runs this, and stays in --folder for another call.
"""

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def main() -> int:
    """Make the environment, list what is in it, run the tests; return their exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("end", choices=("oldest", "newest"))
    parser.add_argument("tests", nargs="*", help="test files (default: all that are fast)")
    parser.add_argument("--keep", action="append", default=[], help="a version of your own")
    parser.add_argument("--folder", type=Path, help="of the environment (default: a temporary one)")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="versions-"))
    if not folder.is_dir() or not any(folder.iterdir()):
        venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = at_end([line for line in lines if line and not line.startswith("#")], arguments.end)
    kept = {name_of(line) for line in arguments.keep}
    wanted = [line for line in wanted if name_of(line) not in kept] + arguments.keep
    tests = ["-r", REPOSITORY / "tests" / "requirements.txt"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted, *tests], check=True)
    subprocess.run([python, "-m", "pip", "list"], check=True)
    options = ["-q", "-m", "not slow and not gpu", *arguments.tests]
    return subprocess.run([python, "-m", "pytest", *options], cwd=REPOSITORY).returncode


def at_end(requirements: list[str], end: str) -> list[str]:
    """Return requirements such as "numpy>=2.0  # why" as they are, or with the lower bound as the version."""
    plain = [line.split("  #")[0] for line in requirements]
    if end == "newest":
        return plain
    return [f"{name.replace('>=', '==')}{semicolon}{where}" for name, semicolon, where in (
        line.partition(";") for line in plain)]  # fmt: skip


def name_of(requirement: str) -> str:
    """Return the package that a requirement names."""
    return requirement.replace(">", "=").split("=")[0].strip()


if __name__ == "__main__":
    sys.exit(main())
