"""The jobs of a plan and their configs: the teacher, its prompts, and every method with every seed."""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, cast

from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

from freekd_mm.benchmark.plan import STUDENT, TEACHER, Method, Plan
from freekd_mm.benchmark.records import Key
from freekd_mm.checks import check_choice
from freekd_mm.files import write_text
from freekd_mm.prompts.prompt_file import PROMPT_FILE
from freekd_mm.runtime.config import build_empty, load_config
from freekd_mm.wizard.methods import PROMPTED, Wiring, method_entries, method_hooks, prompted
from freekd_mm.wizard.places import find_wiring, probe_built

PROBE_SIZE = (128, 128)
# What the hash of a config leaves out: where things are and how they are logged.
NOT_HASHED = ('work_dir', 'experiment_name', 'log_level', 'visualizer', 'vis_backends', 'launcher', 'data_root')


def load_task_config(path: str, data_root: str | Path | None, options: dict[str, Any]) -> Config:
    """Loads a config with overrides; another data root replaces its own, ``data_root``, wherever a setting has it."""
    cfg = load_config(path)
    cfg.merge_from_dict(dict(options))
    if data_root is None:
        return cfg
    own = cfg.get('data_root')
    if not own:
        raise KeyError(f"{path} should define 'data_root' at its top level for --data-root to replace, but does not")
    return Config(_move(cfg.to_dict(), str(own), f'{Path(data_root).resolve()}/'))


def _move(content: Any, old: str, new: str) -> Any:
    """Returns nested dicts, lists and tuples with another beginning of paths."""
    if isinstance(content, dict):
        return type(content)({key: _move(item, old, new) for key, item in content.items()})
    if isinstance(content, (list, tuple)):
        return type(content)(_move(item, old, new) for item in content)
    inside = isinstance(content, str) and f'{content}/'.startswith(f'{old.rstrip("/")}/')
    return new + content[len(old) :] if inside else content


