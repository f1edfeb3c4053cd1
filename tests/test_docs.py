"""The Python in the documentation runs as it stands, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

from openese.model.ese_file import save
from openese.model.random_network import random_network

ROOT = Path(__file__).parents[1]
PAGES = sorted((*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
WITH_CODE = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, in one namespace and a directory with the
    file that they may ask for, and the shipped ones where they are in a checkout."""
    save(tmp_path / "net.ese", random_network(0, [24, 16, 10], 0.3))
    (tmp_path / "openese").symlink_to(ROOT / "openese")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        # Numbered as in the page, for tracebacks.
        code = "\n" * text[:block.start(1)].count("\n") + block[1]
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    missing = [link for link in LINK.findall(page.read_text(encoding="utf-8"))
               if not (page.parent / link).exists()]
    assert not missing
