"""The hand-written story skeletons: arcs of beats, and each beat several ways to say it.

All ways of a beat change the small world alike: `effects` says how, in lines such as "thing at spot"
that `world` applies. Slots in braces are filled by `world`: A and B are people (he, him, his and
he2, him2, his2 are their pronouns), thing is "red kite" and plain is "kite", P and Q are places
with their phrases of rest (inP) and motion (toP), spot is a hiding place, pet is a named animal.
Only sentences here, no logic.
"""

from typing import NamedTuple


class Beat(NamedTuple):
    """One step of a story."""

    effects: tuple[str, ...]
    ways: tuple[str, ...]


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

_LOST_AND_FOUND = (
    Beat(
        ("thing held A",),
        (
            "{A} had a {thing}. {His} {kin} had given it to {him}, and {he} took it everywhere.",
            "What {A} loved most was a {thing} from {his} {kin}.",
            "{A} owned a {thing}. It was old and a little bent, but it was {hers}.",
            "For {his} birthday {A} had got a {thing}, and {he} would not put it down.",
        ),
    ),
    Beat(
        ("A at P", "B at P"),
        (
            "In the afternoon {A} and {B} went {toP} to play.",
            "They ran {toP}, as they did every week.",
            '"Come on," said {B}, and both of them walked {toP}.',
            "It was not far {toP}, so {A} and {B} went there on foot.",
        ),
    ),
    Beat(
        ("thing at spot",),
        (
            "While they were playing, {A} laid the {plain} {spot} and forgot all about it.",
            "{A} needed both hands for climbing, so {he} left the {plain} {spot}.",
            "{A} put the {plain} {spot}, only for a moment. Then {B} called, and {he} ran off.",
            "They played hide and seek. {A} hid the {plain} {spot} and then could not remember it.",
        ),
    ),
    Beat(
        (),
        (
            "On the way home {A} stopped. {His} hands were empty!",
            '"Where is it?" cried {A}. {He} turned out all {his} pockets.',
            "At supper {A} noticed that something was missing, and {his} eyes filled with tears.",
            "Suddenly {A} went pale. {He} looked left and right and behind {him}.",
        ),
    ),
    Beat(
        (),
        (
            '"Think slowly," said {B}. "Where were we when you still had it?"',
            '{B} put an arm around {him}. "Lost things are always somewhere," {he2} said.',
            "{B} drew a map in the dust of everywhere they had been.",
            '"Crying does not find anything," said {B} kindly. "Looking does."',
        ),
    ),
    Beat(
        ("thing held B",),
        (
            "They went back and searched. At last {B} found the {plain} {spot} and held it up.",
            "It was {B} who found it. The {plain} was still {spot}, and {he2} picked it up.",
            "{B} looked {spot}, and there was the {plain}! {He2} lifted it out with care.",
            "They looked high and low, until {B} pulled out the {plain}. It had been {spot}.",
        ),
    ),
    Beat(
        ("thing held A",),
        (
            "{B} gave the {plain} back to {A}, who hugged it.",
            '"Here," said {B}, and handed {A} the {plain}. {A} could hardly speak.',
            "{A} took the {plain} from {B} and thanked {him2} three times.",
        ),
    ),
)
_GIFT = (
    Beat(
        ("thing held A",),
        (
            "{A} had saved money for weeks, and now {he} bought a {thing}.",
            "In a shop window {A} saw a {thing}, and {he} knew at once who it was for.",
            "{A} had made a {thing} with {his} own hands. It took {him} three evenings.",
            "{A} wrapped a {thing} in old newspaper and tied it with string.",
        ),
    ),
    Beat(
        (),
        (
            "It was a present, because tomorrow was {B}'s birthday.",
            "{B} had been ill for a week, and {A} wanted to cheer {him2} up.",
            "{B} had helped {A} with the sums at school, and {A} wanted to say thank you.",
            "{B} was going to move away, and {A} wanted {him2} to have something to keep.",
        ),
    ),
    Beat(
        ("thing at spot",),
        (
            "Until then the {plain} had to be a secret, so {A} hid it {spot}.",
            "{A} kept the {plain} {spot}, where nobody would look.",
            '"Nobody must see it," thought {A}, and put the {plain} {spot}.',
        ),
    ),
    Beat(
        ("A at P", "B at P"),
        (
            "The next day {A} asked {B} to come {toP}.",
            "{A} and {B} met {inP} when school was over.",
            '"Close your eyes," said {A}, and led {B} by the hand {toP}.',
        ),
    ),
    Beat(
        ("thing held B",),
        (
            "There {A} gave {B} the {plain}. {B} opened {his2} mouth, but no word came out.",
            '{A} held out the {plain}. "It is for you," {he} said, and {B} took it.',
            "{B} pulled at the string, the paper fell off, and there was the {plain}. Now it was {hers2}.",
        ),
    ),
    Beat(
        (),
        (
            '"Nobody ever gave me something so nice," said {B}.',
            "{B} turned it around and around and laughed.",
            '"How did you know?" asked {B}. {A} only smiled.',
        ),
    ),
)
_ANIMAL = (
    Beat(
        ("A at P",),
        (
            "{A} was {inP} when {he} heard a thin little cry.",
            "On {his} way {toP} {A} saw something move. When {he} got there, {he} looked again.",
            "{A} had gone {toP} to pick flowers. But there was something in the grass.",
        ),
    ),
    Beat(
        ("pet at P",),
        (
            "It was a young {animal} with a hurt leg.",
            "A {animal} sat there, wet and shaking.",
            "There, {inP}, lay a small {animal}. It was too weak to run away.",
            "A {animal} looked up at {him} with round dark eyes.",
        ),
    ),
    Beat(
        (),
        (
            '"Do not be afraid," whispered {A}. {He} sat down and waited.',
            "{A} did not touch it at first. {He} knew that animals need time.",
            "{A} took off {his} scarf and laid it around the little animal.",
        ),
    ),
    Beat(
        ("pet at Q", "A at Q"),
        (
            "Then {A} carried the {animal} {toQ}, where it was dry and safe.",
            "Very slowly {A} picked the {animal} up and took it {toQ}.",
            "{A} made a bed of straw {inQ} and brought the {animal} there.",
        ),
    ),
    Beat(
        ("pet named", "B at Q"),
        (
            '{B} came to look. "We should call it {pet}," {he2} said, and so they did.',
            "{A} named the {animal} {pet}. {B} came every day with water.",
            '"What is it called?" asked {B}, who had come to help. "{pet}," said {A}.',
            "They gave the {animal} a name: {pet}. {B} wrote it on a piece of wood and hung it up.",
        ),
    ),
    Beat(
        ("pet ate",),
        (
            "{pet} ate nothing but {food}, and grew stronger every day.",
            "{B} tried bread and milk, but {pet} only wanted {food}.",
            "After two days {pet} ate some {food}. That was a good sign.",
        ),
    ),
    Beat(
        (),
        (
            "A week later {pet} could walk again, and followed {A} like a shadow.",
            "When spring came, {pet} was well and did not want to leave.",
            "Soon {pet} was jumping about as if nothing had happened.",
        ),
    ),
)
_QUARREL = (
    Beat(
        ("A at P", "B at P"),
        (
            "{A} and {B} were {inP} when they both saw it at the same time.",
            "One day {A} and {B} were playing {inP}.",
            "{A} met {B} {inP}. At first everything was fine.",
        ),
    ),
    Beat(
        ("thing held A",),
        (
            "A {thing} lay on the ground, and {A} was quicker. {He} snatched it up.",
            "{A} found a {thing} and put it under {his} arm. {B} wanted it too.",
            "There was only one {thing}, and {A} had it.",
        ),
    ),
    Beat(
        (),
        (
            '"It is mine!" shouted {A}. "I saw it first!" shouted {B}.',
            "They pulled and pushed, and both of them became red in the face.",
            '{B} folded {his2} arms. "You never share," {he2} said. That hurt.',
            "{A} said something that {he} was sorry for at once.",
        ),
    ),
    Beat(
        ("B at Q",),
        (
            "{B} turned around and walked off {toQ}.",
            "{B} did not say goodbye. {He2} went {toQ} and sat there alone.",
            "With tears in {his2} eyes {B} ran {toQ}.",
        ),
    ),
    Beat(
        (),
        (
            "Alone, {A} did not enjoy it any more. What good is a {plain} without a friend?",
            "{A} sat for a long time. Being right felt surprisingly cold.",
            '{A} asked {his} {kin} what to do. "Say that you are sorry, and mean it," was the answer.',
        ),
    ),
    Beat(
        ("A at Q", "thing held B"),
        (
            'So {A} went {toQ} and gave the {plain} to {B}. "I am sorry," {he} said.',
            "At last {A} followed {him2} {toQ}. {He} handed {B} the {plain} without a word.",
            '{A} walked {toQ}. "You can have it," {he} said, and put the {plain} into {B}\'s hands.',
        ),
    ),
    Beat(
        (),
        (
            '{B} sniffed, and then {he2} laughed. "Let us take turns," {he2} said.',
            '"I am sorry too," said {B}, and moved over to make room.',
            "They looked at each other, and the quarrel was over.",
        ),
    ),
)
_ERRAND = (
    Beat(
        ("thing held A",),
        (
            '"Please take this {thing} to {B}," said {A}\'s {kin}. {A} took it and nodded.',
            "{A}'s {kin} gave {him} a {thing}. It had to be with {B} before dark.",
            "{A} had borrowed a {thing} from {B}, and today {he} wanted to bring it back.",
        ),
    ),
    Beat(
        ("A at P",),
        (
            "First {A} went {toP}, because {he} thought that {B} would be there.",
            "{A} took the way {toP}. It was longer, but prettier.",
            "{A} stopped {inP} to rest.",
        ),
    ),
    Beat(
        (),
        (
            "There {he} met a woman with a heavy bag and helped her carry it.",
            "A goose stood in the way and hissed. {A} hissed back, and the goose was so surprised that it left.",
            "The wind blew off {his} hat, and {he} had to chase it.",
            "A bridge was closed, and {he} had to ask a fisherman for the way.",
        ),
    ),
    Beat(
        ("B at Q", "A at Q"),
        (
            "Finally {A} came {toQ}. There was {B}!",
            "{B} was {inQ}, and that is where {A} found {him2}.",
            '{A} asked everyone. "{B} is {inQ}," said the postman, and so {A} went there.',
        ),
    ),
    Beat(
        ("thing held B",),
        (
            "{A} gave {B} the {plain}.",
            '"This is for you," said {A}, and {B} took the {plain}.',
            "{B} was glad to get the {plain} and put it in {his2} bag.",
        ),
    ),
    Beat(
        ("A ate",),
        (
            "As a thank-you, {A} got some {food}.",
            "{B} had {food} at home, and {A} ate until {he} could eat no more.",
            "Then they sat down, and {A} ate {food} from a wooden bowl.",
        ),
    ),
)
_COOKING = (
    Beat(
        ("A at P", "B at P"),
        (
            "{A} and {B} wanted to cook something, and they met {inP}.",
            "There was to be a feast {inP}, and {A} and {B} went there to help.",
            "{B} came {toP}, where {A} was waiting with a big spoon.",
        ),
    ),
    Beat(
        ("A ate",),
        (
            "{A} wanted {food}. {He} had eaten {food} at {his} {kin}'s house and never forgot it.",
            'They made {food}. "I could eat this every day," said {A} with {his} mouth full.',
            "The {food} smelled so good that {A} ate some before it was ready.",
        ),
    ),
    Beat(
        (),
        (
            "{B} spilled flour on the floor, and soon both of them were white as ghosts.",
            "They did not have a recipe, so they tasted and guessed.",
            '"More salt?" asked {B}. "Never," said {A}.',
            "Something began to smoke. {B} opened all the windows.",
        ),
    ),
    Beat(
        ("thing held B",),
        (
            "{B} had brought a {thing} and kept it beside {him2} the whole time.",
            "{A} found a {thing} in a corner and gave it to {B}, who liked such things.",
            "{B} won a {thing} for stirring the longest.",
        ),
    ),
    Beat(
        ("thing at spot",),
        (
            "Before they sat down, {B} put the {plain} {spot}.",
            "{B} needed {his2} hands and laid the {plain} {spot}.",
            "So that it would stay clean, {B} hid the {plain} {spot}.",
        ),
    ),
    Beat(
        (),
        (
            "Then all the neighbours came with plates and chairs.",
            "It was not perfect, but nobody left a crumb.",
            "They ate, and told stories, and washed up together.",
        ),
    ),
)
_LEARNING = (
    Beat(
        ("A at P",),
        (
            "Every day {A} went {toP} to practise. {He} wanted to learn to {skill}.",
            "{A} could do many things, but {he} could not {skill}. So {he} went {toP} to try.",
            '"I will never learn to {skill}," said {A}, and sat down {inP}.',
        ),
    ),
    Beat(
        ("A learned",),
        (
            "It is hard to {skill}. The first time, everything went wrong.",
            "To {skill} looks easy when others do it. {A} tried it five times and failed five times.",
            "{A} dreamed at night that {he} could {skill}. By day it was another matter.",
        ),
    ),
    Beat(
        ("B taught", "B at P"),
        (
            '{B} came by and watched. "I can show you," {he2} said.',
            "{B} had learned it last year, and now {he2} was {A}'s teacher.",
            "Luckily {B} was there. {He2} explained it slowly, one step after the other.",
        ),
    ),
    Beat(
        (),
        (
            '"Do not look at your feet," said {B}.',
            '"Everyone falls at first," said {B}. "I fell for a month."',
            '"Again," said {B}. And again, and again.',
            "They made a rule: after every mistake they had to laugh.",
        ),
    ),
    Beat(
        ("thing held A",),
        (
            "On the last day {A} did it without help, and {B} gave {him} a {thing} as a prize.",
            "Then, all at once, it worked! {B} cheered and gave {A} a {thing}.",
            "{A} did it once, then twice, then ten times. {B} brought {him} a {thing} to remember the day.",
        ),
    ),
)
STORM = (
    Beat(
        ("A at P", "B at P"),
        (
            "{A} and {B} were {inP} when the sky went dark.",
            "They had just come {toP} when {A} and {B} heard the thunder.",
            '"It will pass," said {B}, but {he2} and {A} were {inP}, far from home.',
        ),
    ),
    Beat(
        (),
        (
            "The wind tore at the branches, and leaves flew everywhere.",
            "Then the rain came, so thick that they could not see each other.",
            "A flash lit up everything, white as paper.",
        ),
    ),
    Beat(
        ("A at Q", "B at Q"),
        (
            "They took each other by the hand and ran {toQ}.",
            '"This way!" cried {A}, and they fled {toQ}.',
            "Wet to the skin, {A} and {B} reached shelter {inQ}.",
        ),
    ),
    Beat(
        ("thing at spot",),
        (
            "It was dark, but {A} felt something {spot}: a {thing}.",
            "There they found a {thing} {spot}. Somebody must have left it.",
            "{B} noticed a {thing} {spot}. It was covered in dust.",
        ),
    ),
    Beat(
        ("thing held A",),
        (
            "{A} picked the {plain} up and held it until the storm was over.",
            '"May I?" asked {A}, and took the {plain}. {He} forgot to be afraid.',
            "{A} wiped the {plain} with {his} sleeve and kept it.",
        ),
    ),
    Beat(
        (),
        (
            "When it was quiet again, a rainbow stood over {town}.",
            "The storm moved on, grumbling like an old bear.",
            "Everything dripped and shone, and the air was new.",
        ),
    ),
)
_COLLECTING = (
    Beat(
        ("A at P", "thing held A"),
        (
            "{A} went {toP} with a {thing} under {his} arm.",
            "{A} never went {toP} without {his} {thing}.",
            "With a {thing} in {his} hand, {A} came {toP}.",
        ),
    ),
    Beat(
        ("B at P", "number found"),
        (
            "There {he} met {B}, and together they found {number} {finds}.",
            "{B} came too. They looked for {finds} and found {number} of them.",
            "{A} and {B} searched the ground for {finds}. In an hour they found {number}.",
            "{B} was there already. {He2} had found {number} {finds} and was looking for more.",
        ),
    ),
    Beat(
        (),
        (
            '"Is that a lot?" asked {B}. "It is enough," said {A}.',
            "They laid them all in a row and looked at them for a while.",
            "{A} counted once more, to be sure.",
        ),
    ),
    Beat(
        ("thing held B",),
        (
            "{B} could not stop looking at the {plain}. So {A} let {him2} have it.",
            "{A} swapped {his} {plain} for {B}'s whistle, and both of them thought they had won.",
            "When they parted, {A} gave {B} the {plain} to keep.",
        ),
    ),
    Beat(
        ("A at Q",),
        (
            "Then {A} had to go {toQ}, where {his} {kin} was waiting.",
            "Later {A} went {toQ} by {himself}.",
            "It grew late, and {A} walked on {toQ}.",
        ),
    ),
)

ARCS = (
    _LOST_AND_FOUND, _GIFT, _ANIMAL, _QUARREL, _ERRAND, _COOKING, _LEARNING, STORM, _COLLECTING,
)  # fmt: skip
FINDS = ("shells", "feathers", "coins", "acorns", "mushrooms", "pine cones", "chestnuts", "buttons")
SHELTERS = ("the barn", "the library", "the attic", "the old mill", "the bakery", "the workshop")
SKILLS = (
    "swim", "ride a bicycle", "whistle", "skate", "juggle", "tie a bow", "play the flute",
    "read a map", "climb a rope", "row a boat", "bake bread", "stand on one leg", "sing in tune",
)  # fmt: skip
