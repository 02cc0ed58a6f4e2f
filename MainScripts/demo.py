"""What `make demo` runs: `ma-ddpm demo`."""

import sys

from ma_ddpm import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
