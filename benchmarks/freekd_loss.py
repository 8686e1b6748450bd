"""Time and memory of FreeKDLoss, forward and backward, against the released formula and against a plain MSE.

At the shapes of a COCO feature pyramid (5 levels from 100 x 168, batch 2, 256 channels). All rows of a run take
turns, so that what else the machine does hits them alike; compare the ratios, not the milliseconds. Free memory goes
back to the system before each call: or else a row is fast or slow by what the row before it happened to leave.

    pip install pytorch_wavelets
    python benchmarks/freekd_loss.py --threads 1 --tokens 2 6
"""

import argparse
import ctypes
import ctypes.util
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from frequency import CLOCKS, SHAPES, peak_bytes, seconds
from torch import Tensor

from freekd_mm.losses import FreeKDLoss, FreeKDPlusLoss
from freekd_mm.prompts import PromptFile, save_prompt

Loss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def floor(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Callable[[], None]:
    """What no loss can do without: read both inputs and write a gradient."""
    out = [torch.empty_like(level) for level in students]
    plain = [level.detach() for level in students]

    def run() -> None:
        for student, teacher, into in zip(plain, teachers, out, strict=True):
            torch.sub(student, teacher, out=into)

    return run


def mse(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """The plainest feature loss."""
    return sum(F.mse_loss(student, teacher) for student, teacher in zip(students, teachers, strict=True))


def naive(tokens: Tensor, device: torch.device) -> Loss:
    """The released formula as it is written: T masks times all bands of student and teacher."""
    from pytorch_wavelets import DWTForward

    transform = DWTForward(J=3, mode='zero', wave='haar').to(device)
    count = tokens.shape[1]

    def loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        total = torch.zeros((), device=device)
        for student, teacher in zip(students, teachers, strict=True):
            for level, (own, other) in enumerate(zip(transform(student)[1], transform(teacher)[1], strict=True)):
                batch, channels, _, height, width = other.shape
                masks = (tokens[level + 1] @ other.sum(2).reshape(batch, channels, -1)).sigmoid()
                masks = masks.reshape(batch, count, 1, 1, height, width)
                total = total + F.l1_loss(masks * own[:, None], masks * other[:, None])
        return total

    return loss


def trim() -> None:
    """Gives free memory back to the system, where the C library can."""
    libc = ctypes.CDLL(ctypes.util.find_library('c'))
    if hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)


def losses(num_tokens: int, channels: int, device: torch.device, folder: Path) -> dict[str, Loss]:
    """Returns the rows that depend on the number of tokens."""
    tokens = 0.05 * torch.randn(4, num_tokens, channels, device=device)
    file = PromptFile({'neck': {level: tokens for level in range(len(SHAPES))}}, num_tokens=num_tokens)
    options = dict(channels=channels, num_tokens=num_tokens, prompt=str(save_prompt(file, folder / 'prompt.pth')))
    return {
        'naive formula': naive(tokens, device),
        'code': FreeKDLoss(mode='code', **options).to(device),
        'paper (default)': FreeKDLoss(**options).to(device),
        'paper, relation free': FreeKDLoss(relation='free', **options).to(device),
        'paper, no relation': FreeKDLoss(relation=None, **options).to(device),
        "paper, no relation, normalize 'teacher'": FreeKDLoss(relation=None, normalize='teacher', **options).to(device),
        "paper, no relation, normalize 'none'": FreeKDLoss(relation=None, normalize='none', **options).to(device),
        "paper, no relation, normalize 'band'": FreeKDLoss(relation=None, normalize='band', **options).to(device),
        'FreeKDPlusLoss': FreeKDPlusLoss(**options).to(device),
    }


def main() -> None:
    """Prints one Markdown table a number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--channels', type=int, default=256)
    parser.add_argument('--tokens', type=int, nargs='+', default=[2, 6])
    parser.add_argument('--rows', help='only rows whose names hold this, beside the floor and the MSE')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--clock', choices=CLOCKS, default='wall')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    size = (args.batch, args.channels)
    students = [torch.randn(*size, *shape, device=device, requires_grad=True) for shape in SHAPES]
    teachers = [torch.randn(*size, *shape, device=device) for shape in SHAPES]
    input_bytes = sum(level.numel() * level.element_size() for level in students)

    def job(loss: Loss) -> Callable[[], None]:
        return lambda: torch.autograd.grad(loss(students, teachers), students) and None

    print(
        f'forward + backward, {len(SHAPES)} levels from {SHAPES[0]}, batch {args.batch}, {args.channels} channels, '
        f'{device}, {args.threads} thread(s), {args.clock} clock, median (least to most) of {args.repeats}, '
        f'PyTorch {torch.__version__}'
    )
    for num_tokens in args.tokens:
        with tempfile.TemporaryDirectory() as folder:
            rows = losses(num_tokens, args.channels, device, Path(folder))
        if args.rows:
            rows = {name: loss for name, loss in rows.items() if args.rows in name}
        jobs = {'read both, write one (floor)': floor(students, teachers), 'plain MSE': job(mse)}
        jobs |= {name: job(loss) for name, loss in rows.items()}
        taken: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(args.repeats + 1):
            for name, run in jobs.items():
                trim()
                taken[name].append(seconds(run, device, CLOCKS[args.clock]))
        peaks = {name: peak_bytes(run, device) / input_bytes for name, run in jobs.items()}
        print_table({name: times[1:] for name, times in taken.items()}, peaks, num_tokens)


def print_table(taken: dict[str, list[float]], peaks: dict[str, float], num_tokens: int) -> None:
    """Prints milliseconds, ratios of medians and peak memory in units of all student features."""
    print(f'\n| T = {num_tokens} | ms | x MSE | naive is x slower | peak memory (inputs) | of naive |')
    print('| --- | ---: | ---: | ---: | ---: | ---: |')
    medians = {name: statistics.median(times) for name, times in taken.items()}
    slow = 'naive formula'
    for name, times in taken.items():
        low, high = min(times) * 1e3, max(times) * 1e3
        relative = medians[name] / medians['plain MSE']
        slower = f'{medians[slow] / medians[name]:.1f}' if slow in medians else ''
        share = f'{peaks[name] / peaks[slow]:.2f}' if slow in peaks else ''
        print(
            f'| {name} | {medians[name] * 1e3:.1f} ({low:.1f} to {high:.1f}) | {relative:.2f} | {slower} | '
            f'{peaks[name]:.2f} | {share} |'
        )


if __name__ == '__main__':
    main()
