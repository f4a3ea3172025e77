"""Files on a disk that is full, and in a process that ends between two of them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_sre.files import draft_of, remove_drafts, write_arrays, write_csv, write_json, write_whole


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("kind", ["csv", "json", "npz", "pt"])
def test_a_full_disk_leaves_the_old_file_no_draft_and_one_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_text("old")
    writers = {
        "csv": lambda: write_csv(path, [{"a": 4000 * "x"}]),
        "json": lambda: write_json(path, 4000 * "x"),
        "npz": lambda: write_arrays(path, {"a": np.random.default_rng(0).random(4000)}),
        "pt": lambda: write_whole({path: lambda draft: torch.save(torch.zeros(4000), draft)}),
    }
    with full_disk(1000), pytest.raises(OSError, match=rf"a\.{kind} cannot be written( \(is the disk full\?\))?: "):
        writers[kind]()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(path.name, "old")]
    writers[kind]()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_size > 4000


def test_of_several_files_all_change_or_none(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"

    def interrupt(draft: Path) -> None:
        draft.touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole({first: lambda draft: draft.write_text("new"), second: interrupt})
    assert list(tmp_path.iterdir()) == []


def test_an_end_between_two_names_leaves_the_draft_of_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    rename = Path.replace

    def stop(self: Path, target: Path) -> Path:
        if target == second:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_whole({path: lambda draft: draft.write_text("new") for path in (first, second)})
    assert first.read_text() == draft_of(second).read_text() == "new"
    assert not draft_of(first).exists()


def test_of_two_processes_that_write_one_file_the_last_to_finish_has_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"

    def slow(draft: Path) -> None:
        with draft.open("w") as file:
            file.write("a" * 10)
            file.flush()
            write_whole({path: lambda other: other.write_text("B" * 20)})  # another process, meanwhile
            assert path.read_text() == "B" * 20
            file.write("a" * 10)

    write_whole({path: slow})
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.csv", "a" * 20)]


def test_what_killed_processes_have_left_is_removed(tmp_path: Path) -> None:
    for name in (".draft-a.pt", ".0123abcd.draft-a.pt", ".draft-a.ptx", ".0123abcd.draft-ba.pt", "a.pt"):
        (tmp_path / name).touch()
    remove_drafts(tmp_path / "a.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".0123abcd.draft-ba.pt", ".draft-a.ptx", "a.pt"]


def test_file_names_that_are_not_unicode_can_be_written(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"file": "caf\udce9.png"}])
    assert b"caf\xe9.png" in (tmp_path / "a.csv").read_bytes()
