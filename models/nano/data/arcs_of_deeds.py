"""Hand-written skeletons of stories in which something is done.

An arc is made of beats, and each beat can be said in several ways, which all change the small world
alike: `effects` says how, in lines such as "thing at spot" that `world` applies. The slots are
those of `scenes`. Only sentences here, no logic.
"""

from models.nano.data.beat import Beat

COOKING = (
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
LEARNING = (
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
            "To {skill} looks easy when others do it. {A} tried five times and failed.",
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
            "{A} did it once, then twice, then ten times. {B} brought {him} a {thing}.",
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
COLLECTING = (
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
