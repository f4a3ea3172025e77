"""Where results lie, how they are read, and how they become Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


def read_json(path: Path, missing: Any = None) -> Any:
    """What a file of results holds; ``missing``, if it is given, where there is no file yet."""
    if missing is not None and not path.is_file():
        return missing
    return json.loads(path.read_text(encoding="utf-8"))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], rule: str = "---") -> str:
    """A Markdown table.

    Args:
        head: titles of the columns.
        rows: their cells.
        rule: of all columns but the first; ``"---:"`` sets numbers flush right.

    Example:
        >>> print(markdown(["a", "b"], [["1", "2"]]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
        <BLANKLINE>
    """
    lines = [head, ["---", *[rule] * (len(head) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
