"""One line for music, as the README has it: `ma-ddpm generate`, which says what there is.

    python MainScripts/generate.py -o choir.flac --label choir --seconds 60 --seed 3

The same options give the same music again.
"""

import sys

import ma_ddpm


def main() -> int:
    """Generate by the options of this process; return the exit code."""
    return ma_ddpm.main(["generate", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
