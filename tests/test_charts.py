"""The charts of the README come from the tables, the same file from the same table."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def charts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import charts

    return charts


def test_charts_are_small_and_the_same_again(tmp_path):
    made = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run([sys.executable, "-W", "error", str(ROOT / "bench" / "charts.py"),
                               "-o", str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert made[0] == made[1]
    assert made[0].keys() == {"eie.svg", "ese.svg"}
    for data in made[0].values():
        assert b"<svg" in data
        assert b"date" not in data
        assert len(data) < 60_000
    for name in made[0]:
        assert (ROOT / "docs" / name).exists()


def test_a_table_is_found_by_its_first_column(charts, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# T\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\ntext\n\n"
                    "| c | d |\n|:--|---|\n| **1,234** | 5.5 us |\n| x | 7 |\n\n| e | f |\n")
    rows = charts.table(page, "c")
    assert rows == [{"c": "1,234", "d": "5.5 us"}, {"c": "x", "d": "7"}]
    assert [charts.number(text) for text in rows[0].values()] == [1234, 5.5]
    with pytest.raises(ValueError, match=r"page\.md: no table whose first column is 'g'$"):
        charts.table(page, "g")
