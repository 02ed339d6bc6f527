"""Selectors: turn a role, path, glob, class, module or predicate into the modules that it means."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import nn

from ..compat.torch_internals import child_of, is_compiled
from ..errors import SelectorError, close_matches

Predicate = Callable[[str, nn.Module], bool]
Selector = str | type[nn.Module] | nn.Module | Predicate
Roles = Mapping[str, Sequence[str]]


def select(model: nn.Module, selector: Selector, roles: Callable[[nn.Module], Roles]) -> list[tuple[str, nn.Module]]:
    """Return ``(path, module)`` for every module of ``model`` that ``selector`` selects, each module once.

    A module that has several paths is found by any of them, and returned with the first.

    Args:
        model: The root; its own path is ``""``.
        selector: A role, a path, a glob over paths (``*`` is one part, ``**`` any number of parts), a module class, a
            module, or a predicate ``(path, module) -> bool``. A bare name that is both a role and a path is the role.
        roles: Finds the roles of a model; called only if ``selector`` is a bare name or matches nothing.

    Raises:
        SelectorError: If nothing matches, or the selector is none of these.
    """
    if isinstance(selector, nn.Module):  # how this library itself attaches: a single walk, which stops at the module
        path = next((path for path, module in model.named_modules() if module is selector), None)
        if path is None:
            raise SelectorError(_nothing_found(model, {}, selector, roles))
        return [(path, selector)]
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(selector, str):
        found = _by_name(model, modules, selector, roles)
    elif isinstance(selector, type) and issubclass(selector, nn.Module):
        found = [path for path, module in modules.items() if isinstance(module, selector)]
    elif callable(selector) and not isinstance(selector, type):
        found = [path for path, module in modules.items() if selector(path, module)]
    else:
        raise SelectorError(
            f"{selector!r} cannot select a module: give a role, a path, a glob, a module class, a module or a "
            f"predicate (path, module) -> bool"
        )
    if not found:
        raise SelectorError(_nothing_found(model, modules, selector, roles))
    first_paths = {module: path for path, module in model.named_modules()}
    chosen = {modules[path] for path in found}
    return [(path, module) for module, path in first_paths.items() if module in chosen]


def _by_name(
    model: nn.Module, modules: dict[str, nn.Module], name: str, roles: Callable[[nn.Module], Roles]
) -> list[str]:
    if any(sign in name for sign in "*?["):
        pattern = glob_pattern(name)
        return [path for path in modules if pattern.fullmatch(path)]
    if name in modules and (name == "" or "." in name or name.isdigit()):
        return [name]
    return list(roles(model).get(name, ())) or [path for path in modules if path == name]


def _nothing_found(
    model: nn.Module, modules: dict[str, nn.Module], selector: Selector, roles: Callable[[nn.Module], Roles]
) -> str:
    kind = type(model).__name__
    if isinstance(selector, str):
        known = roles(model)
        if selector in ("transformer", "backbone", "pooling") and not known:
            return (
                f"no module of {kind} plays the role {selector!r}: roles are known for Sentence Transformers models; "
                f"give a path, a class or a module"
            )
        return f"no module of {kind} matches {selector!r}{close_matches(selector, [*known, *filter(None, modules)])}"
    if isinstance(selector, type):
        classes = {type(module).__name__ for module in modules.values()}
        return f"{kind} has no module of class {selector.__name__}{close_matches(selector.__name__, classes)}"
    if isinstance(selector, nn.Module):
        return f"the given {type(selector).__name__} is not a module of this {kind}"
    return f"the predicate {getattr(selector, '__name__', selector)!r} is true of no module of {kind}"


def glob_pattern(glob: str) -> re.Pattern[str]:
    """Compile a glob over module paths: ``*``, ``?``, ``[a-z]`` and ``[!a-z]`` match within one part.

    ``**`` as a part spans any number of parts, including none. At the end it means everything inside, one part or more:
    ``"0.**"`` leaves out ``"0"`` itself. ``"**"`` alone selects every module, including the root.

    Raises:
        SelectorError: If the glob is malformed.
    """
    if glob == "**":
        return re.compile(r".*")
    *parts, last = glob.split(".")
    regex = "".join(r"(?:[^.]+\.)*" if part == "**" else _part(part) + r"\." for part in parts)
    try:
        # (?=.): "*" is one part, and the root's path "" has none.
        return re.compile(r"(?=.)" + regex + (r"[^.]+(?:\.[^.]+)*" if last == "**" else _part(last)))
    except re.error as error:
        raise SelectorError(f"{glob!r} is not a glob over module paths: {error.msg}") from None


def _part(glob: str) -> str:
    """Translate one part of a glob, including sets in brackets, which ``fnmatch.translate`` would let match dots."""

    def sign(match: re.Match[str]) -> str:
        text = match[0]
        if len(text) == 1:
            return {"*": "[^.]*", "?": "[^.]"}.get(text) or re.escape(text)
        inside = re.sub(r"([\\\^\[&|~])", r"\\\1", text[1:-1].removeprefix("!"))
        return rf"(?!\.)[{'^' if text[1] == '!' else ''}{inside}]"

    return re.sub(r"\[!?[^]]+\]|.", sign, glob)


def compiled_part(model: nn.Module, path: str) -> str | None:
    """Return the path of the compiled module at or around ``path``, or None.

    ``torch.compile`` silently leaves out hooks that are attached after it.
    """
    module, at = model, ""
    for part in ("", *path.split(".")) if path else ("",):
        if part:
            child = child_of(module, part)
            module = module if child is None else child  # not `or`: a compiled module's truth is its length
            at = f"{at}.{part}" if at else part
        if is_compiled(module):
            return at
    return None
