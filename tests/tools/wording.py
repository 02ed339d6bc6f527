"""What messages say: word by word in one golden file for each renderer, and by their facts everywhere else.

English is improved with ``python -m pytest --rewrite-golden tests/unit/...`` and a look at what ``git diff`` shows.
Facts stay: a module's name, a tensor, its shape, a number, the call that fixes it.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from pathlib import Path

import pytest

REWRITE = "--rewrite-golden"
_TITLE = re.compile(r"^=== (.*)\n", re.MULTILINE)


def assert_says(text: object, *facts: str) -> None:
    """Assert that a message has every fact in it, whatever the words around them.

    Args:
        text: The message, or the exception that has it.
        *facts: What has to be in it, several in one string with ``" | "`` between them.
    """
    wanted = [fact for several in facts for fact in several.split(" | ")]
    missing = [fact for fact in wanted if fact not in str(text)]
    assert all(wanted) and wanted and not missing, f"{missing} not in: {text}"


def read_golden(file: Path) -> dict[str, str]:
    """Return the texts of a golden file by their titles."""
    if not file.is_file():
        return {}
    before, *rest = _TITLE.split(file.read_text(encoding="utf-8"))
    assert not before, f"{file} begins with no title"
    return {title: body.removesuffix("\n").removesuffix("\n") for title, body in zip(rest[::2], rest[1::2])}


def write_golden(file: Path, texts: dict[str, str]) -> None:
    """Write a golden file: each text under its title, with an empty line after it."""
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(f"=== {title}\n{text}\n" for title, text in texts.items()), encoding="utf-8")


class Golden:
    """Compares what a renderer says in a test with ``golden/<renderer>.txt`` beside the test, or rewrites it.

    Args:
        folder: Where the test is.
        test: Its name, which is the title of its texts: of a second one ``name (2)``, and so on.
        file: The test's file, for the command that rewrites.
        rewrite: Whether to write what is said now.
    """

    def __init__(self, folder: Path, test: str, file: str, rewrite: bool) -> None:
        self.folder, self.test, self.file, self.rewrite = folder / "golden", test, file, rewrite
        self.asked: Counter[str] = Counter()

    def __call__(self, renderer: str, text: object, title: str | None = None) -> None:
        """Fail with the difference if the text is another than the golden one; spaces at the end of a line are none.

        Args:
            renderer: What made the text, the golden file's name.
            text: The text. What depends on a release, a path or rounding has to be replaced in it before.
            title: In place of the test's name, where several tests are told the same.
        """
        self.asked[renderer] += 1
        number = self.asked[renderer]
        title = title or (self.test if number == 1 else f"{self.test} ({number})")
        file, found = self.folder / f"{renderer}.txt", "\n".join(line.rstrip() for line in str(text).splitlines())
        assert not _TITLE.search(f"{found}\n"), f"a line of this text would be read as a title:\n{found}"
        golden = read_golden(file)
        if golden.get(title) == found:
            return
        if self.rewrite:
            write_golden(file, {**golden, title: found})
            return
        lines = golden[title].splitlines() if title in golden else []
        diff = "\n".join(difflib.unified_diff(lines, found.splitlines(), "golden", "now", lineterm="", n=99))
        command = f"python -m pytest {REWRITE} {self.file}"
        pytest.fail(f"{file}, {title!r}:\n{diff}\nIf the text of now is right: `{command}`", pytrace=False)
