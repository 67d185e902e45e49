"""`accelerate launch -m finetune --config_path run.yaml --out runs/NAME`: the adapter's training on many GPUs."""

from __future__ import annotations

import os
import sys

from dreamgen.core.config import parse_settings
from dreamgen.core.environment import set_library_defaults
from dreamgen.core.errors import UserError

USAGE = """\
accelerate launch -m finetune --out runs/NAME [--config_path FILE] [--setting=value ...] [--dry_run]
The settings are those of `dreamgen finetune --help`.
"""


def main(tokens: list[str]) -> int:
    """Train in this process, one of those that accelerate launched; the first of each machine speaks.

    Returns:
        Exit status: 0 done, 2 for a mistake in settings or data.
    """
    if {"-h", "--help"} & set(tokens):
        print(USAGE, end="")
        return 0
    speaks = os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        settings, switches = parse_settings(tokens, "finetune", flags=("dry_run",))
        set_library_defaults()
        from finetune.train import finetune

        result = finetune(settings, dry_run=switches["dry_run"])
    except UserError as error:
        if speaks:
            print(f"error: {error}", file=sys.stderr)
        return 2
    if speaks:
        for name, value in {**result.outputs, **result.figures}.items():
            print(f"{name}: {value}")
        for note in result.notes:
            print(note)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
