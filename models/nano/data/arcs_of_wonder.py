"""Hand-written skeletons of stories in which somebody waits, wonders or is afraid.

An arc is made of beats, and each beat can be said in several ways, which all change the small world
alike: `effects` says how, in lines such as "thing at spot" that `world` applies. The slots are
those of `scenes`. Only sentences here, no logic.
"""

from models.nano.data.beat import Beat

MAP = (
    Beat(
        (),
        (
            "In an old book {A} found a map. A cross was drawn on it in red ink.",
            "A piece of paper fell out of a coat that had belonged to {A}'s {kin}. It was a map.",
            "The wind blew a yellow paper to {A}'s feet. Someone had drawn a map on it.",
        ),
    ),
    Beat(
        ("A at P", "B at P"),
        (
            "{A} showed it to {B}. The way led {toP}, and so that is where they went.",
            '"That looks like a way {toP}," said {B}, and off they went together.',
            "{A} and {B} turned it this way and that way, and followed it {toP}.",
        ),
    ),
    Beat(
        (),
        (
            "They counted twenty steps to the left and ten to the right.",
            "They dug, but found only an old nail and a very surprised worm.",
            '"We are holding it upside down," said {B}. So they began again.',
            "{A} measured the ground with a stick, and {B} wrote the numbers down.",
        ),
    ),
    Beat(
        ("A at Q", "B at Q"),
        (
            "The last line of the map pointed {toQ}. They ran.",
            "Then {A} understood: the cross was not there but {inQ}. They went on {toQ}.",
            "A boy with a fishing rod sent them {toQ}.",
        ),
    ),
    Beat(
        ("thing at spot",),
        (
            "And there, {spot}, lay a {thing}.",
            "{B} saw it first: a {thing}, {spot}.",
            "They searched everything. The treasure was {spot}. It was a {thing}!",
        ),
    ),
    Beat(
        ("thing held B",),
        (
            '"You have better pockets," said {A}, and let {B} carry the {plain}.',
            "{B} took the {plain} and held it up to the light.",
            "They drew straws, and {B} won the {plain}.",
        ),
    ),
    Beat(
        (),
        (
            "It was not gold, but it was theirs.",
            '"Who put it there?" asked {B}. They never found out.',
            "{A} drew a new map that evening, for somebody else to find.",
        ),
    ),
)
DARK = (
    Beat(
        (),
        (
            "{A} was afraid of the dark, but did not want anyone to know.",
            "At night {A} heard sounds. They were like steps, very slow.",
            "There was one thing that {A} did not like, and that was the night.",
        ),
    ),
    Beat(
        ("A at P",),
        (
            "One evening {A} had to go {toP} alone.",
            "It was late when {A} remembered {his} bag. It was still {inP}, and {he} went back.",
            "The lamp went out while {A} was {inP}.",
        ),
    ),
    Beat(
        ("thing at spot",),
        (
            "Something pale stood {spot}. {A} held {his} breath. It was only a {thing}.",
            "A shape moved, {spot}. {A} wanted to scream. Then {he} saw that it was a {thing}.",
            "{A} stumbled over something {spot}. It was a {thing}, and it did not bite.",
        ),
    ),
    Beat(
        ("thing held A",),
        (
            "{A} took the {plain} and laughed at {himself}.",
            "{He} picked the {plain} up and kept it close.",
            "With the {plain} in {his} arms {A} felt braver.",
        ),
    ),
    Beat(
        ("B at P",),
        (
            'Then {B} came with a light. "I do not like the dark either," {he2} said.',
            "{B} had come to look for {him}. They sat down and listened together.",
            '"Is that you?" called {B}, and sat down beside {him}.',
        ),
    ),
    Beat(
        (),
        (
            "They named the sounds one by one: wind, owl, water, wood.",
            "The dark is only the day with its eyes shut, {B} explained.",
            "After a while they could see the stars, thousands of them.",
        ),
    ),
    Beat(
        ("A at Q", "B at Q"),
        (
            "Hand in hand they walked {toQ}, without a lamp.",
            "Later they went {toQ}, and {A} was the one who led the way.",
            '"Race you," said {A}, and both ran through the night {toQ}.',
        ),
    ),
)
SEED = (
    Beat(
        ("A at P",),
        (
            "{A} put a seed into the earth {inP} and watered it.",
            "In spring {A} planted something {inP}. {He} had forgotten what it was.",
            "{A} had a corner of {his} own {inP}, and there {he} planted a seed.",
        ),
    ),
    Beat(
        (),
        (
            "Nothing happened on the first day, nor on the second, nor on the tenth.",
            "Every morning {A} looked, and every morning there was only earth.",
            "{A} talked to it, because somebody had said that plants like that.",
        ),
    ),
    Beat(
        ("B at P",),
        (
            '{B} knelt down beside {him}. "You have to wait without looking," {he2} said.',
            "{B} came with a can of water, and from then on they took turns.",
            '"Perhaps it is asleep," said {B}, who had come to see it.',
        ),
    ),
    Beat(
        ("number found",),
        (
            "While they were weeding, they found {number} {finds} in the earth.",
            "They made a border out of {number} {finds} that they had found.",
            "{B} dug a little deeper. All they found was {number} {finds}.",
        ),
    ),
    Beat(
        ("thing held B",),
        (
            "{B} brought a {thing} so that the birds would stay away.",
            "To pass the time {B} carried a {thing} about and told it jokes.",
            "{A} gave {B} a {thing} for all the help.",
        ),
    ),
    Beat(
        (),
        (
            "Then one morning a small green tip looked out.",
            "In June it had two leaves. In July it was as tall as {A}.",
            "It grew so fast that they could almost hear it.",
        ),
    ),
    Beat(
        ("A ate",),
        (
            "To celebrate, {A} had {food} for breakfast, lunch and supper.",
            "In autumn there was a feast, and {A} ate far too much {food}.",
            "{A} ate {food} beside it and was proud, as if {he} had done the growing {himself}.",
        ),
    ),
)
LETTER = (
    Beat(
        ("B at Q",),
        (
            "{B} had gone away for the summer and was staying {inQ}.",
            "Since spring {B} had worked {inQ}, and {A} missed {him2}.",
            "{B} was spending the week {inQ}.",
        ),
    ),
    Beat(
        ("A at P",),
        (
            "{A} sat {inP} and wrote a letter. It took the whole afternoon.",
            "With a pencil and a sheet of paper {A} went {toP}.",
            '"Dear {B}," wrote {A}. {He} was sitting {inP} and could not think of more.',
        ),
    ),
    Beat(
        (),
        (
            "{A} wrote about the rain, about the cat next door, and about a loose tooth.",
            "{A} drew a picture, because some things cannot be written.",
            "{He} crossed out three words and wrote them again, more neatly.",
        ),
    ),
    Beat(
        ("thing held A",),
        (
            "{A} also wanted to send a {thing}. It lay ready on {his} knees.",
            "There was room in the parcel, and {A} took {his} {thing} and looked at it once more.",
            "{A} thought for a long time and then fetched a {thing}.",
        ),
    ),
    Beat(
        ("thing held B",),
        (
            "Three days later the postman gave {B} the {plain} and the letter.",
            "The parcel travelled by train and by boat. Then {B} held the {plain} in {his2} hands.",
            "When {B} opened the parcel, the {plain} fell into {his2} lap.",
        ),
    ),
    Beat(
        (),
        (
            "The answer came on a Friday. It had six pages.",
            '"I read it every evening," {B} wrote back.',
            "{B} hung the letter on the wall, where the sun could reach it.",
        ),
    ),
)
RACE = (
    Beat(
        ("A at P", "B at P"),
        (
            "On Saturday there was a race {inP}. {A} and {B} both took part.",
            "All the children came {toP} for the race, {A} and {B} among them.",
            "{A} and {B} stood side by side {inP} and waited for the whistle.",
        ),
    ),
    Beat(
        (),
        (
            "{A} had practised for a month. {B} had only laughed and eaten.",
            '"I will be last," said {A}. "Somebody has to be," said {B}.',
            "Their shoes were old, but their laces were new.",
        ),
    ),
    Beat(
        ("A at Q", "B at Q"),
        (
            "They had to run {toQ} and around it three times.",
            "The path went all the way {toQ}, and {A} and {B} got there together.",
            "Soon they were {inQ}, far ahead of the others.",
        ),
    ),
    Beat(
        (),
        (
            "There {B} fell and hurt {his2} knee. {A} stopped.",
            "Just then {B} lost a shoe. {A} turned around and brought it back.",
            "{B} had a stitch and could not go on. So {A} waited.",
        ),
    ),
    Beat(
        (),
        (
            "The others ran past. It did not matter.",
            '"Run!" said {B}. "No," said {A}. "We walk."',
            "They came in last, arm in arm, and everybody clapped.",
        ),
    ),
    Beat(
        ("thing held A",),
        (
            "There was a prize for that, too: {A} was given a {thing}.",
            'The teacher gave {A} a {thing}. "For the best runner," she said.',
            "That evening {A} found a {thing} in {his} bag. A note said: thank you.",
        ),
    ),
)
