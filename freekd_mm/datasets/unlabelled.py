"""Pictures that nobody has labelled: a folder of them, and batches of them between labelled ones."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS as MM_SAMPLERS
from mmengine.registry import DATASETS as MM_DATASETS
from torch.utils.data import BatchSampler, Dataset, Sampler

from freekd_mm.checks import check_choice, check_file, check_positive
from freekd_mm.log import warn
from freekd_mm.registry import DATA_SAMPLERS, DATASETS
from freekd_mm.runtime.config import type_name
from freekd_mm.runtime.distillation import UNLABELLED
from freekd_mm.runtime.probe import find_pipeline

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm')
#: Of a label map: what no loss counts.
IGNORED = 255
#: So many broken files in a row are no accident.
PATIENCE = 50


@DATASETS.register_module()
class ImageFolder(Dataset):
    """Pictures without labels. A batch of them is distilled, and the student's own loss is left out.

    Args:
        folder: A folder, searched with all that are in it; a text file with one path per line, relative to its own
            folder; or a list of pictures and folders.
        pipeline: Steps as those of labelled pictures: what loads annotations adds none.
        broken: A file that cannot be read is named, and ``'skip'`` takes the next one, ``'error'`` stops.
    """

    metainfo: dict[str, Any] = {}  # noqa: RUF012 - as all data sets have it

    def __init__(
        self, folder: str | os.PathLike | Sequence[str | os.PathLike], pipeline: Sequence[dict], broken: str = 'skip'
    ) -> None:
        check_choice('broken of ImageFolder', broken, ('skip', 'error'))
        self.broken, self.files = broken, find_pictures(folder)
        self.pipeline = Compose([step for step in pipeline if type_name(step) != 'FilterAnnotations'])
        self.pipeline.transforms = [_without_labels(step) for step in self.pipeline.transforms]
        self._named: set[int] = set()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for tried in range(min(PATIENCE, len(self.files))):
            at = (index + tried) % len(self.files)
            packed = self._load(at)
            if packed is not None:
                packed['data_samples'].set_metainfo({UNLABELLED: True})
                return packed
        raise ValueError(
            f'ImageFolder should have pictures that can be read, but {tried + 1} in a row cannot, from '
            f'{self.files[index]} to {self.files[at]}'
        )

    def _load(self, index: int) -> dict[str, Any] | None:
        """Returns a packed picture, None if the file is broken or a random step refuses it."""
        file = str(self.files[index])
        known = {'img_path': file, 'img_id': index, 'instances': [], 'seg_fields': [], 'reduce_zero_label': False}
        try:
            return self.pipeline(known)
        except Exception as error:
            if _is_readable(file):
                raise
            if self.broken == 'error':
                raise ValueError(f'{file} should be a picture, but cannot be read') from error
        if index not in self._named:
            self._named.add(index)
            warn(f'{file} cannot be read as a picture and is skipped')
        return None


def find_pictures(folder: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Path]:
    """Returns the pictures of a folder, a list file or a list, sorted within folders; see :class:`ImageFolder`."""
    if isinstance(folder, (list, tuple)) and folder:
        return [file for part in folder for file in find_pictures(part)]
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f'a folder of pictures, a text file, or a list of such should be given, but got {folder!r}')
    path = Path(folder).expanduser()
    if path.suffix.lower() == '.txt' and path.is_file():
        lines = path.read_text(encoding='utf-8-sig', errors='replace').splitlines()
        found = [path.parent / line.strip() for line in lines if line.strip()]
        missing = [file for file in found if not file.is_file()]
        if missing:
            raise FileNotFoundError(f'{path} should list pictures, but {len(missing)} are missing, as {missing[0]}')
    elif path.exists():
        files = _files(path) if path.is_dir() else [path]
        found = sorted(file for file in files if file.suffix.lower() in SUFFIXES and file.name[0] != '.')
    else:
        raise FileNotFoundError(f'a folder of pictures should exist, but got {str(path)!r}')
    if not found:
        raise ValueError(f'{str(path)!r} should hold pictures ({", ".join(SUFFIXES)}), but has none')
    return found


def _files(folder: Path) -> Iterator[Path]:
    """Yields the files below a folder, those behind links too; a folder that is reached twice counts once."""
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in seen:
            folders.clear()
        else:
            seen.add(os.path.realpath(root))
            yield from (Path(root) / name for name in names)


def _without_labels(step: Any) -> Any:
    """Lets a built step take pictures without boxes."""
    if hasattr(step, 'allow_negative_crop'):
        step.allow_negative_crop = True
    return _Unlabelled(step) if type_name(step) == 'LoadAnnotations' else step


def check_picture(file: str | os.PathLike) -> None:
    """Raises an error unless a file is a picture."""
    check_file('an image', file)
    if not _is_readable(str(file)):
        raise ValueError(f'an image should be a picture that can be read, but {str(file)!r} cannot')


def _is_readable(file: str) -> bool:
    import mmcv

    try:
        return mmcv.imread(file) is not None
    except Exception:  # each decoder has its own
        return False


class _Unlabelled:
    """Stands for a LoadAnnotations: no boxes and no masks, and a label map of which nothing counts."""

    def __init__(self, load: Any) -> None:
        self.load, self.with_map = load, getattr(load, 'with_seg', False)
        load.with_seg = False

    def __call__(self, results: dict) -> dict:
        results = self.load(results)
        if self.with_map:
            results['gt_seg_map'] = np.full(results['img'].shape[:2], IGNORED, np.uint8)
            results['seg_fields'].append('gt_seg_map')
        return results


def shared_pipeline(dataset: dict) -> Sequence[dict]:
    """Returns the steps of labelled pictures for unlabelled ones; raises an error where they do not read a file."""
    pipeline = find_pipeline(dataset) or ()
    if not any(type_name(step).startswith('LoadImage') for step in pipeline):
        raise ValueError(
            "unlabelled should have a 'pipeline' of its own, because that of the labelled pictures does not begin "
            f'with a file, but has {", ".join(map(type_name, pipeline)) or "no steps"}'
        )
    return pipeline


@DATASETS.register_module()
class WithUnlabelled(Dataset):
    """A labelled data set with pictures without labels beside it, for :class:`MixedBatchSampler`.

    It has the length and all else of the labelled data set. The unlabelled pictures have the numbers behind that.

    Args:
        dataset: Config of the labelled data set.
        unlabelled: Options of :class:`ImageFolder`; without a pipeline they get that of the labelled pictures.
    """

    def __init__(self, dataset: dict, unlabelled: dict) -> None:
        own: dict[str, Any] = {} if 'pipeline' in unlabelled else {'pipeline': copy.deepcopy(shared_pipeline(dataset))}
        self.unlabelled = ImageFolder(**own, **unlabelled)
        self.labelled: Any = MM_DATASETS.build(dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') or name == 'labelled':
            raise AttributeError(name)
        return getattr(self.labelled, name)

    @property
    def pipeline(self) -> Any:
        """The steps of the labelled pictures, which mmdet's PipelineSwitchHook replaces."""
        return self.labelled.pipeline

    @pipeline.setter
    def pipeline(self, steps: Any) -> None:
        self.labelled.pipeline = steps

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, index: int) -> Any:
        return self.labelled[index] if index < len(self) else self.unlabelled[index - len(self)]


