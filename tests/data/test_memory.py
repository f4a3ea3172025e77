"""How much memory there is, and how many volumes are kept in it."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_sre.data import free_gib, memory, volumes_in

SYSTEM = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   3145728 kB\n"}


def group(folder: str, limit: int, used: int, cached: int, version: int = 2) -> dict[str, str]:
    """The files of a control group; sizes in MiB."""
    most, now, files = ("max", "current", "") if version == 2 else ("limit_in_bytes", "usage_in_bytes", "total_")
    sizes = {f"memory.{most}": f"{limit * 2**20}\n", f"memory.{now}": f"{used * 2**20}\n"}
    sizes["memory.stat"] = f"file 7\n{files}inactive_file {cached * 2**20}\n"
    return {f"{folder}/{name}": text for name, text in sizes.items()}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 4.0),
        (SYSTEM, 3.0),
        ({**SYSTEM, "/sys/fs/cgroup/memory.max": "max\n"}, 3.0),
        ({**SYSTEM, **group("/sys/fs/cgroup", 2048, 1024, 512)}, 1.5),
        (
            {
                **SYSTEM,
                "/proc/self/cgroup": "0::/slurm/job_7/step_0\n",
                **group("/sys/fs/cgroup/slurm/job_7", 1024, 512, 0),
                **group("/sys/fs/cgroup/slurm", 4096, 2048, 0),
            },
            0.5,
        ),
        (
            {
                **SYSTEM,
                "/proc/self/cgroup": "9:name=systemd:/a\n4:cpu,memory:/job\n0::/\n",
                **group("/sys/fs/cgroup/memory/job", 2048, 1024, 256, version=1),
                **group("/sys/fs/cgroup/memory", 2**43, 2048, 0, version=1),
            },
            1.25,
        ),
    ],
    ids=["unknown", "system", "no limit", "limit", "limit of a job", "first version"],
)
def test_free_memory(monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: float) -> None:
    monkeypatch.setattr(memory, "_text", lambda path: files.get(path, ""))
    assert free_gib() == expected


def test_the_first_volumes_that_fit_are_counted(tmp_path: Path) -> None:
    """Each voxel of two channels takes 8 bytes, those of its map and its index 12."""
    pairs = []
    for number, length in enumerate((10, 20, 10)):
        path = tmp_path / f"{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.zeros((length, 10, 10, 2), np.uint8), np.diag([1.0, 1, 3, 1])), path)
        pairs.append({"image": str(path)})
    np.save(tmp_path / "3.npy", np.zeros((10, 10, 10)))
    pairs.append({"image": str(tmp_path / "3.npy")})
    for kib, pixdim, expected in ((19, [], 0), (20, [], 1), (59, [], 2), (79, [], 3), (98, [], 4), (98, [1, 1, 1], 1)):
        assert volumes_in(kib / 2**20, pairs, pixdim, 2) == expected, (kib, pixdim)
    assert volumes_in(0, pairs, None, 2) == 0
    affine = np.diag([1.0, 5, 3, 1])
    nibabel.save(nibabel.Nifti1Image(np.zeros((32, 1, 32), np.uint8), affine), tmp_path / "coronal.nii")
    for pixdim, kib in (([], 16), ([1, 1], 48), ([1, 1, 1], 240)):  # as a volume of one slice it is 5 mm thick
        for more, expected in ((-0.1, 0), (0.1, 1)):
            assert volumes_in((kib + more) / 2**20, [{"image": str(tmp_path / "coronal.nii")}], pixdim, 1) == expected
    microns = nibabel.load(pairs[0]["image"])
    microns.header.set_xyzt_units("micron")
    microns.header.set_zooms((1000, 1000, 3000, 1))
    nibabel.save(nibabel.Nifti1Image(microns.get_fdata(), None, microns.header), tmp_path / "microns.nii.gz")
    for path in (pairs[0]["image"], str(tmp_path / "microns.nii.gz")):  # 10 x 10 x 30 voxels of 1 mm
        assert [volumes_in(kib / 2**20, [{"image": path}], [1, 1, 1], 2) for kib in (58, 59)] == [0, 1]
