"""The model zoo: READMEs, metafiles and comments of the configs agree with the configs and the published numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from zoo import CONFIGS, FOLDERS, METHODS, ROOT, config_files, metadata, metafile, number, pair_of, published, row

from freekd_mm.compat.versions import zip_equal


def test_the_index_imports_every_metafile() -> None:
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert index == {'Import': [f'configs/{folder}/metafile.yml' for folder in sorted(FOLDERS)]}
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name[0] not in '_.'}
    assert folders == set(FOLDERS)


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_metafile_lists_every_config_once(folder: str) -> None:
    models = metafile(folder)['Models']
    listed = [model['Config'] for model in models]
    assert sorted(listed) == [path.relative_to(ROOT).as_posix() for path in config_files(folder)]
    assert len({model['Name'] for model in models}) == len(models)
    (collection,) = metafile(folder)['Collections']
    assert {model['In Collection'] for model in models} == {collection['Name']}
    assert collection['README'] == f'configs/{folder}/README.md'
    assert (ROOT / collection['Code']['URL']).is_file()
    if METHODS.get(folder):
        assert collection['Paper'].keys() == {'URL', 'Title'}


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_metafile_says_what_the_configs_say(folder: str) -> None:
    for model in metafile(folder)['Models']:
        path = ROOT / model['Config']
        pair = published().get(pair_of(path) or '')
        wanted: dict[str, Any] = metadata(path)
        if pair and METHODS.get(folder) in pair.get('papers', {}):
            wanted['Published Result'] = {'Paper': METHODS[folder], pair['metric']: pair['papers'][METHODS[folder]]}
        assert model['Metadata'] == wanted, f'Metadata of {model["Name"]} should be {wanted}'
        # What we have measured goes to Results, with the file that it was measured with; others' numbers never do.
        assert ('Results' in model) == ('Weights' in model), f'{model["Name"]}: Results and Weights belong together'


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_readme_links_to_every_config(folder: str) -> None:
    text = (CONFIGS / folder / 'README.md').read_text(encoding='utf-8')
    for path in config_files(folder):
        assert f']({path.relative_to(CONFIGS / folder).as_posix()})' in text, f'README should link to {path.name}'


def test_the_readme_links_to_every_benchmark_plan() -> None:
    text = (CONFIGS / 'benchmark/README.md').read_text(encoding='utf-8')
    for plan in (CONFIGS / 'benchmark').glob('*.yaml'):
        assert f']({plan.name})' in text, f'README should link to {plan.name}'


@pytest.mark.parametrize('folder', METHODS)
def test_the_readme_has_the_published_numbers(folder: str) -> None:
    text = (CONFIGS / folder / 'README.md').read_text(encoding='utf-8')
    for path in config_files(folder):
        if path.parent.name != 'prompt':
            assert row(path, folder, METHODS[folder]) in text, (
                f'a row should end in {row(path, folder, METHODS[folder])}'
            )
    for pair in published().values():
        others = [f'{name} {number(pair, value)}' for name, value in pair.get('papers', {}).items() if name != 'FreeKD']
        if folder == 'freekd' and others:
            assert f'| {pair["title"]} | {number(pair, pair["student"])} | {", ".join(others)} |' in text


def test_every_pair_has_its_published_numbers() -> None:
    assert {path.stem for path in (CONFIGS / '_base_/pairs').glob('*.py')} == published().keys()


@pytest.mark.parametrize('name', published())
def test_the_comments_of_the_configs_have_the_same_numbers(name: str) -> None:
    """'(38.6 AP)' behind a model in a first line is one of the pair's numbers."""
    pair = published()[name]
    known = {number(pair, pair['student']), number(pair, pair['teacher'])}
    files = [CONFIGS / '_base_/pairs' / f'{name}.py']
    files += [path for folder in METHODS for path in config_files(folder) if pair_of(path) == name]
    for path in files:
        given = set(re.findall(r'\((\d+\.\d+) (?:AP|mIoU)', path.read_text().splitlines()[0]))
        assert given <= known, f'{path.name} says {given - known}, published.yml {known}'


def test_the_baselines_are_those_of_the_installed_packages() -> None:
    """An independent source: the metafiles that mmdet and mmseg bring."""
    checked = 0
    for name, pair in published().items():
        text = (CONFIGS / '_base_/pairs' / f'{name}.py').read_text()
        configs = dict(zip_equal(('student', 'teacher'), re.findall(r"'(\w+::[^']+\.py)'", text)))
        for role, config in configs.items():
            value = package_value(config, pair['metric'])
            if value is not None and role not in pair.get('source', {}):
                assert pair[role] == value, f'{role} of {name}: {config} has {value}'
                checked += 1
    assert checked > 0


def package_value(config: str, metric: str) -> float | None:
    """Returns the metric of a config in its package's metafile; None where the package brings none."""
    package, path = config.split('::')
    folder = Path(__import__(package).__file__ or '').parent / '.mim/configs' / Path(path).parent
    for file in (*folder.glob('metafile.yml'), *folder.glob('metafile.yaml')):
        for model in yaml.safe_load(file.read_text())['Models']:
            if Path(model['Config']).name == Path(path).name:
                results = model['Results'] if isinstance(model['Results'], list) else [model['Results']]
                return next(result['Metrics'][metric] for result in results if metric in result['Metrics'])
    return None
