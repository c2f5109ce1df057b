"""Rows that cannot be used: the first is refused, or each is left out, counted and listed."""

from pathlib import Path
from types import TracebackType

from dpbert_jax.errors import UserError

ON_BAD_ROW = ("error", "skip")


class BadRow(UserError):
    """A row is at fault, not its file: the rows around it can be used all the same."""


class BadRows:
    """What becomes of the bad rows of one split: `with bad_rows:` around the work on a row.

    "error" lets the BadRow through; "skip" ends the block and keeps its message.
    Raises UserError for any other `on_bad_row`.
    """

    def __init__(self, on_bad_row: str) -> None:
        if on_bad_row not in ON_BAD_ROW:
            raise UserError(
                f"--on_bad_row is '{on_bad_row}', but must be one of {list(ON_BAD_ROW)}."
            )
        self._skip = on_bad_row == "skip"
        self.messages: list[str] = []

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not (self._skip and isinstance(error, BadRow)):
            return False
        self.messages.append(str(error))
        return True

    def require_rows(self, path: Path, rows: int) -> None:
        """Raises UserError where a file has no row, or no good one."""
        if not rows and self.messages:
            raise UserError(
                f"{path}: none of its {len(self.messages)} rows can be used. {self.messages[0]}"
            )
        if not rows:
            raise UserError(f"{path}: the file has no rows.")
