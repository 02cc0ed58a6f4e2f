"""Public-domain scores from `music21`, those whose files reserve no rights, read into notes.

Included:

- chorales: four-part chorales by J. S. Bach (died 1750).
- quartets: string quartets by Haydn, Mozart, Beethoven and Robert Schumann (the last died in 1856).
- airs: James Aird's Selection of Scotch, English, Irish and Foreign Airs (Glasgow 1778-1801).
- fiddle_tunes: Ryan's Mammoth Collection (Boston 1883).

Left out: Palestrina (rights reserved), the Essen folk songs (not for commercial use), Monteverdi (some files
name the modern edition they were scanned from), and every file that states a right without plainly giving it
away (see `rights_statement`).

361 of the 406 chorales read "PDF (c) 2004 Margaret Greentree" (some 2003) at the head of the page, and state
nothing else: no <rights>, no licence. The judgement here is that they are free to use as this corpus does.
The note is about a PDF, a typeset page, and none of a page's layout is kept: what is read are pitches,
onsets, lengths and voices. These are Bach's, who died in 1750; a faithful copy of them adds nothing
of the copyist's own. The files are passed on with their encoders' permission, as
music21's corpus/license.txt says and three of the files repeat. So a statement that claims a PDF and nothing
more reserves nothing here; any other statement in the same file still counts. That is a reader's judgement,
not a lawyer's.
"""

import html
import re
import warnings
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from Libraries.Disk import write_then_rename
from Libraries.Utils import LIGHT_DEBUG, get_logger

logger = get_logger("Scores")

_CACHE_FORMAT = "scores-1"  # folder of the cache; change the number when parsing changes

