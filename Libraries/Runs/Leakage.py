"""Refuse to measure models on music that they were trained on, or to train on top of such models.

A dataset that is built again with another seed or split has other test pieces, and runs outlive it. So every
run records its training pieces, which are compared with the test split when the two meet.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from Libraries.Dataset.Manifest import MANIFEST, load_manifest, manifest_hash, pieces_of
from Libraries.Runs.Run import Run, find_run
from Libraries.Utils import get_logger

logger = get_logger("Leakage")


class LeakageError(ValueError):
    """A model was trained on pieces that it would be measured on; the message names one."""


def require_unheard(dataset_dir: Path, runs: Iterable[Run]) -> None:
    """Raise a LeakageError if one of the runs was trained on a test piece of a dataset.

    Released models do not say what they were trained on, and are left out.
    """
    for run in runs:
        if found := heard_test_pieces(dataset_dir, run):
            raise LeakageError(_sentence(f"{run.folder} was trained on", found, f"of {dataset_dir}"))


def require_separate(training: set[str], test: set[str], who: str) -> None:
    """Raise a LeakageError if one of the training pieces of `who` is one of the test pieces."""
    if found := sorted(training & test):
        raise LeakageError(_sentence(f"{who} trains on", found, "that it is measured on"))


def heard_test_pieces(dataset_dir: Path, run: Run) -> list[str]:
    """Return the test pieces of a dataset, if it is there, that a run was trained on."""
    if "dataset" not in run.conf or not (dataset_dir / MANIFEST).exists():
        return []
    if run.conf["dataset"]["hash"] == manifest_hash(dataset_dir):
        return []
    if "training_pieces" not in run.conf:
        logger.warning(
            "%s does not say what it was trained on: whether it heard test pieces is unknown", run.name
        )
        return []
    return sorted(pieces_of(load_manifest(dataset_dir), "test") & set(run.conf["training_pieces"]))


def find_unheard(
    dataset_dir: Path, parent: Path, holding: str, fits: Callable[[Run], bool] = lambda run: True
) -> Run | None:
    """Return the newest fitting run, as `find_run`, that was trained on no test piece of a dataset."""

    def fits_unheard(run: Run) -> bool:
        if not fits(run):
            return False
        if found := heard_test_pieces(dataset_dir, run):
            logger.info(
                "%s", _sentence(f"passed over: {run.folder} was trained on", found, f"of {dataset_dir}")
            )
        return not found

    return find_run([parent], holding, fits_unheard)


def _sentence(who: str, pieces: list[str], of_what: str) -> str:
    others = f" and {len(pieces) - 1} others" if len(pieces) > 1 else ""
    return (
        f"{who} {pieces[0]!r}{others}, in the test split {of_what}: its figures would be those of music it "
        "knows. Use the dataset that it was trained on, or train another"
    )
