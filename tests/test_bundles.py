"""The command that lists the bundles of the package and copies one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from monai_sre import bundles

ROOT = Path(__file__).parents[1]


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "monai_sre.bundles", *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)


def test_a_line_for_each_bundle() -> None:
    lines = command().stdout.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.name for path in (ROOT / "bundles").iterdir())
    assert all("MiB" in line and len(line) < 160 for line in lines)


def test_a_copy_is_the_bundle_without_what_runs_left_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"LICENSE": b"free", "configs/metadata.json": b"{}", "models/model.pt": b"\x00"}
    for name, content in {**files, "output/models/model.pt": b"mine"}.items():
        path = tmp_path / "all/one" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o444)
    monkeypatch.setattr(bundles, "FOLDER", tmp_path / "all")
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "new/folder"):
        root = bundles.copy_bundle("one", tmp_path / folder)
        copied = [path for path in root.rglob("*") if path.is_file()]
        assert {path.relative_to(root).as_posix(): path.read_bytes() for path in copied} == files
        assert all(path.stat().st_mode & 0o200 for path in copied)


def test_errors_name_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, message in (
        (["none", tmp_path / "new"], f"name must be one of {', '.join(bundles.names())}, got 'none'"),
        ([bundles.names()[0], tmp_path], f"folder must be new or empty, got {str(tmp_path)!r}"),
        ([bundles.names()[0]], "folder is missing: where to copy the bundle to"),
    ):
        done = command(*arguments)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == f"python -m monai_sre.bundles: error: {message}"
    with pytest.raises(ValueError, match="new or empty"):
        bundles.copy_bundle(bundles.names()[0], tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
