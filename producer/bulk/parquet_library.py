"""The library that reads and writes Parquet, which is an extra and takes a while to load."""

from __future__ import annotations

from typing import Any

from schemas import InputError


def load(*, file: str) -> Any:
    """Return pyarrow, with its `parquet`; InputError if it is not installed. `file` is what it is needed for."""
    try:
        import pyarrow as pa  # noqa: PLC0415 - an extra
        import pyarrow.parquet  # noqa: PLC0415 - ditto
    except ImportError as exc:
        raise InputError(
            f"Parquet needs pyarrow, which cannot be loaded ({exc})", file=file, mend="pip install 'assistq[parquet]'"
        ) from exc
    return pa
