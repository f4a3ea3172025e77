"""What :func:`monai_sre.convert.convert_to_sre` did to a network, module by module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from monai_sre.nets.checkpoints import unwrapped

#: Attribute under which a converted network carries its report.
ATTRIBUTE = "_monai_sre_conversion"
#: Reasons that several rules give, each with the way out.
AS_FEATURES = "makes features of positions: take a global pool in front of it"
INDICES = "return_indices gives positions on the grid, which turn with it: leave them out"
INTO_CHANNELS = "it turns positions into channels, which a rotation exchanges: put a strided convolution in its place"
WITHOUT_POSITIONS = "a network without them can be converted"


@dataclass(frozen=True)
class Entry:
    """One module of the network.

    Attributes:
        name: qualified name; ``""`` is the network itself.
        action: ``"replaced"``, ``"kept"`` (it is equivariant as it is) or ``"refused"`` (it cannot be, and stays).
        before: what it was.
        after: what it is now, or why it was kept or refused.
        energy: share of the kernel's energy (sum of squares) that the radial kernel has kept; ``None`` where no kernel was
            projected.
        seen: share that the energies of harmonics see besides, with ``conv="harmonic"``.
    """

    name: str
    action: str
    before: str
    after: str
    energy: float | None = None
    seen: float | None = None


@dataclass
class ConversionReport:
    """All entries, and how far the converted network was found to be from commuting with the symmetries.

    Attributes:
        entries: one per module; blocks that act in their own ``forward`` come first.
        errors: relative error of each symmetry checked, float64; empty where no check ran.
        input_shape: shape of the input that was checked.

    Example:
        >>> from monai_sre.convert import conversion_report, convert_to_sre
        >>> net = convert_to_sre(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)))
        >>> report = conversion_report(net)
        >>> [(entry.name, entry.after.split("(")[0]) for entry in report.replaced]
        [('0', 'SREConv2d'), ('2', 'CentredMaxPool2d')]
        >>> max(report.errors.values()) < 1e-12
        True
    """

    entries: list[Entry] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    input_shape: tuple[int, ...] | None = None

    def _of(self, action: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.action == action]

    @property
    def replaced(self) -> list[Entry]:
        """The modules that were replaced."""
        return self._of("replaced")

    @property
    def kept(self) -> list[Entry]:
        """The spatial modules that needed no replacement."""
        return self._of("kept")

    @property
    def refused(self) -> list[Entry]:
        """The modules that break the symmetry; empty unless ``strict=False``."""
        return self._of("refused")

    def __str__(self) -> str:
        """A Markdown table, and a line of summary before it."""
        counts = f"{len(self.replaced)} modules replaced, {len(self.kept)} kept, {len(self.refused)} refused"
        if self.errors:
            worst = max(self.errors, key=lambda name: self.errors[name])
            checked = "x".join(map(str, self.input_shape or ()))
            counts += f"; largest error {self.errors[worst]:.1e} ({worst}, input {checked}, float64)"
        lines = [counts, "", "| module | action | before | after | energy kept |", "| --- | --- | --- | --- | --- |"]
        for entry in self.entries:
            energy = " + ".join(f"{share:.3f}" for share in (entry.energy, entry.seen) if share is not None)
            lines.append(f"| {entry.name or '(root)'} | {entry.action} | {entry.before} | {entry.after} | {energy} |")
        return "\n".join(lines)


class RefusedError(ValueError):
    """A module that cannot be made equivariant; the message says why."""


def conversion_report(network: nn.Module) -> ConversionReport:
    """The report of the conversion of ``network``.

    Args:
        network: what :func:`monai_sre.convert.convert_to_sre` returned.

    Raises:
        ValueError: ``network`` was never converted.
    """
    report = getattr(unwrapped(network), ATTRIBUTE, None)
    if not isinstance(report, ConversionReport):
        raise ValueError(f"network must come from convert_to_sre, got {type(network).__name__} without a report")
    return report


def refusal(entries: Sequence[Entry]) -> str:
    """The message of the error that lists refused modules."""
    lines = [f"  {entry.name or '(root)'} ({entry.before}): {entry.after}" for entry in entries]
    return (
        "convert_to_sre cannot make this network equivariant:\n"
        + "\n".join(lines)
        + "\nThe network is as it was. strict=False converts the rest and lists these in the report."
    )


def describe(module: Any) -> str:
    """A module in one line."""
    text = type(module).__name__
    arguments = module.extra_repr() if isinstance(module, nn.Module) else ""
    return f"{text}({arguments})".replace("|", "/").replace("\n", " ")
