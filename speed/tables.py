"""What a part of the benchmark returns: tables to read, lines to keep, and its targets."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from speed.timing import Options, Spread


@dataclass(frozen=True)
class Target:
    """A target.

    Attributes:
        what: What is measured.
        wanted: The bound.
        measured: The spread over the rounds; its median is compared.
        at_least: Whether more is better.
    """

    what: str
    wanted: float
    measured: Spread
    at_least: bool

    @property
    def reached(self) -> bool:
        """Whether the median keeps the bound."""
        median = self.measured.median
        return median >= self.wanted if self.at_least else median <= self.wanted


@dataclass
class Report:
    """The outcome of one part.

    Attributes:
        part: Its name on the command line.
        title: Its heading.
        blocks: Paragraphs, tables and profiles in Markdown.
        records: One dict per measured figure.
        targets: What was wanted.
    """

    part: str
    title: str
    blocks: list[str] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)

    def say(self, text: str) -> None:
        """Adds a paragraph."""
        self.blocks.append(text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Adds a table; the first column is text, the others are figures."""
        lines = [header, ['---', *['---:'] * (len(header) - 1)], *rows]
        self.blocks.append('\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines))

    def profile(self, name: str, text: str) -> None:
        """Adds a profile."""
        self.blocks.append(f'{name}:\n\n```text\n{text}\n```')

    def record(self, what: str, **figures: Any) -> None:
        """Keeps figures for the JSON lines."""
        plain = {key: value.as_list() if isinstance(value, Spread) else value for key, value in figures.items()}
        self.records.append({'part': self.part, 'what': what, **plain})

    def target(self, what: str, measured: Spread, at_least: float | None = None, at_most: float | None = None) -> None:
        """Says what was wanted of a figure."""
        wanted = at_least if at_least is not None else at_most
        assert wanted is not None
        self.targets.append(Target(what, wanted, measured, at_least is not None))

    def markdown(self) -> str:
        """Returns the whole as Markdown."""
        return '\n\n'.join([f'## {self.title}', *self.blocks])


def machine(options: Options) -> dict[str, Any]:
    """Returns what the figures depend on."""
    cuda = options.device.type == 'cuda'
    return {
        'device': torch.cuda.get_device_name(options.device) if cuda else 'cpu',
        'cores': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'torch': torch.__version__,
        'python': platform.python_version(),
        'clock': options.clock,
        'rounds': options.rounds,
        'quick': options.quick,
        'amp': options.amp,
    }


def targets_table(targets: Sequence[Target]) -> str:
    """Returns the targets and whether they were reached."""
    report = Report('', '')
    rows = []
    for target in targets:
        bound = f'{"at least" if target.at_least else "at most"} {target.wanted:g}'
        rows.append([target.what, bound, target.measured, 'yes' if target.reached else '**no**'])
    report.table(['target', 'wanted', 'measured', 'reached'], rows)
    return report.blocks[0]


def write_records(path: Path, reports: Sequence[Report], options: Options) -> None:
    """Writes one JSON line for the machine and one per figure."""
    lines = [machine(options), *(record for report in reports for record in report.records)]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8')
