"""Open the page in a browser: make music, change it, restore it, look at it.

    ma-ddpm app

The page needs gradio, which is not installed with the rest: `pip install gradio`.
"""

from collections.abc import Sequence
from importlib.util import find_spec

from Commands.Options import refuse


def main(arguments: Sequence[str]) -> int | None:
    """Start the page; it reads its own options."""
    if find_spec("gradio") is None:
        refuse(ModuleNotFoundError("the page needs gradio: pip install gradio"))
    from app import main as start  # only where gradio is

    return start()
