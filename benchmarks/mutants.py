"""Plant one mistake at a time and see whether the tests notice: each that they do not is a hole in them.

    python benchmarks/mutants.py [--only Libraries/Training/Loop.py ...] [--count 20] [--seed 0]

A mistake is one small change of a line: another comparison, another sign, a condition turned round, a number
one more, a call or an argument left out. Each is planted in a copy of the repository, and the fast tests of
its module run until one fails. Printed are the survivors with their lines, and the fraction that was killed.
A mistake that changes nothing, such as a constant that only costs time, survives rightly.
"""

import argparse
import ast
import importlib
import multiprocessing
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
MODULES = {  # the core, and the tests that are there for it
    "Libraries/Diffusion.py": ("diffusion", "solvers", "samplers"),
    "Libraries/Dataset/Augmentation.py": ("dataset",),
    "Libraries/Dataset/Batches.py": ("dataset", "interrupt"),
    "Libraries/Dataset/Build.py": ("dataset", "scale", "bad_input"),
    "Libraries/Dataset/ClipTable.py": ("dataset", "scale"),
    "Libraries/Dataset/Join.py": ("dataset", "scale"),
    "Libraries/Dataset/Manifest.py": ("dataset", "scale", "bad_input"),
    "Libraries/Dataset/Permutation.py": ("permutation",),
    "Libraries/Dataset/RowFiles.py": ("dataset", "scale"),
    "Libraries/Dataset/Shards.py": ("dataset", "bad_input"),
    "Libraries/Disk.py": ("faults", "utils", "checkpoint", "training"),
    "Libraries/Phase.py": ("phase",),
    "Libraries/Sampling/Guidance.py": ("guidance",),
    "Libraries/Sampling/Likelihood.py": ("likelihood",),
    "Libraries/Sampling/Steps.py": ("samplers", "solvers"),
    "Libraries/Sound/Audio.py": ("audio", "bad_input"),
    "Libraries/Sound/Decoding.py": ("audio", "bad_input"),
    "Libraries/Sound/Metrics.py": ("metrics",),
    "Libraries/Sound/Spectrogram.py": ("spectrogram",),
    "Libraries/Training/Checkpoint.py": ("checkpoint", "bad_input", "faults"),
    "Libraries/Training/DiffusionLoss.py": ("diffusion_loss", "guidance", "diffusion"),
    "Libraries/Training/Loop.py": ("training", "optimiser_step"),
    "Libraries/Training/PostHocEMA.py": ("post_hoc_ema",),
    "Libraries/Training/State.py": ("training", "faults", "post_hoc_ema"),
    "Libraries/Training/VAELoss.py": ("vae_loss",),
    "Libraries/VAE.py": ("vae",),
}
OPERATORS = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.In: ("in", "not in"), ast.Is: ("is", "is not"),
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"), ast.Pow: ("**", "*"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip
SLACK = 30.0  # s of CPU time beyond thrice that of the tests without a mistake
LONGEST = 3600.0  # s by the clock, for a mistake that waits for ever


class Mutant(NamedTuple):
    """One change: the text from `start` to `end` of a module's source becomes `new`."""

    start: int
    end: int
    new: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tuple(MODULES), default=tuple(MODULES))
    parser.add_argument("--count", type=int, default=20, help="mistakes per module, drawn from all")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    killed, planted = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of_repository(Path(folder) / "copy")
        for module in args.only:
            source = (copy / module).read_text(encoding="utf-8")
            mutants = list(mutants_of(source))
            chosen = random.Random(args.seed).sample(mutants, min(args.count, len(mutants)))
            limit = 3 * seconds_of(module, copy) + SLACK  # s of CPU time, which other processes do not change
            print(f"{module}: {len(chosen)} of {len(mutants)} possible mistakes", flush=True)
            survivors = 0
            for mutant in chosen:
                if survives(mutant, module, source, copy, limit):
                    survivors += 1
                    print(f"    survives: {describe(mutant, source)}", flush=True)
            killed, planted = killed + len(chosen) - survivors, planted + len(chosen)
            print(f"    {len(chosen) - survivors} of {len(chosen)} killed", flush=True)
    print(f"\n{killed} of {planted} killed, {100 * killed / planted:.0f} %")


def copy_of_repository(target: Path) -> Path:
    """Copy what git tracks, as it is in the working tree."""
    command = ["git", "ls-files", "-z"]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, target / name)
    return target


