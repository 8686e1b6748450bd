"""Every code block and every command of README, CONTRIBUTING, docs and the configs' pages is run or, if dear, parsed.

Blocks of one page run in order in one folder; Python blocks share their names. Configs (with ``_base_``) are loaded
and built, parts of configs are built. What is only parsed, and why, is listed in ``docs_commands``.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from docs_commands import PARSED_ONLY, Commands
from docs_pages import ROOT, Block, Command, items, pages, parse_commands
from docs_tools import CommandError
from docs_world import check_config_file, check_fragment, make_given, make_world

from freekd_mm.benchmark.plan import load_plan
from freekd_mm.files import MARK


@pytest.fixture(scope='module')
def given(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path) -> Path:
    """The files that a reader has."""
    return make_given(tmp_path_factory.mktemp('docs') / 'given', scenes_root)


@pytest.fixture(scope='module')
def tally() -> dict[str, Any]:
    """What all pages together ran and parsed."""
    return {'ran': [], 'parsed': {}, 'blocks': 0}


def run_python(block: Block, names: dict[str, Any], page: str) -> None:
    """Runs a Python block; a config is loaded and built, a part of one is built.

    A block that begins with ``# name.py`` is written to that file first.
    """
    assigned = {
        target.id
        for statement in ast.parse(block.text).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
    title = re.match(r'# ([\w/]+\.py)\b', block.text)
    path = Path(title[1] if title else f'block_{block.line}.py')
    if title or '_base_' in assigned:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    if 'Written by tools/make_config.py' in block.text:
        files = [file.read_bytes().split(b'# ' + MARK)[0].decode() for file in Path().glob('*.py') if file != path]
        written = [unformatted(text) for text in files]
        assert unformatted(block.text) in written, f'{page}:{block.line}: make_config.py has not written that'
    if '_base_' in assigned:
        check_config_file(path)
    elif title:
        __import__('.'.join(path.with_suffix('').parts))
    else:
        exec(compile(block.text, f'{page}:{block.line}', 'exec'), names)
        check_fragment({name: names[name] for name in assigned})


def unformatted(code: str) -> str:
    """Returns code without what a formatter changes."""
    return re.sub(r'\s+', '', code).replace(',)', ')')


def load_yaml(block: Block, page: str) -> None:
    """Writes a benchmark plan to the file that its first line names, and reads it."""
    title = re.match(r'# ([\w/]+\.yaml)\b', block.text)
    assert title, f'{page}:{block.line}: a YAML block should begin with the name of its file'
    Path(title[1]).write_text(block.text)
    load_plan(title[1])


@pytest.mark.parametrize('page', pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_code_of_the_page(
    page: Path, given: Path, tmp_path: Path, tally: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = page.relative_to(ROOT).as_posix()
    if name == 'docs/migrating.md':
        pytest.importorskip('mmrazor')
    folder = make_world(tmp_path / 'page', given, name)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'path', [str(folder), *sys.path])
    commands, names = Commands(folder), {'__name__': 'page'}
    for item in items(page):
        if isinstance(item, Command):
            commands.check(item)
        elif item.language == 'bash':
            for command in parse_commands(item.text, item.line + 1):
                commands.check(command)
        elif item.language == 'python':
            run_python(item, names, name)
            tally['blocks'] += 1
        elif item.language == 'yaml':
            load_yaml(item, name)
    tally['ran'] += [f'{name}: {command}' for command in commands.ran]
    tally['parsed'].update({f'{name}: {command}': why for command, why in commands.parsed.items()})


def test_every_rule_is_used(tally: dict[str, Any]) -> None:
    """A reason for not running something goes when the last such command goes."""
    if os.environ.get('DOCS_TALLY'):
        Path(os.environ['DOCS_TALLY']).write_text('\n'.join([*tally['ran'], '', *map(str, tally['parsed'].items())]))
    commands = [str(command) for page in pages() for command in all_commands(page)]
    for rule in PARSED_ONLY:
        assert any(re.search(rule, command) for command in commands), f'no page has a command like {rule}'


def test_a_new_loss_takes_at_most_40_lines() -> None:
    blocks = [item for item in items(ROOT / 'docs/writing-a-loss.md') if isinstance(item, Block)]
    (code,) = (block.text for block in blocks if block.text.startswith('# my_losses.py'))
    assert len(code.splitlines()) <= 40


def all_commands(page: Path) -> list[Command]:
    """Returns the commands of a page without checking them."""
    found: list[Command] = []
    for item in items(page):
        if isinstance(item, Command):
            found.append(item)
        elif item.language == 'bash':
            found += parse_commands(item.text, item.line)
    return found


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('frobnicate my_kd.py', 'knows this program'),
        ('python tools/trian.py student.py', 'there is no tools/trian.py'),
        ('python tools/train.py configs/freekd/reppoints_r50.py --rezume', 'does not take'),
        ('python tools/train.py configs/freekd/no_such.py', 'does not exist'),
        ('python tools/test.py student.py work_dirs/student/epoch_12.pth', 'does not exist'),
        ('make tset', "No rule to make target 'tset'"),
        ('VENVV=.venv make test', 'knows VENVV'),
        ('pip install frequency-kd-tools', 'does not name frequency-kd-tools'),
        ('tools/dist_train.sh student.py 8 --rezume', 'does not take'),
        ('GPUS=16 tools/slurm_train.sh PARTITION JOB no_such.py work_dirs/kd', 'does not exist'),
    ],
)
def test_a_wrong_command_is_found(text: str, message: str, given: Path, tmp_path: Path) -> None:
    commands = Commands(make_world(tmp_path / 'page', given))
    (command,) = parse_commands(text, 1)
    with pytest.raises(CommandError, match=re.escape(message)):
        commands.check(command)
