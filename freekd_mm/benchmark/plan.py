"""A benchmark plan: which methods, on which student and teacher, with which seeds. Read from YAML."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from freekd_mm.checks import check_choice, check_file, check_options, check_positive, did_you_mean
from freekd_mm.wizard.methods import METHODS

STUDENT, TEACHER = 'student', 'teacher'
#: What a row does with the pictures that lose their labels; by default nothing.
RESTS = ('unlabelled', 'pseudo', 'labelled')
REQUIRED = ('name', 'student', 'teacher', 'metric', 'seeds', 'methods')


@dataclass(frozen=True)
class Method:
    """One row of the table. ``weights: [0.3, 3, auto]`` in a plan adds a row per weight: the same search for all."""

    name: str
    #: Methods of ``tools/make_config.py``, joined by ``+``, or entries as in a config; None: the student alone.
    entries: str | dict[str, Any] | None
    prompt: str | None = None  # one of the plan's
    set: dict[str, Any] = field(default_factory=dict)  # of entries: {'wavelet.loss.level_weights': 'area'}
    hooks: list[dict[str, Any]] = field(default_factory=list)  # more hooks, e.g. a DistillScheduleHook
    inherit: list[str] = field(default_factory=list)  # modules that start with the teacher's weights
    options: dict[str, Any] = field(default_factory=dict)  # of the student's config: {'train_cfg.max_epochs': 20}
    group: str = ''  # rows that are compared as one, by their best, see Plan.compare
    weight: float | str | None = None  # factor on each entry of the row, or 'auto'
    title: str = ''  # in the table
    rest: str | None = None  # what it does with the pictures that lose their labels, see Plan.labels


@dataclass(frozen=True)
class Plan:
    """A plan, read and checked."""

    name: str  # of the plan, and of its table and plots
    student: str  # config; its val data chooses, its test data reports
    teacher: str  # config
    metric: str  # key of the metric, e.g. 'coco/bbox_mAP'
    seeds: tuple[int, ...]  # of the students; none in a plan that only reports what was trained before
    methods: dict[str, Method]  # rows by name, without student alone and teacher
    prompts: dict[str, dict[str, Any]] = field(default_factory=dict)  # options of stage 1 by name
    teacher_seed: int = 0  # of the teacher and of the prompts
    teacher_dtype: str = 'fp32'  # while it teaches, see DistilledModel; it is trained in fp32
    unit: str = ''  # name of the metric in the table
    factor: float = 1.0  # what the metric is multiplied by in the table
    options: dict[str, Any] = field(default_factory=dict)  # overrides of both configs
    title: str = ''  # heading
    #: Plans of one task share results and runs, student and teacher: a main table and its ablation. Default: name.
    task: str = ''
    compare: tuple[tuple[str, str], ...] = ()  # of a group the row that is best on val, both reported on test
    share_teacher: bool = False  # keep the teacher's outputs on disk, for all runs; equal up to rounding
    head: bool = False  # methods given by name also compare what the decode heads of segmenters classify
    labels: float | None = None  # share of the training pictures that keep their labels, also for the teacher
    pseudo_score: float = 0.5  # the teacher's boxes with a lower score are no pseudo labels

    def select(self, patterns: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Plan:
        """Returns the plan with methods that match one of the patterns (``*``, ``?``) and these seeds, each once."""
        names = (STUDENT, TEACHER, *self.methods)
        for pattern in patterns or ():
            if not any(fnmatchcase(name, pattern) for name in names):
                near = did_you_mean(pattern, names)
                raise ValueError(f'methods should be of {", ".join(names)}, but none matches {pattern!r}.{near}')
        for seed in seeds or ():
            check_positive('seeds', seed, integer=True, zero=True)
        chosen = {n: m for n, m in self.methods.items() if any(fnmatchcase(n, pattern) for pattern in patterns or '*')}
        return replace(self, methods=chosen, seeds=tuple(dict.fromkeys(seeds or self.seeds)))


METHOD_OPTIONS = tuple(option.name for option in fields(Method) if option.name != 'name')
PLAN_OPTIONS = ('base', 'inherit', *(option.name for option in fields(Plan)))


def load_plan(path: str | os.PathLike) -> Plan:
    """Reads a plan; ``base: other.yaml`` gives what the plan itself does not say.

    ``methods`` are the plan's own, in its order, and with them ``compare``; ``prompts`` and ``options`` are merged with
    those of the base.
    """
    content = _read(Path(path))
    missing = [name for name in REQUIRED if name not in content]
    if missing:
        raise ValueError(f'{path} should have {", ".join(REQUIRED)}, but has no {", ".join(missing)}')
    prompts = content['prompts'] = {name: options or {} for name, options in content['prompts'].items()}
    inherit = content.pop('inherit', None) or []
    methods: dict[str, Method] = {}
    named = content['methods']
    for name, given in (dict.fromkeys(named) if isinstance(named, list) else named).items():
        if name in (STUDENT, TEACHER):
            raise ValueError(f'{path}: {name!r} is a row of every plan and should not be among the methods')
        check_options(f'{path}: method {name!r}', given or {}, (*METHOD_OPTIONS, 'weights'))
        for row, spec in _searched(str(name), given or {}):
            if spec.get('prompt') is not None:
                check_choice(f'{path}: prompt of method {row!r}', spec['prompt'], prompts)
            staged = any(part in METHODS and METHODS[part].prompt for part in str(spec['entries']).split('+'))
            if staged and 'prompt' not in spec:
                known = ' or '.join([*prompts, 'null'])
                raise ValueError(f"{path}: method {row!r} has two stages and should have a 'prompt', {known}")
            if spec.get('rest') is not None:
                check_choice(f'{path}: rest of method {row!r}', spec['rest'], RESTS)
                if content.get('labels') is None:
                    raise ValueError(f"{path}: method {row!r} has 'rest', so the plan should have 'labels', like 0.1")
            methods[row] = Method(row, **{'inherit': inherit, **spec})
    if content.get('labels') is not None:
        check_positive(f'{path}: labels', content['labels'])
        if content['labels'] >= 1:
            raise ValueError(f'{path}: labels should be a share of the training pictures, like 0.1, but got all')
    compare = tuple((str(one), str(other)) for one, other in content.get('compare') or ())
    names = {STUDENT, *methods, *(method.group for method in methods.values())} - {''}
    for name in (name for pair in compare for name in pair):
        check_choice(f'{path}: compare', name, sorted(names))
    return Plan(**{**content, 'methods': methods, 'compare': compare}).select(None, content['seeds'])


def _read(path: Path) -> dict[str, Any]:
    check_file('plan', path)
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except yaml.YAMLError as error:
        raise ValueError(f'{path} should be YAML, but has a mistake: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} should hold a mapping with {", ".join(REQUIRED)}, but holds {content!r}')
    check_options(str(path), content, PLAN_OPTIONS)
    for key in (STUDENT, TEACHER):
        if key in content and '::' not in content[key]:
            content[key] = str((path.parent / content[key]).resolve())
    base = _read(path.parent / content.pop('base')) if 'base' in content else {}
    if 'methods' in content:
        base.pop('compare', None)
    content.setdefault('task', base.get('task', content.get('name')))
    for key in ('prompts', 'options'):
        content[key] = {**base.get(key, {}), **(content.get(key) or {})}
    return {**base, **content}


def _searched(name: str, spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the row of a method, and one per further weight."""
    spec = {'entries': name, 'title': name, **spec}
    weights = spec.pop('weights', [])
    yield name, spec
    for weight in weights if isinstance(weights, list) else [weights]:
        times = 'weight auto' if weight == 'auto' else f'{weight} times the weight'
        yield f'{name}-x{weight}', {**spec, 'weight': weight, 'title': f'{spec["title"]}, {times}'}
