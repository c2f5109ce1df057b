"""The house: imports run downhill, from room to room and never back."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dpbert_jax"
# From the ground up; what stands together on a line is one floor.
ROOMS = (
    ("errors", "problem", "allocator", "programs"),
    ("run_folder", "run_glue", "export_formats"),
    ("flags", "integrity", "families"),
    ("hosts", "bucket", "config"),
    ("config_file",),
    ("encoder",),
    ("policies",),
    ("data",),
    ("hub",),
    ("inference",),
    ("model",),
    ("evaluation",),
    ("training",),
    ("export",),
    ("benchmark",),
    ("serve",),
    ("load",),
    ("study",),
    ("compress",),
    ("cli",),
)
FLOORS = {room: floor for floor, rooms in enumerate(ROOMS) for room in rooms}
MODULES = sorted(
    path
    for path in PACKAGE.rglob("*.py")
    if "remote" not in path.parts  # code that exports bring along
    and (path.parent != PACKAGE or path.stem not in ("__init__", "__main__"))
)


def room_of(path):
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def imported_rooms(path):
    """Rooms of this package that a module imports, anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == PACKAGE.name:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == PACKAGE.name and rest:
                yield rest.partition(".")[0], node.lineno


def test_every_room_has_a_floor():
    assert {room_of(path) for path in MODULES} == set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_downhill(path):
    own = room_of(path)
    uphill = [
        f"line {line} imports {room}"
        for room, line in imported_rooms(path)
        if room != own and FLOORS[room] >= FLOORS[own]
    ]
    assert not uphill