@DATA_SAMPLERS.register_module()
class MixedBatchSampler(BatchSampler):
    """Batches of labelled pictures as the sampler gives them, and batches of unlabelled ones between them.

    What a batch holds follows from the seed and its place in the pass, so that a resume is exact.

    Args:
        sampler: Of the labelled pictures.
        batch_size: Of both kinds.
        ratio: Unlabelled batches for each labelled one.
        labelled: Config of the batch sampler of the labelled pictures.
        drop_last: Leave out a labelled batch that is not full.
    """

    def __init__(
        self, sampler: Sampler, batch_size: int, ratio: float = 1, labelled: dict | None = None, drop_last: bool = False
    ) -> None:
        check_positive('ratio of MixedBatchSampler', ratio)
        dataset = getattr(sampler, 'dataset', None)
        if not isinstance(dataset, WithUnlabelled):
            raise TypeError(f'MixedBatchSampler should have data of WithUnlabelled, but got {type(dataset).__name__}')
        super().__init__(sampler, batch_size, drop_last)
        self.unlabelled, self.ratio = len(dataset.unlabelled), ratio
        self.batches: Any = BatchSampler(sampler, batch_size, drop_last)
        if labelled is not None:
            self.batches = MM_SAMPLERS.build(labelled, default_args={'sampler': sampler, 'batch_size': batch_size})

    def __len__(self) -> int:
        return len(self.batches) + int(len(self.batches) * self.ratio)

    def __iter__(self) -> Iterator[list[int]]:
        pictures = self._pictures()
        for done, batch in enumerate(self.batches, 1):
            yield batch
            for _ in range(int(done * self.ratio) - int((done - 1) * self.ratio)):
                yield [next(pictures) for _ in range(self.batch_size)]

    def _pictures(self) -> Iterator[int]:
        """Yields the numbers of unlabelled pictures, this process's share of one order after the other."""
        sampler: Any = self.sampler
        rank, world = get_dist_info()
        random = torch.Generator().manual_seed(int(sampler.seed or 0) * 1000003 + int(getattr(sampler, 'epoch', 0)))
        while True:
            order = torch.randperm(self.unlabelled, generator=random).tolist()
            yield from (len(sampler.dataset) + index for index in order[rank % len(order) :: world])
