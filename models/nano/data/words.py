"""The words that the written samples draw from, in two halves that never meet.

`TRAINING` is for training, `EVALUATION` for figures: people, animals' names, facts and the parts of
tool names in one are not in the other, so a right answer cannot be remembered from training. Words
for things, places and colours are shared: they are the language, not the fact.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Pool:
    """Names that may carry a fact. `tool_verbs` and `tool_nouns` make the names of tools."""

    girls: tuple[str, ...]
    boys: tuple[str, ...]
    pets: tuple[str, ...]
    towns: tuple[str, ...]
    surnames: tuple[str, ...]
    tool_verbs: tuple[str, ...]
    tool_nouns: tuple[str, ...]
    codes: tuple[str, ...]  # the first half of a code word; digits follow
    others: tuple[str, ...] = ()  # made-up names, for facts and tools
    people: tuple[str, ...] = field(init=False)  # all of these

    def __post_init__(self) -> None:
        object.__setattr__(self, "people", self.girls + self.boys + self.others)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TRAINING = Pool(
    girls=_words(
        "Mia Anna Lily Rosa Emma Clara Nora Ella Lucy Grace Ruth Alice Maya Ivy Jane Molly Tara Zoe"
        " Hanna Leah Nina Olga Priya Sara Tessa Wanda Amina Bella Chloe Daisy Eva Fiona Greta"
        " Helen Ines Julia Karen Laila Marta Naomi Paula Rita Sofia Thea Uma Vera Yuki Hazel June"
    ),
    boys=_words(
        "Tom Ben Sam Max Leo Jack Adam Peter Paul Omar Noah Luke Oscar Finn Hugo Ivan Jonas Karl"
        " Liam Milo Nico Otto Pablo Ravi Simon Theo Victor Will Amir Bruno Carlos David Emil Felix"
        " George Henry Isaac James Kenji Lars Mark Nathan Oliver Quinn Robert Stefan Tim Walter"
    ),
    pets=_words(
        "Biscuit Pepper Shadow Button Smoky Clover Ginger Patch Rusty Snowy Socks Maple Bramble"
        " Cocoa Domino Echo Fudge Goose Honey Inky Jasper Kipper Lucky Muffin Nugget Olive Pickle"
        " Raisin Sandy Toffee Velvet Waffle Ziggy Bandit Copper Dusty"
    ),
    towns=_words(
        "Ashford Brookfield Cedarville Dunmore Eastham Fairview Glenwood Hartley Ironbridge"
        " Kingsley Lakeside Marlow Northam Oakdale Pinewood Redhill Stonebury Thornton Underhill"
        " Westbrook Millbrook Saltmarsh Greenford Highcliff Longmeadow Riverton"
    ),
    surnames=_words(
        "Baker Carter Dunn Ellis Foster Grant Hill Irving Jensen Keller Lopez Mason Novak Owens"
        " Parker Reed Stone Turner Vance Walsh Young Abbott Brooks Cole Drake Evans"
    ),
    tool_verbs=_words(
        "get find list send make add set check open close start stop read write move copy count"
        " search create update delete book order play turn show save load track plan fetch look"
        " submit cancel schedule measure convert translate compare record rate reserve print"
    ),
    tool_nouns=_words(
        "weather note alarm timer light door song list task file map route price stock order table"
        " room ticket train bus letter message mail photo picture recipe meal book page card game"
        " score team player lamp oven garden plant pump sensor camera drone parcel shelf report"
        " invoice account balance event meeting contact number word color unit date city"
    ),
    codes=_words(
        "amber cobalt falcon granite harbor indigo juniper lantern meadow nickel orchid pebble"
        " quartz raven saffron timber violet walnut zephyr anchor beacon cinder dynamo ember"
    ),
)

EVALUATION = Pool(
    girls=_words("Agnes Brenda Celia Dora Edith Freya Gwen Hilda Irene Joyce Kira Lotte"),
    boys=_words("Abel Boris Cyrus Dmitri Ernest Floyd Gavin Harold Igor Jerome Kurt Lionel"),
    pets=_words("Acorn Bubbles Cricket Dandy Fizz Pumpkin Rocket Sprout Tango Whisper"),
    towns=_words("Alderwick Birchham Coldwater Dovebridge Elmsworth Foxley Grayport Hollowell"),
    surnames=_words("Archer Bishop Curtis Dalton Emerson Fletcher Gibson Hayes Ingram Jarvis"),
    tool_verbs=_words("lookup retrieve compose enqueue arrange inspect register assemble launch"),
    tool_nouns=_words(
        "forecast reminder playlist elevator voucher itinerary aquarium bookmark telescope locker"
        " shuttle thermostat gallery harvest umbrella"
    ),
    codes=_words("basalt canyon delta glacier hazelnut ivory jasmine lagoon marble onyx"),
)

COLOURS = _words("red blue green yellow orange purple pink brown black white grey silver golden")
THINGS = _words(
    "kite ball book cup hat scarf drum lamp basket bell boat box brush bucket button coat doll"
    " flute key mitten mug pencil ribbon ring rope shell shoe spoon stone toy top umbrella vase"
    " whistle blanket jar kettle pillow glove marble"
)
FOODS = _words(
    "soup bread pancakes apples plums cheese honey rice noodles carrots porridge cherries pears"
    " dumplings beans muffins grapes pie biscuits peaches"
)
ANIMALS = _words(
    "cat dog rabbit duck goat hen pony mouse hedgehog turtle frog squirrel owl lamb fox parrot"
)
FEELINGS = _words("happy proud tired calm glad brave sleepy thankful cheerful surprised")
WEATHERS = (
    "sunny", "cloudy", "windy", "rainy", "snowy", "foggy", "warm", "cold", "stormy", "frosty",
)  # fmt: skip

# (name, phrase of rest, phrase of motion): a place is spoken of in one way only, so that an answer
# can be copied from the story.
PLACES = (
    ("the garden", "in the garden", "into the garden"),
    ("the kitchen", "in the kitchen", "into the kitchen"),
    ("the barn", "in the barn", "to the barn"),
    ("the market", "at the market", "to the market"),
    ("the library", "in the library", "to the library"),
    ("the river", "by the river", "down to the river"),
    ("the beach", "on the beach", "to the beach"),
    ("the park", "in the park", "to the park"),
    ("the attic", "in the attic", "up to the attic"),
    ("the old mill", "at the old mill", "to the old mill"),
    ("the school yard", "in the school yard", "to the school yard"),
    ("the orchard", "in the orchard", "to the orchard"),
    ("the harbour", "at the harbour", "to the harbour"),
    ("the bakery", "in the bakery", "to the bakery"),
    ("the hill", "on the hill", "up the hill"),
    ("the workshop", "in the workshop", "to the workshop"),
    ("the pond", "by the pond", "to the pond"),
    ("the meadow", "in the meadow", "to the meadow"),
    ("the station", "at the station", "to the station"),
    ("the forest", "in the forest", "into the forest"),
)
SPOTS = (
    "under the bed", "behind the door", "on the top shelf", "under a bench", "in a wooden chest",
    "behind the stove", "on the window sill", "in an empty bucket", "under a pile of leaves",
    "in the tall grass", "on a tree stump", "behind a stone wall", "in a paper bag",
    "under the stairs", "beside the well", "on the kitchen table", "in the bottom drawer",
    "behind the curtain", "inside an old boot", "under the blue rug", "next to the gate",
    "in a hollow tree",
)  # fmt: skip
KIN = (
    "mother", "father", "grandmother", "grandfather", "aunt", "uncle", "teacher", "neighbour",
)  # fmt: skip
