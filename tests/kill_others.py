"""Kills trainings of two processes, fills the disk of a training, and kills tools that write; nothing may be lost.

python tests/kill_others.py --kills 90

``ranks``: one of two processes is killed, or both, at a random moment or while the first writes a checkpoint; what is
left has to end. ``disk``: the file system of a training is full from some moment on. ``tools``: export_student.py,
report.py and make_config.py are killed; every file of the user stays as it is, and the output is whole or not there.
Trainings then continue, and end bit for bit as undisturbed ones.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

import torch
import torch.distributed as dist
from kill_and_resume import Tally, check_files, is_writing
from scenes import write_scenes
from test_wrong_tools import user_folder
from tool_runs import start_tool
from toy_runs import changed, exit_code, in_child, last_state, toy_config, toy_run

from freekd_mm.files import is_unedited

#: Seconds after which torchrun would end what is left, and after which it hangs.
PATIENCE, HANGS = 5, 40


def slow_disk() -> None:
    """Spends more time on writing, as with checkpoints of gigabytes."""
    fsync = os.fsync
    os.fsync = lambda descriptor: (time.sleep(0.03), fsync(descriptor))[1]  # type: ignore[assignment]


def start_ranks(folder: Path, work_dir: Path, count: int) -> list[int]:
    """Starts or continues a training; returns the process ids."""
    store = dist.TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False) if count > 1 else None
    # It lives as long as the processes need it.
    STORES.append(store)

    def train(rank: int) -> None:
        torch.set_num_threads(1)
        slow_disk()
        options = {'launcher': 'pytorch'} if store is not None else {}
        if store is not None:
            os.environ.update({'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(count)})
            os.environ.update({'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(store.port)})
            os.environ.update({'TORCHELASTIC_USE_AGENT_STORE': 'True', 'TORCHELASTIC_RESTART_COUNT': '0'})
        toy_run(toy_config(folder, work_dir=str(work_dir), **options), resume='auto')

    return [in_child(folder / 'log.txt', lambda rank=rank: train(rank)) for rank in range(count)]  # type: ignore[misc]


STORES: list[Any] = []


def wait_all(children: list[int], seconds: float) -> dict[int, int]:
    """Returns the statuses of those that ended within a time."""
    ended: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(ended) < len(children) and time.monotonic() < deadline:
        for child in set(children) - ended.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                ended[child] = exit_code(status)
        time.sleep(0.002)
    return ended


def disturb(children: list[int], moment: float, when: Callable[[], bool] | None, action: Callable[[], None]) -> bool:
    """Does something at a moment, or from then on as soon as ``when`` holds; False where all had ended before."""
    deadline = time.monotonic() + moment
    while time.monotonic() < deadline or (when is not None and not when()):
        if all(os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) for child in children):
            return False
        time.sleep(0.001)
    action()
    return True


def trainings(
    folder: Path,
    kills: int,
    count: int,
    attack: Callable[[list[int], Path, float, bool], bool],
    heal: Callable[[], None] = lambda: None,
) -> Tally:
    """Disturbs trainings until the kills are spent, continues each, and compares the ends."""
    tally = Tally()
    start = time.monotonic()
    ended = wait_all(start_ranks(folder, folder / 'undisturbed', count), HANGS * 3)
    if set(ended.values()) != {0}:
        raise SystemExit(f'the training failed: {(folder / "log.txt").read_text()[-3000:]}')
    seconds, reference = time.monotonic() - start, last_state(folder / 'undisturbed')
    while tally.kills < kills:
        tally.trainings += 1
        work_dir = folder / 'disk' / f'run{tally.trainings}'
        for attempt in range(1000):
            children = start_ranks(folder, work_dir, count)
            writing = tally.kills % 2 == 1
            if tally.kills < kills and attempt < 6 and attack(children, work_dir, seconds, writing):
                tally.kills += 1
                tally.while_writing += is_writing(work_dir)
                left = set(children) - wait_all(children, PATIENCE if count > 1 else HANGS).keys()
                for child in left:
                    os.kill(child, signal.SIGTERM)
                stuck = left - wait_all(list(left), HANGS).keys()
                for child in stuck:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
                    tally.problems.append(f'{work_dir}: a process hangs')
                heal()
                if work_dir.is_dir():
                    check_files(work_dir, tally)
                continue
            statuses = wait_all(children, HANGS * 3)
            if set(statuses.values()) != {0}:
                tally.problems.append(f'{work_dir} did not resume: {(folder / "log.txt").read_text()[-2000:]}')
            elif changed(reference, last_state(work_dir)):
                tally.problems.append(f'{work_dir}: other values: {changed(reference, last_state(work_dir))[:5]}')
            break
        shutil.rmtree(work_dir, ignore_errors=True)
    return tally


def ranks(folder: Path, kills: int, rng: random.Random) -> Tally:
    """Kills one of two processes, or both."""

    def attack(children: list[int], work_dir: Path, seconds: float, writing: bool) -> bool:
        victims = rng.choice([children[:1], children[1:], children])

        def kill() -> None:
            for child in victims:
                os.kill(child, signal.SIGKILL)

        moment = rng.uniform(0, seconds * (0.5 if writing else 1))
        return disturb(children, moment, (lambda: is_writing(work_dir)) if writing else None, kill)

    return trainings(folder, kills, 2, attack)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mounts a file system of one megabyte; only root can."""
    folder.mkdir()
    subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


