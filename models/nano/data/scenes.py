"""The hand-written sentences around a story's arc: how it opens, what goes by, how it ends.

Slots in braces are filled by `world`: A and B are people (he, him, his and he2, him2, his2 are
their pronouns), thing is "red kite" and plain is "kite", P and Q are places with their phrases of
rest (inP) and motion (toP), spot is a hiding place, pet a named animal. What happens is in the
arcs. Only sentences here, no logic.
"""

OPENINGS = (
    "{A} lived in {town} with {his} {kin}.",
    "In the small town of {town} there lived a child called {A}.",
    "It was a {weather} {daytime} in {town}, and {A} had nothing to do.",
    "{A} woke up early. It was a {weather} morning, and everything in {town} was quiet.",
    "One {weather} {daytime}, {A} looked out of the window and smiled.",
    "There was once a child named {A} who asked a hundred questions a day.",
    "On a {weather} {daytime} in {town}, something small but important happened to {A}.",
    "{A} was seven years old and liked {food} more than anything else.",
    "Everybody in {town} knew {A}, because {he} sang on the way to school.",
    "{A} and {his} {kin} had just moved to {town}. Nothing had its place yet.",
    "The {daytime} was {weather}. {A} put on {his} coat and went outside.",
    "Not far from {town} stood a small white house, and in it lived {A}.",
    "{A} counted the days until the summer fair in {town}.",
    "This is the story of {A}, of {B}, and of a {thing}.",
    "All week it had been {weather} in {town}. {A} was tired of sitting indoors.",
    "When {A} was little, {his} {kin} told {him} a story every evening. This is one of them.",
)
INTERLUDES = (
    "A bee hummed past and landed on a flower.",
    "Somewhere a door slammed in the wind.",
    "The clock in the tower struck four.",
    "Far away, a train whistled twice.",
    "The light was soft and came in from the side.",
    "It smelled of wet grass.",
    "An old man on a bicycle rang his bell and waved.",
    "Two sparrows were fighting over a crumb.",
    "For a while nobody said a word.",
    "A cloud shaped like a fish moved slowly across the sky.",
    "The neighbours were hanging out their washing.",
    "Then it began to drip from the roof, one drop at a time.",
    "A dog barked, and another one answered.",
    "The stones were still warm from the sun.",
    "Someone nearby was playing the piano, always the same three notes.",
    "{A} could hear {his} own heart beating.",
    "{A} hummed a song that had no words.",
    "{A} liked it when things were quiet.",
    "Nothing about the day seemed special, and yet {A} remembered it for years.",
    "A snail had crossed the path and left a silver line behind it.",
)
# Only while B is there.
TOGETHER = (
    "{B} kicked a pebble along the path.",
    '"Are you cold?" asked {B}. {A} shook {his} head.',
    '"I have an idea," said {A}, "but I am not sure it is a good one."',
    "They shared a handful of nuts that {B} had in {his2} pocket.",
)
MEETINGS = (
    "{A}'s best friend was {B}, who lived next door.",
    "{A} often played with {B}. The two had known each other all their lives.",
    "Soon {B} came along, with muddy shoes as always.",
    "{B} was already waiting at the corner.",
    "{A} did not like to be alone, so {he} went to fetch {B}.",
    "{B} was new in the class, and {A} had promised to look after {him2}.",
    "{B} was a year older than {A} and knew a great deal about insects.",
    "{A} shared a desk at school with {B}.",
    "{B} could whistle louder than anyone, and so {A} always knew where {he2} was.",
    '"Wait for me!" called a voice. It was {B}.',
)
FEELING_ENDS = (
    "In the end {A} was {feeling}.",
    "That evening {A} felt {feeling}, and it showed.",
    '"How are you now?" asked {his} {kin}. "I am {feeling}," said {A}.',
    "{A} went to bed {feeling}.",
    "{A} was so {feeling} that {he} told the whole story twice.",
    "All the way home {A} felt {feeling}.",
)
ENDINGS = (
    "And that was that.",
    "The next day it rained, but nobody minded.",
    "They still talk about it in {town}.",
    "{B} promised to come again tomorrow.",
    "Outside, the first stars came out.",
    "Then {his} {kin} turned off the light.",
    "Some days are small and good, and this had been one of them.",
    "After that, {A} and {B} were better friends than before.",
    '"Let us do it again," said {B}.',
    "{A} never told anyone else about it.",
    "From then on, {A} looked at things more carefully.",
    "It was only a little thing, but little things count.",
)
FINDS = ("shells", "feathers", "coins", "acorns", "mushrooms", "pine cones", "chestnuts", "buttons")
SHELTERS = ("the barn", "the library", "the attic", "the old mill", "the bakery", "the workshop")
SKILLS = (
    "swim", "ride a bicycle", "whistle", "skate", "juggle", "tie a bow", "play the flute",
    "read a map", "climb a rope", "row a boat", "bake bread", "stand on one leg", "sing in tune",
)  # fmt: skip
