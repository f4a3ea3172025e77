"""The pages under ``docs/`` name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_tests_and_modules_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"`((?:tests|benchmarks|bundles|monai_sre)/[\w./]*)`", page.read_text()))
    assert len(named) > 5
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_checks_that_a_page_names_exist() -> None:
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text())
    known = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name in named if f"def {name}(" not in known] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_code_of_a_page_runs(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        exec(compile(block, page.name, "exec"), {"__name__": "page"})