_RIGHTS_TAG = re.compile(r"<rights[^>]*>([^<]*)</rights>")
_STATEMENT = re.compile(
    r"©|\(c\)\s*(?:1[5-9]|20)\d\d|copyright|licen[cs]e|all rights|rights[^<>\n]*reserved", re.IGNORECASE
)
_PAGE = re.compile(
    r"PDF\s*(?:©|\(c\))\s*(?:19|20)\d\d [^\W\d]+ [^\W\d]+(?:\s+- used by permission)?", re.IGNORECASE
)
_FREE = re.compile(
    r"public domain|\bCC0\b|\bCC[ -]BY\b(?![ -](?:NC|ND|SA))|Creative Commons (?:Zero|Attribution\b(?!-))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Source:
    """Scores of one kind."""

    files: dict[str, str]  # pattern below music21's corpus -> composer or book
    notes_per_second: tuple[float, float]  # of the busiest voice, where a score has no tempo of its own
    books: bool = False  # each file is a book of tunes, each tune a score


@dataclass(frozen=True, eq=False)
class Score:
    """A parsed score."""

    score_id: str
    title: str
    composer: str
    bpm: float  # quarter notes per minute; NaN where the score does not say
    notes_per_second: tuple[float, float]  # as in Source
    notes: np.ndarray  # float64 (N, 4): onset and length in quarter notes, MIDI key, voice from 0


SOURCES = {
    "chorales": Source(
        {"bach/bwv*.*.mxl": "Johann Sebastian Bach", "bach/bwv[234]*.mxl": "Johann Sebastian Bach"},
        (1.4, 2.2),
    ),
    "quartets": Source(
        {
            "haydn/opus*/*.mxl": "Joseph Haydn",
            "mozart/k[148]*/*.mxl": "Wolfgang Amadeus Mozart",
            "beethoven/**/*.mxl": "Ludwig van Beethoven",
            "schumann_robert/opus41no1/*.mxl": "Robert Schumann",
        },
        (3.0, 5.0),
    ),
    "airs": Source({"airdsAirs/*.abc": "James Aird's Selection of Airs"}, (3.5, 6.0), books=True),
    "fiddle_tunes": Source({"ryansMammoth/*.abc": "Ryan's Mammoth Collection"}, (4.5, 7.0)),
}


def rights_statement(text: str) -> str | None:
    """Return the first statement of a score file that reserves a right, or None if there is none.

    A statement is MusicXML's `<rights>`, or any line or XML text that mentions copyright or a licence. It
    passes if it also says public domain, CC0 or CC-BY (and not NC, ND or SA), or if all that it claims is a
    PDF of the page.
    """
    text = html.unescape(text)
    statements = _RIGHTS_TAG.findall(text)
    if _STATEMENT.search(text):  # splitting megabytes of XML is worth it only then
        statements += [piece for piece in re.split(r"[<>\n]", text) if _STATEMENT.search(piece)]
    stripped = (statement.strip() for statement in statements)
    return next((s for s in stripped if s and not _FREE.search(s) and not _PAGE.fullmatch(s)), None)


@lru_cache
def list_scores(source: str) -> dict[str, tuple[Path, int, str]]:
    """Return a source's unread scores by id: file, number of the tune in a book (else 0), composer."""
    found = {}
    for pattern, composer in SOURCES[source].files.items():
        for path in sorted(corpus_folder().glob(pattern)):
            name = path.relative_to(corpus_folder()).with_suffix("").as_posix().replace("/", "-")
            score_id = re.sub(r"[^A-Za-z0-9-]", "_", name)
            if SOURCES[source].books:
                tunes = range(1, len(_tunes(path)))
                found |= {f"{score_id}-{tune:03d}": (path, tune, composer) for tune in tunes}
            else:
                found[score_id] = (path, 0, composer)
    return found


def load_score(score_id: str, source: str, cache_dir: Path) -> Score | None:
    """Return a score, parsed or from the cache; None if its file reserves rights or has no notes."""
    path, tune, composer = list_scores(source)[score_id]
    cached = cache_dir / _CACHE_FORMAT / f"{score_id}.npz"
    if not cached.exists():
        text = read_score(path, tune)
        if statement := rights_statement(text):
            logger.log(LIGHT_DEBUG, "%s is left out: %s", score_id, statement)
            return None
        title, bpm, notes = parse_score(text, path.suffix)
        write_then_rename(cached, lambda file: np.savez(file, title=title, bpm=bpm, notes=notes))
    with np.load(cached, allow_pickle=False) as arrays:
        title, bpm, notes = str(arrays["title"]), float(arrays["bpm"]), arrays["notes"]
    rates = SOURCES[source].notes_per_second
    return Score(score_id, title or score_id, composer, bpm, rates, notes) if len(notes) else None


def read_score(path: Path, tune: int) -> str:
    """Return the MusicXML or ABC text of a file, or of one tune of a book (from 1; 0: not a book)."""
    if path.suffix == ".mxl":  # a zip file, whose table of contents names the score
        with zipfile.ZipFile(path) as archive:
            contents = archive.read("META-INF/container.xml").decode("utf-8")
            name = re.search(r'full-path="([^"]+)"', contents).group(1)
            data = archive.read(html.unescape(name))
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8")
    text = path.read_text(encoding="utf-8")
    return _tunes(path)[0] + _tunes(path)[tune] if tune else text


def parse_score(text: str, suffix: str) -> tuple[str, float, np.ndarray]:
    """Return title, quarter notes per minute (or NaN) and notes (N, 4), as in Score, of MusicXML or ABC text.

    Repeats are played once; grace notes, chord symbols and drums are left out; tied notes become one.
    """
    from music21 import converter, tempo  # takes seconds to import; a full cache needs none of it
    from music21.musicxml.xmlObjects import MusicXMLWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MusicXMLWarning)  # an overfull bar plays all the same
        stream = converter.parseData(text, format="abc" if suffix == ".abc" else "musicxml")
    marks = [mark.getQuarterBPM() for mark in stream.recurse().getElementsByClass(tempo.MetronomeMark)]
    bpm = next((float(value) for value in marks if value), np.nan)
    parts = stream.parts or [stream]
    rows = [row for voice, part in enumerate(parts) for row in _part_notes(part, voice)]
    title = stream.metadata.bestTitle if stream.metadata else None
    return title or "", bpm, np.array(rows, np.float64).reshape(-1, 4)


def _part_notes(part, voice: int) -> list[list[float]]:
    """Return onset, length, key and voice of a music21 part's notes."""
    rows, tied = [], {}  # tied: key -> its row, to be extended
    for element in part.flatten().notes:
        if "Harmony" in element.classes or element.quarterLength == 0:
            continue
        for note in getattr(element, "notes", [element]):
            if not hasattr(note, "pitch"):
                continue
            key, kind = note.pitch.midi, note.tie and note.tie.type
            if kind in ("stop", "continue") and key in tied:
                row = tied.pop(key)
                row[1] += float(element.quarterLength)
            else:
                row = [float(element.offset), float(element.quarterLength), key, voice]
                rows.append(row)
            if kind in ("start", "continue"):
                tied[key] = row
    return rows


def corpus_folder() -> Path:
    """Return the folder of music21's scores; raise an ImportError if that is not installed."""
    return package_folder("music21") / "corpus"


def package_folder(package: str) -> Path:
    """Return the folder of an installed package, without importing the package.

    Raises:
        ImportError: it is not installed.
    """
    spec = find_spec(package)
    if spec is None:
        raise ImportError(f"the demo music needs {package}: pip install {package}")
    return Path(spec.submodule_search_locations[0])


@lru_cache
def _tunes(path: Path) -> list[str]:
    """Return the header of a book of ABC tunes, then its tunes."""
    return re.split(r"(?m)^(?=X:)", path.read_text(encoding="utf-8"))
