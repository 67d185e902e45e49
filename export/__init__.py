"""Write the accepted clips of a run as datasets (`export_datasets`), check datasets, and convert them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.stage import export_datasets

__all__ = ["export_datasets"]


def __getattr__(name: str) -> Any:
    # Imported on first use: the checker, the converter and worker processes do not need what the stage imports.
    if name == "export_datasets":
        from export.stage import export_datasets

        return export_datasets
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
