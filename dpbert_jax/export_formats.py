"""The formats of `Model.export`, found by name among what is installed.

A format is an entry point of the group below, of this package or of another one: a name, and where
its `dpbert_jax.export.formats.Format` is. So the model knows none of them, and a further one is one
file and one row of a pyproject.toml.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dpbert_jax.errors import UserError

GROUP = "dpbert_jax.export_formats"


def _rows() -> dict[str, EntryPoint]:
    return {row.name: row for row in entry_points(group=GROUP)}


def export_format_names() -> list[str]:
    """The names of all formats that are installed."""
    return sorted(_rows())


def export_format(name: str) -> Any:
    """The `Format` of that name.

    Raises:
        UserError: there is none, or its package lacks what it imports.
    """
    rows = _rows()
    if not rows:
        raise UserError(
            f"No export format is registered (entry points '{GROUP}'): install dpbert-jax anew, "
            "with `pip install` in its folder; a checkout on PYTHONPATH alone names none."
        )
    if name not in rows:
        raise UserError(f"--format is '{name}', but must be one of {sorted(rows)}.")
    return rows[name].load()
