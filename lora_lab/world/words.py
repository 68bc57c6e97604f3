"""The words of the world, its invented names, and the rule that keeps names and combinations out of pretraining.

A name, or a pair such as "green kite", belongs to one split for ever: its hash decides, no list has to be kept.
"""

import hashlib
import random
import string
from functools import cache
from itertools import product


def listed(text: str) -> list[str]:
    """The words of a text; its parts between "|" where there are any, so that they may hold spaces."""
    return text.split("|") if "|" in text else text.split()


COLOURS = listed("red blue green yellow white black brown grey purple orange golden silver pink")
ANIMALS = listed(
    "fox otter owl hare goat donkey cat dog goose raven badger hedgehog pony lamb duck toad squirrel heron mouse "
    "swan beaver crow calf robin"
)
OBJECTS = listed(
    "lantern kite kettle basket drum boat clock ladder blanket mirror bell candle umbrella wheel hammer flute book "
    "box key lamp coat hat rope jar bottle map ring chair table brush spoon bucket saddle whistle puppet pillow "
    "broom compass teapot violin"
)
JOBS = listed(
    "baker miller fisher weaver potter gardener sailor teacher painter smith carpenter shepherd doctor cook tailor "
    "clockmaker singer farmer builder librarian beekeeper postman"
)
SPOTS = listed(
    "the mill|the harbour|the market|the old bridge|the forest|the lighthouse|the school|the well|the meadow|"
    "the barn|the library|the river|the hill|the bakery|the station|the garden|the castle|the beach|the tower|"
    "the workshop"
)
FOODS = listed("bread soup cheese honey apples plums pears cake milk butter nuts berries porridge tea")
MOODS = listed("happy proud glad merry cheerful pleased delighted joyful")
ADJECTIVES = listed(
    "small old big quiet new warm cold heavy light soft long round kind strange little bright dark clever slow young "
    "gentle fine good lovely still spring autumn calm brave tired hungry curious sun"
)
TIMES = listed("morning|evening|afternoon|night|day in spring|summer day|autumn day|winter day")
WEATHER = listed("rain wind snow fog thunder mist")
OTHER_WORDS = listed(
    "one two three four five six seven eight nine ten hand foot door window stone tree leaf cloud star moon road "
    "field house roof wall floor bed cup plate knife bag letter word song game friend child mother father brother "
    "sister walk run jump sing read write make find give take bring send open close carry wait look help sleep play "
    "keep north south east west left right early late today tomorrow always never again soon here there"
)
LETTER_WORDS = listed(
    "sorry dear customer order number broken wrong missing part money back sent return change larger smaller "
    "cancelled pay please thank help address arrived regret replacement service captain sail sails ship treasure "
    "crew mate sea wave gold shall will may must with without about instead because complete promise charge kindly "
    "request receive received nothing something everything leaves another same again moment colour size price parcel "
    "letter reply desk shop bill sincerely respect ahoy yer aye be arr ye deck anchor coin storm regards note delay "
    "damaged incorrect exchange refund"
)
FUNCTION_WORDS = listed(
    "the a an and or but so if of in on at to from for by it is are was were has have had you your we our they them "
    "he she his her who what which where when how why not no yes this that these those all some many much more most "
    "very too also only just then than after before under over near away out up down off do does did can could would "
    "should"
)
PROSE_WORDS = listed(
    "nobody together favourite followed watched danced searched talked thought wanted worked painted stopped opened "
    "happened walked carried belonged ran came went found saw met gave took made bought brought lived slept called "
    "said anything story question number digits brackets capitals birthday holding lying waiting looking tree light "
    "dark end known runs river town people first last word repeat copy spell mark again alone ahead through between "
    "behind while"
)
PLAIN_WORDS = (
    COLOURS
    + ANIMALS
    + OBJECTS
    + JOBS
    + FOODS
    + MOODS
    + ADJECTIVES
    + WEATHER
    + OTHER_WORDS
    + LETTER_WORDS
    + FUNCTION_WORDS
    + PROSE_WORDS
)

