"""Every public name has a docstring that says what it takes, gives and raises, and an example, which runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import peft_hooks
from peft_hooks import testing

PACKAGE = Path(peft_hooks.__file__).parent
NEEDS = {"peft_hooks.trainer": "datasets"}
PUBLIC = {
    **{name: getattr(peft_hooks, name) for name in peft_hooks.__all__ if name != "PromptTrainer"},
    **{f"testing.{name}": getattr(testing, name) for name in testing.__all__ if callable(getattr(testing, name))},
}


def modules_with_examples() -> list[str]:
    """Return the modules of the package that have examples, in every folder."""
    with_examples = [path for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")]
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in with_examples]
    return sorted(name.removesuffix(".__init__") for name in names)


@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_run(name: str) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    module = importlib.import_module(name)
    found = [test for test in doctest.DocTestFinder().find(module, name) if test.examples]
    # The finder passes over what names another module than the one that it is in, as all public names do.
    finder = doctest.DocTestFinder()
    found += [
        test for public, one in _public_in(name) for test in finder.find(one, public, module=False) if test.examples
    ]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.REPORT_NDIFF)
    assert found
    for test in found:
        test.globs = {**vars(module)}
        assert runner.run(test).failed == 0


def _public_in(module: str) -> list[tuple[str, Any]]:
    """Return the public names that a module is the home of, with what they stand for."""
    if module.startswith("peft_hooks.testing"):
        named = [(name, getattr(testing, name)) for name in testing.__all__]
        code = {name: inspect.getmodule(found.__code__) for name, found in named if inspect.isfunction(found)}
        return [(name, found) for name, found in named if getattr(code.get(name), "__name__", None) == module]
    homes = {public: f"peft_hooks.{home}" for public, home in peft_hooks._HOMES.items()}
    return [(public, getattr(peft_hooks, public)) for public, home in homes.items() if home == module]


def public(name: str) -> Any:
    """Return what a public name stands for."""
    if name == "PromptTrainer":
        if "PromptTrainer" not in dir(peft_hooks):
            pytest.skip("Sentence Transformers 2 has no trainer")
        pytest.importorskip("accelerate")
        return peft_hooks.PromptTrainer
    return PUBLIC[name]


@pytest.mark.parametrize("name", [*PUBLIC, "PromptTrainer"])
def test_a_public_name_says_what_it_takes_gives_and_raises(name: str) -> None:
    """The sections that apply: arguments if there are any, what comes back, what can be raised; and an example."""
    found = public(name)
    written = vars(found)["__doc__"] if isinstance(found, type) else found.__doc__
    assert written, f"{name} has no docstring of its own"
    said = inspect.cleandoc(written)
    assert "Example:\n    >>> " in said, f"{name} has no example"
    if isinstance(found, type) and issubclass(found, (Exception, Warning)):
        return
    if isinstance(found, type) and "Attributes:" in said:  # made by the library, to be read
        return
    takes = [one for one in inspect.signature(found).parameters.values() if one.kind is not one.VAR_KEYWORD]
    assert not takes or "Args:" in said, f"{name} does not say what it takes"
    for one in takes:
        stars = "*" if one.kind is one.VAR_POSITIONAL else ""
        assert f"    {stars}{one.name}:" in said, f"{name} does not say what {one.name} is"
    assert ("Raises:" in said) is (name not in NEVER_RAISE), f"{name}: what does it raise?"
    if not isinstance(found, type):
        gives = inspect.signature(found).return_annotation not in ("None", "Iterator[None]")
        assert ("Returns:" in said or "Yields:" in said) is gives, f"{name}: what does it give?"


# What raises nothing of its own.
NEVER_RAISE = ("Hook", "LogShapes", "SharePrompt", "testing.tiny_features")


@pytest.mark.parametrize("name", [*PUBLIC, "PromptTrainer"])
def test_public_methods_and_properties_have_docstrings(name: str) -> None:
    found = public(name)
    members = vars(found).items() if isinstance(found, type) and issubclass(found, object) else ()
    bare = [key for key, member in members if not key.startswith("_") and _has_none(found, key, member)]
    assert not bare, f"{name}: {', '.join(bare)} without a docstring"


def _has_none(kind: type, key: str, member: Any) -> bool:
    """Tell whether a method or property has no docstring, its own or an inherited one."""
    if not (isinstance(member, (property, classmethod, staticmethod)) or inspect.isfunction(member)):
        return False
    return not inspect.getdoc(getattr(kind, key))


def test_help_is_a_tour() -> None:
    """``help(peft_hooks)`` has the drawing, and every public name with what it does, by what one needs."""
    tour, said = peft_hooks.__doc__ or "", pydoc.plain(pydoc.render_doc(peft_hooks))
    for step in ("tokenizer", "Transformer", "PeftModel", "backbone", "Pooling", "sentence_embedding"):
        assert step in tour.partition("What you need")[0]
    shown = said.partition("\nCLASSES\n")[2].partition("\nDATA\n")[0]
    missing = [name for name in dir(peft_hooks) if name in peft_hooks.__all__ and name not in shown]
    assert not missing, f"help does not show {missing}"


def test_the_tour_has_every_public_name_and_every_folder() -> None:
    """What is added to the package has its place in the drawing, the table of needs, or the map of folders."""
    words = set(re.findall(r"\w+", peft_hooks.__doc__ or ""))
    assert not (missing := set(peft_hooks.__all__) - words), f"the tour leaves out {missing}"
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert not (missing := folders - words), f"the map of folders leaves out {missing}"


def test_the_tour_needs_no_library() -> None:
    """The package is imported without torch, and so is its docstring."""
    heavy = {"torch", "sentence_transformers", "peft", "transformers", "rich"}
    code = f"import peft_hooks, sys; peft_hooks.__doc__; sys.exit(str(sorted({heavy} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True, cwd=PACKAGE.parent)
    assert done.stderr.strip() == "[]"
