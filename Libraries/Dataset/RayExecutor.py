"""Tasks on the machines of a Ray cluster; machines, placement and retries are Ray's."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol, TypeVar

from Libraries.Dataset.Manifest import DatasetError
from Libraries.Utils import get_logger, printable

log = get_logger("RayExecutor")

REPOSITORY = Path(__file__).resolve().parents[2]
IN_FLIGHT = 1000  # tasks that Ray knows of: enough for any cluster, and its bookkeeping stays small
RETRIES = 5  # of a task whose worker or machine has died


class Task(Protocol):
    """What can be run: it has a name and a length."""

    file: str
    seconds: float


T = TypeVar("T", bound=Task)


def run_in_ray(make: Callable[[T], None], tasks: list[T]) -> Iterator[T]:
    """Call `make` on every task by Ray, one core each; yield the tasks as they are done.

    Ray is started on this machine if `RAY_ADDRESS` names no cluster and none is connected. All machines see
    this repository and the folders of the tasks at the same paths. `make` may be called again on a task whose
    worker has died; an exception in it is raised here.

    Raises:
        ImportError: Ray is not installed.
        DatasetError: the workers of a task died again and again.
    """
    ray = _import_ray()
    ours = not ray.is_initialized()
    if ours:
        ray.init(include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(REPOSITORY)}})
    log.info("Ray: %g cores on %d machines", ray.cluster_resources().get("CPU", 0), len(ray.nodes()))
    try:
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(make)
        yield from _run(ray, remote, sorted(tasks, key=lambda task: -task.seconds))
    finally:
        if ours:
            ray.shutdown()


def _run(ray: ModuleType, remote, tasks: list[T]) -> Iterator[T]:
    waiting, running = iter(tasks), {}
    while True:
        while len(running) < IN_FLIGHT and (task := next(waiting, None)) is not None:
            running[remote.remote(task)] = task
        if not running:
            return
        for reference in ray.wait(list(running), fetch_local=False)[0]:
            task = running.pop(reference)
            try:
                ray.get(reference)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                raise DatasetError(
                    f"Ray's workers died {RETRIES + 1} times over {printable(task.file)}: see Ray's log, and "
                    "run this again to resume"
                ) from error
            yield task


def _import_ray() -> ModuleType:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ImportError("executor='ray' needs Ray: pip install ray, or set executor='local'") from None
