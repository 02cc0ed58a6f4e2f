"""`python -m ma_ddpm`, the command line of an installed MA_DDPM."""

import sys

from ma_ddpm.MainScripts.ma_ddpm import main

if __name__ == "__main__":
    sys.exit(main())
