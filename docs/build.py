"""Builds the site: every Markdown page of the repository as HTML, and the API reference from the docstrings.

python docs/build.py --out site      # `make docs` installs what it needs first
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
#: Packages of the API reference.
PACKAGES = (
    'losses',
    'prompts',
    'connectors',
    'frequency',
    'runtime',
    'engine',
    'visualize',
    'benchmark',
    'robustness',
    'datasets',
)
STYLE = """
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.55 system-ui, sans-serif; color: #222; }
nav { border-bottom: 1px solid #ddd; padding-bottom: .5rem; } nav a { margin-right: 1rem; }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; } code { background: #f6f8fa; font-size: 90%; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
td, th { border: 1px solid #ddd; padding: .3rem .6rem; text-align: left; }
img { max-width: 100%; }
"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>{style}</style></head><body>
<nav><a href="{up}README.html">freekd_mm</a><a href="{up}docs/README.html">Docs</a>
<a href="{up}api/index.html">API</a><a href="{up}CHANGELOG.html">Changelog</a></nav>
{body}</body></html>
"""


def pages() -> list[Path]:
    """Returns all pages of the repository."""
    found = [ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')]
    for folder, pattern in (('docs', '**/*.md'), ('configs', '**/README.md')):
        found += sorted((ROOT / folder).glob(pattern))
    return found


def parser() -> MarkdownIt:
    """Returns the Markdown parser: CommonMark and tables."""
    return MarkdownIt('commonmark').enable('table')


def headings(tokens: list[Token]) -> list[tuple[Token, str]]:
    """Returns the opening tokens of all headings with their anchors, made as on GitHub."""
    seen: dict[str, int] = {}
    found = []
    for index, token in enumerate(tokens):
        if token.type == 'heading_open':
            title = ''.join(child.content for child in tokens[index + 1].children or ())
            slug = re.sub(r'[^\w\- ]', '', title.strip().lower()).replace(' ', '-')
            seen[slug] = seen.get(slug, -1) + 1
            found.append((token, slug if seen[slug] == 0 else f'{slug}-{seen[slug]}'))
    return found


def is_relative(target: str) -> bool:
    """Whether a link leads to a file of the repository."""
    return re.match(r'^(\w+:|#)', target) is None


def build_page(page: Path, out: Path) -> Path:
    """Writes one page; the files that it links to are copied beside it, pages become .html."""
    markdown = parser()
    tokens = markdown.parse(page.read_text(encoding='utf-8'))
    for token, slug in headings(tokens):
        token.attrSet('id', slug)
    for child in (child for token in tokens for child in token.children or ()):
        for name in ('href', 'src'):
            target = str(child.attrs.get(name, ''))
            if target and is_relative(target):
                child.attrSet(name, _link(page, target, out))
    place = page.relative_to(ROOT).with_suffix('.html')
    file = out / place
    file.parent.mkdir(parents=True, exist_ok=True)
    up = '../' * (len(place.parts) - 1)
    body = markdown.renderer.render(tokens, markdown.options, {})
    title = next((tokens[i + 1].content for i, token in enumerate(tokens) if token.type == 'heading_open'), place.stem)
    file.write_text(PAGE.format(title=title.replace('`', ''), style=STYLE, up=up, body=body), encoding='utf-8')
    return file


def _link(page: Path, target: str, out: Path) -> str:
    path, _, anchor = target.partition('#')
    if path.endswith('.md'):
        return f'{path[:-3]}.html' + (f'#{anchor}' if anchor else '')
    source = (page.parent / path).resolve()
    if source.is_file():
        copy = out / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return target


def build_api(out: Path) -> None:
    """Writes the API reference of the public packages."""
    import pdoc

    pdoc.render.configure(docformat='google', math=True, footer_text='freekd_mm')
    pdoc.pdoc('freekd_mm', *(f'freekd_mm.{name}' for name in PACKAGES), output_directory=out)


def main() -> None:
    """Builds pages and reference."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument('--out', type=Path, default=ROOT / 'site', help='folder to write to')
    options.add_argument('--no-api', action='store_true', help='the pages alone; needs nothing beside the environment')
    args = options.parse_args()
    for page in pages():
        build_page(page, args.out)
    if not args.no_api:
        build_api(args.out / 'api')
    print(f'open {args.out / "docs" / "README.html"}')


if __name__ == '__main__':
    main()
