"""Sends pictures of the distillation to the visualizer while it trains."""

from __future__ import annotations

from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from freekd_mm.checks import check_positive
from freekd_mm.engine.distributed import unwrapped_model
from freekd_mm.engine.schedule import distillation_of
from freekd_mm.log import say
from freekd_mm.registry import HOOKS
from freekd_mm.runtime.rng import isolated_rng

IMAGES = 2


@HOOKS.register_module()
class DistillPicturesHook(Hook):
    """Shows what is distilled: wavelet bands of teacher and student, PoI masks, channel weights.

    The pictures go to all backends of the config's visualizer (local files, TensorBoard, WandB) as
    ``distill_<entry>_bands_<image>``, ``..._masks_<image>`` and ``..._weights_<image>``: of the first images of the
    validation data, or of the training data without those.

    Only the first process draws; the others do not wait for it until they need it. Losses, modes, gradients and random
    numbers are those of a training without the hook.

    Args:
        interval: Iterations between two pictures; the first shows the student before its first step.
    """

    # Before checkpoints and logs are written, as they might end the run.
    priority = 'NORMAL'

    def __init__(self, interval: int = 1000) -> None:
        check_positive('interval', interval, integer=True)
        self.interval = interval
        self._data: list[Any] = []

    def before_train(self, runner: Any) -> None:
        """Checks that there is something to show; shows the student as the training starts."""
        distillation_of(runner, self)
        if runner.iter == 0:
            self.show(runner, 0)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Shows every ``interval`` iterations."""
        if self.every_n_train_iters(runner, self.interval):
            self.show(runner, runner.iter + 1)

    def show(self, runner: Any, step: int) -> None:
        """Sends the pictures of all images to the visualizer; ``step`` is the number of iterations so far."""
        if not is_main_process():
            return
        from freekd_mm.visualize.draw import overviews
        from freekd_mm.visualize.features import look

        if not self._data:
            loop = runner.val_loop if runner._val_loop is not None else runner.train_loop
            dataset = loop.dataloader.dataset
            with isolated_rng(seed=0):
                self._data = [dataset[index] for index in range(min(IMAGES, len(dataset)))]
        for index, data in enumerate(self._data):
            view = look(unwrapped_model(runner), data)
            for seen in view.entries:
                for kind, picture in overviews(seen, view.image).items():
                    runner.visualizer.add_image(f'distill_{seen.entry}_{kind}_{index}', picture, step=step)
                if seen.note and step == index == 0:
                    say(f"no pictures of distill '{seen.entry}': {seen.note}")
