"""Use DreamGen from Python: all stages on demonstrations, then one more clip from the adapter that they trained.

    python examples/python_api.py --demos path/to/lerobot_dataset --out runs/api

It takes some minutes on a CPU with the preset `mini`, whose small model knows one simulated arm only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dreamgen
from dreamgen.data.video import write_video


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demos", type=Path, required=True, help="demonstrations with actions")
    parser.add_argument("--out", type=Path, required=True, help="a new run folder")
    parser.add_argument("--preset", default="mini", help="name of a shipped preset, or a YAML file")
    arguments = parser.parse_args()

    settings = dreamgen.load_settings(arguments.preset, demos=arguments.demos, out=arguments.out)
    # Each stage reads what the one before it left in the run folder, so each can run alone, again, or elsewhere.
    dreamgen.prepare_training_set(settings)
    dreamgen.finetune_adapter(settings)
    dreamgen.plan_jobs(settings)
    dreamgen.generate_clips(settings)
    dreamgen.label_clips(settings)
    curated = dreamgen.curate_clips(settings)
    print(f"accepted {curated.metrics['num_accepted']} of {curated.metrics['num_clips']} clips")

    exported = dreamgen.export_datasets(settings)
    for name in settings.export.formats:
        checked = dreamgen.check_dataset(exported.outputs[name])
        print(f"{exported.outputs[name]}: {checked.metrics['num_errors']} errors")
    print(dreamgen.write_report(settings).outputs["report"])

    first_frame = next((arguments.out / "first_frames").rglob("*.png"))
    model = dreamgen.WorldModel.load(arguments.preset, adapter=arguments.out / "adapter")
    video_THWC = model.generate(first_frame, "pick up the cup", seed=7)
    write_video(arguments.out / "one_more_clip.mp4", video_THWC, fps=settings.video.fps)
    print(arguments.out / "one_more_clip.mp4")


if __name__ == "__main__":
    main()
