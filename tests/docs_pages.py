"""Reads the Markdown pages of the repository: code blocks, commands in the text, headings and links."""

from __future__ import annotations

import importlib.util
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from markdown_it.token import Token

from freekd_mm.compat.versions import cache

ROOT = Path(__file__).resolve().parents[1]


def _load_builder() -> ModuleType:
    """Returns ``docs/build.py``: pages and anchors are what the site makes of them."""
    spec = importlib.util.spec_from_file_location('docs_build', ROOT / 'docs/build.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


builder = _load_builder()
#: What a reader may be told to type. Inline code that begins with one of them is a command too.
PROGRAMS = ('python', 'make', 'pip', 'git', 'mim', 'pre-commit', 'apt', 'dnf', 'conda', 'pipx', 'srun')


@dataclass(frozen=True)
class Command:
    """One command of a page: variables before it, and its words."""

    line: int
    variables: tuple[str, ...]
    words: tuple[str, ...]

    def __str__(self) -> str:
        return ' '.join((*self.variables, *self.words))


@dataclass(frozen=True)
class Block:
    """One fenced code block."""

    line: int
    language: str
    text: str


def pages() -> list[Path]:
    """Returns all pages whose code and commands are checked: the changelog tells of what was."""
    return [page for page in builder.pages() if page.name != 'CHANGELOG.md']


@cache
def tokens(page: Path) -> list[Token]:
    """Returns the page's block tokens; text is in the children of 'inline' tokens."""
    return builder.parser().parse(page.read_text(encoding='utf-8'))


def inline(page: Path, kind: str) -> list[tuple[int, Token]]:
    """Returns the inline tokens of a kind with the line of their block."""
    found, line = [], 0
    for token in tokens(page):
        line = token.map[0] + 1 if token.map else line
        found += [(line, child) for child in token.children or () if child.type == kind]
    return found


def items(page: Path) -> list[Block | Command]:
    """Returns code blocks, and commands in the text, in the order of the page."""
    found: list[Block | Command] = []
    line = 0
    for token in tokens(page):
        line = token.map[0] + 1 if token.map else line
        if token.type == 'fence':
            found.append(Block(line, token.info.strip(), token.content))
        for child in token.children or ():
            if child.type == 'code_inline' and is_command(child.content):
                found += parse_commands(child.content, line)
    return found


def indented_blocks(page: Path) -> list[int]:
    """Returns the lines of code blocks without a fence."""
    return [token.map[0] + 1 for token in tokens(page) if token.type == 'code_block' and token.map]


def is_command(code: str) -> bool:
    """Whether some code in the text is a command to type."""
    words = [word for word in code.split() if not _is_variable(word)]
    if len(words) < 2:
        return False
    return words[0] in PROGRAMS or (words[0].startswith('tools/') and words[0].endswith('.sh'))


def _is_variable(word: str) -> bool:
    return re.match(r'^[A-Z_]+=', word) is not None


def parse_commands(text: str, line: int) -> list[Command]:
    """Splits shell text into commands; placeholders like ``<the folder>`` become one word."""
    found = []
    text = re.sub(r'\\\n', lambda _: ' ', text)
    text = re.sub(r'<([^<>\n]+)>', lambda match: '<' + match[1].replace(' ', '_') + '>', text)
    for number, row in enumerate(text.splitlines()):
        lexer = shlex.shlex(row, posix=True, punctuation_chars='&|;')
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ';']:
            if set(word) <= set('&|;'):
                if words:
                    count = next((i for i, w in enumerate(words) if not _is_variable(w)), len(words))
                    found.append(Command(line + number, tuple(words[:count]), tuple(words[count:])))
                words = []
            else:
                words.append(word)
    return found


def slugs(page: Path) -> set[str]:
    """Returns the anchors of the page's headings."""
    return {slug for _, slug in builder.headings(tokens(page))}