def config_hash(cfg: Config, work_dir: str | Path) -> str:
    """Returns 12 digits that distinguish experiments, no matter where they and their data are."""
    # The names of the teacher's checkpoint and the prompts in the work directory hold the hash of what made them.
    content: Any = {key: value for key, value in cfg.to_dict().items() if key not in NOT_HASHED}
    content = _move(content, f'{work_dir}/', '<work_dir>/')
    if cfg.get('data_root'):
        content = _move(content, cfg.data_root, '<data_root>/')
    text = json.dumps(content, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class FewLabels:
    """A share of the labels of a COCO data set, the same for every row and seed.

    The folder gets ``kept``, a COCO file of the pictures that keep their labels, and ``rest``, a list of the others.
    """

    def __init__(self, folder: Path, share: float, dataset: dict[str, Any]) -> None:
        self.share, self.dataset = share, dataset
        root = Path(dataset.get('data_root') or '')
        self.annotations, self.pictures = root / dataset['ann_file'], (root / dataset['data_prefix']['img']).resolve()
        self.kept = folder.resolve() / f'labels-{share:g}.json'
        self.rest = self.kept.with_suffix('.txt')

    def write(self) -> None:
        """Draws the pictures, always the same ones, and writes both files."""
        coco = json.loads(self.annotations.read_text(encoding='utf-8'))
        kept = random.Random(0).sample(coco['images'], max(1, round(self.share * len(coco['images']))))
        chosen = {image['id'] for image in kept}
        images = [image for image in coco['images'] if image['id'] in chosen]
        annotations = [annotation for annotation in coco['annotations'] if annotation['image_id'] in chosen]
        write_text(self.kept, json.dumps({**coco, 'images': images, 'annotations': annotations}))
        rest = [str(self.pictures / image['file_name']) for image in coco['images'] if image['id'] not in chosen]
        write_text(self.rest, '\n'.join(rest))

    def set(self, cfg: Config, rest: str | None = None, pseudo: Path | None = None) -> None:
        """Changes the training data of a config; ``pseudo`` is the COCO file of the rest with the teacher's labels."""
        loader, few = cfg.train_dataloader, {**cfg.train_dataloader.dataset.to_dict(), 'ann_file': str(self.kept)}
        if rest == 'labelled':
            few['ann_file'] = self.dataset['ann_file']
        elif rest == 'unlabelled':
            unlabelled = {'folder': str(self.rest)}
            few = {'type': 'freekd_mm.WithUnlabelled', 'dataset': few, 'unlabelled': unlabelled}
            own = {'labelled': loader.get('batch_sampler'), 'drop_last': loader.pop('drop_last', False)}
            loader.batch_sampler = {'type': 'freekd_mm.MixedBatchSampler', **own}
        elif rest == 'pseudo':
            few = {'type': 'ConcatDataset', 'datasets': [few, {**few, 'ann_file': str(pseudo)}]}
        loader.dataset = few


class ConfigMaker:
    """Makes the configs of one plan; another data root replaces their own, the folder is for :class:`FewLabels`."""

    def __init__(self, plan: Plan, data_root: str | Path | None = None, folder: Path | None = None) -> None:
        self.plan = plan
        self.student_cfg = load_task_config(plan.student, data_root, plan.options)
        self.teacher_cfg = load_task_config(plan.teacher, data_root, plan.options)
        self.few: FewLabels | None = None
        if plan.labels is not None:
            self.few = FewLabels(folder or Path(), plan.labels, self.student_cfg.train_dataloader.dataset.to_dict())
            for cfg in (self.student_cfg, self.teacher_cfg):
                self.few.set(cfg)

    @functools.cached_property
    def wiring(self) -> Wiring:
        """Which features of student and teacher belong together, and what decode heads classify."""
        init_default_scope(self.student_cfg.get('default_scope', 'mmengine'))
        student = probe_built(build_empty(self.student_cfg), 'student', PROBE_SIZE)
        teacher = probe_built(build_empty(self.teacher_cfg), 'teacher', PROBE_SIZE)
        return find_wiring(student, teacher, self.plan.head)

    def student(self, seed: int, options: dict[str, Any] | None = None) -> Config:
        """Returns the config of the student alone, with the options of a row."""
        cfg = copy.deepcopy(self.student_cfg)
        cfg.merge_from_dict(options or {})
        cfg.randomness = dict(seed=seed)
        return cfg

    def teacher(self) -> Config:
        """Returns the config of the teacher's training."""
        cfg = copy.deepcopy(self.teacher_cfg)
        cfg.randomness = dict(seed=self.plan.teacher_seed)
        return cfg

    def prompt(self, name: str, checkpoint: Path) -> Config:
        """Returns the config of a frequency prompt (stage 1)."""
        cfg = self.teacher()
        cfg.load_from = str(checkpoint)
        hook = {'type': 'freekd_mm.FrequencyPromptHook', 'modules': self.wiring.features_t, **self.plan.prompts[name]}
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]
        return cfg

    def pseudo(self, checkpoint: Path) -> Config:
        """Returns the config of the teacher that labels the pictures without labels."""
        cfg, few = self.teacher(), cast(FewLabels, self.few)
        places = dict(checkpoint=str(checkpoint), folder=str(few.rest), root=str(few.pictures))
        cfg.pseudo_labels = dict(**places, score=self.plan.pseudo_score)
        return cfg

    def distilled(
        self, method: Method, seed: int, checkpoint: Path, prompt: Path | None, pseudo: Path | None = None
    ) -> Config:
        """Returns the config of a row: a distilled student, or one alone."""
        cfg = self.student(seed, method.options)
        if self.few is not None:
            self.few.set(cfg, method.rest, pseudo)
        if method.entries is not None:
            teacher = dict(model=self.teacher_cfg.model, checkpoint=str(checkpoint), dtype=self.plan.teacher_dtype)
            if self.plan.share_teacher:
                teacher['outputs'] = str(checkpoint.parent / 'outputs')
            cfg.model = ConfigDict(
                type='freekd_mm.DistilledModel',
                architecture=cfg.model,
                teacher=teacher,
                distill=self.entries(method, prompt),
            )
            if method.inherit:
                cfg.model['inherit'] = list(method.inherit)
        hooks = [*(method_hooks(method.entries, self.wiring) if isinstance(method.entries, str) else ()), *method.hooks]
        if hooks:
            cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *hooks]
        return cfg

    def entries(self, method: Method, prompt: Path | None) -> dict[str, Any]:
        """Returns the entries of a method, with options and prompt set."""
        by_name = isinstance(method.entries, str)
        changed = Config(method_entries(str(method.entries), self.wiring) if by_name else copy.deepcopy(method.entries))
        for key in method.set:
            check_choice(f'set of method {method.name!r}', key.split('.')[0], changed)
        changed.merge_from_dict(method.set)
        entries = changed.to_dict()
        for entry in entries.values() if method.weight is not None else ():
            own = entry.get('weight', 1)  # 3 stays 3, not 3.0, which is another config
            entry['weight'] = method.weight if 'auto' in f'{method.weight}{own}' else method.weight * own
        # What a decode head classifies has no prompt: the teacher's prompts are of its features.
        takers = tuple(prompted(str(method.entries)) if by_name else PROMPTED)
        losses = [entries[name]['loss'] for name in entries if name.startswith(takers) and not name.endswith('_head')]
        if prompt is not None and not losses:
            given = f'method {method.name!r} has {", ".join(entries)}'
            raise ValueError(f"a prompt is for entries called 'wavelet...' or 'freekd...', but {given}")
        for loss in losses if prompt is not None else ():
            # Entries in the plan itself say which levels they compare.
            loss['prompt'] = self.wiring.prompt_option(str(prompt), loss) if by_name else str(prompt)
        return entries


