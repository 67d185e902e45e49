"""Meta-World's 50 tasks: which ones the transformer is trained on, their instructions, and positions kept for tests.

This module needs no simulator.

The VAE sees all tasks. The transformer never sees those of `HELD_OUT`, each of which shares its objects or its skill
with tasks that it does see. Of every task, some instructions (the last ones of each list) and some positions of
objects and goals are kept for tests.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

FIRST_RECORDING_SEED = 10_000  # seeds below it are for evaluation and are never recorded as training data
NUM_TEST_INSTRUCTIONS = 1
REGIONS = ("train", "test", "any")
GRID = 5  # cells of each axis of the positions of one object
WITHHELD_CELLS = ((1, 3), (3, 1), (3, 3))  # of GRID x GRID, for one object
WITHHELD_INTERVAL = (0.6, 0.75)  # where a single coordinate varies

# One sentence as LeRobot has it or close to it, then other wordings; the last one is kept for tests.
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "assembly": ("Pick up a nut and place it onto a peg", "Put the ring on the peg",
                 "Lift the round nut over the peg and let it down", "Slide the nut onto the upright peg"),
    "basketball": ("Dunk the basketball into the basket", "Throw the ball in the hoop",
                   "Carry the basketball to the hoop and drop it in", "Put the orange ball through the basket"),
    "bin-picking": ("Grasp the puck from one bin and place it into another bin", "Move the puck to the other bin",
                    "Take the cube out of its bin and put it in the second one", "Transfer the puck between the bins"),
    "box-close": ("Grasp the cover and close the box with it", "Put the lid on the box",
                  "Cover the box with its lid", "Close the box"),
    "button-press-topdown": ("Press a button from the top", "Push the button down from above",
                             "Press the red button on top of the box", "Lower the hand onto the button"),
    "button-press-topdown-wall": ("Bypass a wall and press a button from the top",
                                  "Go around the wall and push the button down",
                                  "Press the button behind the wall from above",
                                  "Reach over the wall and press the button on top"),
    "button-press": ("Press a button", "Push the button in from the front", "Press the red button on the wall box",
                     "Push in the button in front of the arm"),
    "button-press-wall": ("Bypass a wall and press a button", "Go around the wall and push the button in",
                          "Press the button that is behind the wall", "Reach past the wall to the button and press it"),
    "coffee-button": ("Push a button on the coffee machine", "Start the coffee machine",
                      "Press the button of the coffee maker", "Switch on the coffee machine"),
    "coffee-pull": ("Pull a mug from a coffee machine", "Take the mug away from the coffee machine",
                    "Drag the cup out of the coffee maker", "Pull the coffee cup towards the robot"),
    "coffee-push": ("Push a mug under a coffee machine", "Place the mug below the coffee machine",
                    "Slide the cup into the coffee maker", "Bring the cup to the coffee machine"),
    "dial-turn": ("Rotate a dial 180 degrees", "Turn the dial", "Turn the knob half way around",
                  "Give the dial half a turn"),
    "disassemble": ("Pick a nut out of a peg", "Take the ring off the peg", "Lift the nut from the peg",
                    "Remove the round nut from its peg"),
    "door-close": ("Close a door with a revolving joint", "Close the door", "Push the door shut",
                   "Shut the open door"),
    "door-lock": ("Lock the door by rotating the lock clockwise", "Lock the door", "Turn the lock downward",
                  "Rotate the latch to lock the door"),
    "door-open": ("Open a door with a revolving joint", "Open the door", "Pull the door open by its handle",
                  "Swing the door open"),
    "door-unlock": ("Unlock the door by rotating the lock counter-clockwise", "Unlock the door",
                    "Turn the lock sideways to open it", "Rotate the latch to unlock the door"),
    "hand-insert": ("Insert the gripper into a hole", "Put the hand in the hole of the table",
                    "Lower the gripper into the hole", "Reach down into the hole"),
    "drawer-close": ("Push and close a drawer", "Close the drawer", "Push the drawer in", "Shut the open drawer"),
    "drawer-open": ("Open a drawer", "Pull the drawer open", "Pull out the drawer by its handle",
                    "Slide the drawer out"),
    "faucet-open": ("Rotate the faucet counter-clockwise", "Open the faucet", "Turn the tap on",
                    "Swing the faucet handle to the open side"),
    "faucet-close": ("Rotate the faucet clockwise", "Close the faucet", "Turn the tap off",
                     "Swing the faucet handle to the closed side"),
    "hammer": ("Hammer a screw on the wall", "Hit the nail with the hammer",
               "Pick up the hammer and drive in the nail", "Drive the nail into the block"),
    "handle-press-side": ("Press a handle down sideways", "Push the handle at the side down",
                          "Press the side lever down", "Move the sideways handle down"),
    "handle-press": ("Press a handle down", "Push the handle down", "Press down the red handle",
                     "Move the handle to the bottom"),
    "handle-pull-side": ("Pull a handle up sideways", "Lift the handle at the side", "Pull the side lever up",
                         "Move the sideways handle up"),
    "handle-pull": ("Pull a handle up", "Lift the handle", "Pull the red handle upward", "Move the handle to the top"),
    "lever-pull": ("Pull a lever down 90 degrees", "Pull the lever up", "Swing the lever a quarter turn",
                   "Turn the lever to the upright position"),
    "peg-insert-side": ("Insert a peg sideways", "Put the peg in the hole at the side of the box",
                        "Push the peg into the hole of the block", "Plug the peg in sideways"),
    "pick-place-wall": ("Pick a puck, bypass a wall and place the puck",
                        "Lift the puck over the wall to the goal",
                        "Take the puck across the wall and hold it at the goal",
                        "Carry the puck over the wall to the marker"),
    "pick-out-of-hole": ("Pick up a puck from a hole", "Take the puck out of the hole", "Lift the puck from the hole",
                         "Get the puck out of the hole in the table"),
    "reach": ("Reach a goal position", "Move the hand to the marker", "Go to the goal with the gripper",
              "Bring the gripper to the marked point"),
    "push-back": ("Push a puck back to a goal", "Pull the puck back to the goal",
                  "Drag the block toward the robot to the marker", "Bring the puck back to the marked point"),
    "push": ("Push the puck to a goal", "Slide the puck to the marker", "Move the puck along the table to the goal",
             "Shove the puck over the table to the marked point"),
    "pick-place": ("Pick and place a puck to a goal", "Lift the puck to the goal",
                   "Grasp the puck and carry it to the marker", "Pick the puck up and bring it to the marked point"),
    "plate-slide": ("Slide a plate into a cabinet", "Push the plate into the goal",
                    "Slide the plate forward into the rack", "Move the plate into the cabinet"),
    "plate-slide-side": ("Slide a plate into a cabinet sideways", "Push the plate sideways into the goal",
                         "Slide the plate to the left into the rack", "Move the plate sideways into the cabinet"),
    "plate-slide-back": ("Get a plate from the cabinet", "Pull the plate out of the goal",
                         "Slide the plate back out of the rack", "Take the plate from the cabinet"),
    "plate-slide-back-side": ("Get a plate from the cabinet sideways", "Pull the plate sideways out of the goal",
                              "Slide the plate to the side out of the rack",
                              "Take the plate from the cabinet sideways"),
    "peg-unplug-side": ("Unplug a peg sideways", "Pull the peg out of the box", "Pull the plug out sideways",
                        "Take the peg out of the block"),
    "soccer": ("Kick a soccer into the goal", "Push the ball into the net", "Roll the soccer ball to the goal",
               "Score with the ball"),
    "stick-push": ("Grasp a stick and push a box using the stick", "Push the thermos with the stick",
                   "Use the stick to push the container away", "Take the stick and shove the thermos"),
    "stick-pull": ("Grasp a stick and pull a box with the stick", "Pull the thermos with the stick",
                   "Use the stick to drag the container", "Hook the thermos with the stick and pull it"),
    "push-wall": ("Bypass a wall and push a puck to a goal", "Push the puck around the wall to the goal",
                  "Slide the puck past the wall to the marker", "Move the puck beyond the wall to the goal"),
    "reach-wall": ("Bypass a wall and reach a goal", "Move the hand past the wall to the marker",
                   "Go over the wall to the goal with the gripper", "Bring the gripper to the point behind the wall"),
    "shelf-place": ("Pick and place a puck onto a shelf", "Put the cube on the shelf",
                    "Lift the block to the shelf", "Set the cube down on the shelf"),
    "sweep-into": ("Sweep a puck into a hole", "Push the cube into the hole", "Sweep the block to the hole",
                   "Move the cube over the table into the hole"),
    "sweep": ("Sweep a puck off the table", "Push the cube off the table", "Wipe the block from the table",
              "Move the cube over the edge of the table"),
    "window-open": ("Push and open a window", "Open the window", "Slide the window open", "Move the window aside"),
    "window-close": ("Push and close a window", "Close the window", "Slide the window shut",
                     "Move the window back in place"),
}  # fmt: skip

# Held out from the transformer -> seen tasks that share its objects or its skill.
HELD_OUT: dict[str, tuple[str, ...]] = {
    "button-press-topdown-wall": ("button-press-topdown", "button-press-wall"),
    "coffee-push": ("coffee-pull", "coffee-button"),
    "drawer-open": ("drawer-close", "door-open"),
    "handle-press": ("handle-press-side", "handle-pull-side"),
    "plate-slide-back-side": ("plate-slide-side", "plate-slide-back"),
    "push-back": ("push", "sweep-into"),
    "push-wall": ("push", "pick-place-wall"),
    "reach-wall": ("reach", "pick-place-wall"),
    "stick-push": ("stick-pull", "push"),
    "sweep": ("sweep-into", "push"),
    "door-unlock": ("door-lock", "dial-turn"),
}
# Their experts seldom finish within 25 frames of 1/16 s, so there are no demonstrations of them; the VAE sees them.
UNFINISHED = ("disassemble", "handle-pull", "peg-unplug-side", "pick-out-of-hole")
# Their experts do better if the first action is held for the whole frame, see `Scene.expert`.
HOLDS_FIRST_ACTION = ("assembly", "peg-insert-side")
TASKS = tuple(sorted(INSTRUCTIONS))
SEEN = tuple(task for task in TASKS if task not in HELD_OUT and task not in UNFINISHED)


@dataclass(frozen=True)
class Variation:
    """A scene that allows several tasks from the same first frame, so that the instruction decides.

    Args:
        name: For seeds and metadata.
        tasks: What can be done; each is one of `SEEN`.
        low: Smallest positions, in the form of Meta-World's random vector.
        high: Largest positions.
        between: Range of the start of the object's joint (m or rad), between done and undone; None to leave it.
        environment: The task whose environment all of them use; each task's own when None, which look the same.
        offsets: Task -> what is added to the beginning of its vector, if it counts from another part.
        hidden: Markers that are not drawn, because they would tell the task.
        hand_start: Where the hand begins (m), if the tasks' own starts differ.
    """

    name: str
    tasks: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    between: tuple[float, float] | None = None
    environment: str | None = None
    offsets: dict[str, tuple[float, ...]] = field(default_factory=dict)
    hidden: tuple[str, ...] = ("goal",)
    hand_start: tuple[float, ...] | None = None


VARIATIONS = {
    variation.name: variation
    for variation in (
        Variation("ajar-door", ("door-open", "door-close"), (0.0, 0.85, 0.15), (0.1, 0.95, 0.15), (-0.28, -0.15),
                  hand_start=(-0.3, 0.6, 0.2)),
        Variation("half-open-window", ("window-open", "window-close"), (-0.1, 0.75, 0.18), (0.0, 0.85, 0.18),
                  (0.09, 0.11)),
        Variation("faucet", ("faucet-open", "faucet-close"), (-0.05, 0.8, 0.0), (0.05, 0.85, 0.0),
                  hidden=("goal_open", "goal_close")),
        Variation("half-pressed-handle", ("handle-press-side", "handle-pull-side"), (-0.35, 0.65, 0.0),
                  (-0.25, 0.75, 0.0), (-0.06, -0.04), hidden=("goalPress", "goalPull")),
        Variation("coffee", ("coffee-button", "coffee-pull"), (-0.05, 0.7, 0.0, -0.1, 0.55, 0.0),
                  (0.05, 0.75, 0.0, 0.1, 0.65, 0.0), offsets={"coffee-button": (0.0, 0.22, 0.0)},
                  hidden=("mug_goal", "coffee_goal")),
        Variation("puck-and-marker", ("reach", "push", "pick-place"), (-0.1, 0.6, 0.02, -0.1, 0.8, 0.03),
                  (0.1, 0.7, 0.02, 0.1, 0.9, 0.06), environment="pick-place", hidden=()),
    )
}  # fmt: skip


def instructions_of(task: str, region: str) -> tuple[str, ...]:
    """Return a task's instructions: those for training, those kept for tests, or all of them."""
    split = len(INSTRUCTIONS[task]) - NUM_TEST_INSTRUCTIONS
    kept = {"train": slice(split), "test": slice(split, None), "any": slice(None)}[region]
    return INSTRUCTIONS[task][kept]


