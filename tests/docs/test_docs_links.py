"""Links between the Markdown pages, and the names of files and of Python objects in them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
from docs_pages import ROOT, Block, builder, indented_blocks, inline, is_command, items, pages, slugs

from freekd_mm import registry

ALL_PAGES = builder.pages()
LANGUAGES = ('python', 'bash', 'yaml', 'text', 'bibtex')
#: Inline code that begins like this names a file of the repository.
FOLDERS = ('docs/', 'configs/', 'tools/', 'tests/', 'freekd_mm/', 'requirements/', 'speed/', '.ci/')


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize('page', ALL_PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert not wrong_links(page), '\n'.join(wrong_links(page))


def wrong_links(page: Path) -> list[str]:
    """Returns what is wrong with the links of a page to pages, files and anchors."""
    wrong = []
    for line, token in [*inline(page, 'link_open'), *inline(page, 'image')]:
        target = str(token.attrs.get('href') or token.attrs.get('src'))
        if re.match(r'^(https?|mailto):', target):
            continue
        path, _, anchor = target.partition('#')
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or ROOT not in (file, *file.parents):
            wrong.append(f'{name(page)}:{line}: there is no {target}')
        elif anchor and anchor not in slugs(file):
            wrong.append(f'{name(page)}:{line}: {path or "this page"} has no #{anchor}; it has {sorted(slugs(file))}')
    return wrong


@pytest.mark.parametrize('page', pages(), ids=name)
def test_files_that_the_text_names_exist(page: Path) -> None:
    assert not wrong_files(page), '\n'.join(wrong_files(page))


def wrong_files(page: Path) -> list[str]:
    """Returns which files that the text of a page names do not exist."""
    wrong = []
    for line, token in inline(page, 'code_inline'):
        path = token.content
        if path.startswith(FOLDERS) and re.fullmatch(r'[\w./{},*-]+', path) and not matches(path):
            wrong.append(f'{name(page)}:{line}: there is no {path}')
    return wrong


def matches(pattern: str) -> bool:
    """Whether files exist for a path that may hold ``{a,b}`` and ``*``."""
    braces = re.search(r'{([^{}]*)}', pattern)
    if braces:
        choices = braces[1].split(',')
        return all(matches(pattern.replace(braces[0], choice, 1)) for choice in choices)
    return any(ROOT.glob(pattern.rstrip('/')))


@pytest.mark.parametrize('page', pages(), ids=name)
def test_python_names_in_the_text_exist(page: Path) -> None:
    assert not wrong_names(page), '\n'.join(wrong_names(page))


def wrong_names(page: Path) -> list[str]:
    """Returns which names of ours in the text of a page do not exist."""
    wrong = []
    for line, token in inline(page, 'code_inline'):
        found = re.match(r"^(?:type=')?(freekd_mm(?:\.\w+)+)(?=$|[('])", token.content)
        if found and found[1] != 'freekd_mm.X' and not resolves(found[1]):
            wrong.append(f'{name(page)}:{line}: there is no {found[1]}')
    return wrong


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a module, an attribute of one, or a type of our registries."""
    parts = dotted.split('.')
    if len(parts) == 2 and any(
        parts[1] in child.names for child in (registry.MODELS, registry.HOOKS, registry.TRANSFORMS)
    ):
        return True
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module('.'.join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found is not None
    return False


@pytest.mark.parametrize('page', ALL_PAGES, ids=name)
def test_code_stands_in_fences_with_a_language(page: Path) -> None:
    """Only what names its language can be checked; an indented block has none."""
    assert not indented_blocks(page), f'{name(page)}: blocks without a fence at lines {indented_blocks(page)}'
    blocks = [item for item in items(page) if isinstance(item, Block)]
    wrong = [block for block in blocks if block.language not in LANGUAGES]
    assert not wrong, f'{name(page)}: the language should be one of {LANGUAGES}: {wrong}'
    hidden = [
        line for block in blocks if block.language == 'text' for line in block.text.splitlines() if is_command(line)
    ]
    assert not hidden, f'{name(page)}: commands should stand in bash blocks, which are checked, not in text: {hidden}'


def test_a_wrong_link_file_or_name_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 'mim' in slugs(ROOT / 'docs' / 'install.md')
    monkeypatch.setitem(globals(), 'ROOT', tmp_path)
    page, outside = tmp_path / 'docs' / 'page.md', tmp_path.parent / 'outside.md'
    for file in (page, outside, tmp_path / 'tools' / 'train.py'):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    page.write_text(
        '# One\n\n[here](#one) [file](../tools/train.py) [web](https://example.org) [gone](gone.md) ![](gone.png)\n\n'
        '[anchor](#two) [outside](../../outside.md)\n\n`tools/train.py` `tools/trian.py` `tools/{train,tset}.py`\n\n'
        '`freekd_mm.losses.FreeKDLoss` `freekd_mm.FreeKDLoss` `freekd_mm.losses.FreeKDLos`\n'
    )
    # Images are looked at after links.
    assert [text.split(';')[0] for text in wrong_links(page)] == [
        'docs/page.md:3: there is no gone.md',
        'docs/page.md:5: this page has no #two',
        'docs/page.md:5: there is no ../../outside.md',
        'docs/page.md:3: there is no gone.png',
    ]
    assert wrong_files(page) == [f'docs/page.md:7: there is no tools/{path}.py' for path in ('trian', '{train,tset}')]
    assert wrong_names(page) == ['docs/page.md:9: there is no freekd_mm.losses.FreeKDLos']


def test_the_site_has_every_page_and_working_links(tmp_path: Path) -> None:
    for page in ALL_PAGES:
        builder.build_page(page, tmp_path)
    wrong = []
    for file in tmp_path.rglob('*.html'):
        for target in re.findall(r'(?:href|src)="([^"#]+)(?:#[^"]*)?"', file.read_text()):
            there = (file.parent / target).resolve().exists()
            if builder.is_relative(target) and not there and not target.endswith('api/index.html'):
                wrong.append(f'{file.relative_to(tmp_path)}: {target}')
    assert not wrong, '\n'.join(wrong)