def disk(folder: Path, kills: int, rng: random.Random) -> Tally:
    """Fills the disk of a training; the training ends with an error, or had its last checkpoint."""
    ballast = folder / 'disk' / 'ballast'

    def fill() -> None:
        with open(ballast, 'wb', buffering=0) as file:
            for size in (65536, 1024, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass

    def attack(children: list[int], work_dir: Path, seconds: float, writing: bool) -> bool:
        moment = rng.uniform(0, seconds * (0.5 if writing else 1))
        return disturb(children, moment, (lambda: is_writing(work_dir)) if writing else None, fill)

    with small_disk(folder / 'disk'):
        return trainings(folder, kills, 1, attack, lambda: ballast.unlink(missing_ok=True))


def tools(folder: Path, kills: int, rng: random.Random) -> Tally:
    """Kills tools that write a file, new or over their own."""
    scenes = write_scenes(folder / 'scenes', num_train=8, num_val=4, size=64, seed=0)
    place = folder / 'user'
    place.mkdir()
    user_folder(place, scenes, 'det')
    slow_disk()
    pair = ['student.py', 'teacher.py', '--teacher-checkpoint', 'teacher.pth', '--method', 'mse']
    commands = {
        'new.pth': ['export_student.py', 'kd.py', 'work_dirs/kd/trained.pth', '-o', 'new.pth'],
        'new.html': ['report.py', 'work_dirs/kd', '--out', 'new.html'],
        'new.py': ['make_config.py', *pair, '-o', 'new.py'],
    }
    before = _hashes(place, commands)
    tally, log, seconds = Tally(), folder / 'log.txt', {}
    while tally.kills < kills:
        for name, words in commands.items():
            start, writing = time.monotonic(), tally.kills % 2 == 1

            def in_hand(name: str = name) -> bool:
                return any(place.glob(f'.{name}.*.part'))

            child = start_tool(place, log, words)
            moment = rng.uniform(0, seconds.get(name, 0) * (0.3 if writing else 1))
            killed = name in seconds and disturb(
                [child], moment, in_hand if writing else None, lambda child=child: os.kill(child, signal.SIGKILL)
            )
            status = exit_code(os.waitpid(child, 0)[1])
            if not killed and status != 0:
                tally.problems.append(f'{name}: status {status}: {log.read_text()[-1000:]}')
            seconds.setdefault(name, time.monotonic() - start)
            tally.kills += killed
            tally.while_writing += killed and in_hand()
            for part in place.glob('.*.part'):
                part.unlink()
            out = place / name
            if out.exists() and not is_unedited(out):
                tally.problems.append(f'{name} is not whole')
            if _hashes(place, commands) != before:
                tally.problems.append(f'{name}: a file of the user has changed')
            if rng.random() < 0.5:
                out.unlink(missing_ok=True)
    return tally


def _hashes(folder: Path, outputs: dict[str, Any]) -> dict[Path, str]:
    files = [path for path in folder.rglob('*') if path.is_file() and not path.name.startswith('.')]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.name not in outputs}


CASES = {'ranks': ranks, 'disk': disk, 'tools': tools}


def main() -> None:
    """Runs all cases and prints the tally."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=90, help='of each case (default: %(default)s)')
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES))
    parser.add_argument('--seed', type=int, default=0, help='seed of the moments')
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix='kill_others_'))
    problems = []
    for name in args.cases:
        (folder / name).mkdir()
        start = time.monotonic()
        tally = CASES[name](folder / name, args.kills, random.Random(args.seed))
        problems += tally.problems
        print(
            f'{name}: {tally.kills} kills, {tally.while_writing} of them while a file was written; '
            f'{tally.trainings} trainings, {len(tally.problems)} problems, {time.monotonic() - start:.0f} s',
            flush=True,
        )
    for problem in problems:
        print(f'PROBLEM {problem}')
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit(bool(problems))


if __name__ == '__main__':
    main()
