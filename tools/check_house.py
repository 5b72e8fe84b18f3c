"""Prints the rooms of mvjax, the arrows between them, its longest files and functions; fails on a breach.

    python tools/check_house.py

A file imports from its own room and from rooms on lower floors. Breaches are an arrow up or sideways, a cycle
of files, a module of ours named in a string, a package that a room must do without, and a file or a function
over its limit.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = "mvjax"
MAX_FILE, MAX_FUNCTION = 320, 60  # lines

# Ground floor first; a room is a file or a folder of mvjax/.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("messages",),
    ("locks",),
    ("stores", "hub"),
    ("__init__", "types", "tree", "files", "gating"),
    ("gates", "scopes"),
    ("config",),
    ("nn", "run_folder"),
    ("codec",),
    ("weights",),
    ("data", "runtimes"),
    ("train", "export", "report", "dialogues"),
    ("plan", "eval", "serve", "sweep"),
    ("digits",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
# Modules, with all they import, that must load where these packages are not installed: a deployer's machine.
TRAINING = frozenset({"jax", "jaxlib", "flax", "optax", "orbax", "grain", "array_record"})
WITHOUT: dict[str, frozenset[str]] = {
    "runtimes.interface": TRAINING | {"torch", "mlx"},
    "runtimes.torch": TRAINING | {"mlx"},
    "runtimes.mlx": TRAINING | {"torch"},
    "data.images": TRAINING | {"torch", "mlx"},
    "codec.rusty": TRAINING | {"torch", "mlx"},
    "serve": TRAINING,
    "weights.codecs": TRAINING | {"torch", "mlx"},
}
# Arrows not followed there: imports inside a function that says what to install where they fail.
DEFERRED = {"weights.codecs": {"weights.mimi"}}


class House(NamedTuple):
    """What was read.

    Attributes:
      modules: {dotted name below mvjax: its syntax tree}.
      lines: {the same: number of lines}.
      arrows: {importer: modules of ours that it imports}.
      outside: {the same: top-level packages that it imports at module level}.
    """

    modules: dict[str, ast.Module]
    lines: dict[str, int]
    arrows: dict[str, set[str]]
    outside: dict[str, set[str]]


def read(root: Path = ROOT / PACKAGE) -> House:
    """Parses every file of the package."""
    modules, lines = {}, {}
    for path in sorted(root.rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts)
        text = path.read_text()
        modules[name], lines[name] = ast.parse(text), text.count("\n")
    arrows = {name: set(_ours(body, modules)) for name, body in modules.items()}
    outside = {name: set(_outside(body)) for name, body in modules.items()}
    return House(modules, lines, arrows, outside)


def breaches(house: House) -> list[str]:
    """Returns what breaks a rule, one line each."""
    found = [
        *_wrong_arrows(house),
        *_cycles(house),
        *_named_in_strings(house),
        *_unwanted(house),
    ]
    found += [
        f"{name}: {n} lines, over {MAX_FILE}" for name, n in house.lines.items() if n > MAX_FILE
    ]
    for name, function, length in _functions(house):
        if length > MAX_FUNCTION:
            found.append(f"{name}.{function}: {length} lines, over {MAX_FUNCTION}")
    return found


def room(module: str) -> str:
    """Returns the room that a module is in."""
    return module.split(".")[0]


def _floor(name: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if name in rooms:
            return number
    raise SystemExit(f"{PACKAGE}/{name}: a room on no floor; give it one in {__file__}")


def _ours(body: ast.Module, modules: dict[str, ast.Module]) -> Iterator[str]:
    """Imports at module level and inside functions alike; those for type checkers are not followed."""
    for node in _imports(body):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] != PACKAGE:
                continue
            for end in range(len(parts), 0, -1):  # mvjax.a.b.name: the longest that is a module
                module = ".".join(parts[1:end]) or "__init__"
                if module in modules:
                    yield module
                    break
                if f"{module}.__init__" in modules:
                    yield f"{module}.__init__"
                    break


def _imports(body: ast.AST, *, deferred: bool = True) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements; `deferred`: those inside functions, too, whose packages may be absent."""
    for node in ast.iter_child_nodes(body):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif deferred or isinstance(node, (ast.If, ast.Try)):
            yield from _imports(node, deferred=deferred)


