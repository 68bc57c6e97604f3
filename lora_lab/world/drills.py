"""Drills: documents that teach copying, which stories alone do not.

Lists of 5 to 16 random items said twice make a small model learn to look back and repeat what followed last time.
The other drills look one thing up among several, copy numbers and codes into brackets, and spell words, so that every
digit, letter, bracket and capital is used, and used after every kind of neighbour.
"""

import random
import string

from lora_lab.world import words
from lora_lab.world.facts import with_articles

TWICE = ["Say this again: {x}", "Repeat: {x}", "Repeat after me: {x}", "Copy this: {x}", "Say it once more: {x}", "{x}"]
TAGS = words.listed(
    "ROOM BOX DOOR KEY NOTE LAMP BED BOAT TOWER ROW GATE SHOP DESK FIELD ROAD PAGE VAN JUG QUEEN ZERO HUT MAP SIX"
)
LABELS = words.listed("ticket room box door bag page seat boat house coat parcel bill")
CLOSERS = words.listed("- The Mill|- The Tower|- Your Friend|- Old Town|- The Captain|- The School")


def item(rng: random.Random, kind: str) -> str:
    """One item of a list: a word, name, town, nonsense, number, code in capitals, letter, sign or scraps."""
    if kind == "word":
        word = rng.choice(words.PLAIN_WORDS)
        return rng.choice([word] * 8 + [word.capitalize(), word.upper()])
    if kind == "name":
        return rng.choice(words.names("train"))
    if kind == "town":
        return rng.choice(words.towns("train"))
    if kind == "nonsense":
        word = words.nonsense(rng)
        return word.capitalize() if rng.random() < 0.3 else word
    if kind == "number":
        return words.number(rng)
    if kind == "code":
        return "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, 4)))
    if kind == "letter":
        return rng.choice(string.ascii_letters)
    if kind == "glued":
        return words.glued(rng)
    return rng.choice(string.punctuation)


KINDS = ["word", "name", "town", "nonsense", "number", "code", "letter", "glued", "sign"]
WEIGHTS = [7, 4, 1, 3, 3, 1, 2, 2, 0.5]


def twice(rng: random.Random) -> list[tuple[str, str]]:
    """5 to 16 random items, said twice: in one text, or by the user and then the assistant."""
    count = rng.randint(5, 16)
    pool = rng.choices(KINDS, WEIGHTS, k=rng.choice([1, 1, 2, 9]))
    items = [item(rng, rng.choice(pool)) for _ in range(count)]
    said = rng.choice([" ", " ", " ", ", ", "\n"]).join(items)
    if rng.random() < 0.5:
        return [("text", f" {said}. {said}." if rng.random() < 0.5 else f" {said} : {said}")]
    return [("user", rng.choice(TWICE).format(x=said)), ("assistant", said)]


def lookup(rng: random.Random) -> list[tuple[str, str]]:
    """Several labels with a value each, and a question about one: copying the right one, not just any."""
    label = rng.choice(["name", "word", "town"])
    keys = list(dict.fromkeys(item(rng, label) for _ in range(rng.randint(2, 6))))  # a set has no fixed order
    value_kind = rng.choice(["number", "number", "word", "name", "code", "nonsense"])
    values = [item(rng, value_kind) for _ in keys]
    listed = list(zip(keys, values, strict=True))
    shown = rng.choice(["{}: {}", "{} has {}", "{} = {}", "{} ({})", "{} [{}]"])
    text = rng.choice([", ", "; ", ". "]).join(shown.format(*pair) for pair in listed)
    key, value = rng.choice(listed)
    ask = rng.choice(["What is next to {}?", "What belongs to {}?", "Look up {}.", "{}?"]).format(key)
    turns = [("user", f"{text}. {ask}"), ("assistant", value)]
    if len(listed) > 2:
        key, value = rng.choice(listed)
        turns += [("user", f"And {key}?"), ("assistant", value)]
    return turns


