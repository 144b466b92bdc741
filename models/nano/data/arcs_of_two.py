"""Hand-written skeletons of stories about two people and a thing.

An arc is made of beats, and each beat can be said in several ways, which all change the small world
alike: `effects` says how, in lines such as "thing at spot" that `world` applies. The slots are
those of `scenes`. Only sentences here, no logic.
"""

from models.nano.data.beat import Beat

LOST_AND_FOUND = (
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
GIFT = (
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
            "{B} pulled at the string, the paper fell off, and now the {plain} was {hers2}.",
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
ANIMAL = (
    Beat(
        ("A at P",),
        (
            "{A} was {inP} when {he} heard a thin little cry.",
            "On {his} way {toP} {A} saw something move. When {he} got there, {he} looked again.",
            "{A} had gone {toP} to be alone for a while. But {he} was not alone.",
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
QUARREL = (
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
            '{A} asked {his} {kin} for advice. "Say that you are sorry, and mean it," was all.',
        ),
    ),
    Beat(
        ("A at Q", "thing held B"),
        (
            'So {A} went {toQ} and gave the {plain} to {B}. "I am sorry," {he} said.',
            "At last {A} followed {him2} {toQ}. {He} handed {B} the {plain} without a word.",
            '{A} walked {toQ}. "You can have it," {he} said, and gave {B} the {plain}.',
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
ERRAND = (
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
            "A goose stood in the way and hissed. {A} hissed back, and the goose walked off.",
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