PROMPT_PREFIX = 'prompt:'
PSEUDO = 'pseudo labels'
TEACHER_FILE, PSEUDO_FILE = 'teacher.pth', 'pseudo.json'
RUNS, CACHE = 'runs', 'cache'


@dataclass(frozen=True)
class Job:
    """One training run."""

    key: Key  # what its record is known by
    folder: Path
    config: Callable[[], Config]
    product: Path | None = None  # file that other jobs need; it exists when the job is done
    needs: tuple[Path, ...] = ()  # files of other jobs

    @property
    def method(self) -> str:
        """Name of the row, ``'prompt:<name>'``, or ``'pseudo labels'``."""
        return self.key[1]

    def __str__(self) -> str:
        return f'{self.method} seed {self.key[2]}'


def make_jobs(plan: Plan, maker: ConfigMaker, work_dir: Path, kind: str = '') -> list[Job]:
    """Returns all jobs of a plan, in the order in which they should start.

    A kind of machine has a folder of its own in the work directory: ``cache/`` in it holds teachers and prompts for all
    plans, ``runs/`` the rest.
    """

    def job(place: str, method: str, seed: int, make: Callable[[], Config], *needs: Path, product: str = '') -> Job:
        key = kind, method, seed, config_hash(make(), kind_folder(work_dir, kind))
        folder = run_folder(work_dir, plan.task, key, place)
        return Job(key, folder, make, folder / product if product else None, needs)

    teacher = job(CACHE, TEACHER, plan.teacher_seed, maker.teacher, product=TEACHER_FILE)
    checkpoint = teacher.folder / TEACHER_FILE
    jobs = [teacher, *(job(RUNS, STUDENT, seed, partial(maker.student, seed)) for seed in plan.seeds)]
    made: dict[str, Path | None] = {}

    def product(title: str, make: Callable[[], Config], file: str) -> Path | None:
        # Right before its first use: what does not need it does not wait for it.
        if title not in made:
            jobs.append(job(CACHE, title, plan.teacher_seed, make, checkpoint, product=file))
            made[title] = jobs[-1].product
        return made[title]

    for seed, (name, method) in itertools.product(plan.seeds, plan.methods.items()):
        prompt = labels = None
        if method.prompt is not None:
            make = partial(maker.prompt, method.prompt, checkpoint)
            prompt = product(f'{PROMPT_PREFIX}{method.prompt}', make, PROMPT_FILE)
        if method.rest == 'pseudo':
            labels = product(PSEUDO, partial(maker.pseudo, checkpoint), PSEUDO_FILE)
        needs = filter(None, (checkpoint if method.entries is not None or labels else None, prompt, labels))
        jobs.append(job(RUNS, name, seed, partial(maker.distilled, method, seed, checkpoint, prompt, labels), *needs))
    return jobs


def kind_folder(work_dir: Path, kind: str) -> Path:
    """Returns the folder of one kind of machine."""
    return work_dir.resolve() / _safe(kind)


def run_folder(work_dir: Path, task: str, key: Key, place: str = RUNS) -> Path:
    """Returns where the run of a record works."""
    kind, method, seed, digest = key
    return kind_folder(work_dir, kind) / place / task / f'{_safe(method)}-seed{seed}-{digest}'


def _safe(name: str) -> str:
    return ''.join(letter if letter.isalnum() or letter in '-_.' else '_' for letter in name)
