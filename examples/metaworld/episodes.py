"""One recorded episode: how the arm behaves, and the rows and frames that come of it.

Axes: T frames, S state dimensions, A action dimensions, E dimensions of the environment's state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from paraphrases import instruction
from scene import Observed, Scene
from tasks import rng_of

NOISE = 0.3  # standard deviation of what "noisy" adds to each component of an action
FRAMES_AFTER_SUCCESS = 2  # before the arm stays where it is
OBJECT_PLACES = (4, 22)  # of the object now and a step before, in what experts read
WORKSPACE_LOW_M, WORKSPACE_HIGH_M = np.array([-0.35, 0.45, 0.06]), np.array([0.35, 0.85, 0.35])
VELOCITY_M = 0.01  # of the hand, in a control step at full action

Policy = Callable[[Observed], np.ndarray]


@dataclass(frozen=True)
class Episode:
    """What one episode recorded.

    Args:
        state_TS: float32.
        action_TA: float32; each one is held until the next frame.
        environment_TE: float32, object and goal positions.
        physics: Of each frame, from which `Scene.render` draws it.
        instruction: The task in words.
        frames_to_success: First frame at which the task was done; -1 if never, or if it was done from the start.
        done_at_end: Whether the task is done in the last frame; a button may have sprung back.
    """

    state_TS: np.ndarray
    action_TA: np.ndarray
    environment_TE: np.ndarray
    physics: list[np.ndarray]
    instruction: str
    frames_to_success: int
    done_at_end: bool

    @property
    def success(self) -> bool:
        """Whether the task was done, as Meta-World counts it."""
        return self.frames_to_success >= 0


def run_episode(
    scene: Scene, behavior: str, seed: int, region: str, num_frames: int, paraphrased: bool = False
) -> Episode:
    """Run one episode from a seed; the same arguments give the same episode.

    Args:
        scene: Of the task.
        behavior: A key of `BEHAVIORS`.
        seed: Determines positions, instruction and random motion.
        region: Region of positions and instructions: "train" or "test".
        num_frames: Its length.
        paraphrased: As `paraphrases.instruction` takes it.
    """
    policy = BEHAVIORS[behavior](scene, rng_of(seed, scene.task, behavior))
    return run_policy(scene, policy, seed, region, num_frames, behavior == "expert", paraphrased)


def run_policy(
    scene: Scene, policy: Policy, seed: int, region: str, num_frames: int, stays_when_done: bool = False,
    paraphrased: bool = False,
) -> Episode:  # fmt: skip
    """Run one episode of a policy.

    Args:
        scene: Of the task.
        policy: Returns the action for what was observed.
        seed: Determines positions and instruction.
        region: Region of positions and instructions: "train" or "test".
        num_frames: Its length.
        stays_when_done: Whether the arm stands still some frames after the task is done.
        paraphrased: As `paraphrases.instruction` takes it.
    """
    observed = scene.reset(seed, region)
    moments, actions, physics = [observed], [], [scene.physics()]
    done_at, begins_done = -1, observed.success
    while True:
        if done_at < 0 and observed.success and not begins_done:
            done_at = len(moments) - 1
        stays = stays_when_done and 0 <= done_at < len(moments) - FRAMES_AFTER_SUCCESS
        actions.append(np.array([0, 0, 0, actions[-1][3]], np.float32) if stays else policy(observed))
        if len(moments) == num_frames:
            break
        observed = scene.step(actions[-1])
        moments.append(observed)
        physics.append(scene.physics())
    text = instruction(scene.task, region, rng_of(seed, "instruction"), paraphrased)
    return Episode(
        np.stack([moment.state for moment in moments]), np.stack(actions),
        np.stack([moment.environment for moment in moments]), physics, text,
        done_at, observed.success and not begins_done,
    )  # fmt: skip


def _expert(scene: Scene, rng: np.random.Generator) -> Policy:
    """Act as Meta-World's scripted expert, which reads object and goal positions."""
    return scene.expert()


def _noisy(scene: Scene, rng: np.random.Generator) -> Policy:
    """Act as the expert with noise on each action."""
    expert = scene.expert()
    return lambda observed: _clipped(expert(observed) + rng.normal(0, NOISE, 4))


def _random(scene: Scene, rng: np.random.Generator) -> Policy:
    """Move between random points, every other one at the object, and open and close the gripper."""
    target, gripper, frames_left, to_object = np.zeros(3), -1.0, 0, bool(rng.integers(2))

    def act(observed: Observed) -> np.ndarray:
        nonlocal target, gripper, frames_left, to_object
        hand = observed.full[:3]
        frames_left -= 1
        if frames_left < 0 or np.linalg.norm(target - hand) < 0.02:
            frames_left, to_object = int(rng.integers(4, 10)), not to_object
            gripper = float(rng.choice([-1.0, 1.0, rng.uniform(-1, 1)]))
            near = observed.full[4:7] + rng.normal(0, 0.04, 3)
            target = near if to_object else rng.uniform(WORKSPACE_LOW_M, WORKSPACE_HIGH_M)
        velocity = (target - hand) / (VELOCITY_M * scene.frame_skip)
        return _clipped(np.append(velocity, gripper) + rng.normal(0, NOISE / 2, 4))

    return act


def _mistaken(scene: Scene, rng: np.random.Generator) -> Policy:
    """Act as an expert that makes a mistake: it aims beside the object, does not grasp, or stops half way."""
    mistake = rng.choice(["aim", "aim", "gripper", "stop"])
    angle, distance_m, stops_at = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.11), int(rng.integers(5, 14))
    misread, num_acted = np.zeros(39), 0
    if mistake == "aim":
        for first in OBJECT_PLACES:
            misread[first : first + 2] = distance_m * np.cos(angle), distance_m * np.sin(angle)
    expert = scene.expert(misread)

    def act(observed: Observed) -> np.ndarray:
        nonlocal num_acted
        action = expert(observed)
        num_acted += 1
        if mistake == "stop" and num_acted > stops_at:
            action[:3] = 0
        if mistake == "gripper":
            action[3] = -1
        return _clipped(action + rng.normal(0, NOISE / 4, 4))

    return act


def _clipped(action: np.ndarray) -> np.ndarray:
    return np.clip(action, -1, 1).astype(np.float32)


BEHAVIORS: dict[str, Callable[[Scene, np.random.Generator], Policy]] = {
    "expert": _expert, "noisy": _noisy, "random": _random, "mistaken": _mistaken,
}  # fmt: skip
