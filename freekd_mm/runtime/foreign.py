"""Teachers from the libraries where they live: timm, transformers, and any ``nn.Module`` by its import path."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, Callable

import torch.nn.functional as F
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from freekd_mm.checkpoints.fitting import WeightsMismatchError, load_what_fits, load_whole, weights_of
from freekd_mm.checkpoints.loading import load_checkpoint_file
from freekd_mm.checkpoints.sources import fetch
from freekd_mm.checks import check_positive, did_you_mean
from freekd_mm.runtime.encoder import FeatureEncoder
from freekd_mm.runtime.taps import Tap, flatten
from freekd_mm.text import some

OPTIONS = ('kwargs', 'blocks', 'size', 'patch', 'mean', 'std')
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: For hints alone: names on the hub cannot be listed without asking it.
KNOWN = (
    *(f'facebook/dinov2-{size}' for size in ('small', 'base', 'large', 'giant')),
    *(f'facebook/dinov2-with-registers-{size}' for size in ('small', 'base', 'large')),
    *(f'facebook/dinov3-vit{size}16-pretrain-lvd1689m' for size in ('s', 'b', 'l')),
    *(f'facebook/sam-vit-{size}' for size in ('base', 'large', 'huge')),
)
#: Class and register tokens that a model has at most.
EXTRA = 16
#: The norm behind the last block of a transformer.
NORM = re.compile(r'(vision_model\.)?(layernorm|norm|post_layernorm)')


class OptionsError(ValueError):
    """The options of a teacher do not fit what its model gives."""


class ForeignBackbone(nn.Module):
    """Gives the feature maps of a model of another library, for images of any size.

    Args:
        model: The model.
        run: Runs it on images and returns its levels: maps (N, C, h, w), or tokens (N, L, C), patches last.
        patch: Images are resized to the nearest multiples of it.
        mean: Of the images it takes, in 0..1.
        std: The same.
        size: Height and width of the only images that it takes.
        adapt: Fits weights of a file to the model: names of other versions, positions of another image size.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[Tensor], Iterable[Tensor]],
        patch: int | Sequence[int] = 1,
        mean: Sequence[float] = IMAGENET[0],
        std: Sequence[float] = IMAGENET[1],
        size: tuple[int, int] | None = None,
        adapt: Callable[[Any, nn.Module], Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.run, self.adapt = model, run, adapt
        self.patch = patch if isinstance(patch, int) else max(patch)
        self.mean, self.std, self.size = mean, std, size

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Returns the levels of (N, 3, H, W) images, (N, C, h, w) each."""
        height, width = self.size or (max(1, round(side / self.patch)) * self.patch for side in images.shape[-2:])
        if tuple(images.shape[-2:]) != (height, width):
            images = F.interpolate(images, size=(height, width), mode='bilinear', antialias=True)
        grid = height // self.patch, width // self.patch
        levels = tuple(self.run(images))
        return levels if self.patch == 1 else tuple(patch_map(level, *grid) for level in levels)


def patch_map(level: Tensor, height: int, width: int) -> Tensor:
    """Returns tokens (N, L, C) as a map (N, C, h, w), without the class and register tokens before the patches."""
    if level.dim() != 3:
        return level
    extra = level.shape[1] - height * width
    if not 0 <= extra <= EXTRA:
        raise OptionsError(
            f'the teacher should give {height}x{width} patch tokens and at most {EXTRA} before them, but gives '
            f'{level.shape[1]}; set its patch'
        )
    return level[:, extra:].unflatten(1, (height, width)).permute(0, 3, 1, 2)


def build_foreign(library: str, teacher: dict) -> tuple[FeatureEncoder, str]:
    """Builds a teacher of a library of ``LIBRARIES``, which loads its own weights unless the user names others.

    docs/any-teacher.md has the options. Returns the model, whose levels are at the tap ``'backbone'``, and a line that
    says where its weights are from.
    """
    name, checkpoint = teacher[library], teacher.get('checkpoint')
    own = not checkpoint and not teacher.get('allow_random')
    size = teacher.get('size')
    if size is not None and (not isinstance(size, (list, tuple)) or len(size) != 2):
        raise ValueError(f'size of the teacher should be (height, width), but got {size!r}')
    check_positive('patch of the teacher', teacher.get('patch', 1), integer=True)
    built = LIBRARIES[library](name, teacher, dict(teacher.get('kwargs') or {}), own)
    built.patch, built.size = teacher.get('patch', built.patch), tuple(size or ()) or built.size
    if built.size is not None and any(side % built.patch for side in built.size):
        raise ValueError(f'size of the teacher should be a multiple of its patch, {built.patch}, but got {built.size}')
    mean, std = (teacher.get(key, [255 * value for value in getattr(built, key)]) for key in ('mean', 'std'))
    weights = f'its own weights ({name})' if own else 'RANDOM weights (allow_random=True)'
    if checkpoint:
        file = weights_of(load_checkpoint_file(fetch(checkpoint)), checkpoint)
        if built.adapt is not None and not load_what_fits(built.model, file).is_whole:
            file = weights_of(built.adapt(file, built.model), checkpoint)
        fit = load_whole(built.model, file, checkpoint, bool(teacher.get('allow_mismatch', False)))
        weights = f'{checkpoint} ({fit.share:.0%} of {fit.count} weights)'
    if built.size is not None or built.patch > 1:
        weights += f'; images are resized to {built.size or f"multiples of {built.patch}"}'
    preprocessor = ImgDataPreprocessor(mean, std, bgr_to_rgb=True)
    return FeatureEncoder(built, data_preprocessor=preprocessor), weights


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except Exception as error:  # timm imports torchvision, which may fail in its own ways
        more = ', and a torchvision that fits your PyTorch (docs/install.md)' if name == 'timm' else ''
        raise ImportError(f'teacher {name} needs the package {name}: pip install {name}{more} ({error})') from error


def _transformers(name: str, teacher: dict, kwargs: dict, own: bool) -> ForeignBackbone:
    library = _library('transformers')
    closed = {'trust_remote_code': False}
    try:
        config = library.AutoConfig.from_pretrained(name, **closed)
    except (OSError, ValueError) as error:
        near = did_you_mean(name, KNOWN) or f' Examples: {KNOWN[0]}, {KNOWN[-3]}.'
        raise ValueError(
            f'teacher transformers should be a folder or a name that transformers knows, but got {name!r}.{near} '
            f'It says: {str(error).strip().splitlines()[0]}'
        ) from error
    config = getattr(config, 'vision_config', config)
    if own:
        model, found = library.AutoModel.from_pretrained(
            name, config=config, use_safetensors=True, output_loading_info=True, **closed, **kwargs
        )
        # Poolers come after the features.
        missing = sorted(key for key in found['missing_keys'] if 'pooler' not in key)
        if missing and not teacher.get('allow_mismatch'):
            raise WeightsMismatchError(
                f'{name} should hold the weights of {type(model).__name__}, but lacks {some(missing)}'
            )
    else:
        model = library.AutoModel.from_config(config, **kwargs)
    if 'pixel_values' not in inspect.signature(model.forward).parameters:
        raise ValueError(f'teacher transformers should be a model of images, but {name} is a {type(model).__name__}')
    model.float().eval()
    try:
        settings, _ = library.ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # a folder without it
        settings = {}
    scale = settings.get('rescale_factor', 1 / 255) if settings.get('do_rescale', True) else 1.0
    mean, std = (
        [value / scale / 255 for value in settings.get(f'image_{key}') or default]
        for key, default in zip(('mean', 'std'), IMAGENET)
    )
    norm = next((module for path, module in model.named_modules() if NORM.fullmatch(path)), nn.Identity())
    adapts = 'interpolate_pos_encoding' in inspect.signature(model.forward).parameters
    options = {'interpolate_pos_encoding': True} if adapts else {}

    def run(images: Tensor) -> list[Tensor]:
        output = model(pixel_values=images, output_hidden_states=True, **options)
        states, last = getattr(output, 'reshaped_hidden_states', None) or output.hidden_states, output.last_hidden_state
        found = []
        # The first is the embedding; the library norms the last tokens alone.
        for block in _blocks(teacher, len(states) - 1):
            level = states[block + 1]
            if level.dim() == 3:
                level = last if block + 2 == len(states) and last.dim() == 3 else norm(level)
            elif level.shape[-1] == getattr(config, 'hidden_size', None) != level.shape[1]:  # SAM's channels are last
                level = level.permute(0, 3, 1, 2)
            found.append(level)
        return found

    patch = getattr(config, 'patch_size', 1)
    # SAM's positions are those of one image size.
    size = (config.image_size,) * 2 if type(model).__name__.startswith('Sam') else None
    return ForeignBackbone(model, run, patch, mean, std, size)


def _blocks(teacher: dict, count: int) -> list[int]:
    """Returns the indices of the blocks that the user chose, of ``count`` ones."""
    chosen = teacher.get('blocks') or [-1]
    if not isinstance(chosen, (list, tuple)) or not all(-count <= block < count for block in chosen):
        raise OptionsError(
            f'blocks of the teacher should be a list of 0 to {count - 1}, or from the end, but got {chosen!r}'
        )
    return [block % count for block in chosen]


def _timm(name: str, teacher: dict, kwargs: dict, own: bool) -> ForeignBackbone:
    library = _library('timm')
    known = library.list_models(pretrained='.' in name)
    if ':' not in name and name not in known:
        near = did_you_mean(name, known)
        raise ValueError(f'teacher timm should be a model that timm knows, but got {name!r}.{near}')
    model: Any = _any_size(library.create_model, name, {'num_classes': 0, 'pretrained': own, **kwargs})
    if not hasattr(model, 'forward_intermediates'):
        raise ValueError(f'teacher timm should be a model with feature maps, but {name} gives none')

    def run(images: Tensor) -> list[Tensor]:
        indices = _blocks(teacher, len(model.feature_info)) if teacher.get('blocks') else 1
        return model.forward_intermediates(images, indices=indices, norm=True, intermediates_only=True)

    patch, cfg = getattr(getattr(model, 'patch_embed', None), 'patch_size', 1), model.pretrained_cfg
    adapt = getattr(import_module(type(model).__module__), 'checkpoint_filter_fn', None)
    return ForeignBackbone(model, run, patch, cfg['mean'], cfg['std'], adapt=adapt)


def _any_size(create: Callable[..., nn.Module], name: str, options: dict) -> nn.Module:
    """Returns a model of timm that takes images of any size; each kind has its own option for it, or none."""
    for option in ({'strict_img_size': False}, {'dynamic_img_size': True}):
        try:
            return create(name, **option, **options)
        except TypeError:  # another kind
            continue
    return create(name, **options)


def _module(name: str, teacher: dict, kwargs: dict, own: bool) -> ForeignBackbone:
    module_name, _, path = name.partition(':')
    if not path:
        raise ValueError(f"teacher module should be like 'package.module:Class', but got {name!r}")
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f'teacher module {name!r} should be importable, but {error.name!r} is not: install it, or put its folder '
            'into PYTHONPATH'
        ) from error
    for part in path.split('.'):
        if not hasattr(found, part):
            raise ValueError(f'teacher module: {module_name} has no {part!r}.{did_you_mean(part, dir(found))}')
        found = getattr(found, part)
    model = found(**kwargs)
    if not isinstance(model, nn.Module):
        raise TypeError(f'teacher module should make an nn.Module, but {name} made a {type(model).__name__}')
    if own:
        raise ValueError(
            f"teacher module {name} should have a 'checkpoint', but got none. If it loads its own weights, or is to be "
            'untrained, set allow_random=True'
        )

    def run(images: Tensor) -> list[Tensor]:
        found = flatten(model(images), Tap('backbone'))
        return [found[block] for block in _blocks(teacher, len(found))] if teacher.get('blocks') else found

    return ForeignBackbone(model, run)


LIBRARIES: dict[str, Callable[[str, dict, dict, bool], ForeignBackbone]] = {
    'timm': _timm,
    'transformers': _transformers,
    'module': _module,
}
