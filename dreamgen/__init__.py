"""DreamGen: robot demonstrations in, a policy-ready synthetic dataset out.

    import dreamgen

    settings = dreamgen.load_settings("mini", demos="path/to/lerobot_dataset", out="runs/pick")
    dreamgen.run_pipeline(settings)

Every name below is imported when it is first used, so that `import dreamgen` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dreamgen.api import (
        check_dataset,
        convert_dataset,
        curate_clips,
        export_datasets,
        finetune_adapter,
        finetune_idm,
        generate_clips,
        import_clips,
        label_clips,
        load_settings,
        plan_jobs,
        prepare_training_set,
        reject_clips,
        run_pipeline,
        write_report,
    )
    from dreamgen.config.settings import Settings
    from dreamgen.errors import UserError
    from dreamgen.models.world_model import WorldModel
    from dreamgen.run.records import StageResult

__all__ = [
    "Settings",
    "StageResult",
    "UserError",
    "WorldModel",
    "__version__",
    "check_dataset",
    "convert_dataset",
    "curate_clips",
    "export_datasets",
    "finetune_adapter",
    "finetune_idm",
    "generate_clips",
    "import_clips",
    "label_clips",
    "load_settings",
    "plan_jobs",
    "prepare_training_set",
    "reject_clips",
    "run_pipeline",
    "write_report",
]

_MODULES = {
    "Settings": "dreamgen.config.settings",
    "StageResult": "dreamgen.run.records",
    "UserError": "dreamgen.errors",
    "WorldModel": "dreamgen.models.world_model",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES.get(name, "dreamgen.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
