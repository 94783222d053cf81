"""The words of `tinyworld`.

Every word that can be an answer has one or two short syllables, so that a small byte-level BPE trained on the
data holds it (with the space before it) as one token.
"""

SHE = ("Mira", "Ana", "Lena", "Rosa", "Nora", "Eva", "Ida", "Sara", "Lucy", "Emma", "Kate", "Jane")
HE = ("Tom", "Ben", "Max", "Paul", "Finn", "Leo", "Otto", "Jack", "Sam", "Hugo", "Adam", "Karl")
NAMES = SHE + HE

COLOURS = ("red", "blue", "green", "black", "white", "brown", "grey", "yellow", "pink", "gold")
ANIMALS = (
    "cat",
    "dog",
    "fox",
    "cow",
    "horse",
    "goat",
    "duck",
    "hen",
    "pig",
    "sheep",
    "bird",
    "fish",
    "mouse",
)
WILD = ("frog", "bear", "wolf")
OBJECTS = (
    *("lamp", "key", "ball", "book", "boat", "cup", "ring", "drum", "hat", "coat", "bell", "box"),
    *("rope", "map", "pen", "coin", "stone", "knife", "spoon", "broom", "bag", "clock", "chair", "basket"),
)
FOODS = ("bread", "soup", "cake", "rice", "cheese", "honey", "jam", "beans", "nuts", "plums", "pears", "milk")
PLACES = (
    *("kitchen", "garden", "market", "school", "barn", "river", "forest", "mill"),
    *("library", "station", "harbour", "bakery", "bridge", "park", "shop", "church"),
)
JOBS = (
    *("baker", "farmer", "teacher", "doctor", "sailor", "tailor"),
    *("painter", "miller", "cook", "singer", "hunter", "smith"),
)

# What copying and induction draw from: any word of the open classes may follow any other.
ANY_WORDS = NAMES + COLOURS + ANIMALS + WILD + OBJECTS + FOODS + PLACES + JOBS

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
NUMBERS = (
    *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)

# Agreement: nouns with a plural in -s, and verbs whose third person singular adds -s.
COUNTED = (
    *("boy", "girl", "dog", "cat", "cow", "horse", "bird", "duck", "farmer", "teacher", "sailor", "baker"),
    *("boat", "book", "key", "lamp", "chair", "bell"),
)
WATCHERS = ("boy", "girl", "farmer", "teacher", "sailor", "baker", "dog", "cat")
SEEING = ("see", "know", "like", "need")
BESIDE = ("near", "behind", "with", "under", "beside")
SIZES = ("old", "young", "big", "small", "new", "tall")
STATES = ("old", "small", "wet", "dry", "clean", "quiet", "safe", "warm")
# Adverbial in front -> (verb for one, verb for many, what may come between the verb and the state).
TENSES = {
    "Today": ("is", "are", ""),
    "Yesterday": ("was", "were", ""),
    "For years": ("has", "have", " been"),
}
LETTERS = ("A", "B", "C", "D", "E")
