"""README.md shows what the cells hold."""

from __future__ import annotations

from benchmarks.headline import PICTURE, README, ROWS, spread, table


def test_readme_has_the_table_of_the_committed_cells() -> None:
    assert table() in README.read_text()
    assert PICTURE.relative_to(README.parent).as_posix() in README.read_text()


def test_readme_says_how_many_seeds_and_how_far_they_differ() -> None:
    seeds, deviation = spread()
    text = " ".join(README.read_text().split())
    assert f"in percent, of {seeds} seeds," in text
    assert f"Standard deviation over the seeds: at most {deviation:.1f}." in text


def test_a_row_holds_means_of_all_swept_seeds() -> None:
    """By hand from the three files of each network."""
    assert (
        table(ROWS[3:4]).splitlines()[-1]
        == "| CHASE_DB1 | 75.8 [74, 78] | 74.0 [72, 77] | 74.3 [72, 76] | 79.1 [77, 81] | 78.9 [77, 81] |"
    )