def _outside(body: ast.Module) -> Iterator[str]:
    """Top-level packages that are imported when the module is."""
    for node in _imports(body, deferred=False):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [str(node.module)]
        yield from (name.split(".")[0] for name in names)


def _wrong_arrows(house: House) -> Iterator[str]:
    for name, targets in house.arrows.items():
        for target in sorted(targets):
            a, b = room(name), room(target)
            if a != b and b != "__init__" and _floor(b) >= _floor(a):
                way = "up" if _floor(b) > _floor(a) else "sideways"
                yield f"{name} imports {target}: an arrow {way}, from {a} to {b}"


def _cycles(house: House) -> Iterator[str]:
    """Cycles of files, found by taking away, again and again, what imports nothing that is left."""
    left = {name: set(targets) - {name} for name, targets in house.arrows.items()}
    while free := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in free:
            del left[name]
    while behind := [n for n in left if not any(n in targets for targets in left.values())]:
        for name in behind:  # imports a cycle, but is not on one
            del left[name]
    if left:
        yield f"a cycle among {sorted(left)}"


def _named_in_strings(house: House) -> Iterator[str]:
    """Strings that name a module: what `importlib.import_module` takes."""
    named = {f"{PACKAGE}.{name.removesuffix('.__init__')}" for name in house.modules}
    parents = {name.rpartition(".")[0] for name in named} - {"", PACKAGE}
    for name, body in house.modules.items():
        for node in ast.walk(body):
            if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                continue
            text = node.value
            if text in named or (text.endswith(".") and text[:-1] in named | parents):
                yield f"{name}:{node.lineno} names a module in a string: {text!r}"


def _unwanted(house: House) -> Iterator[str]:
    """Follows module-level and inner arrows of ours; counts packages imported at module level."""
    for start, packages in WITHOUT.items():
        heads = [m for m in house.modules if m == start or m.startswith(f"{start}.")]
        for head in heads:
            for module, path in _reached(house, head).items():
                for package in sorted(house.outside[module] & packages):
                    yield f"{head} imports {package}, by {' -> '.join([*path, package])}"


def _reached(house: House, head: str) -> dict[str, list[str]]:
    paths, todo = {head: [head]}, [head]
    while todo:
        module = todo.pop()
        for target in house.arrows[module] - paths.keys() - DEFERRED.get(module, set()):
            paths[target] = [*paths[module], target]
            todo.append(target)
    return paths


def _functions(house: House) -> Iterator[tuple[str, str, int]]:
    for name, body in house.modules.items():
        for node in ast.walk(body):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                yield name, node.name, node.end_lineno - node.lineno + 1


def _print(house: House) -> None:
    arrows: dict[str, Counter[str]] = {}
    for name, targets in house.arrows.items():
        own = arrows.setdefault(room(name), Counter())
        own.update({room(t) for t in targets} - {room(name), "__init__"})
    for number, rooms in enumerate(FLOORS):
        for name in rooms:
            files = [m for m in house.modules if room(m) == name]
            if files:
                size = sum(house.lines[m] for m in files)
                below = ", ".join(sorted(arrows[name], key=_floor)) or "nothing of ours"
                print(f"{number:2} {name:12} {len(files):3} files {size:6} lines  <- {below}")
    print(f"{len(house.modules)} files, {sum(house.lines.values())} lines")
    longest = max(house.lines, key=lambda name: house.lines[name])
    print(f"longest file: {longest}, {house.lines[longest]} lines (limit {MAX_FILE})")
    name, function, length = max(_functions(house), key=lambda entry: entry[2])
    print(f"longest function: {name}.{function}, {length} lines (limit {MAX_FUNCTION})")


def main() -> int:
    """Prints the house; the status is 1 if a rule is broken."""
    house = read()
    _print(house)
    found = breaches(house)
    print("\n".join(["", f"{len(found)} breaches:", *found]) if found else "no breach")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
