"""Plans in which only a share of the training pictures has labels: which ones, and what becomes of the rest."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from freekd_mm.files import write_text

#: What a row does with the pictures that lose their labels; by default nothing.
RESTS = ('unlabelled', 'pseudo', 'labelled')


class FewLabels(NamedTuple):
    """The labels that are left of a COCO data set, the same for every row and seed."""

    folder: Path
    share: float
    #: The data set with all labels.
    dataset: dict[str, Any]

    @property
    def kept(self) -> Path:
        """COCO file of the pictures that keep their labels."""
        return self.folder.resolve() / f'labels-{self.share:g}.json'

    @property
    def rest(self) -> Path:
        """List of the other pictures."""
        return self.kept.with_suffix('.txt')

    @property
    def pictures(self) -> Path:
        """The folder that the names of the pictures are relative to."""
        return self._at_root(self.dataset['data_prefix']['img'])

    def _at_root(self, path: str) -> Path:
        return Path(self.dataset.get('data_root') or '', path).resolve()

    def write(self) -> None:
        """Draws the pictures, always the same ones, and writes both files."""
        coco = json.loads(self._at_root(self.dataset['ann_file']).read_text(encoding='utf-8'))
        kept = random.Random(0).sample(coco['images'], max(1, round(self.share * len(coco['images']))))
        chosen = {image['id'] for image in kept}
        images = [image for image in coco['images'] if image['id'] in chosen]
        annotations = [annotation for annotation in coco['annotations'] if annotation['image_id'] in chosen]
        write_text(self.kept, json.dumps({**coco, 'images': images, 'annotations': annotations}))
        rest = [str(self.pictures / image['file_name']) for image in coco['images'] if image['id'] not in chosen]
        write_text(self.rest, '\n'.join(rest))

    def set(self, cfg: Config, rest: str | None = None, pseudo: Path | None = None) -> None:
        """Changes the training data of a config.

        Args:
            cfg: The config.
            rest: One of ``RESTS``, or None to leave the rest out.
            pseudo: COCO file of the rest with labels of the teacher.
        """
        loader, few = cfg.train_dataloader, {**self.dataset, 'ann_file': str(self.kept)}
        if rest == 'labelled':
            few = self.dataset
        elif rest == 'unlabelled':
            unlabelled = {'folder': str(self.rest)}
            few = {'type': 'freekd_mm.WithUnlabelled', 'dataset': few, 'unlabelled': unlabelled}
            own = {'labelled': loader.get('batch_sampler'), 'drop_last': loader.pop('drop_last', False)}
            loader.batch_sampler = {'type': 'freekd_mm.MixedBatchSampler', **own}
        elif rest == 'pseudo':
            few = {'type': 'ConcatDataset', 'datasets': [few, {**few, 'ann_file': str(pseudo)}]}
        loader.dataset = few
