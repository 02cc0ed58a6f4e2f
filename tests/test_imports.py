"""The street plan: a place of Libraries imports only from places above it, and none knows Conf."""

import ast
import re
from pathlib import Path

import pytest

LIBRARIES = Path(__file__).parent.parent / "Libraries"

# From the top down; each may import from those before it. README.md shows the same map.
PLACES = (
    "Utils", "Disk", "Layers", "Sound", "DemoMusic", "Dataset", "U_Net", "Networks", "VAE", "Phase",
    "Diffusion", "Sampling", "Training", "Upsampler", "Plots", "Measures", "Runs", "Evaluation", "Doctor",
    "Studies",
)  # fmt: skip
FACE_LINES = 30


def place_of(path):
    return path.relative_to(LIBRARIES).parts[0].removesuffix(".py")


def modules():
    return sorted({*LIBRARIES.rglob("*.py")} - {LIBRARIES / "__init__.py"})


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_module_stands_in_a_place_of_the_plan():
    assert {place_of(path) for path in modules()} == set(PLACES)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(LIBRARIES)))
def test_module_imports_only_from_its_own_place_and_those_above(path):
    names = list(imported_modules(path))
    assert not [name for name in names if name.split(".")[0] in ("Conf", "MainScripts")]
    used = {name.split(".")[1] for name in names if name.startswith("Libraries.")}
    assert used <= set(PLACES[: PLACES.index(place_of(path)) + 1])


@pytest.mark.parametrize("face", sorted(LIBRARIES.rglob("__init__.py")), ids=lambda path: path.parent.name)
def test_a_face_holds_names_only(face):
    text = face.read_text(encoding="utf-8")
    allowed = (ast.ImportFrom, ast.Expr)
    assert len(text.splitlines()) <= FACE_LINES
    assert all(isinstance(node, allowed) for node in ast.parse(text).body)


def test_the_readme_shows_the_same_plan_in_the_same_order():
    text = (LIBRARIES.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*`) \|", text[text.index("| place |") :], re.MULTILINE)[: len(PLACES)]
    named = [name.strip("`/").removesuffix(".py") for row in rows for name in row.split(", ")]
    assert named[: len(PLACES)] == list(PLACES)


def test_the_names_of_the_user_are_there():
    from Libraries import VAE, Diffusion, U_Net, Utils

    names = ("VAE", VAE), ("NoiseSchedule", Diffusion), ("UNet", U_Net), ("LIGHT_DEBUG", Utils)
    assert all(hasattr(module, name) for name, module in names)


def test_only_the_process_knows_the_schedule_and_only_the_network_the_layers():
    assert "Libraries.U_Net" not in list(imported_modules(LIBRARIES / "Diffusion.py"))
    assert "Libraries.Diffusion" not in list(imported_modules(LIBRARIES / "U_Net.py"))
