"""One rank of the two-process test of stage 1: ``torchrun prompt_ddp_worker.py <config> <folder>``."""

from __future__ import annotations

import os
import sys

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from freekd_mm.engine.distributed import leave_process_group


def main():
    torch.set_num_threads(1)
    if not torch.cuda.is_available():
        torch.cuda.set_device = lambda device: None  # mmengine sets it without asking
    cfg = Config.fromfile(sys.argv[1])
    cfg.launcher = 'pytorch'
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
    seen = {'images': []}

    class Look(Hook):
        priority = 'VERY_LOW'

        def before_train(self, runner):
            model = runner.model
            seen['bytes_in_buckets'] = model._get_ddp_logging_data()['total_parameter_size_bytes']
            seen['start'] = tokens(model)

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen['images'] += [sample.img_id for sample in data_batch['data_samples']]

    def tokens(model):
        return {name: p.detach().clone() for name, p in model.module.named_parameters() if p.requires_grad}

    runner = Runner.from_cfg(cfg)
    runner.register_hook(Look())
    runner.train()
    seen['tokens'] = tokens(runner.model)
    torch.save(seen, os.path.join(sys.argv[2], f'rank{os.environ["RANK"]}.pt'))
    leave_process_group()


if __name__ == '__main__':
    main()
