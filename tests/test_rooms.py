"""The house is as docs/architecture.md draws it: the rooms that each room imports, and no circles."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("captioning", "curation", "filters", "generation", "jobs")
MOST_FILES = 15  # of a room, `__init__.py` not counted


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Every import counts, also one inside a function and one for types alone."""
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def rooms() -> list[str]:
    """Folders with code, such as `curation.store`."""
    folders = {p.parent for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
    return sorted(".".join(folder.relative_to(ROOT).parts) for folder in folders)


def room_of(module: str) -> str:
    """Its folder. A few modules stand between the rooms, or above them."""
    if module in ("curation.api", "curation.pipeline", "curation.progress", "generation.api"):
        return module
    return max((r for r in rooms() if module == r or module.startswith(f"{r}.")), key=len)


def drawn() -> dict[str, set[str]]:
    """The table of docs/architecture.md: room -> rooms that it imports."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.split("| room | imports |\n|---|---|\n")[1].split("\n\n")[0]
    rows = (row.strip("| ").split(" | ") for row in table.splitlines())
    return {name.strip("` "): set(re.findall(r"`([\w.]+)`", imports)) for name, imports in rows}


def test_imports_between_rooms_are_those_of_the_picture(graph: grimp.ImportGraph) -> None:
    found: dict[str, set[str]] = {room_of(module): set() for module in graph.modules}
    for module in graph.modules:
        here = room_of(module)
        found[here] |= {room_of(m) for m in graph.find_modules_directly_imported_by(module)} - {here}
    del found["curation"]  # its map, which offers the functions of curation.api
    found["generation"].discard("generation.api")  # so does this map
    wanted = drawn()
    assert found.keys() == wanted.keys()
    assert {room: found[room] for room in found if found[room] != wanted[room]} == {}


def test_the_contracts_hold() -> None:
    """Layers, Ray in three places alone, and no room in a circle: pyproject.toml."""
    # In a process of its own: it switches off the loggers that exist.
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of more than one module that reach each other (Tarjan's algorithm)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []
    count = itertools.count()

    def visit(module: str) -> None:
        number[module] = lowest[module] = next(count)
        path.append(module)
        for other in graph[module]:
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in path:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            group = path[path.index(module) :]
            del path[path.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in number:
            visit(module)
    return found


def test_no_module_imports_itself_by_way_of_others(graph: grimp.ImportGraph) -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c"]]
    assert circles({m: graph.find_modules_directly_imported_by(m) for m in graph.modules}) == []


@pytest.mark.parametrize("room", rooms())
def test_a_room_is_small_and_its_first_page_is_its_map(room: str) -> None:
    folder = ROOT / room.replace(".", "/")
    files = sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
    assert len(files) <= MOST_FILES or room == "jobs"  # one module for each command
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    page = ast.get_docstring(tree)
    assert page is not None
    # The table of scorers stands in one; two offer the functions of their `api`, one the base of detectors.
    assert len(tree.body) == 1 or room in ("filters", "curation", "generation", "curation.decode.shots")
    within = sorted(p.name for p in folder.iterdir() if (p / "__init__.py").exists())
    if room != "jobs":
        assert [name for name in (*files, *within) if name not in page] == []
