"""A benchmark plan: which methods, on which student and teacher, with which seeds. Read from YAML."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from freekd_mm.checks import check_choice, check_options, check_positive, did_you_mean

STUDENT, TEACHER = 'student', 'teacher'
REQUIRED = ('name', 'student', 'teacher', 'metric', 'seeds', 'methods')


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: Name of the row.
        entries: Methods of ``tools/make_config.py``, joined by ``+``, e.g. ``'wavelet+figkd'``; or a
            dict of entries as in a config; or None: the student alone, for example with a longer schedule.
        prompt: Name of one of the plan's prompts, or None for none.
        set: Options put into the entries: ``{'wavelet.loss.level_weights': 'area'}``.
        hooks: Further hooks, e.g. a ``DistillScheduleHook``.
        inherit: Modules that start with the teacher's weights; those of the plan by default.
        options: Overrides of the student's config: ``{'train_cfg.max_epochs': 20}``.
        group: Rows that are compared as one, by their best, see ``Plan.compare``.
        weight: Factor on every entry of the row, or ``'auto'``. In a plan ``weights: [0.3, 3, auto]`` adds a row
            per factor, ``<name>-x0.3`` and so on: the same search for every method.
        title: Its name in the table.
    """

    name: str
    entries: str | dict[str, Any] | None
    prompt: str | None = None
    set: dict[str, Any] = field(default_factory=dict)
    hooks: list[dict[str, Any]] = field(default_factory=list)
    inherit: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    group: str = ''
    weight: float | str | None = None
    title: str = ''

    @property
    def alone(self) -> bool:
        """Whether the row has no teacher."""
        return self.entries is None


@dataclass(frozen=True)
class Plan:
    """A plan, read and checked.

    Attributes:
        name: Name of the plan, and of its table and plots.
        task: Plans with one task share results and runs, e.g. the main table and its ablation; the name by default.
            Such plans have the same student and teacher: a table takes the newest line of each method and seed.
        student: Config of the student; its val data chooses, its test data reports.
        teacher: Config of the teacher.
        metric: Key of the metric, e.g. ``'coco/bbox_mAP'``.
        seeds: Seeds of the students.
        methods: Rows by name, without student alone and teacher.
        prompts: Options of stage 1 by name.
        teacher_seed: Seed of the teacher and of the prompts.
        teacher_dtype: Precision of the teacher while it teaches, see ``DistilledModel``; it is trained in fp32.
        unit: Name of the metric in the table.
        factor: What the metric is multiplied by in the table.
        options: Overrides of both configs.
        title: Heading.
        compare: Pairs of groups or rows; for a group the row that is best on val, both reported on test.
        head: Methods given by name also compare what the decode heads of segmenters classify.
        share_teacher: Keep the teacher's outputs on disk, for all runs. For data whose augmentation makes few
            different pictures; equal up to rounding.
    """

    name: str
    student: str
    teacher: str
    metric: str
    seeds: tuple[int, ...]
    methods: dict[str, Method]
    prompts: dict[str, dict[str, Any]] = field(default_factory=dict)
    teacher_seed: int = 0
    teacher_dtype: str = 'fp32'
    unit: str = ''
    factor: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    title: str = ''
    task: str = ''
    compare: tuple[tuple[str, str], ...] = ()
    share_teacher: bool = False
    head: bool = False

    def select(self, patterns: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Plan:
        """Returns the plan with only the methods that match one of the patterns (``*`` and ``?``) and these seeds."""
        methods = self.methods
        if patterns:
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in (*methods, STUDENT, TEACHER)):
                    raise ValueError(
                        f'methods should be of {", ".join((STUDENT, TEACHER, *methods))}, but none matches {pattern!r}.'
                        f'{did_you_mean(pattern, methods)}'
                    )
            methods = {
                name: method
                for name, method in methods.items()
                if any(fnmatchcase(name, pattern) for pattern in patterns)
            }
        return replace(self, methods=methods, seeds=tuple(seeds) if seeds else self.seeds)


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
    content['prompts'] = {name: options or {} for name, options in content['prompts'].items()}
    common = {'inherit': content.pop('inherit', None) or []}
    methods = content['methods'] = {
        row: _method(row, {**common, **row_spec}, content['prompts'], path)
        for name, spec in content['methods'].items()
        for row, row_spec in _searched(str(name), spec or {})
    }
    for name in (STUDENT, TEACHER):
        if name in methods:
            raise ValueError(f'{path}: {name!r} is a row of every plan and should not be among the methods')
    for seed in content['seeds']:
        check_positive('seeds', seed, integer=True, zero=True)
    content['seeds'] = tuple(content['seeds'])
    names = {STUDENT, *methods, *(method.group for method in methods.values())}
    content['compare'] = tuple((str(one), str(other)) for one, other in content.get('compare') or ())
    for name in (name for pair in content['compare'] for name in pair):
        check_choice(f'{path}: compare', name, sorted(names - {''}))
    return Plan(**content)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f'plan should be an existing YAML file, but got {str(path)!r}')
    content = yaml.safe_load(path.read_text(encoding='utf-8'))
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
    weights = spec.pop('weights', ())
    yield name, spec
    for weight in weights:
        times = 'weight auto' if weight == 'auto' else f'{weight} times the weight'
        yield f'{name}-x{weight}', {**spec, 'weight': weight, 'title': f'{spec["title"]}, {times}'}


def _method(name: str, spec: dict[str, Any], prompts: dict[str, Any], path: Any) -> Method:
    check_options(f'{path}: method {name!r}', spec, METHOD_OPTIONS)
    if spec.get('prompt') is not None and spec['prompt'] not in prompts:
        raise ValueError(
            f'{path}: prompt of method {name!r} should be one of {", ".join(prompts) or "prompts (there are none)"}, '
            f'but got {spec["prompt"]!r}.{did_you_mean(spec["prompt"], prompts)}'
        )
    return Method(name, **spec)
