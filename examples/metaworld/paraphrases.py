"""More wordings of the base set's instructions, from the grammar that the text encoder was trained on.

With three wordings a task, the transformer learns these by heart and misunderstands others, such as "Swing the faucet
handle to the closed side".
"""

from __future__ import annotations

import random
from functools import cache

import numpy as np
from instruction_grammar import PREFIX, Instruction, say
from tasks import TASKS, instructions_of

NUM_PARAPHRASES = 16  # of a task: each sentence is encoded once, and a training keeps them on the GPU
SHARE = 0.5  # of the episodes that get one; the others get a written instruction
TO_GOAL = {"relation": "to", "target": "goal"}
IN_HOLE = {"relation": "in", "target": "hole"}
MEANINGS: dict[str, tuple[Instruction, ...]] = {
    "assembly": (
        Instruction("place", "nut", relation="on", target="peg"),
        Instruction("assemble", "nut", relation="on", target="peg"),
    ),
    "basketball": (Instruction("throw", "basketball", relation="in", target="basket"),),
    "bin-picking": (Instruction("place", "puck", relation="in", target="bin"),),
    "box-close": (Instruction("close", "box"), Instruction("place", "lid", relation="on", target="box")),
    "button-press": (Instruction("press", "button"),),
    "button-press-topdown": (Instruction("press", "button", approach="top"),),
    "button-press-wall": (Instruction("press", "button", obstacle="wall"),),
    "coffee-button": (Instruction("press", "coffee button"),),
    "coffee-pull": (Instruction("pull", "mug", relation="out of", target="coffee machine"),),
    "dial-turn": (Instruction("turn", "dial"),),
    "door-close": (Instruction("close", "door"),),
    "door-lock": (Instruction("lock", "door"), Instruction("turn", "lock", direction="clockwise")),
    "door-open": (Instruction("open", "door"),),
    "drawer-close": (Instruction("close", "drawer"),),
    "faucet-close": (Instruction("close", "faucet"), Instruction("turn", "faucet", direction="clockwise")),
    "faucet-open": (Instruction("open", "faucet"), Instruction("turn", "faucet", direction="counterclockwise")),
    "hammer": (Instruction("hit", "nail", tool="hammer"),),
    "hand-insert": (Instruction("insert", "gripper", **IN_HOLE),),
    "handle-press-side": (Instruction("press", "handle", approach="side"),),
    "handle-pull-side": (Instruction("raise", "handle", approach="side"),),
    "lever-pull": (Instruction("raise", "lever"), Instruction("turn", "lever")),
    "peg-insert-side": (Instruction("insert", "peg", approach="side", **IN_HOLE),),
    "pick-place": (Instruction("place", "puck", **TO_GOAL),),
    "pick-place-wall": (Instruction("place", "puck", obstacle="wall", **TO_GOAL),),
    "plate-slide": (Instruction("push", "plate", relation="in", target="cabinet"),),
    "plate-slide-back": (Instruction("pull", "plate", relation="out of", target="cabinet"),),
    "plate-slide-side": (Instruction("push", "plate", relation="in", target="cabinet", approach="side"),),
    "push": (Instruction("push", "puck", **TO_GOAL),),
    "reach": (Instruction("reach", "goal"),),
    "shelf-place": (
        Instruction("place", "puck", relation="on", target="shelf"),
        Instruction("place", "block", relation="on", target="shelf"),
    ),
    "soccer": (Instruction("kick", "soccer ball", relation="in", target="net"),),
    "stick-pull": (Instruction("pull", "bottle", tool="stick"),),
    "sweep-into": (Instruction("sweep", "puck", **IN_HOLE), Instruction("sweep", "block", **IN_HOLE)),
    "window-close": (Instruction("close", "window"),),
    "window-open": (Instruction("open", "window"),),
}
# Verbs that leave open which of the tasks of one scene is meant: a puck that is moved may be pushed or carried.
MOVES = {"move", "bring", "moved", "brought", "moving", "bringing"}
AMBIGUOUS = {"pick-place": MOVES, "pick-place-wall": MOVES}


def instruction(task: str, region: str, rng: np.random.Generator, paraphrased: bool) -> str:
    """Choose an episode's instruction.

    Args:
        task: What is done.
        region: "train" or "test"; paraphrases are for training.
        rng: Of the episode.
        paraphrased: Whether a share of the episodes get a sentence of the grammar.
    """
    texts = instructions_of(task, region)
    written = texts[int(rng.integers(len(texts)))]
    if not paraphrased or region != "train" or rng.random() >= SHARE:
        return written
    return paraphrases(task)[int(rng.integers(NUM_PARAPHRASES))]


@cache
def paraphrases(task: str) -> tuple[str, ...]:
    """Return different sentences for a task of the base set.

    None has all the words of an instruction of the task that is kept for tests, in whatever form, or the same words as
    an instruction of another task.
    """
    rng, found = random.Random(task), dict[frozenset[str], str]()
    withheld = [stems(words_of(text)) for text in instructions_of(task, "test")]
    others = {words_of(text) for other in TASKS if other != task for text in instructions_of(other, "any")}
    while len(found) < NUM_PARAPHRASES:
        text = say(rng.choice(MEANINGS[task]), rng).removeprefix(PREFIX)
        words = words_of(text)
        is_clear = words not in others and not words & AMBIGUOUS.get(task, set())
        if is_clear and not any(kept <= stems(words) for kept in withheld):
            found.setdefault(words, text)
    return tuple(found.values())


def words_of(text: str) -> frozenset[str]:
    """Return the different words of a sentence without its articles."""
    return frozenset(text.casefold().translate(str.maketrans(",.!", "   ")).split()) - {"a", "an", "the", "that"}


def stems(words: frozenset[str]) -> set[str]:
    """Return the beginnings of words, which their forms share: swing, swinging."""
    return {word[:4] for word in words}
