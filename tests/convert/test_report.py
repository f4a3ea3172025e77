"""What was done, module by module."""

from __future__ import annotations

import copy

import pytest
from torch import Tensor, nn

from monai_sre import SREConv2d, conversion_report, convert_to_sre
from monai_sre.convert.report import Entry, describe, refusal


def test_report(caplog: pytest.LogCaptureFixture) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1))
    with caplog.at_level("INFO", logger="monai_sre"):
        convert_to_sre(network)
    report = conversion_report(network)
    assert [(entry.name, entry.action) for entry in report.entries] == [
        ("0", "replaced"),
        ("1", "replaced"),
        ("2", "kept"),
        ("3", "kept"),
    ]
    assert len(caplog.records) == 1
    assert str(report) in caplog.text
    assert "2 modules replaced, 2 kept, 0 refused; largest error" in str(report)


def test_what_was_converted_before_says_so(caplog: pytest.LogCaptureFixture) -> None:
    net = convert_to_sre(nn.Sequential(nn.Conv2d(1, 2, 3)))
    assert "converted before" not in caplog.text
    convert_to_sre(net, kernel_size=9)
    assert "Sequential was converted before: nothing was left to change" in caplog.text


def test_a_child_called_conversion() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conversion = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conversion(x)  # type: ignore[no-any-return]

    converted = convert_to_sre(Net())
    assert isinstance(converted.conversion, SREConv2d)
    assert len(conversion_report(copy.deepcopy(converted)).replaced) == 1


def test_networks_that_were_never_converted_have_no_report() -> None:
    with pytest.raises(ValueError, match="network must come from convert_to_sre, got Conv2d without a report"):
        conversion_report(nn.Conv2d(1, 2, 3))


def test_descriptions_fit_a_table() -> None:
    """One line, without the bars that part cells."""
    entry = Entry("0", "refused", describe(nn.Hardtanh(-1, 1)), "it bends")
    assert entry.before == "Hardtanh(min_val=-1, max_val=1)"
    assert refusal([entry]).splitlines()[1] == "  0 (Hardtanh(min_val=-1, max_val=1)): it bends"

    class Odd(nn.Module):
        def extra_repr(self) -> str:
            return "a|b\nc"

    assert describe(Odd()) == "Odd(a/b c)"
