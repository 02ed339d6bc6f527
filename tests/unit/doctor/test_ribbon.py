"""The ribbon, drawn from plain lists."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from rich.console import Console, RenderableType

from peft_hooks.doctor.ribbon import SIGNS, Kind, Row, cut, legend, ribbon, summary

from ...tools.wording import Golden, assert_says


def row(virtual: int, text: int, padding: int, counted: str = "vt", label: str = "A") -> Row:
    """Make a row, right-padded; ``counted`` has the initials of the kinds that count."""
    kinds: list[Kind] = [*["virtual"] * virtual, *["text"] * text, *["padding"] * padding]  # type: ignore[list-item]
    return Row(label, kinds, [kind[0] in counted for kind in kinds])


def drawn(renderable: RenderableType, width: int = 80, **options: object) -> str:
    console = Console(file=io.StringIO(), width=width, **options)  # type: ignore[arg-type]
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines()) or options
    return "\n".join(line.rstrip() for line in text.splitlines())


def test_a_row_is_one_sign_for_every_position_and_how_many_counted() -> None:
    assert drawn(ribbon([row(2, 3, 4)])) == "A ◆◆■■■···· 5"


def test_counted_padding_is_a_sign_of_its_own_and_said_in_words() -> None:
    assert drawn(ribbon([row(2, 3, 4, "vtp")])) == "A ◆◆■■■●●●● 9 (4 padding)"


def test_what_is_left_out_is_hollow() -> None:
    assert drawn(ribbon([row(2, 3, 1, "")])) == "A ◇◇□□□· 0"


def test_rows_of_one_batch_line_up() -> None:
    rows = [row(2, 5, 0, label="short"), row(2, 3, 2, label="B")]
    assert drawn(ribbon(rows)) == "short ◆◆■■■■■ 7\nB     ◆◆■■■·· 5"


def test_a_terminal_without_the_signs_gets_letters() -> None:
    rows = [row(2, 3, 2), row(2, 3, 2, "p")]
    assert drawn(ribbon(rows, ascii_only=True)).splitlines()[1] == "A vvttt## 2 (2 padding)"
    assert drawn(legend(rows, ascii_only=True)).isascii()


def test_every_state_reads_without_colour() -> None:
    assert len({sign.drawn for sign in SIGNS.values()}) == len({sign.plain for sign in SIGNS.values()}) == 6
    assert all(len(sign.drawn) == len(sign.plain) == 1 for sign in SIGNS.values())


def test_colours_are_those_that_every_terminal_theme_sets() -> None:
    text = drawn(ribbon([row(1, 1, 1, "vtp")]), color_system="truecolor", force_terminal=True)
    assert "\x1b[35m◆" in text
    assert "\x1b[32m■" in text
    assert "\x1b[1;31m●" in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_long_rows_lose_the_same_positions_and_say_how_many(width: int) -> None:
    rows = [row(10, 500, 0), row(10, 20, 480, label="B")]
    lines = drawn(ribbon(rows, width), width).splitlines()
    marks = [line.index("<") for line in lines]
    assert marks[0] == marks[1]
    hidden = int(lines[0].split("<")[1].split(" more>")[0])
    signs = sum(lines[0].count(sign.drawn) for sign in SIGNS.values())
    assert signs + hidden == 510
    assert lines[0].endswith(" 510")
    assert lines[1].endswith(" 30")
    assert len(lines[0]) <= width
    assert lines[0].startswith("A ◆◆◆◆")


@pytest.mark.parametrize("length", [1, 19, 20, 21, 99, 100, 1000, 12345])
@pytest.mark.parametrize("room", [20, 37, 64])
def test_what_is_cut_makes_the_rest_fit(length: int, room: int) -> None:
    hidden = cut(length, room)
    mark = len(f"<{len(hidden)} more>") if hidden else 0
    assert length - len(hidden) + mark <= room
    assert bool(hidden) == (length > room)


def test_a_row_that_ends_before_the_cut_has_no_mark() -> None:
    lines = drawn(ribbon([row(0, 200, 0), row(0, 3, 0, label="B")])).splitlines()
    assert lines[1].split() == ["B", "■■■", "3"]


def test_the_legend_names_what_occurs_and_no_more(golden: Golden) -> None:
    assert_says(drawn(legend([row(1, 1, 0)])), "counted | ◆ virtual token | ■ text")
    assert "padding" not in drawn(legend([row(1, 1, 0)]))
    both = drawn(legend([row(1, 1, 1), row(1, 1, 1, "vtp")]))
    golden("legend", both)
    counted, left_out = both.splitlines()
    assert_says(counted, "counted | ◆ virtual token | ■ text | ● padding")
    assert_says(left_out, "left out | · padding")


def test_flags_that_are_not_one_for_each_kind_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'A' .*2 kinds.* 1 counted"):
        ribbon([Row("A", ["text", "text"], [True])])


def test_labels_are_text_not_markup() -> None:
    assert drawn(ribbon([row(0, 2, 0, label="[bold]x")])) == "[bold]x ■■ 2"


def test_no_rows_draw_nothing() -> None:
    assert drawn(ribbon([])) == ""
    assert drawn(legend([])) == ""


def test_counts_may_be_numbers_as_in_a_mask() -> None:
    assert summary(Row("A", ["text", "padding"], [1, 0])) == "1"  # type: ignore[list-item]


def test_importing_the_library_does_not_import_rich() -> None:
    code = "import peft_hooks, peft_hooks.doctor.ribbon, sys; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
