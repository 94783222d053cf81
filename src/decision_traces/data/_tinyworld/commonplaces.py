"""What everybody in `tinyworld` knows: the commonplaces that the five-choice questions ask for.

They hold in every world of every split, so a model can learn them by heart; facts about people cannot.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """One family of commonplaces.

    Attributes:
        asked: Ways to ask, each with `{x}` for the thing asked about.
        answers: Thing asked about -> answer (one word).
        near_misses: Thing asked about -> answers of this family that would be right too, and so are never
            offered as a wrong choice.
    """

    asked: tuple[str, ...]
    answers: dict[str, str]
    near_misses: dict[str, tuple[str, ...]]


PLACES_OF = Topic(
    asked=("Where do you find {x}?", "Where would you look for {x}?", "Where do people expect {x}?"),
    answers={
        "books": "library",
        "cows": "barn",
        "big boats": "harbour",
        "trains": "station",
        "wild bears": "forest",
        "flower beds": "garden",
        "pupils": "school",
        "a hot oven and a pan": "kitchen",
        "swimming fish": "river",
        "many stalls": "market",
        "fresh loaves": "bakery",
        "a heavy mill stone": "mill",
        "people at prayer": "church",
    },
    near_misses={
        "books": ("school", "market"),
        "fresh loaves": ("market", "kitchen"),
        "a hot oven and a pan": ("bakery",),
        "swimming fish": ("harbour",),
        "flower beds": ("church", "school"),
    },
)
WORK_OF = Topic(
    asked=("Who {x}?", "Which person {x}?", "Tell me who {x}."),
    answers={
        "bakes bread": "baker",
        "grows corn": "farmer",
        "teaches children": "teacher",
        "heals the sick": "doctor",
        "sails the sea": "sailor",
        "sews coats": "tailor",
        "paints pictures": "painter",
        "grinds corn": "miller",
        "cooks soup": "cook",
        "sings songs": "singer",
        "follows deer in the forest": "hunter",
        "makes iron tools": "smith",
    },
    near_misses={"bakes bread": ("cook",)},
)
TOOL_FOR = Topic(
    asked=("What do you need to {x}?", "What would help you to {x}?", "What does one take to {x}?"),
    answers={
        "cut bread": "knife",
        "eat soup": "spoon",
        "sweep the floor": "broom",
        "open a door": "key",
        "see at night": "lamp",
        "tell the time": "clock",
        "find the way": "map",
        "write a letter": "pen",
        "tie a horse": "rope",
        "drink milk": "cup",
        "pay for bread": "coin",
        "keep the head warm": "hat",
        "sit down": "chair",
        "cross the river": "boat",
        "read a story": "book",
        "play a game": "ball",
    },
    near_misses={
        "play a game": ("rope", "coin"),
        "read a story": ("lamp", "library", "teacher"),
        "find the way": ("lamp", "hunter"),
        "cross the river": ("sailor",),
        "open a door": ("smith",),
        "eat soup": ("cook", "cup"),
        "pay for bread": ("baker",),
    },
)
COLOUR_OF = Topic(
    asked=("What colour is {x}?", "What is the colour of {x}?", "Name the colour of {x}."),
    answers={
        "snow": "white",
        "grass": "green",
        "coal": "black",
        "blood": "red",
        "the clear sky": "blue",
        "the sun": "yellow",
        "a pig": "pink",
        "the earth": "brown",
        "ash": "grey",
        "a crown": "gold",
    },
    near_misses={"the sun": ("gold",), "a crown": ("yellow",), "ash": ("white",), "the earth": ("black",)},
)
ANIMAL_THAT = Topic(
    asked=("Which animal {x}?", "What animal {x}?", "Name the animal that {x}."),
    answers={
        "gives milk": "cow",
        "lays eggs for us": "hen",
        "gives wool": "sheep",
        "barks at the gate": "dog",
        "catches mice": "cat",
        "has fins": "fish",
        "pulls the cart": "horse",
        "sings in the tree": "bird",
        "rolls in the mud": "pig",
        "is afraid of cats": "mouse",
        "eats honey in the forest": "bear",
        "jumps into the pond": "frog",
    },
    near_misses={
        "lays eggs for us": ("bird",),
        "gives milk": ("sheep",),
        "is afraid of cats": ("bird",),
        "jumps into the pond": ("fish", "dog"),
        "pulls the cart": ("cow", "dog"),
    },
)
OPPOSITE_OF = Topic(
    asked=("What is the opposite of {x}?", "Which word is the opposite of {x}?", "Name the opposite of {x}."),
    answers={
        "cold": "hot",
        "hot": "cold",
        "small": "big",
        "big": "small",
        "young": "old",
        "old": "young",
        "wet": "dry",
        "dry": "wet",
        "slow": "fast",
        "fast": "slow",
        "sad": "happy",
        "happy": "sad",
    },
    near_misses={"young": ("big",), "old": ("small",), "happy": ("cold",)},
)
SEASON_OF = Topic(
    asked=("When do people see {x}?", "In which season is there {x}?", "When is the time of {x}?"),
    answers={"snow": "winter", "great heat": "summer", "falling leaves": "autumn", "first flowers": "spring"},
    near_misses={},
)

TOPICS = (PLACES_OF, WORK_OF, TOOL_FOR, COLOUR_OF, ANIMAL_THAT, OPPOSITE_OF, SEASON_OF)
