"""MA_DDPM where it is installed: a copy of this repository, whose folders are on the path as in a notebook.

After `import ma_ddpm` there is `from Libraries.Runs import DiffusionRun`, and `from Conf import conf`.
"""

import sys
from pathlib import Path

__version__ = "0.2.0"

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(folder) for folder in (_HERE, _HERE / "MainScripts") if str(folder) not in sys.path]