def mutants_of(source: str) -> Iterator[Mutant]:
    """Yield every change that is known for a module, except in docstrings, types, messages and logging."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    encoded = source.encode()

    def place(line: int, column: int) -> int:  # ast counts bytes, Python characters
        return len(encoded[: starts[line - 1] + column].decode())

    def span(node: ast.AST) -> tuple[int, int]:
        return place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)

    for node in _relevant(ast.parse(source)):
        yield from (mutant for mutant in _changes(node, source, span) if _parses(planted_in(source, mutant)))


def planted_in(source: str, mutant: Mutant) -> str:
    """Return the source with the change."""
    return source[: mutant.start] + mutant.new + source[mutant.end :]


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _relevant(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the node and all below it, without those whose change no test should notice."""
    if isinstance(node, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom):
        return
    called = node.value if isinstance(node, ast.Expr) else node
    if isinstance(called, ast.Call) and ast.unparse(called.func).startswith(("log.", "logger.", "warnings.")):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name not in ("annotation", "returns", "decorator_list"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _relevant(child)


def _changes(node: ast.AST, source: str, span) -> Iterator[Mutant]:
    """Yield the changes of one node of the syntax tree."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield from _operator(node.ops[0], node.left, node.comparators[0], source, span)
    elif isinstance(node, ast.BinOp):
        yield from _operator(node.op, node.left, node.right, source, span)
    elif isinstance(node, ast.BoolOp):
        yield from _operator(node.op, node.values[0], node.values[1], source, span)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield Mutant(span(node)[0], span(node.operand)[0], "")
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield Mutant(*span(node), repr(value))
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        start, end = span(node.test)
        yield Mutant(start, end, f"not ({source[start:end]})")
    elif (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)) or isinstance(node, ast.AugAssign):
        yield Mutant(*span(node), "pass")
    elif isinstance(node, ast.Call):
        yield from _without_a_keyword(node, source, span)


def _operator(op: ast.AST, left: ast.AST, right: ast.AST, source: str, span) -> Iterator[Mutant]:
    if type(op) not in OPERATORS:
        return
    (old, new), start, end = OPERATORS[type(op)], span(left)[1], span(right)[0]
    found = re.search(re.escape(old), source[start:end])
    if found:
        yield Mutant(start + found.start(), start + found.end(), new)


def _without_a_keyword(node: ast.Call, source: str, span) -> Iterator[Mutant]:
    for keyword in node.keywords:
        start, end = span(keyword)
        comma = re.match(r"\s*,\s*", source[end:])
        yield Mutant(start, end + (comma.end() if comma else 0), "")


def survives(mutant: Mutant, module: str, source: str, copy: Path, limit: float) -> bool:
    """Return whether the tests of a module pass, within `limit` seconds of CPU, with the mistake in it."""
    (copy / module).write_text(planted_in(source, mutant), encoding="utf-8")
    try:
        return passes(module, copy, limit)
    finally:
        (copy / module).write_text(source, encoding="utf-8")


def seconds_of(module: str, copy: Path) -> float:
    """Return the seconds of CPU that a module's tests take without a mistake."""
    before = _children_seconds()
    if not passes(module, copy, limit=LONGEST):
        sys.exit(f"the tests of {module} fail without a mistake: mend them first")
    return _children_seconds() - before


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def passes(module: str, copy: Path, limit: float) -> bool:
    """Run a module's fast tests in a fork, which need not import torch again; return whether all pass."""
    process = multiprocessing.get_context("fork").Process(target=_run_tests, args=(module, copy, limit))
    process.start()
    process.join(LONGEST)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def _run_tests(module: str, copy: Path, limit: float) -> None:
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 1))  # ends a loop that no longer does
    os.chdir(copy)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    files = [f"tests/test_{name}.py" for name in MODULES[module]]
    options = ("-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-n", "0")
    os._exit(int(pytest.main([*options, *files])))


def describe(mutant: Mutant, source: str) -> str:
    """Return the line of a change as it was and as it became."""
    number = source.count("\n", 0, mutant.start) + 1
    first = source.rfind("\n", 0, mutant.start) + 1
    last = source.find("\n", mutant.end)
    new = source[first : mutant.start] + mutant.new + source[mutant.end : last]
    return f"{number}: {source[first:last].strip()}  ->  {' '.join(new.split())}"


def import_what_tests_need() -> None:
    """Import every package that the tests need, once, before the forks; our own modules each fork imports."""
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "MainScripts")]
    importlib.import_module("Conf")
    for name in ("accelerate", "pytest", "scipy.stats", "sklearn.datasets"):
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.split(".")[0] in ("Conf", "Libraries")]:
        del sys.modules[name]
    del sys.path[:2]


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    sys.dont_write_bytecode = (
        True  # a module that changes twice within a second would be taken from the cache
    )
    import_what_tests_need()
    main()
