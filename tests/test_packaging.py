"""What `pip install` reads: one list of requirements, one version, every file that the program needs."""

import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def requirements(name):
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line and not line.startswith("#")]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_extra_dev_is_what_the_tests_need():
    assert PROJECT["project"]["optional-dependencies"]["dev"] == requirements("tests/requirements.txt")


def test_every_requirement_has_its_tested_version():
    pinned = {canonical(line.split("==")[0]) for line in requirements("constraints.txt")}
    for name in ("requirements.txt", "tests/requirements.txt"):
        needed = {canonical(re.split(r"[^\w.-]", line)[0]) for line in requirements(name)}
        assert needed <= pinned


def test_what_is_installed_has_every_file_of_the_program():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["ma_ddpm"]
    installed = {path for pattern in patterns for path in REPOSITORY.glob(pattern) if path.is_file()}
    needed = {*REPOSITORY.glob("Libraries/**/*.py"), *REPOSITORY.glob("MainScripts/**/*.py")}
    released = {path for path in REPOSITORY.glob("Models/released/**/*") if path.is_file()}
    assert needed | released <= installed and len(released) > 10
    assert not [path for path in installed if path.suffix == ".pyc"]


@pytest.mark.parametrize("name", ["CITATION.cff", "CHANGELOG.md"])
def test_every_place_names_the_same_version(name):
    version = re.search(r'__version__ = "(.*)"', (REPOSITORY / "__init__.py").read_text(encoding="utf-8"))[1]
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    assert re.search(r"^(?:version: |## )(\d+\.\d+\.\d+)", text, re.MULTILINE)[1] == version
