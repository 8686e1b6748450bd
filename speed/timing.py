"""Times and memory of calls that take turns, compared round by round.

Other work of the machine slows all rows of a round equally, so the ratio of two rows is taken per round; its
median over the rounds, with the least and the most, is what the tables show.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Callable

import torch

from freekd_mm.compat.versions import zip_equal

CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}
Job = Callable[[], object]


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        device: Where.
        clock: ``'cpu'`` counts this process alone, which is what can be told with one thread on a busy machine.
        rounds: Rounds that count, after one that does not.
        quick: Small shapes and models: whether everything runs, not how fast.
        amp: Dtype of whole steps in mixed precision, ``'float16'`` or ``'bfloat16'``; nothing for float32.
        profile: Add the profiles of what is compared.
    """

    device: torch.device
    clock: str = 'cpu'
    rounds: int = 9
    quick: bool = False
    amp: str = ''
    profile: bool = False

    def with_at_most(self, rounds: int) -> Options:
        """Returns the options for what takes long."""
        return replace(self, rounds=min(self.rounds, rounds))


@dataclass(frozen=True)
class Spread:
    """A median with the least and the most."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Returns the spread of some values."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def exactly(cls, value: float) -> Spread:
        """Returns the spread of what does not vary."""
        return cls(value, value, value)

    def times(self, factor: float) -> Spread:
        """Returns it in other units."""
        return Spread(self.median * factor, self.low * factor, self.high * factor)

    def as_list(self) -> list[float]:
        """Returns median, least and most, for a record."""
        return [round(value, 5) for value in (self.median, self.low, self.high)]

    def __str__(self) -> str:
        digits = 0 if self.median >= 100 else 1 if self.median >= 10 else 2
        if self.low == self.high:
            return f'{self.median:.{digits}f}'
        return f'{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})'


class Turns:
    """Seconds of jobs that took turns: one list per job, one item per round."""

    def __init__(self, seconds: Mapping[str, list[float]]) -> None:
        self.seconds = dict(seconds)

    def milliseconds(self, name: str) -> Spread:
        """Returns the times of one job."""
        return Spread.of(self.seconds[name]).times(1e3)

    def ratio(self, name: str, *others: str) -> Spread:
        """Returns the time of one job over that of another, or of the sum of others, in each round."""
        sums = map(sum, zip_equal(*(self.seconds[other] for other in others)))
        return Spread.of(own / other for own, other in zip_equal(self.seconds[name], sums))


def take_turns(jobs: Mapping[str, Job], options: Options, repeats: int = 0) -> Turns:
    """Runs all jobs once per round. Free memory goes back to the system before each call.

    Otherwise a job would be fast or slow because of what the one before it left.

    Args:
        jobs: What to run, by name.
        options: How often, and by which clock.
        repeats: Run a job this many times in a row, after a call that does not count, and take their median: for
            short jobs, with warm caches and memory at hand.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(options.rounds + 1):
        for name, job in jobs.items():
            if repeats:
                job()
                seconds[name].append(statistics.median(time_of(job, options) for _ in range(repeats)))
            else:
                trim()
                seconds[name].append(time_of(job, options))
    return Turns({name: values[1:] for name, values in seconds.items()})


def time_of(job: Job, options: Options) -> float:
    """Returns how many seconds a call takes."""
    clock = CLOCKS[options.clock]
    synchronize(options.device)
    start = clock()
    job()
    synchronize(options.device)
    return clock() - start


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def trim() -> None:
    """Gives free memory back to the system, where the C library can."""
    libc = ctypes.CDLL(ctypes.util.find_library('c'))
    if hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)


def peak_bytes(job: Job, device: torch.device) -> int:
    """Returns the most memory that a call holds at a time beyond what was held before."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        job()
    held = peak = 0
    events = profile.profiler.kineto_results.events()
    for event in sorted((event for event in events if event.name() == '[memory]'), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def profile_table(job: Job, options: Options, rows: int = 12) -> str:
    """Returns where the time of a few calls goes, as torch.profiler's table cut to a readable size."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if options.device.type == 'cuda':
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for _ in range(2):
        job()
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(3):
            job()
            synchronize(options.device)
    table = profile.key_averages().table(
        sort_by=f'self_{options.device.type}_time_total', row_limit=rows, max_name_column_width=36
    )
    return '\n'.join(line.rstrip() for line in table.splitlines() if line.strip())
