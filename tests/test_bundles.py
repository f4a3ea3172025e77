"""The command that lists the bundles of the package and copies one."""

from __future__ import annotations

from pathlib import Path

import pytest

from monai_sre import bundles

ROOT = Path(__file__).parents[1]


def test_a_line_for_each_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    bundles.main([])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(path.name for path in (ROOT / "bundles").iterdir())
    assert all(" MiB  " in line and len(line) < 160 for line in lines)


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


def test_what_to_run_in_a_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundles.main([bundles.names()[0], str(tmp_path / "a folder")])
    assert f"cd '{tmp_path}/a folder' && python -m monai.bundle run " in capsys.readouterr().out


def test_errors_name_what_is_accepted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    first = bundles.names()[0]
    for words, message in (
        (["none", str(tmp_path / "new")], f"name must be one of {', '.join(bundles.names())}, got 'none'"),
        ([first, str(tmp_path)], f"folder must be new or empty, got {str(tmp_path)!r}"),
        ([first, str(tmp_path / "file")], f"folder must be new or empty, got {str(tmp_path / 'file')!r}"),
        ([first], "folder is missing: where to copy the bundle to"),
    ):
        with pytest.raises(SystemExit):
            bundles.main(words)
        assert capsys.readouterr().err.splitlines()[-1] == f"python -m monai_sre.bundles: error: {message}"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
