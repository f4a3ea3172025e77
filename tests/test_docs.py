"""README.md and the pages under ``docs/`` name what there is, notebooks run, and the site is built without a warning."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import monai_sre

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Packages that pages show and that the environment of the tests need not have.
OTHERS = ("nnunetv2", "segmentation_models_pytorch", "timm")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_names_exists(page: Path) -> None:
    """Files between backquotes, from the root, and targets of links, from the page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = {ROOT / name for name in re.findall(r"`((?:tests|benchmarks|bundles|monai_sre)/[\w./]*)`", text)}
    named |= {page.parent / name for name in re.findall(r"\]\((?!\w+:|#)([^)#]+)", text)}
    assert named
    assert [name for name in sorted(named) if not name.exists()] == []


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 100


def test_one_version_stands_everywhere() -> None:
    version = monai_sre.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()
    for path in ROOT.glob("bundles/*/configs/metadata.json"):
        metadata = json.loads(path.read_text())
        assert metadata["required_packages_version"]["monai_sre"] == version, path
        assert next(iter(metadata["changelog"])) == metadata["version"], path


def test_checks_that_a_page_names_exist() -> None:
    named = re.findall(r"`(test_\w+)`", (ROOT / "docs/reliability.md").read_text())
    known = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    assert [name for name in named if f"def {name}(" not in known] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_code_of_a_page_runs(page: Path) -> None:
    """One block after the other; those that need one of OTHERS are left out where it is not installed."""
    names, missing = {"__name__": "page"}, set()
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        absent = {name for name in OTHERS if f" {name}" in block and importlib.util.find_spec(name) is None}
        if not absent:
            exec(compile(block, page.name, "exec"), names)
        missing |= absent
    if missing:
        pytest.skip(f"the blocks that need {', '.join(sorted(missing))} did not run, the others did")


def broken(page: Path, site: Path) -> list[str]:
    """Links of a page of the site to what is not there."""
    found = re.findall(r'(?:href|src)="(?!\w+:|//|#)([^"#?]+)', page.read_text())
    targets = [(site / link[1:] if link.startswith("/") else page.parent / link) for link in found]
    return [f"{page}: {target}" for target in targets if not (target / "index.html").exists() and not target.is_file()]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", sorted((ROOT / "docs/tutorials").glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_runs(notebook: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        nbformat.read(notebook, 4), timeout=600, kernel_name="python3", resources=resources
    ).execute()
    assert list(tmp_path.iterdir()) == []  # results go to folders of their own


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "docs/reference/symmetry/index.html").read_text()
    assert 'id="monai_sre.symmetry.equivariance_error"' in page
    assert "<math" in (tmp_path / "docs/reference/ops/index.html").read_text()  # formulas of docstrings
    assert ":func:" not in page
    assert "data:image" not in (tmp_path / "docs/tutorials/layer/index.html").read_text()  # pictures are files
    assert [link for page in sorted(tmp_path.rglob("*.html")) for link in broken(page, tmp_path)] == []
    table = (tmp_path / "benchmarks/results/corpus/index.html").read_text()
    assert table.count("<tr>") > 100
    for name in (
        "benchmarks/results/speed_growth.png",
        "bundles/medmnist_2d_classification/docs/rotation_breastmnist.png",
    ):
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()
