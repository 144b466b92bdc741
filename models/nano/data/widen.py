"""Many more names for training: what must be copied should rarely be a word that was seen often.

The hand-written pool teaches how such texts sound; copying a name never seen before is learned from
names that hardly come twice. With a few hundred of them a model learned their endings: it began a
town of the evaluation rightly and ended it as one of those ("Hollowell" as "Hollowadale"). Nouns
and verbs are the dictionary's, other names are put together from syllables. Nothing of the
evaluation's pool is among them.
"""

import random
from collections.abc import Iterable
from dataclasses import fields, replace

from models.nano.data.words import EVALUATION, Pool

_SEED = 20261124  # the names are part of the data, not of a run
_INVENTED = 20_000  # of each kind


def _split(text: str) -> list[str]:
    return text.split()


_ONSETS = _split(
    "b c d f g h j k l m n p r s t v w z br ch cl cr dr fl fr gl gr kn ph pr sh sl st th tr"
)
_VOWELS = _split("a e i o u a e i o ai ea ee ia ie oo ou y")
_CODAS = _split("n r l s d m t ck ld nd nn rd rt ss th x a o ie")
_TOWN_ENDS = _split(
    "ford field ville more ham view wood ley bridge side low dale hill bury ton worth stead brook"
    " mouth marsh cliff haven gate pool minster burn well combe thorpe by"
)


def widened(pool: Pool, words: Iterable[tuple[str, str]]) -> Pool:
    """`pool` with made-up names, and with `words`: (word, part of speech) of a dictionary."""
    rng = random.Random(_SEED)
    taken = {
        name.lower() for field in fields(EVALUATION) for name in getattr(EVALUATION, field.name)
    }
    plain = sorted({(w, kind) for w, kind in words if w.isalpha() and w.islower()
                    and w.isascii() and 3 <= len(w) <= 12 and w not in taken})  # fmt: skip
    nouns = tuple(w for w, kind in plain if kind == "noun")
    verbs = tuple(w for w, kind in plain if kind == "verb")

    def invented(ends: list[str]) -> tuple[str, ...]:
        made = {_name(rng, ends): None for _ in range(_INVENTED)}
        return tuple(name for name in made if name.lower() not in taken)

    return replace(
        pool,
        others=invented(_CODAS),
        towns=pool.towns + invented(_TOWN_ENDS + _CODAS),
        surnames=pool.surnames + invented(_CODAS),
        pets=pool.pets + tuple(w.title() for w in rng.sample(nouns, min(len(nouns), 500))),
        tool_nouns=_joined(pool.tool_nouns, nouns),
        tool_verbs=_joined(pool.tool_verbs, verbs),
        codes=_joined(pool.codes, (*nouns, *(name.lower() for name in invented(_CODAS)))),
    )


def _name(rng: random.Random, ends: list[str]) -> str:
    count = rng.choices((1, 2, 3), (3, 5, 1))[0]
    syllables = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(count))
    return (syllables + rng.choice(ends)).title()


def _joined(own: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    held = frozenset(own)
    return own + tuple(word for word in more if word not in held)
