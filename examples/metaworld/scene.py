"""One Meta-World environment: placed by a seed, stepped at the rate of the recorded video, and rendered.

Meta-World's own `reset` moves the hand for 100 control steps before each episode and draws the positions twice. Here
the hand's start is computed once an environment and restored afterwards, which takes no time and gives the same
picture for the same seed, whatever was recorded before.

Axes: H height, W width, C channels. Positions are in meters.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import mujoco  # pyright: ignore[reportMissingImports]  # of the extra `sim`
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS  # pyright: ignore[reportMissingImports]
from metaworld.policies import ENV_POLICY_MAP  # pyright: ignore[reportMissingImports]
from tasks import HOLDS_FIRST_ACTION, Variation, rng_of, uniform_positions

warnings.filterwarnings("ignore", "Constant\\(s\\) may be too high")  # an expert's action is clipped, as intended

CAMERA = "corner2"
CAMERA_POSITION_M = (0.75, 0.075, 0.7)
CONTROL_RATE_HZ = 80
SUPERSAMPLING = 2  # rendered larger and averaged: smooth edges without multisampling, which is slow on a CPU
NUM_ARM_JOINTS = 9  # seven of the arm and two fingers; the joint of an object comes after them
GRIPPER_CHANGE = 0.3  # between two actions of an expert: it grasps or releases
PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
STATE_NAMES = ("hand_x", "hand_y", "hand_z", "gripper_opening")
ACTION_NAMES = ("delta_x", "delta_y", "delta_z", "gripper")
ENVIRONMENT_NAMES = tuple(f"{what}_{axis}" for what in ("object", "second_object", "goal") for axis in "xyz")


class Observed(NamedTuple):
    """What is recorded of one moment.

    Args:
        state: Hand position and gripper opening (0 to 1), `STATE_NAMES`.
        environment: Positions of the object, of a second object or zeros, and of the goal, `ENVIRONMENT_NAMES`.
        success: Whether Meta-World counts the task as done.
        full: The observation that experts read.
    """

    state: np.ndarray
    environment: np.ndarray
    success: bool
    full: np.ndarray


class Scene:
    """A simulated task, kept between episodes because building one takes as long as several episodes.

    Args:
        task: Name of the Meta-World task.
        frame_skip: Control steps for which an action is held, and between two frames.
        variation: The task begins in this scene, which allows others, too; in the task's own one when None.
        size_px: Height and width of the frames; 0 for a scene that is not rendered.
    """

    def __init__(self, task: str, frame_skip: int, variation: Variation | None = None, size_px: int = 128) -> None:
        self.task, self.frame_skip, self.variation, self.size_px = task, frame_skip, variation, size_px
        environment = variation.environment if variation and variation.environment else task
        self._is_own = environment == task
        self.env: Any = ALL_V3_ENVIRONMENTS[f"{environment}-v3"]()
        self.env._set_task_called = True  # positions come from `reset`, not from Meta-World's lists of them
        self.env._partially_observable = False
        vars(self.env).pop("sawyer_observation_space", None)  # cached for hidden goals
        self.model, self.data = self.env.model, self.env.data
        self._renderer = self._new_renderer() if size_px else None
        for name in variation.hidden if variation else ():
            self.model.site(name).rgba[3] = 0
        if variation and variation.hand_start is not None:
            self.env.hand_init_pos = np.array(variation.hand_start)
        self._set_up_resets()

    def close(self) -> None:
        """Free the renderer; EGL complains at exit otherwise."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def reset(self, seed: int, region: str = "train") -> Observed:
        """Place the objects.

        Args:
            seed: Determines the positions.
            region: "train" or "test", as in `uniform_positions`, or "any".

        Returns:
            The first moment.
        """
        rng = rng_of(seed, self.variation.name if self.variation else self.task)
        drawn: list[np.ndarray] = []

        def draw() -> np.ndarray:
            drawn.append(self._draw_positions(rng, region))
            return drawn[-1]

        self._place(draw)  # draws again while objects would lie too close together
        # Again with the same positions: some tasks read where an object is before they move it.
        self._place(lambda: drawn[-1])
        if self.variation is not None:
            self._begin_between(self.variation, rng)
        mujoco.mj_forward(self.model, self.data)  # objects are drawn at their old places without it
        full = self.env._get_obs()
        self.env._prev_obs = full[:18].copy()
        full[18:36] = full[:18]
        return self._observed(full, np.zeros(4, np.float32))

    def step(self, action: np.ndarray) -> Observed:
        """Hold an action for `frame_skip` control steps.

        Args:
            action: Hand velocity and gripper effort, each from -1 to 1.

        Returns:
            The moment after.
        """
        for _ in range(self.frame_skip):
            self._control_step(action)
        return self._observed(self.env._get_obs(), action)

    def physics(self) -> np.ndarray:
        """Return what `render` needs of this moment."""
        state = np.empty(mujoco.mj_stateSize(self.model, PHYSICS))
        mujoco.mj_getState(self.model, self.data, state, PHYSICS)
        return state

    def render(self, physics: np.ndarray | None = None) -> np.ndarray:
        """Return a picture, frame_HWC, uint8, RGB.

        Args:
            physics: A moment since the last reset; the scene is there afterwards. The present one when None.
        """
        assert self._renderer is not None, "the scene was made without a picture size"
        if physics is not None:
            mujoco.mj_setState(self.model, self.data, physics, PHYSICS)
            mujoco.mj_forward(self.model, self.data)
        self._renderer.update_scene(self.data, camera=CAMERA)
        # The camera hangs upside down.
        large_HWC = self._renderer.render()[::-1, ::-1]
        return cv2.resize(large_HWC, (self.size_px, self.size_px), interpolation=cv2.INTER_AREA)

    def expert(self, misread: np.ndarray | float = 0.0) -> Callable[[Observed], np.ndarray]:
        """Return Meta-World's scripted expert at the rate of the frames.

        The expert is made to act at every control step, and overshoots if an action is held for longer. So it acts
        from the present for `frame_skip` control steps, or until it opens or closes the gripper, then the present is
        restored, and what moves the hand as far is the action to hold.

        Args:
            misread: Added to what the expert reads.

        Returns:
            The present -> action, from -1 to 1.
        """
        policy = ENV_POLICY_MAP[f"{self.task}-v3"]()
        num_ahead = 1 if self.task in HOLDS_FIRST_ACTION else self.frame_skip

        def act(observed: Observed) -> np.ndarray:
            present, previous_obs, full, actions = self.physics(), self.env._prev_obs, observed.full, []
            for number in range(num_ahead):
                if number:
                    self._control_step(actions[-1])
                    full = self._clipped(self.env._get_obs())
                action = np.clip(policy.get_action(full + misread), -1, 1)
                if actions and abs(action[3] - actions[0][3]) > GRIPPER_CHANGE:
                    break  # the hand waits for the gripper
                actions.append(action)
            mujoco.mj_setState(self.model, self.data, present, PHYSICS)
            self.env._prev_obs = previous_obs
            held = np.sum(actions, axis=0) / num_ahead
            held[3] = actions[0][3]
            return held.astype(np.float32)

        return act

    def _control_step(self, action: np.ndarray) -> None:
        self.env.set_xyz_action(action[:3])
        self.env.do_simulation([action[-1], -action[-1]], n_frames=self.env.frame_skip)
        mujoco.mj_forward(self.model, self.data)

    def _clipped(self, full: np.ndarray) -> np.ndarray:
        space = self.env.sawyer_observation_space
        return np.clip(full, space.low, space.high)

    def _observed(self, full: np.ndarray, action: np.ndarray) -> Observed:
        full = self._clipped(full)
        environment = np.concatenate([full[4:7], full[11:14], self.env._get_pos_goal()])
        return Observed(full[:4].astype(np.float32), environment.astype(np.float32), self._is_done(full, action), full)

    def _is_done(self, full: np.ndarray, action: np.ndarray) -> bool:
        if self._is_own:
            return bool(self.env.evaluate_state(full, action)[1]["success"])
        what = self.env.tcp_center if self.task == "reach" else full[4:7]
        return bool(np.linalg.norm(what - self.env._get_pos_goal()) <= self.env.TARGET_RADIUS)

    def _new_renderer(self) -> mujoco.Renderer:
        self.model.camera(CAMERA).pos[:] = CAMERA_POSITION_M
        self.model.vis.quality.offsamples = 0
        large_px = self.size_px * SUPERSAMPLING
        self.model.vis.global_.offwidth = self.model.vis.global_.offheight = large_px
        renderer = mujoco.Renderer(self.model, large_px, large_px)
        for slow in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):  # hardly seen from here
            renderer.scene.flags[slow] = False
        return renderer

    def _set_up_resets(self) -> None:
        """Compute the hand's start, and remember everything that an episode may change."""
        env, hand_start = self.env, np.empty(mujoco.mj_stateSize(self.model, PHYSICS))
        self._pristine_model = {
            name: getattr(self.model, name).copy() for name in ("body_pos", "body_quat", "site_pos")
        }
        reset_hand = env._reset_hand
        mujoco.mj_resetData(self.model, self.data)
        reset_hand()
        mujoco.mj_getState(self.model, self.data, hand_start, PHYSICS)

        def restore_hand(steps: int = 50) -> None:
            mujoco.mj_setState(self.model, self.data, hand_start, PHYSICS)
            mujoco.mj_forward(self.model, self.data)
            env.init_tcp = env.tcp_center

        env._reset_hand = restore_hand
        plain = (np.ndarray, float, int, bool, str, type(None))
        self._pristine_env = {n: copy.deepcopy(v) for n, v in vars(env).items() if isinstance(v, plain)}

    def _place(self, draw: Callable[[], np.ndarray]) -> None:
        for name, value in copy.deepcopy(self._pristine_env).items():
            setattr(self.env, name, value)
        self.env._get_state_rand_vec = draw
        self.env.reset_model()
        mujoco.mj_forward(self.model, self.data)

    def _draw_positions(self, rng: np.random.Generator, region: str) -> np.ndarray:
        if self.variation is None:
            space = self.env._random_reset_space
            return uniform_positions(space.low, space.high, rng, region)
        positions = uniform_positions(np.array(self.variation.low), np.array(self.variation.high), rng, region)
        offset = self.variation.offsets.get(self.task, ())
        positions[: len(offset)] += offset
        return positions[: self.env._random_reset_space.low.size]

    def _begin_between(self, variation: Variation, rng: np.random.Generator) -> None:
        if variation.between is not None:
            self.data.qpos[NUM_ARM_JOINTS] = rng.uniform(*variation.between)
            self.data.qvel[NUM_ARM_JOINTS] = 0
