"""Sentences for manipulation tasks: what is to be done as slots, and the many ways to say it.

The text encoder of the mini model is trained on these. They say far more than the recorded tasks do: objects, colors,
directions, places, tools and obstacles in all combinations that make sense, each with synonyms, articles, word orders
and polite or descriptive frames.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields, replace

PREFIX = "The robot arm is performing a task. "


@dataclass(frozen=True)
class Instruction:
    """What a sentence asks for; an empty string where it says nothing.

    Args:
        verb, thing: What is done, and to which object.
        color: Of the object.
        direction: left, right, up, down, forward, back, clockwise or counterclockwise.
        relation, target: Where the object ends: on the shelf, into the hole.
        approach: From the top or from the side.
        obstacle: What is in the way.
        tool: What the robot uses.
    """

    verb: str = ""
    thing: str = ""
    color: str = ""
    direction: str = ""
    relation: str = ""
    target: str = ""
    approach: str = ""
    obstacle: str = ""
    tool: str = ""


SLOTS = tuple(field.name for field in fields(Instruction))

# Object -> its names. The groups below say what can be done to it.
THINGS = {
    "puck": "puck,disk,disc,hockey puck",
    "block": "block,cube,brick",
    "cylinder": "cylinder,can,tin",
    "ball": "ball,sphere",
    "soccer ball": "soccer ball,football,soccer,soccer-ball",
    "basketball": "basketball",
    "drawer": "drawer",
    "door": "door",
    "window": "window,sliding window",
    "box": "box,crate,case",
    "lid": "lid,cover,box cover,top of the box,box lid",
    "button": "button,push button,push-button,switch,key",
    "coffee button": "coffee machine button,button on the coffee machine,coffee maker's button,coffee button,"
    "button of the espresso machine,start button of the coffee maker",
    "peg": "peg,pin,plug,dowel",
    "stick": "stick,rod,bar",
    "nut": "nut,ring,round nut,wrench,washer",
    "handle": "handle,grip",
    "lever": "lever,arm of the lever",
    "faucet": "faucet,tap,water tap,faucet handle,spigot",
    "plate": "plate,dish",
    "hammer": "hammer,mallet",
    "nail": "nail,screw,tack",
    "mug": "mug,cup,coffee mug,coffee cup",
    "coffee machine": "coffee machine,coffee maker,espresso machine",
    "dial": "dial,knob,rotary knob",
    "lock": "lock,latch,door lock,bolt",
    "bottle": "bottle,thermos,flask,thermos bottle",
    "bowl": "bowl",
    "spoon": "spoon,ladle",
    "towel": "towel,cloth,rag,napkin",
    "book": "book",
    "apple": "apple",
    "carrot": "carrot",
    "pot": "pot,pan",
    "laptop": "laptop,notebook computer",
    "phone": "phone,cell phone",
    "toy": "toy,plush toy",
    "toaster": "toaster",
    "cabinet": "cabinet,cupboard",
    "fridge": "fridge,refrigerator",
    "microwave": "microwave,oven",
    "tray": "tray",
    "gripper": "gripper,hand,fingers,end effector",
    "goal": "goal,target,goal position,target position,marker,marked point,marked spot",
    "light": "light,lamp",
    "tower": "tower,stack",
    "marker pen": "marker pen,pen,pencil",
    "sponge": "sponge",
}
PLACES = {
    "shelf": "shelf,rack,ledge",
    "bin": "bin,container,other bin,second bin,tub",
    "hole": "hole,opening,slot,cavity",
    "basket": "basket,hoop,basketball hoop",
    "net": "net,soccer goal,goal net,football goal",
    "table": "table,desk,tabletop",
    "goal": "goal,target,goal position,target position,marker,target spot,marked point,marked spot",
    "box": "box,crate,case",
    "peg": "peg,pole,post,pin,upright peg",
    "cabinet": "cabinet,cupboard,rack",
    "plate": "plate,dish",
    "bowl": "bowl",
    "coffee machine": "coffee machine,coffee maker,espresso machine,coffee spout",
    "drawer": "drawer",
    "sink": "sink",
    "tray": "tray",
    "wall": "wall",
    "block": "block,cube",
    "lid": "lid",
    "edge": "edge,edge of the table,table edge",
}
OBSTACLES = {"wall": "wall,barrier,obstacle,fence", "box": "box,crate", "bottle": "bottle"}
TOOLS = {
    "stick": "stick,rod",
    "hammer": "hammer,mallet",
    "spoon": "spoon,ladle",
    "gripper": "gripper,hand,fingers,tool",
}
COLORS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange", "brown", "pink", "gray")

SMALL = "puck block cylinder ball peg stick nut mug bottle bowl spoon towel book apple carrot toy plate hammer sponge"
SMALL = (*SMALL.split(), "soccer ball", "basketball", "lid", "marker pen", "phone", "box")
HINGED = ("drawer", "door", "window", "box", "cabinet", "fridge", "microwave", "laptop", "faucet")
PRESSED = ("button", "coffee button", "handle", "toaster", "light", "lever")
TURNED = ("dial", "faucet", "lock", "bottle", "lid", "lever", "nut", "handle")
PULLED = (*SMALL, "coffee machine", "tray")
GROUND = tuple(thing for thing in THINGS if thing not in ("tower", "light"))
INTO = ("hole", "bin", "box", "basket", "cabinet", "drawer", "bowl", "sink", "net", "coffee machine")
ONTO = ("shelf", "table", "goal", "plate", "tray", "peg", "block", "lid", "wall")
BESIDE = ("wall", "box", "coffee machine", "plate", "goal", "edge", "block", "bowl")

RELATIONS = {
    "in": "into,in,inside,inside of",
    "on": "onto,on,on top of,atop",
    "to": "to,toward,towards,at,up to",
    "out of": "out of,from,from inside,away from",
    "off": "off,off of,from,down from",
    "under": "under,beneath,below,underneath",
    "next to": "next to,beside,near,by",
    "behind": "behind,at the back of",
}
DIRECTIONS = {
    "left": "left,to the left,leftward,toward the left,leftwards",
    "right": "right,to the right,rightward,toward the right",
    "up": "up,upward,upwards",
    "down": "down,downward,downwards",
    "forward": "forward,forwards,ahead,away from the robot",
    "back": "back,backward,backwards,toward the robot,closer",
    "clockwise": "clockwise,in the clockwise direction",
    "counterclockwise": "counterclockwise,counter-clockwise,anticlockwise,in the counterclockwise direction",
}
APPROACHES = {
    "top": "from the top,from above,from the top down,vertically",
    "side": "from the side,sideways,sidewise,horizontally",
}

# Verb -> (names, objects, chances of: direction, place, approach, obstacle, tool; directions; relations).
# A bar marks a particle that may follow the object.
FLAT, TURNS, VERTICAL = ("left", "right", "forward", "back"), ("clockwise", "counterclockwise"), ("up", "down")
VERBS = {
    "open": ("open,pull|open,push|open", HINGED, (0.1, 0, 0.1, 0.05, 0.05), ("left", "right"), ()),
    "close": ("close,shut,push|shut,push|closed,close|up", HINGED, (0.1, 0, 0.1, 0.05, 0.05), ("left", "right"), ()),
    "press": ("press,push,push|down,press|down,hit,press on,push on,depress", PRESSED, (0, 0, 0.5, 0.3, 0.1), (), ()),
    "push": (
        "push,shove,slide,nudge,roll,push|away",
        SMALL,
        (0.35, 0.5, 0.05, 0.2, 0.25),
        FLAT,
        ("to", "in", "under", "next to", "off"),
    ),
    "pull": ("pull,drag,draw,tug", PULLED, (0.45, 0.45, 0.2, 0.1, 0.2), (*FLAT, *VERTICAL), ("to", "out of", "off")),
    "raise": (
        "raise,lift,pull|up,lift|up,move|up,push|up",
        ("handle", "lever", "light", "window"),
        (0, 0, 0.3, 0.1, 0.1),
        (),
        (),
    ),
    "pick": (
        "pick|up,grasp,grab,lift,take,lift|up,pick,raise",
        SMALL,
        (0.1, 0.15, 0.1, 0.05, 0.05),
        ("up",),
        ("out of", "off"),
    ),
    "place": (
        "place,put,set,lay,move,bring,carry,transfer",
        SMALL,
        (0.05, 1.0, 0.05, 0.2, 0.05),
        FLAT,
        ("in", "on", "to", "under", "next to", "behind"),
    ),
    "turn": ("turn,rotate,twist,spin,turn|around,give a turn to", TURNED, (0.6, 0, 0, 0, 0.05), TURNS, ()),
    "lock": ("lock,turn|locked", ("door", "lock", "box"), (0.3, 0, 0, 0, 0), TURNS, ()),
    "unlock": ("unlock,release", ("door", "lock", "box"), (0.3, 0, 0, 0, 0), TURNS, ()),
    "insert": (
        "insert,plug|in,stick|in,fit,slot|in",
        ("peg", "gripper", "stick", "nail"),
        (0, 0.7, 0.5, 0.1, 0),
        (),
        ("in",),
    ),
    "remove": (
        "remove,take|out,extract,pull|out,unplug,detach,get|out",
        ("peg", "nut", "plate", "mug", "book", "lid", "stick"),
        (0, 0.6, 0.4, 0.05, 0.05),
        (),
        ("out of", "off"),
    ),
    "reach": ("reach,touch,move to,go to,reach for", GROUND, (0, 0, 0.1, 0.3, 0.1), (), ()),
    "hit": (
        "hit,strike,hammer,hammer|in,pound,drive|in",
        ("nail", "block", "button"),
        (0, 0.3, 0.1, 0, 0.6),
        (),
        ("in",),
    ),
    "kick": ("kick,shoot,knock", ("soccer ball", "ball", "puck"), (0.2, 0.6, 0, 0, 0.1), FLAT, ("in", "to")),
    "throw": (
        "throw,dunk,toss,drop",
        ("basketball", "ball", "block", "toy", "apple"),
        (0.05, 0.8, 0, 0, 0),
        FLAT,
        ("in",),
    ),
    "sweep": (
        "sweep,brush,wipe",
        ("puck", "block", "ball", "towel", "sponge"),
        (0.1, 0.8, 0.05, 0, 0.1),
        FLAT,
        ("in", "off", "to"),
    ),
    "assemble": ("assemble,put together,mount,thread,attach", ("nut", "lid", "peg"), (0, 0.6, 0, 0, 0), (), ("on",)),
    "disassemble": (
        "disassemble,take apart,dismantle",
        ("nut", "tower", "box"),
        (0, 0.2, 0, 0, 0),
        (),
        ("off", "out of"),
    ),
    "stack": ("stack,pile|up", ("block", "plate", "bowl", "book", "box"), (0, 0.6, 0, 0, 0), (), ("on",)),
    "turn on": ("turn|on,switch|on,start", ("light", "coffee machine", "toaster"), (0, 0, 0, 0, 0), (), ()),
    "turn off": ("turn|off,switch|off,stop", ("light", "coffee machine", "toaster"), (0, 0, 0, 0, 0), (), ()),
}
# Other names of a verb, with one object.
NAMES_WITH = {
    ("open", "drawer"): "pull|out,slide|out,slide|open,pull|open",
    ("close", "drawer"): "push|in,slide|in,push|back in",
    ("open", "window"): "slide|open,slide|aside,move|aside",
    ("close", "window"): "slide|shut,slide|closed,move|back",
    ("open", "door"): "swing|open,pull|open",
    ("close", "door"): "swing|shut,push|shut",
    ("open", "faucet"): "turn|on,swing|open",
    ("close", "faucet"): "turn|off,swing|shut",
    ("close", "box"): "cover,put the lid on,put the cover on",
    ("press", "handle"): "move|down,lower,push|down,press|down",
    ("press", "lever"): "move|down,lower,pull|down,press|down",
    ("press", "coffee button"): "push,touch,click",
    ("remove", "nut"): "lift|off,take|off,pick|off",
    ("assemble", "nut"): "put,place,slide,fit",
}
PLACES_OF = {
    "in": INTO,
    "on": ONTO,
    "to": (*ONTO, "bin", "net", "edge"),
    "out of": INTO,
    "off": ("shelf", "table", "peg", "plate"),
    "under": ("coffee machine", "shelf", "table"),
    "next to": BESIDE,
    "behind": BESIDE,
}
WRAPPERS = (
    "{}",
    "{}",
    "{}",
    "{}",
    "please {}",
    "{} please",
    "robot, {}",
    "now {}",
    "your task is to {}",
    "the robot should {}",
    "the arm has to {}",
    "try to {}",
    "task: {}",
    "can you {}",
    "the goal is to {}",
    "move the arm to {}",
    "carefully {}",
)
SIZES = ("small", "little", "big", "large", "round", "nearby")
IRREGULAR = {
    "put": "put",
    "set": "set",
    "shut": "shut",
    "hit": "hit",
    "take": "taken",
    "draw": "drawn",
    "lay": "laid",
    "bring": "brought",
    "throw": "thrown",
    "sweep": "swept",
    "strike": "struck",
    "shoot": "shot",
    "spin": "spun",
    "drive": "driven",
    "get": "gotten",
    "stick": "stuck",
    "go": "gone",
    "swing": "swung",
    "give": "given",
}
DOUBLED = (
    "put",
    "set",
    "shut",
    "hit",
    "get",
    "grab",
    "drag",
    "tug",
    "plug",
    "unplug",
    "spin",
    "fit",
    "slot",
    "drop",
    "stop",
)


def random_instruction(rng: random.Random) -> Instruction:
    """Draw a task that makes sense."""
    verb = rng.choice(list(VERBS))
    _, things, chances, directions, relations = VERBS[verb]
    has_direction, has_place, has_approach, has_obstacle, has_tool = (rng.random() < chance for chance in chances)
    relation = rng.choice(relations) if relations and has_place else ""
    return Instruction(
        verb=verb,
        thing=rng.choice(things),
        color=rng.choice(COLORS) if rng.random() < 0.25 else "",
        direction=rng.choice(directions) if directions and has_direction and not relation else "",
        relation=relation,
        target=rng.choice(PLACES_OF[relation]) if relation else "",
        approach=rng.choice(list(APPROACHES)) if has_approach else "",
        obstacle=rng.choice(list(OBSTACLES)) if has_obstacle else "",
        tool=rng.choice(list(TOOLS)) if has_tool else "",
    )


def near_miss(wanted: Instruction, rng: random.Random) -> Instruction:
    """Change one slot of a task, so that a model must read every word."""
    _, things, _, directions, _ = VERBS[wanted.verb]
    changes = [{"thing": rng.choice(things)}]
    other_verbs = [verb for verb in VERBS if verb != wanted.verb and wanted.thing in VERBS[verb][1]]
    other_verbs = [verb for verb in other_verbs if not wanted.relation or wanted.relation in VERBS[verb][4]]
    changes += [{"verb": rng.choice(other_verbs)}] if other_verbs else []
    changes += [{"direction": rng.choice(directions)}] if directions and not wanted.relation else []
    changes += [{"color": rng.choice(COLORS)}] if wanted.color else []
    changes += [{"target": rng.choice(PLACES_OF[wanted.relation])}] if wanted.relation else []
    changes += [{"approach": rng.choice([*APPROACHES, ""])}] if wanted.approach else []
    changes += [{"obstacle": ""}] if wanted.obstacle else []
    return replace(wanted, **rng.choice(changes))


def say(wanted: Instruction, rng: random.Random) -> str:
    """Write a task as a sentence, one of very many."""
    names = VERBS[wanted.verb][0].split(",")
    if (pair := (wanted.verb, wanted.thing)) in NAMES_WITH and rng.random() < 0.4:
        names = NAMES_WITH[pair].split(",")
    verb, thing = rng.choice(names), _noun(wanted.thing, THINGS, rng, wanted.color)
    adverbs = _adverbs(wanted, rng)
    manner = rng.random()
    if manner < 0.12:
        text = f"{_gerund(verb)} {thing} {' '.join(adverbs)}"
    elif manner < 0.2:
        text = f"{thing} {rng.choice(('should be', 'must be', 'is', 'gets'))} {_participle(verb)} {' '.join(adverbs)}"
    else:
        text = rng.choice(WRAPPERS).format(_imperative(verb, thing, adverbs, wanted, rng))
    text = " ".join(text.split())
    if rng.random() < 0.5:
        text = text[0].upper() + text[1:]
    text += rng.choice(("", "", ".", "!"))
    return (PREFIX if rng.random() < 0.75 else "") + text


def _imperative(verb: str, thing: str, adverbs: list[str], wanted: Instruction, rng: random.Random) -> str:
    head, _, particle = verb.partition("|")
    said = f"{head} {thing} {particle}" if particle and rng.random() < 0.5 else f"{head} {particle} {thing}"
    if wanted.verb == "place" and rng.random() < 0.35:
        first, second = (
            rng.choice(("pick up", "grasp", "take", "grab", "lift")),
            rng.choice(("place", "put", "set", "drop")),
        )
        said = f"{first} {thing} and {second} it"
    elif wanted.verb == "close" and rng.random() < 0.15:
        said = f"push {thing} until it is {rng.choice(('closed', 'shut'))}"
    elif wanted.obstacle and rng.random() < 0.3:
        way = rng.choice(("go around", "bypass", "avoid", "move around", "go over", "move past"))
        others = [adverb for adverb in adverbs if adverb is not adverbs[-1]]  # the obstacle comes last
        return f"{way} {_noun(wanted.obstacle, OBSTACLES, rng)} and {said} {' '.join(others)}"
    elif wanted.tool and not wanted.obstacle and rng.random() < 0.4:
        others = adverbs[:-1]  # the tool comes last
        use, link = rng.choice(("use", "take", "grasp")), rng.choice(("to", "and"))
        return f"{use} {_noun(wanted.tool, TOOLS, rng)} {link} {said} {' '.join(others)}"
    if adverbs and rng.random() < 0.08:
        return f"{adverbs[-1]}, {said} {' '.join(adverbs[:-1])}"
    return f"{said} {' '.join(adverbs)}"


def _adverbs(wanted: Instruction, rng: random.Random) -> list[str]:
    """Return direction, place and approach in any order, then tool and obstacle."""
    adverbs = []
    if wanted.direction:
        adverbs.append(rng.choice(DIRECTIONS[wanted.direction].split(",")))
    if wanted.relation:
        adverbs.append(f"{rng.choice(RELATIONS[wanted.relation].split(','))} {_noun(wanted.target, PLACES, rng)}")
    if wanted.approach:
        adverbs.append(rng.choice(APPROACHES[wanted.approach].split(",")))
    if rng.random() < 0.3:
        rng.shuffle(adverbs)
    if wanted.tool:
        adverbs.append(f"{rng.choice(('with', 'using', 'by using', 'by means of'))} {_noun(wanted.tool, TOOLS, rng)}")
    if wanted.obstacle:
        way = rng.choice(("around", "past", "over", "behind", "bypassing", "while avoiding", "without touching"))
        adverbs.append(f"{way} {_noun(wanted.obstacle, OBSTACLES, rng)}")
    return adverbs


def _noun(name: str, names: dict[str, str], rng: random.Random, color: str = "") -> str:
    article = rng.choice(("the", "the", "the", "a", "that", ""))
    size = rng.choice(SIZES) if rng.random() < 0.06 else ""
    noun = rng.choice(names[name].split(","))
    words = " ".join(word for word in (size, color, noun) if word)
    return f"{'an' if article == 'a' and words[0] in 'aeiou' else article} {words}".strip()


def _gerund(verb: str) -> str:
    head, *rest = verb.replace("|", " ").split()
    stem = head[:-1] if head.endswith("e") and not head.endswith("ee") else head + head[-1] * (head in DOUBLED)
    return " ".join([f"{stem}ing", *rest])


def _participle(verb: str) -> str:
    head, *rest = verb.replace("|", " ").split()
    regular = f"{head}d" if head.endswith("e") else f"{head + head[-1] * (head in DOUBLED)}ed"
    return " ".join([IRREGULAR.get(head, "carried" if head == "carry" else regular), *rest])
