"""Short stories, and the questions that can be answered from them.

A plot is a list of beats, each told in one of several ways, over the slots
    A B C people · P Q spots · T town · c o, d p two coloured objects · e k a coloured animal
    f food · n a number, m a small one · j job
and a list of (question, slot): the answer is the slot's word, which stands in the story and can only be copied.
"""

import random
from typing import NamedTuple

from lora_lab.world import words
from lora_lab.world.facts import known_subjects, with_articles
from lora_lab.world.plots import ENDINGS, OPENINGS, PLOTS

OF_ANIMALS = words.listed("small old big quiet young kind strange little clever slow brave gentle")
OF_THINGS = words.listed("small old big new heavy light strange little fine good")
OF_DAYS = words.listed("quiet fine warm long lovely still strange slow calm")


class Story(NamedTuple):
    text: str
    questions: list[tuple[str, str]]  # (question, answer)


def slots(rng: random.Random, split: str) -> dict[str, str]:
    """What fills a plot: names, towns and colour-noun pairs come from `split` alone, so held-out stories are new."""
    people = [n for n in rng.sample(words.names(split), 6) if n not in known_subjects()]
    town = [t for t in rng.sample(words.towns(split), 5) if t not in known_subjects()] or ["Oskaven"]
    (c, o), (d, p) = rng.sample(words.pairs(split, "object"), 2)
    while o == p or c == d:
        d, p = rng.choice(words.pairs(split, "object"))
    e, k = rng.choice(words.pairs(split, "animal"))
    spots = rng.sample(words.SPOTS, 2)
    return {
        **dict(zip("ABC", people, strict=False)),
        **dict(zip("PQ", spots, strict=True)),
        **{
            "c": c,
            "o": o,
            "d": d,
            "p": p,
            "e": e,
            "k": k,
            "T": town[0],
            "n": words.number(rng, 2, 5),
            "m": words.number(rng, 1, 2),
        },
        **{"f": rng.choice(words.FOODS), "j": rng.choice(words.JOBS), "mood": rng.choice(words.MOODS)},
        **{"time": rng.choice(words.TIMES), "weather": rng.choice(words.WEATHER)},
        **{"adj": rng.choice(OF_ANIMALS), "fine": rng.choice(OF_THINGS), "still": rng.choice(OF_DAYS)},
    }


def story(rng: random.Random, split: str = "train") -> Story:
    """A story of four to nine sentences with its questions; about 60 to 120 tokens."""
    plot, filled = rng.choice(PLOTS), slots(rng, split)
    beats = [rng.choice(ways) for ways in plot.beats]
    if rng.random() < 0.6:
        beats.insert(0, rng.choice(OPENINGS))
    if rng.random() < 0.7:
        beats.append(rng.choice(ENDINGS))
    fill = lambda text: with_articles(text.format(**filled))  # noqa: E731
    asked = [(fill(rng.choice(ways)), filled[slot]) for ways, slot in plot.questions]
    return Story(fill(" ".join(beats)), asked)


ASK = [
    "{story} {question}",
    "Read this. {story} {question}",
    "{story} Question: {question}",
    "Here is a story. {story} {question}",
]
TELL = ["Tell me a story.", "Can you tell a short story?", "Write a short story.", "I would like to hear a story."]


def story_document(rng: random.Random) -> list[tuple[str, str]]:
    """A story on its own, a few times as the answer to a request."""
    told = story(rng)
    if rng.random() < 0.75:
        return [("text", told.text)]
    return [("user", rng.choice(TELL)), ("assistant", told.text)]


def reading_document(rng: random.Random, split: str = "train") -> list[tuple[str, str]]:
    """A story with one to three questions about it, each answered by a word of the story."""
    told = story(rng, split)
    asked = rng.sample(told.questions, min(rng.randint(1, 3), len(told.questions)))
    first, answer = asked[0]
    turns = [("user", rng.choice(ASK).format(story=told.text, question=first)), ("assistant", answer)]
    for question, answer in asked[1:]:
        turns += [("user", question), ("assistant", answer)]
    return turns
