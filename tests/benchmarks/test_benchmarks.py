"""The table of costs is made, and says whether goals are met. Nothing here depends on how long anything took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import __main__ as command
from .table import Row, print_table, shown, write_json
from .timing import in_turns, ratios

QUICK = ("mask_hook", "attached", "dimensions", "memory")


def test_a_row_is_the_median_of_all_rounds_with_its_spread() -> None:
    """A value equal to the goal meets it."""
    row = Row.of("a", "b", [float(number) for number in range(1, 10)], 5.0)
    assert (row.ratio, row.spread, row.met) == (5.0, (1.0, 9.0), True)
    assert Row.of("a", "b", [5.1], 5.0).met is False
    assert Row.of("a", "b", [5.1], None).met is None
    assert Row("a", "b", 5.1, (5.0, 5.2), 5.0, at_least=True).met is True


def test_works_take_turns_and_each_begins_a_round() -> None:
    """One extra round is run to warm up."""
    order: list[str] = []
    times = in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert "".join(order) == "ba" + "ab" + "ba"
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2}


def test_a_ratio_can_be_of_what_is_beyond_a_base() -> None:
    """Rounds in which the other took no longer than the base are left out."""
    times = {"mine": [3.0, 9.0], "other": [5.0, 1.0], "nothing": [1.0, 1.0]}
    assert ratios(times, "mine", "other") == [0.6, 9.0]
    assert ratios(times, "mine", "other", "nothing") == [0.5]


@pytest.mark.parametrize(
    ("number", "unit", "text"), [(0.8719, "x", "0.87"), (3, "ms", "3 ms"), (0.0589, "x", "0.0589")]
)
def test_numbers_have_the_digits_that_count(number: float, unit: str, text: str) -> None:
    """Ratios are shown without a unit."""
    assert shown(number, unit) == text


def test_the_command_prints_one_table_and_keeps_the_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the fewest rounds, whether goals are met means nothing, so it is not checked."""
    command.main(["--quick", "--out", str(tmp_path), *QUICK])
    out = capsys.readouterr().out
    for text in ("mask hook, one forward", "all hooks, checks on", "goals met"):
        assert text in out
    data = json.loads((tmp_path / "benchmarks.json").read_text(encoding="utf-8"))
    assert {"what", "against", "ratio", "spread", "goal", "unit", "raw", "at_least", "met"} == set(data["rows"][0])
    assert data["machine"]["versions"]["torch"]
    kept = {row["what"]: row["ratio"] for row in data["rows"]}
    assert kept["a trace of 20 forwards: tensors kept alive"] == 0


def test_a_part_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The error lists the parts that exist."""
    with pytest.raises(SystemExit):
        command.main(["nothing"])
    assert "nothing: choose from mask_hook, attached" in capsys.readouterr().err


def test_every_part_is_there() -> None:
    """Every module that measures is a part."""
    files = Path(command.__file__).parent.glob("*.py")
    measuring = {file.stem for file in files if "\ndef measure(" in file.read_text(encoding="utf-8")}
    assert measuring == set(command.PARTS) & measuring
    assert set(command.PARTS) - measuring <= {"share_prompt"}


def test_rows_that_miss_their_goal_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows without a goal are not counted."""
    rows = [Row.of("a", "b", [value], goal) for value, goal in ((1.0, 2.0), (3.0, 2.0), (3.0, None))]
    print_table(rows)
    write_json(rows, tmp_path / "rows.json")
    assert "1 of 2 goals met" in capsys.readouterr().out
