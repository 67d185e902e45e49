"""Accepted clips -> LeRobot and robomimic datasets (`export_datasets`); `export.check` looks at what was written."""

from export.stage import export_datasets

__all__ = ["export_datasets"]