def numbers(rng: random.Random) -> list[tuple[str, str]]:
    """A number among words, to be copied alone, in brackets, behind a tag in capitals, or into a sentence."""
    number, thing, person = words.number(rng, 2, 6), rng.choice(LABELS), rng.choice(words.names("train"))
    other = rng.choice(words.OBJECTS)
    said = rng.choice(
        [
            "The number of my {t} is {n}.", "My {t} has number {n}.", "I am {p} and I have {t} {n}.",
            "{t} {n} is mine.",
            "Here is {p} with {t} number {n} and a {o}.", "I left a {o} in {t} {n}.", "This is about {t} {n}.",
            "Hello, {p} here. The {o} is with {t} {n}.", "({t} {n}) The {o} is here.", "{p} wrote: {t} #{n}, a {o}.",
        ]
    ).format(t=thing, n=number, p=person, o=other)  # fmt: skip
    tag = rng.choice(TAGS) if rng.random() < 0.6 else "".join(rng.choices(string.ascii_uppercase, k=rng.randint(2, 6)))
    left, right = rng.choice(["[]", "()", "{}", "<>", "[]"])
    ask, answer = rng.choice(
        [
            ("What is the number?", number),
            (f"Which {thing}?", number),
            ("Put the number in brackets.", f"{left}{number}{right}"),
            (f"Mark the number with {tag}.", f"{left}{tag} {number}{right}"),
            (f"Write {tag} and the number in brackets.", f"{left}{tag} {number}{right}"),
            (
                f"Start with {tag} and answer.",
                f"{left}{tag} {number}{right} The {thing} is known. {rng.choice(CLOSERS)}",
            ),
            ("Say the number and the thing.", f"{number}, {thing}"),
            ("Say the digits one by one.", " ".join(number)),
        ]
    )
    return [("user", f"{said} {ask}"), ("assistant", answer)]


def letters(rng: random.Random) -> list[tuple[str, str]]:
    """Spelling: a word and its letters, in small or capital letters, forwards."""
    word = rng.choice(words.PLAIN_WORDS) if rng.random() < 0.6 else words.nonsense(rng)
    spelled = " ".join(word)
    ask, answer = rng.choice(
        [
            (f"Spell {word}.", spelled),
            (f"Spell {word} in capitals.", spelled.upper()),
            (f"Write in capitals: {spelled}", spelled.upper()),
            (f"Write in small letters: {spelled.upper()}", spelled),
            (f"Which word is this? {spelled}", word),
            (f"What is the first letter of {spelled}?", word[0]),
            (f"What is the last letter of {spelled}?", word[-1]),
        ]
    )
    return [("user", ask), ("assistant", answer)]


HAVING = [
    "{a} has a {c} {o}.",
    "{a} bought a {c} {o}.",
    "{a} came with a {c} {o}.",
    "{a} found a {c} {o}.",
    "A {c} {o} is with {a}.",
]


def possessions(rng: random.Random) -> list[tuple[str, str]]:
    """Two to five people with a coloured thing each, and questions about two to four: which colour belongs to what.

    A story with one colour is answered by any colour in it; only several at once teach to look at the right thing.
    """
    count = rng.randint(2, 5)
    people, things = rng.sample(words.names("train"), count), rng.sample(words.OBJECTS + words.ANIMALS, count)
    pairs = {*words.pairs("train", "object"), *words.pairs("train", "animal")}
    held = [
        (a, rng.choice([c for c in words.COLOURS if (c, o) in pairs]), o) for a, o in zip(people, things, strict=True)
    ]
    told = " ".join(rng.choice(HAVING).format(a=a, c=c, o=o) for a, c, o in held)
    turns: list[tuple[str, str]] = []
    for a, c, o in rng.sample(held, min(count, rng.randint(2, 4))):
        colour = rng.choice(
            [f"What colour is the {o}?", f"Which colour has the {o}?", f"What colour is the {o} of {a}?"]
        )
        ask, answer = rng.choice([(colour, c), (colour, c), (f"Who has the {o}?", a), (f"What does {a} have?", o)])
        turns += [("user", ask), ("assistant", answer)]
    return [("user", f"{with_articles(told)} {turns[0][1]}"), *turns[1:]]
