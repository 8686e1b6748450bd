"""Whether two builds of mmcv compute the same: outputs and gradients of its operators on a CPU, bit by bit.

``python tools/setup_env/compare_operators.py DIR DIR``, each a folder with an unpacked wheel of mmcv; needs PyTorch and
mmcv's requirements. For a change of how mmcv is compiled (mmcv_source.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def record() -> dict[str, Any]:
    """Returns the outputs and gradients of the operators of the mmcv that is imported here."""
    import numpy as np
    import torch
    from mmcv import ops
    from mmcv.ops.active_rotated_filter import active_rotated_filter
    from torch import Tensor

    torch.manual_seed(0)
    randn, rand, found = torch.randn, torch.rand, {}

    def keep(name: str, *results: Any) -> None:
        found.update({f'{name}.{index}': torch.as_tensor(np.asarray(x)) for index, x in enumerate(results)})

    def run(name: str, operator: Any, *inputs: Any, more: tuple[Tensor, ...] = ()) -> None:
        """Keeps what ``operator(*inputs)`` returns and its gradients with regard to the floating-point inputs."""
        leaves = [x.requires_grad_() for x in inputs if isinstance(x, Tensor) and x.is_floating_point()]
        out = operator(*inputs)
        weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
        grads = torch.autograd.grad((out * weights).sum(), [*leaves, *more], allow_unused=True)
        keep(name, *(x.detach() for x in (out, *grads) if x is not None))

    boxes, scores, labels = rand(200, 4) * 60, rand(200), torch.randint(0, 3, (200,))
    boxes[:, 2:] += boxes[:, :2]
    keep('nms', *ops.nms(boxes, scores, 0.5))
    keep('soft_nms', *ops.soft_nms(boxes, scores, 0.5))
    keep('batched_nms', *ops.batched_nms(boxes, scores, labels, {'type': 'nms', 'iou_threshold': 0.4}))
    keep('nms_match', *ops.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.5))
    keep('overlaps', ops.bbox_overlaps(boxes[:20], boxes[20:50]))
    turned = rand(60, 5) * 20 + 1
    keep('nms_rotated', *ops.nms_rotated(turned, scores[:60], 0.3))
    keep('iou_rotated', ops.box_iou_rotated(turned, turned))
    keep('iou_quadri', ops.box_iou_quadri(rand(20, 8) * 20, rand(20, 8) * 20))

    x = randn(2, 4, 16, 16)
    regions = torch.tensor([[0, 1, 1, 9, 9], [1, 2.5, 3, 14, 12.0]])
    for mode in ('avg', 'max'):
        for aligned in (True, False):
            align = ops.RoIAlign((5, 5), 1.0, 2, mode, aligned)
            run(f'roi_align {mode} {aligned}', lambda x, align=align: align(x, regions), x)
    turned = torch.tensor([[0, 6, 6, 8, 4, 0.3], [1, 8, 7, 6, 9, 1.0]])
    run('roi_align_rotated', lambda x: ops.roi_align_rotated(x, turned, (5, 5), 1.0, 2, True, False), x)
    curves = torch.cat([torch.tensor([[0.0], [1.0]]), rand(2, 16) * 14], 1)
    run('bezier_align', lambda x: ops.bezier_align(x, curves, (4, 6), 1.0, 2, True), x)
    aims = (rand(2, 256, 5) * 10).view(2, 16, 16, 5)
    run('rotated_feature_align', lambda x: ops.rotated_feature_align(x, aims, 1 / 8, 1), x)
    deformed, modulated = ops.DeformConv2d(4, 6, 3, padding=1), ops.ModulatedDeformConv2d(4, 6, 3, padding=1)
    run('deform_conv', deformed, x, randn(2, 18, 16, 16), more=(deformed.weight,))
    run('modulated_deform_conv', modulated, x, randn(2, 18, 16, 16), rand(2, 9, 16, 16), more=(modulated.weight,))
    for kind in ('collect', 'distribute'):
        run(f'psamask {kind}', ops.PSAMask(kind, (7, 7)), randn(1, 49, 5, 5))
    directions = torch.randint(1, 9, (1, 3, 3, 2)).int()
    run('active_rotated_filter', lambda x: active_rotated_filter(x, directions), randn(2, 3, 1, 3, 3))
    keep('points_in_boxes', ops.points_in_boxes_cpu(rand(1, 50, 3) * 4, rand(1, 6, 7) * 4))
    for limits in ((10, 100), (-1, -1)):
        voxels = ops.Voxelization([0.5, 0.5, 4], [0, -4, -3, 8, 4, 1], *limits)(rand(80, 4) * 4)
        keep(f'voxels {limits}', *(voxels if isinstance(voxels, tuple) else (voxels,)))
    generator = np.random.RandomState(0)
    score, embedding = generator.rand(8, 8).astype('f4'), generator.rand(8, 8, 4).astype('f4')
    kernel, masks = generator.randint(0, 3, (8, 8)).astype('i4'), generator.rand(2, 8, 8) > 0.5
    keep('pixel_group', *ops.pixel_group(score, masks[0], embedding, kernel, masks[1].astype('u1'), 3, 0.8))
    return found


def main() -> None:
    """Runs itself once with each build and prints how many tensors there are and which of them differ."""
    if len(sys.argv) != 3:
        sys.exit('usage: compare_operators.py DIR DIR, two folders with an unpacked wheel of mmcv each')
    import torch

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, build in enumerate(sys.argv[1:]):
            target = Path(folder, f'{number}.pt')
            code = 'import sys, torch, compare_operators as c; torch.save(c.record(), sys.argv[1])'
            path = os.pathsep.join([str(Path(build).resolve()), str(Path(__file__).parent)])
            environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
            subprocess.run([sys.executable, '-c', code, str(target)], check=True, env=environment)
            found.append(torch.load(target, weights_only=True))
    first, second = found
    wrong = [name for name in {**first, **second} if name not in first or name not in second]
    wrong += [name for name in set(first) - set(wrong) if not torch.equal(first[name], second[name])]
    print(
        f'{len(first)} tensors of {len({name.split(".")[0] for name in first})} operators, {len(wrong)} differ', *wrong
    )
    sys.exit(bool(wrong))


if __name__ == '__main__':
    main()
