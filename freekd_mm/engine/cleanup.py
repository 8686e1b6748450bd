"""Cleans up what a run leaves in its process, so that the next run does not find it."""

from __future__ import annotations

from typing import Any


def clean_up(runner: Any) -> None:
    """Forgets the visualizer of a run that has ended, and ends its data loading processes."""
    _forget(runner.visualizer)
    for loop in (runner._train_loop, runner._val_loop, runner._test_loop):
        _end_workers(loop)


def _forget(visualizer: Any) -> None:
    """Lets the next run of this process have its own visualizer.

    mmengine finds visualizers by name, and nearly all configs call theirs the same: stage 2 would log into the
    folder of stage 1, and a second evaluation into that of the first, which may be gone.
    """
    name = visualizer.instance_name
    for kind in type(visualizer).__mro__:
        instances: dict[str, Any] = getattr(kind, '_instance_dict', {})
        if instances.get(name) is visualizer:
            del instances[name]


def _end_workers(loop: Any) -> None:
    """Ends the workers of a loop that was built; the garbage collector would take 5 s for each."""
    # An iterator of a loop by iterations ends its workers when nothing refers to it.
    getattr(loop, '__dict__', {}).pop('dataloader_iterator', None)
    iterator = getattr(getattr(loop, 'dataloader', None), '_iterator', None)
    if iterator is not None:  # of workers that live on between epochs
        iterator._shutdown_workers()
