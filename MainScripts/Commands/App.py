"""Open the page in a browser: make music, change it, restore it, look at it.

    ma-ddpm app

The page needs Gradio, which is not installed with the rest: `pip install "gradio>=6"`.
"""

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int | None:
    """Start the page, which reads the options of this process."""
    from app import main as start  # only where Gradio is, as it says itself

    return start()
