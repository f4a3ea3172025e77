"""Layers and networks with the ring algorithm forced: on the small inputs of their own tests ``auto`` takes the dense one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from monai_sre.layers import SREConv2d, SREConv3d
from monai_sre.ops.ring.convolution import ring_conv
from tests.layers import test_centred, test_conv
from tests.nets import test_resnet
from tests.testers import Case, LayerTester, NetTester

#: What the ring algorithm does not serve: transposed convolutions, and bases that are learned.
DENSE_ONLY = ("transposed", "up ", "learned")


@pytest.fixture(autouse=True)
def _ring(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forces the ring algorithm, and sees to it that it ran."""
    calls = []

    def counted(*args: Any) -> Any:
        calls.append(args[0].shape)
        return ring_conv(*args)

    monkeypatch.setenv("MONAI_SRE_ALGORITHM", "ring")
    monkeypatch.setattr("monai_sre.ops.conv.ring_conv", counted)
    yield
    assert calls


def served(cases: tuple[Case, ...]) -> tuple[Case, ...]:
    return tuple(case for case in cases if not any(word in case.name for word in DENSE_ONLY))


class TestGraphs(LayerTester):
    """All checks on the CPU, among them that a captured graph (the dense algorithm) agrees with the ring algorithm."""

    cases = (
        Case("2d", lambda: SREConv2d(2, 3, 5, padding="same", algorithm="ring"), (2, 2, 6, 7), sizes=((7, 7),)),
        Case("3d", lambda: SREConv3d(2, 2, 3, padding=1, algorithm="ring"), (2, 2, 3, 4, 5), sizes=((4, 4, 4),)),
    )
    test_device = None


class TestLayers(LayerTester):
    """The checks that run outside graphs."""

    cases = served((*test_conv.CASES, *test_centred.TestCentred.cases))
    test_script = test_trace = test_export = test_onnx = test_compile = test_device = None


class TestNets(NetTester):
    """The checks that run outside graphs."""

    cases = served(test_resnet.TestSREResNet.cases)
    test_script = test_trace = test_export = test_onnx = test_compile = test_device = None
