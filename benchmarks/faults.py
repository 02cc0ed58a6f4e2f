"""Kill builds, trainings and evaluations at random times, or fill their disk: do they go on to the same bits?

    python benchmarks/faults.py [--kills 50] [--seed 0] [--only build phase]
    python benchmarks/faults.py --full-disk [--places 12]

Kills: a process, or one of two, is ended by `kill -9` at a random moment of its work; the same call is made
again, and may be killed again, until one comes to its end. Full disk: a first run counts the writes; then the
disk refuses from one of them on, for places spread from the first to the last, and once there is room the
same call is made again. In both, what is left must equal, bit for bit, what an undisturbed run leaves.
Sizes are those of SMOKE. A build starts its own processes; an evaluation is always one. Processes are forked,
so that the time goes into work and not into imports.
"""

import argparse
import json
import os
import random
import signal
import socket
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from common import machine_line, print_table
from fault_tasks import TASKS, clear, digest, leftovers, settings_of, warm_up, write_music
from faulty_disk import FaultyDisk

from Libraries.Dataset import Shards
from Libraries.Runs.Settings import changed
from Libraries.Utils import set_log_level, spread_indices

LONGEST = 900.0  # s of one call
TWO_PROCESSES = 0.4  # kills for each that one process gets
WEIGHTS = {"evaluation": 0.6}  # it takes the longest
OUTPUT = "output.txt"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--full-disk", action="store_true", help="fill the disk instead of killing")
    parser.add_argument("--places", type=int, default=12, help="of the full disk, per task; 0: every write")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a fork of a process with threads may hang
    print(machine_line(torch.device("cpu")), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_music(root / "music")
        warm_up(root)
        if args.full_disk:
            header, rows = fill_disks(root, args.only, args.places)
        else:
            header, rows = kill_all(root, args.only, args.kills, random.Random(args.seed))
    print()
    print_table(header, rows)


def kill_all(
    root: Path, names: list[str], kills: int, rng: random.Random
) -> tuple[list[str], list[list[str]]]:
    """Spread the kills over the tasks with one process and with two; return header and rows."""
    cases = [
        (name, processes) for processes in (1, 2) for name in names if (name, processes) != ("evaluation", 2)
    ]
    weights = [(1 if processes == 1 else TWO_PROCESSES) * WEIGHTS.get(name, 1) for name, processes in cases]
    shares = [round(kills * weight / sum(weights)) for weight in weights]
    shares[0] += kills - sum(shares)
    header = [
        "task",
        "processes",
        "kills",
        "in a write",
        "resumed",
        "ends",
        "equal ends",
        "temporary files left",
    ]
    rows, totals = [], [0] * 6
    for (name, processes), share in zip(cases, shares, strict=True):
        prepare(root, name)
        found = kill_task(root, name, processes, share, rng)
        totals = [a + b for a, b in zip(totals, found, strict=True)]
        rows.append([name, str(processes), *map(str, found)])
        print(" | ".join(rows[-1]), flush=True)
    return header, [*rows, ["all", "", *map(str, totals)]]


def kill_task(root: Path, name: str, processes: int, kills: int, rng: random.Random) -> list[int]:
    """Kill one task; return the numbers of the columns."""
    task, killed = TASKS[name], False
    clear(task, root)
    whole = call(root, name, processes).require()
    clear(task, root)
    delivered = writing = resumed = ends = equal = left = 0
    while delivered < kills or killed:
        before = leftovers(root)
        after = rng.uniform(0, whole.seconds) if delivered < kills else None  # the last call is left alone
        done = call(root, name, processes, after, rng.randrange(processes))
        resumed += killed and not done.error
        killed = done.killed
        if killed:
            delivered += 1
            writing += bool(set(leftovers(root)) - set(before))
            continue
        if done.error:
            print(f"{name}: {done.error}\n{done.output[-3000:]}", flush=True)
        ends += 1
        equal += done.digest == whole.digest
        left += len(leftovers(root))
        clear(task, root)
    return [delivered, writing, resumed, ends, equal, left]


def fill_disks(root: Path, names: list[str], places: int) -> tuple[list[str], list[list[str]]]:
    """Fill the disk at places spread over the writes of each task; return header and rows."""
    header = ["task", "writes", "full at", "one sentence", "equal", "temporary files left"]
    rows = []
    for name in names:
        task = TASKS[name]
        prepare(root, name)
        clear(task, root)
        whole = call(root, name, disk=FaultyDisk(root)).require()
        sentences, equal, left = 0, 0, 0
        chosen = spread_indices(whole.writes, places or whole.writes)
        for after in chosen:
            clear(task, root)
            refused = call(root, name, disk=FaultyDisk(root, after))
            says = refused.error.startswith("DiskError") and "\n" not in refused.error
            sentences += says
            if not says:
                print(
                    f"{name}, write {after}: {refused.error or 'no error'}\n{refused.output[-3000:]}",
                    flush=True,
                )
            left += len(leftovers(root))
            equal += call(root, name).require().digest == whole.digest
        rows.append([name, *map(str, (whole.writes, len(chosen), sentences, equal, left))])
        print(" | ".join(rows[-1]), flush=True)
        clear(task, root)
    return header, rows


def prepare(root: Path, name: str) -> None:
    """Do what a task needs, if it is not there, and nothing else."""
    for other in TASKS:
        if other not in TASKS[name].needs:
            clear(TASKS[other], root)
    for needed in TASKS[name].needs:
        call(root, needed).require()


@dataclass
class Done:
    """How a call ended."""

    killed: bool
    seconds: float  # of work
    error: str = ""  # type and text of the exception
    output: str = ""
    digest: str = ""
    writes: int = 0

    def require(self) -> "Done":
        """Return this if the call came to its end; else print its output and exit."""
        if self.killed or self.error:
            raise SystemExit(f"{self.error}\n{self.output[-5000:]}")
        return self


def call(
    root: Path,
    name: str,
    processes: int = 1,
    kill_after: float | None = None,
    victim: int = 0,
    disk: FaultyDisk | None = None,
) -> Done:
    """Do a task in forked processes; kill one, and then the others as a launcher does, after some seconds."""
    report = Path(f"{root}-report.json")
    report.unlink(missing_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    forked = 1 if name == "build" else processes  # a build starts its own
    running = {rank: _fork(root, name, rank, processes, port, disk, report) for rank in range(forked)}
    start, limit, killed = time.monotonic(), LONGEST, False
    while running:
        now = time.monotonic() - start
        if kill_after is not None and now > kill_after and not killed and victim % forked in running:
            os.kill(running[victim % forked], signal.SIGKILL)
            killed, limit = True, now + 1  # then the launcher ends the others
        if now > limit:
            for pid in running.values():
                os.kill(pid, signal.SIGKILL)
        for rank, pid in list(running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[rank]
                limit = min(limit, now + 1) if status else limit
                if killed and rank == victim % forked and not os.WIFSIGNALED(status):
                    killed, limit = False, LONGEST  # it was at its end already
        time.sleep(0.002)
    seconds, output = time.monotonic() - start, Path(f"{root}-{OUTPUT}").read_text(errors="replace")
    if killed:
        return Done(True, seconds, output=output)
    found = json.loads(report.read_text()) if report.exists() else {"error": "ended without a report"}
    return Done(False, seconds, **{"output": output, **found})


def _fork(*arguments) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            _child(*arguments)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def _child(
    root: Path, name: str, rank: int, processes: int, port: int, disk: FaultyDisk | None, report: Path
) -> None:
    output = os.open(f"{root}-{OUTPUT}", os.O_WRONLY | os.O_CREAT | (os.O_APPEND if rank else os.O_TRUNC))
    for stream in (1, 2):
        os.dup2(output, stream)
    set_log_level("INFO")
    settings = settings_of(TASKS[name], root)
    if processes > 1 and name == "build":
        Shards.WORTH_A_WORKER = 0.1
        settings = changed(settings, {"dataset.num_workers": processes})
    elif processes > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        os.environ |= {key: str(value) for key, value in ranks.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    found = {"error": ""}
    try:
        if disk is None:
            TASKS[name].work(settings)
        else:
            with disk():
                TASKS[name].work(settings)
            found["writes"] = disk.count
        found["digest"] = digest(TASKS[name], root) if rank == 0 else ""
    except BaseException as error:
        found |= {"error": f"{type(error).__name__}: {error}", "output": traceback.format_exc()}
    if rank == 0:
        report.write_text(json.dumps(found))
    if found["error"]:
        os._exit(1)


if __name__ == "__main__":
    main()
