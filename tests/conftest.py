"""What all tests share: markers, seeds, threads, the folder of real data, and the cases of the testers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.testers import SLOW_CHECKS

#: Environment variable with the folder of data sets that tests on real data read.
DATA_VARIABLE = "MONAI_SRE_DATA"

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton, whose own functions read it then

settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than ten seconds; leave out with -m 'not slow'")
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped where there is none")
    for source in ("torch.jit", "torch.onnx", "torch.export", "torch.utils", "copyreg", "onnxscript"):
        config.addinivalue_line("filterwarnings", f"ignore::DeprecationWarning:{source}")
        config.addinivalue_line("filterwarnings", f"ignore::FutureWarning:{source}")
    config.addinivalue_line("filterwarnings", "ignore:.*legacy TorchScript-based ONNX export:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit:DeprecationWarning")
    config.addinivalue_line("filterwarnings", "ignore::torch.jit.TracerWarning")
    torch.set_num_threads(1)  # the tensors are small: threads would wait for each other, the more so under xdist


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every check of a tester (:mod:`tests.testers`) on every case of the class."""
    cases = getattr(metafunc.cls, "cases", None)
    if cases is not None and "case" in metafunc.fixturenames:
        names = metafunc.cls.slow_cases if metafunc.function.__name__ in SLOW_CHECKS else None
        assert names is None or set(names) <= {case.name for case in cases}, f"slow_cases of {metafunc.cls} are {names}"
        chosen = [case for case in cases if names is None or case.name in names]
        metafunc.parametrize("case", chosen, ids=[case.name for case in chosen])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets; the test is skipped where the environment names none."""
    value = os.environ.get(DATA_VARIABLE)
    if not value:
        pytest.skip(f"set {DATA_VARIABLE} to a folder of data sets to run this test")
    if not Path(value).is_dir():
        pytest.skip(f"{DATA_VARIABLE}={value} is not a folder")
    return Path(value)
