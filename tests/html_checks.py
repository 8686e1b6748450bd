"""Checks of written HTML pages: nothing from outside, and readable in a browser where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))), None)
#: Attributes that make a browser ask for something, or that name a place.
REFERENCES = ('src', 'href', 'srcset', 'data', 'action', 'poster', 'background', 'xlink:href', 'formaction', 'cite')
VOID = ('meta', 'link', 'img', 'br', 'hr', 'input', 'line', 'rect', 'circle')

MEASURE = """<script>
onload = () => {
const wide = [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && !e.closest('svg')
  && !e.closest('pre') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 120));
const cut = [];
for (const svg of document.querySelectorAll('figure > svg')) {
  const box = svg.getBoundingClientRect();
  for (const text of svg.querySelectorAll('text')) {
    const own = text.getBoundingClientRect();
    if (own.left < box.left - 1 || own.right > box.right + 1 || own.bottom > box.bottom + 1) cut.push(text.textContent);
    for (const other of svg.querySelectorAll('text')) {
      const its = other.getBoundingClientRect();
      const beside = own.left >= its.right || its.left >= own.right || own.top >= its.bottom || its.top >= own.bottom;
      if (other !== text && !beside) cut.push(`${text.textContent} lies over ${other.textContent}`);
    }
  }
}
const broken = [...document.images].filter(image => !image.naturalWidth).length;
const root = document.documentElement, over = root.scrollWidth - root.clientWidth;
parent.postMessage(JSON.stringify({width: innerWidth, over, wide, cut, broken}), '*');
};
</script>"""


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ('script', 'iframe', 'object', 'embed', 'base', 'form'):
            self.problems.append(f'<{tag}>')
        for name, value in attrs:
            if name in REFERENCES and not (value or '').startswith(('data:', '#')):
                self.problems.append(f'{tag} {name}={value!r}')
            if name == 'style' and 'url(' in (value or ''):
                self.problems.append(f'{tag} style={value!r}')
            if name.startswith('on'):
                self.problems.append(f'{tag} {name}')
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.problems.append(f'</{tag}> closes nothing')

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == 'style':
            if 'url(' in data or '@import' in data:
                self.problems.append('the style names a file')
        else:
            self.text.append(data)


def check_page(file: Path) -> str:
    """Fails unless the page is whole and needs nothing from outside; returns its text."""
    html = file.read_text(encoding='utf-8')
    page = _Page()
    page.feed(html.replace('<wbr>', ''))
    page.close()
    assert page.problems == []
    assert page.open == []
    assert html.startswith('<!DOCTYPE html>')
    assert not re.search(r'nan|Infinity', ' '.join(re.findall(r'(?:points|x|y|cx|cy|width|height)="([^"]*)"', html)))
    return ' '.join(page.text)


def check_in_browser(file: Path, width: int, folder: Path) -> None:
    """Fails where the page is wider than the window, a chart's text leaves its chart, or a picture is broken."""
    assert CHROMIUM is not None
    inner = escape(file.read_text(encoding='utf-8').replace('</body>', f'{MEASURE}</body>'))
    frame = folder / f'measured_{width}.html'
    # In a frame, as a window cannot be made narrower than 500 pixels.
    frame.write_text(
        '<meta charset="utf-8"><script>onmessage = message => { document.title = message.data; };</script>'
        f'<iframe style="width: {width}px; height: 900px; border: 0" srcdoc="{inner}"></iframe>',
        encoding='utf-8',
    )
    command = [CHROMIUM, '--headless=new', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=5000', '--dump-dom']
    command += [f'--user-data-dir={folder / "profile"}', frame.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    found = re.search(r'<title>(\{.*?\})</title>', dom, re.DOTALL)
    assert found, dom[:500]
    measured = json.loads(unescape(found[1]))
    assert measured == {'width': width, 'over': 0, 'wide': [], 'cut': [], 'broken': 0}, measured