def rng_of(seed: int, *names: str) -> np.random.Generator:
    """Return a random generator for a seed and what it is drawn for."""
    key = hashlib.sha256("/".join(names).encode()).digest()[:8]
    return np.random.default_rng([seed, int.from_bytes(key, "little")])


def is_withheld(positions: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
    """Return whether an object or a goal lies where nothing lies in training data.

    Args:
        positions: Meta-World's random vector: one position of 3 numbers, or more of them side by side.
        low: Its smallest values.
        high: Its largest values.
    """
    return any(
        _is_withheld(positions[first : first + 3], low[first : first + 3], high[first : first + 3])
        for first in range(0, len(positions), 3)
    )


def _is_withheld(position: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
    varies = high - low > 0.005  # some tasks vary by a millimeter
    share = (position[varies] - low[varies]) / (high[varies] - low[varies])
    if len(share) == 0:
        return False
    if len(share) == 1:
        return bool(WITHHELD_INTERVAL[0] <= share[0] < WITHHELD_INTERVAL[1])
    cell = np.minimum(share[:2] * GRID, GRID - 1).astype(int)
    return tuple(cell.tolist()) in WITHHELD_CELLS


def uniform_positions(low: np.ndarray, high: np.ndarray, rng: np.random.Generator, region: str) -> np.ndarray:
    """Draw positions uniformly from a region.

    Args:
        low: Smallest values of Meta-World's random vector.
        high: Largest values.
        rng: Where they come from.
        region: "train", "test" (withheld from training), or "any". A task whose positions do not vary has one region.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    has_test_region = bool(np.any(high - low > 0.005))
    while True:
        positions = rng.uniform(low, high)
        if region == "any" or not has_test_region or is_withheld(positions, low, high) == (region == "test"):
            return positions