_FIRST = listed("Mi To Ka Ve Ra Lo Be Sa Du Ni Fe Jo Pa El Or Il As Un Tha Bri Gre Sko Wen Zo Hal Cor Dra Fin Yu Qui")
_MIDDLE = listed("ra li no ve da mi so ne ka lo ri bu ta zi pe shi gu wa")
_LAST = listed("l n s ra na th k m do sha vi rin bel dor x")
_STEM = listed("Vel Tarn Osk Bram Kel Lin Mor Sel Wyn Dun Harl Fen Grim Hol Ash Ros Cald Eld Thorn Quen")
_ENDING = listed("moor wick by ton holm fell mere port ford dale haven stead")
_ONSETS = listed("b c d f g h j k l m n p q r s t v w x y z ch sh th tr br st")
_VOWELS = listed("a e i o u ai oa ee")
_CODAS = ["", "", *listed("n r l s k m t nd st")]

# The share of names, towns and pairs that pretraining never sees: for measuring, and for the newcomers of `new_facts`.
HELD_OUT, NEWCOMERS = 0.10, 0.06


def bucket(text: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on the text alone: the same in every run, process and version of Python."""
    digest = hashlib.blake2b(f"{salt}:{text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def split_of(text: str) -> str:
    """The split a name or combination belongs to: "train", "held_out" or "newcomers"."""
    position = bucket(text, "split")
    if position < HELD_OUT:
        return "held_out"
    return "newcomers" if position < HELD_OUT + NEWCOMERS else "train"


@cache
def names(split: str) -> tuple[str, ...]:
    """Every first name of a split, in a fixed order ("Mirali", "Tovedor", ...)."""
    return tuple(n for n in map("".join, product(_FIRST, _MIDDLE, _LAST)) if split_of(n) == split)


@cache
def towns(split: str) -> tuple[str, ...]:
    """Every town of a split, in a fixed order ("Velmoor", "Tarnwick", ...)."""
    return tuple(t for t in map("".join, product(_STEM, _ENDING)) if split_of(t) == split)


@cache
def pairs(split: str, kind: str) -> tuple[tuple[str, str], ...]:
    """Every (colour, noun) of a split; kind is "object" or "animal"."""
    nouns = {"object": OBJECTS, "animal": ANIMALS}[kind]
    return tuple(pair for pair in product(COLOURS, nouns) if split_of(" ".join(pair)) == split)


def number(rng: random.Random, low: int = 1, high: int = 6) -> str:
    """A number as text with `low` to `high` digits, the first not zero."""
    digits = rng.choice("123456789") + "".join(rng.choices("0123456789", k=rng.randint(low, high) - 1))
    return digits


def nonsense(rng: random.Random) -> str:
    """A word that means nothing, of one to three random syllables: its pieces can only be copied, not guessed."""
    syllables = ([rng.choice(pool) for pool in (_ONSETS, _VOWELS, _CODAS)] for _ in range(rng.randint(1, 3)))
    return "".join("".join(syllable) for syllable in syllables)


def glued(rng: random.Random) -> str:
    """Slices of two or three words, digits and signs stuck together ("tterorc", "k=7", "[ead").

    Pieces of words in places where prose never puts them, so that copying does not lean on knowing the word.
    """
    if rng.random() < 0.3:
        return "".join(rng.choices(string.punctuation + string.ascii_letters + string.digits, k=rng.randint(2, 4)))
    sign = rng.choice(["", "", "", *string.punctuation])
    return sign + "".join(_slice(rng) for _ in range(rng.randint(1, 3)))


def _slice(rng: random.Random) -> str:
    word = rng.choice(PLAIN_WORDS)
    word = rng.choice([word, word, word, word.capitalize(), word.upper()])
    start = rng.choice([0, rng.randrange(len(word))])
    return word[start : start + rng.randint(1, 8)]
