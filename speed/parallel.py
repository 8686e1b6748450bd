"""What data-parallel training communicates, and what it costs: one process against two, gloo on a CPU, NCCL on GPUs.

Process 0 steps alone, then both step together under DDP, in turns; each has its own batch. The seconds
include what a process waits for the other: the wall clock where the cores are free, else look at the CPU time.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from freekd_mm.compat.versions import zip_equal
from speed.pair import STUDENT, TEACHER, batch_of, build, config_of, count_trained, distilled, freekd
from speed.step import QUICK_SIZE, step_of
from speed.tables import Report
from speed.timing import Options, Spread, synchronize

SIZE = (128, 192)
PLAIN, FREEKD = 'plain student', 'DistilledModel, FreeKD'


def counting_hook(counted: list[int], bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """DDP's usual average of a bucket; notes its bytes."""
    counted.append(bucket.buffer().numel() * bucket.buffer().element_size())
    return default_hooks.allreduce_hook(dist.group.WORLD, bucket)


# DDP looks at the annotations themselves, which are text in this file.
counting_hook.__annotations__.update(bucket=dist.GradBucket)
counting_hook.__annotations__['return'] = torch.futures.Future[torch.Tensor]


def _all_reduces() -> list[int]:
    """Counts the bytes of every all-reduce from here on: those of DDP's buckets, and what losses average."""
    counted: list[int] = []
    original = dist.all_reduce

    def all_reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        counted.append(tensor.numel() * tensor.element_size())
        return original(tensor, *args, **kwargs)

    dist.all_reduce = all_reduce
    return counted


def _worker(rank: int, folder: Path, options: Options) -> None:
    """Measures in one process; the first writes down what it found."""
    torch.set_num_threads(1)
    if options.device.type == 'cuda':
        torch.cuda.set_device(rank)
        options = replace(options, device=torch.device('cuda', rank))
    backend = 'nccl' if options.device.type == 'cuda' else 'gloo'
    dist.init_process_group(backend, init_method=f'file://{folder}/store', rank=rank, world_size=2)
    student, teacher = config_of(STUDENT, options.quick), config_of(TEACHER, options.quick)
    models = {
        PLAIN: lambda: build(student),
        FREEKD: lambda: distilled(student, teacher, freekd(folder / str(rank), student.neck.out_channels)),
    }
    (folder / str(rank)).mkdir()
    found = {name: _measure_model(rank, make, options) for name, make in models.items()}
    if rank == 0:
        (folder / 'found.json').write_text(json.dumps(found))
    dist.barrier()
    # The threads of gloo can outlive the interpreter, which then aborts.
    os._exit(0)


def _measure_model(rank: int, make: Any, options: Options) -> dict[str, Any]:
    """Returns bytes, bucket contents and seconds of one model."""
    from mmengine.model import MMDistributedDataParallel

    size = QUICK_SIZE if options.quick else SIZE
    alone, inner = make(), make().to(options.device)
    # As mmengine wraps a model; unused parameters are not looked for.
    wrapped = MMDistributedDataParallel(inner, device_ids=None, broadcast_buffers=False, find_unused_parameters=False)
    buckets: list[int] = []
    wrapped.register_comm_hook(buckets, counting_hook)
    steps = {
        'alone': step_of(alone, options, batch_of(2, size, seed=rank)),
        'together': step_of(wrapped, options, batch_of(2, size, seed=rank)),
    }
    seconds: dict[str, list[list[float]]] = {name: [] for name in steps}
    everything = _all_reduces()
    for _ in range(options.rounds + 1):
        for name, step in steps.items():
            dist.barrier()
            buckets.clear()
            everything.clear()
            start = time.perf_counter(), time.process_time()
            if rank == 0 or name == 'together':
                step()
                synchronize(options.device)
            seconds[name].append([time.perf_counter() - start[0], time.process_time() - start[1]])
    reduced = {id(parameter) for parameter in wrapped._module_parameters}
    outside = list(inner.teacher.parameters()) if hasattr(inner, 'distillation') else []
    return {
        'trained': count_trained(inner),
        'buckets': list(buckets),
        'bytes': sum(everything),
        'teacher_parameters': len(outside),
        'teacher_in_buckets': sum(id(parameter) in reduced for parameter in outside),
        'seconds': {name: values[1:] for name, values in seconds.items()},
    }


def measure(options: Options) -> Report:
    """Measures the plain and the distilled student."""
    report = Report('parallel', 'Data-parallel training')
    on_gpus = options.device.type == 'cuda'
    if on_gpus and torch.cuda.device_count() < 2:
        report.say('Not measured: there should be two GPUs, but there is one.')
        return report
    with tempfile.TemporaryDirectory() as folder:
        # CUDA cannot be used in a fork.
        mp.start_processes(_worker, (Path(folder), options), nprocs=2, start_method='spawn' if on_gpus else 'fork')
        found = json.loads((Path(folder) / 'found.json').read_text())
    backend = 'NCCL' if on_gpus else 'gloo'
    report.say(f'Two processes under DDP with {backend}, each with a batch of 2, against one with its batch of 2.')
    rows = []
    for name, one in found.items():
        ratios = [
            Spread.of(
                together[clock] / alone[clock]
                for together, alone in zip_equal(one['seconds']['together'], one['seconds']['alone'])
            )
            for clock in (0, 1)
        ]
        inside = sum(one['buckets'])
        rows.append([name, f'{one["trained"]:,}', f'{inside:,}', len(one['buckets']), one['bytes'] - inside, *ratios])
        kept = {key: value for key, value in one.items() if key != 'seconds'}
        report.record(name, **kept, times_alone_wall=ratios[0], times_alone_cpu=ratios[1])
    header = ['', 'trained values', 'bytes per step in buckets', 'buckets', 'other bytes per step', 'x alone (wall)']
    report.table([*header, 'x alone (CPU)'], rows)
    teacher = found[FREEKD]
    report.say(
        f'Parameters of the teacher: {teacher["teacher_parameters"]}, of them in buckets: '
        f'{teacher["teacher_in_buckets"]}. `find_unused_parameters` is off.'
    )
    return report
