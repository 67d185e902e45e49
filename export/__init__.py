"""Accepted clips -> LeRobot and robomimic datasets (`export_datasets`); `export.check` looks at what was written."""

from typing import Any

__all__ = ["export_datasets"]


def __getattr__(name: str) -> Any:
    # When it is asked for: the checker, the converter and each worker process need none of what the stage imports.
    if name == "export_datasets":
        from export.stage import export_datasets

        return export_datasets
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
