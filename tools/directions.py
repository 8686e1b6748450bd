"""Shows which distillation losses pull a student in the same direction: two that do will hardly add to each other.

python tools/make_config.py STUDENT_CFG TEACHER_CFG --teacher-checkpoint TEACHER.pth --method wavelet+pkd+kl -o all.py
python tools/directions.py all.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from freekd_mm.checks import check_file, check_positive
from freekd_mm.cli import Parser, run
from freekd_mm.compat import install
from freekd_mm.text import table

if TYPE_CHECKING:
    from torch import Tensor, nn

#: How the losses of entries begin, and what the student's own ones are called here: no entry can have that name.
PREFIX, TASK = 'distill.loss_', '(task)'


def parse_args() -> tuple[Parser, argparse.Namespace]:
    """Reads the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument('config', help='a distillation config with several entries')
    parser.add_argument('checkpoint', nargs='?', help='of that distillation; without it the student is as it starts')
    parser.add_argument('--batches', type=int, default=4, help='of the training data; the mean over them is shown')
    return parser, parser.parse_args()


def cosines(losses: Mapping[str, Tensor], model: nn.Module) -> Tensor:
    """Returns the cosine (L, L) of each two of L losses: of their gradients by the student's weights that both reach.

    Where they share no weights it is NaN.
    """
    import torch

    named = model.named_parameters()
    weights = [value for name, value in named if value.requires_grad and not name.startswith('distillation.')]
    found = [torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) for loss in losses.values()]
    return torch.stack([torch.stack([_cosine(own, other) for other in found]) for own in found])


def _cosine(own: Sequence[Any], other: Sequence[Any]) -> Tensor:
    import torch

    both = [(a.float().flatten(), b.float().flatten()) for a, b in zip(own, other) if a is not None and b is not None]
    if not both:
        return torch.tensor(float('nan'))
    first, second = (torch.cat(parts) for parts in zip(*both))
    return (first @ second / (first.norm() * second.norm())).cpu()


def share_connectors(entries: Iterable[Any]) -> None:
    """Gives connectors of the same form the same random weights: else their losses would differ only by chance."""
    first: dict[Any, Any] = {}
    for entry in entries:
        if entry.connector is not None:
            state = entry.connector.state_dict()
            form = tuple((name, value.shape) for name, value in state.items())
            entry.connector.load_state_dict(first.setdefault(form, state))


def losses_of(model: Any, batch: Any) -> dict[str, Tensor]:
    """Returns the loss of each entry in a training step, and the sum of the student's own ones."""
    from freekd_mm.runtime.pull import task_loss

    data = model.data_preprocessor(batch, True)
    found = dict(model.loss(data['inputs'], data['data_samples']))
    ours = {name[len(PREFIX) :]: found.pop(name) for name in list(found) if name.startswith(PREFIX)}
    return {**ours, TASK: task_loss(found, data['inputs'])}


def measured(cfg: Any, checkpoint: str | None, batches: int) -> Iterator[tuple[list[str], Tensor]]:
    """Yields the names of the losses and their cosines for some batches."""
    from mmengine.device import get_device
    from mmengine.runner import Runner, set_random_seed

    from freekd_mm.checkpoints.fitting import load_whole, weights_of
    from freekd_mm.checkpoints.loading import load_checkpoint_file
    from freekd_mm.engine.preflight import compare_classes
    from freekd_mm.runtime.config import build_model, default_scope
    from freekd_mm.runtime.distillation import is_unlabelled

    seed = cfg.get('randomness', {}).get('seed') or 0
    with default_scope(cfg.get('default_scope')):
        set_random_seed(seed)
        model: Any = build_model(cfg.model, cfg.get('default_scope'))
        model.init_weights()
        if checkpoint is None:
            share_connectors(model.distillation.entries.values())
        else:
            load_whole(model, weights_of(load_checkpoint_file(checkpoint), checkpoint), checkpoint)
        model.to(get_device()).train()
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=seed)
        compare_classes(SimpleNamespace(model=model, _train_dataloader=loader))
        labelled = (batch for batch in loader if not is_unlabelled(batch['data_samples']))
        for batch in islice(labelled, batches):
            losses = losses_of(model, batch)
            yield list(losses), cosines(losses, model)


def main() -> None:
    """Prints the table."""
    parser, args = parse_args()
    check_positive('--batches', args.batches)
    check_file('config', args.config)
    if args.checkpoint is not None:
        check_file('a checkpoint', args.checkpoint)
    install()
    import torch

    from freekd_mm.log import quiet
    from freekd_mm.runtime.config import is_distilled, load_config

    cfg = load_config(args.config)
    if not is_distilled(cfg.get('model') or {}):
        parser.error('config should be a distillation config; write one with tools/make_config.py')
    with quiet():
        found = list(measured(cfg, args.checkpoint, args.batches))
    names, mean = found[0][0], torch.stack([values for _, values in found]).mean(0)
    rows = [
        [name, *('-' if value != value else f'{value:.2f}' for value in values)]
        for name, values in zip(names, mean.tolist())
    ]
    print(f"cosines between the gradients of the student's weights, mean over {len(found)} batches:")
    print(table(rows, ['', *names]))


if __name__ == '__main__':
    run(main)
