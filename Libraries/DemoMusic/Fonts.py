"""Find the SoundFont to play with: a named one, the best of this machine, or the one inside `pretty_midi`.

The built-in TimGM6mb.sf2 is not copied into this repository. Neither the file nor `pretty_midi` states a
licence for it. Debian's package timgm6mb-soundfont does, for a revision of the same font: copyright 2004 Tim
Brechbill, 2010 David Bolton; GNU General Public License, version 2. Its samples are Brechbill's own, in the
public domain, or under the GPL, as he wrote in 2009. FluidR3 and MuseScore General are under the MIT licence.
"""

import hashlib
from pathlib import Path

from Libraries.DemoMusic.Scores import package_folder
from Libraries.DemoMusic.SoundFont import SoundFont

BUILT_IN = "built-in"
BUILT_IN_FILE = "TimGM6mb.sf2"
FOLDERS = (  # of Debian, Arch and Fedora, the user, and Homebrew
    "/usr/share/sounds/sf2",
    "/usr/share/sounds/sf3",
    "/usr/share/soundfonts",
    "/usr/local/share/soundfonts",
    "~/.local/share/soundfonts",
    "/opt/homebrew/share/soundfonts",
)
BEST = (  # first to last: fonts that have every instrument of General MIDI
    "FluidR3_GM.sf2",
    "MuseScore_General*.sf2",
    "MuseScore_General*.sf3",
    "GeneralUser*.sf2",
)


def find_soundfont(setting: str | None) -> Path:
    """Return the file of a SoundFont.

    Args:
        setting: its path, "built-in" for the one of `pretty_midi`, or None for the best of `FOLDERS`, which
            is the built-in one where they hold none of `BEST`.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: `pretty_midi` is not installed.
    """
    if setting == BUILT_IN:
        return package_folder("pretty_midi") / BUILT_IN_FILE
    if setting is None:
        return next(iter(installed_soundfonts()), None) or find_soundfont(BUILT_IN)
    path = Path(setting).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no SoundFont {path}: correct soundfont or CONF_SOUNDFONT, or set {BUILT_IN!r}"
        )
    return path.resolve()


def installed_soundfonts() -> list[Path]:
    """Return the General MIDI SoundFonts that this machine has in `FOLDERS`, the best first."""
    found = (
        path.resolve()
        for pattern in BEST
        for folder in FOLDERS
        for path in sorted(Path(folder).expanduser().glob(pattern))
        if path.is_file()
    )
    return list(dict.fromkeys(found))


def open_soundfont(setting: str | None) -> SoundFont:
    """Open the SoundFont of a setting, as in `find_soundfont`.

    The built-in one is played without its modulators: the demo's figures and the released weights were made
    with that sound.
    """
    path = find_soundfont(setting)
    return SoundFont(path, modulated=path.name != BUILT_IN_FILE)


def describe_soundfont(path: Path) -> dict[str, str]:
    """Return the name and the SHA-256 of a SoundFont's file, for the manifest of what it plays."""
    with path.open("rb") as file:
        return {"name": path.name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
