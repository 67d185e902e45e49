"""Closed-loop evaluation of a LeRobot policy in Meta-World, at object positions that no training data shows.

    python benchmarks/policy/rollout.py --policy OUT/checkpoints/last/pretrained_model --task sweep --out rollout.json

Episode k has the seed k, below those of all recordings, and a position of the recorder's region "test". Each action is
held for a frame. An episode succeeds if Meta-World counts the task as done in any frame.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from scenes import observation, open_scene

from dreamgen.data.video import write_video

CAMERA = "observation.images.corner2"
NUM_FILMED = 4


class LoadedPolicy:
    """A trained policy with its pre- and postprocessing.

    Args:
        folder: `pretrained_model` of a checkpoint that lerobot-train wrote.
        device: To run it on.
    """

    def __init__(self, folder: Path, device: str) -> None:
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        config = PreTrainedConfig.from_pretrained(folder)
        config.device = device
        self.policy = get_policy_class(config.type).from_pretrained(folder, config=config).eval()
        self._before, self._after = make_pre_post_processors(
            config, str(folder), preprocessor_overrides={"device_processor": {"device": device}}
        )

    def start(self, seed: int) -> None:
        """Begin an episode."""
        torch.manual_seed(seed)
        self.policy.reset()
        self._before.reset()
        self._after.reset()

    @torch.inference_mode()
    def act(self, observed: dict[str, torch.Tensor]) -> np.ndarray:
        """Return the next action, action_A."""
        action = self._after(self.policy.select_action(self._before(observed)))
        return action.squeeze(0).float().cpu().numpy()


def main() -> None:
    """Evaluate as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, required=True, help="pretrained_model of a checkpoint")
    parser.add_argument("--task", required=True, help="Meta-World task")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--num_episodes", type=int, default=50)
    parser.add_argument("--max_frames", type=int, default=40, help="of an episode; a demonstration has 25")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    policy, successes, films = LoadedPolicy(args.policy, args.device), [], []
    with open_scene(args.task) as scene:
        for seed in range(args.num_episodes):
            observed = scene.reset(seed, "test")
            policy.start(seed)
            film, done = [], False
            for _ in range(args.max_frames):
                seen = observation(scene, observed, CAMERA)
                if seed < NUM_FILMED:
                    film.append((seen[CAMERA][0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))
                observed = scene.step(np.clip(policy.act(seen), -1, 1).astype(np.float32))
                if done := observed.success:
                    break
            successes.append(bool(done))
            if film:
                films.append(np.stack(film))
    for number, film_THWC in enumerate(films):
        write_video(args.out.with_suffix(f".{number}.mp4"), film_THWC, 16)
    args.out.write_text(json.dumps({"task": args.task, "seeds": args.num_episodes, "success": successes}))
    print(f"{args.task}: {np.mean(successes):.2f} of {len(successes)} episodes")


if __name__ == "__main__":
    main()
