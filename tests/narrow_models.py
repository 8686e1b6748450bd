"""The packages' own models, made small: fewer layers and channels; structure, taps and modules stay."""

from __future__ import annotations

from typing import Any

from scenes import CLASSES, THINGS

#: Fewer layers, queries, points and classes, by the names of the options; features keep their names and channels.
FEWER = {
    'deepen_factor': 0.1,
    'depths': (1, 1, 1, 1),
    'num_queries': 20,
    'num_csp_blocks': 1,
    'stacked_convs': 1,
    'batch_augments': None,
    'size': (64, 64),
    'norm_eval': False,
    'score_thr': 0.0,
    'nms_pre': 20,
    'max_per_img': 10,
    'num': 16,
    'filter_thr': 0.0,
    'num_things_classes': len(THINGS),
    'num_stuff_classes': len(CLASSES) - len(THINGS),
}
#: Options that count channels.
CHANNELS = (
    *('in_channels', 'out_channels', 'feat_channels', 'channels', 'base_channels', 'stem_channels', 'embed_dims'),
    *('conv_out_channels', 'fc_out_channels', 'feedforward_channels', 'inter_channels', 'mid_channels', 'num_feats'),
    *('block_mid_channels', 'ppm_channels', 'mask_out_channels', 'num_channels', 'decoder_channels', 'num_groups'),
    *('widen_factor', 'num_deconv_filters'),
)


def fewer_layers(model: Any, classes: int) -> Any:
    """Takes layers, queries and classes from a model's config, in place."""
    for key, value in list(model.items()):
        if key in FEWER:
            model[key] = FEWER[key]
        elif key == 'num_classes':
            model[key] = classes
        elif key == 'class_weight' and isinstance(value, list):
            model[key] = [1.0] * classes + ([0.1] if value[-1] == 0.1 else [])  # where no object has a weight
        elif key == 'num_layers' and model.get('type') != 'CondInstMaskHead':  # 169 numbers make three
            model[key] = [1] * len(value) if isinstance(value, list) else min(value, 2)
        elif key == 'num_points' and value > 100:
            model[key] = 50
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                fewer_layers(part, classes)
    return model


def narrower(model: Any, factor: float) -> Any:
    """Returns a model's config with a part of the channels; images keep theirs."""
    if isinstance(model, (list, tuple)):
        return type(model)(narrower(item, factor) for item in model)
    if not isinstance(model, dict):
        return model
    model = {
        key: _scaled(value, factor) if key in CHANNELS else narrower(value, factor) for key, value in model.items()
    }
    if str(model.get('type')).startswith(('ResNet', 'mmdet.ResNet')):
        model.update(base_channels=int(64 * factor), stem_channels=int(64 * factor))
    return model


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(item, factor) for item in value)
    if isinstance(value, float):
        return value * factor
    return int(value * factor) if isinstance(value, int) and value > 8 else value
