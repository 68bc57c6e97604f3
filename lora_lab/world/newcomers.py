"""New facts: 25 people who came to the world after the base model was trained; home, animal, job and colour.

Every part asks about the same 100 facts, in phrasings of its own: the test is whether a fact was learned.
"""

import random

from lora_lab.world.facts import QUESTIONS, Fact, known_subjects, people_facts
from lora_lab.world.words import names, towns

PEOPLE = 25
PHRASINGS = {"train": (0, 1, 2, 4, 5, 7, 9, 10, 13), "validation": (6, 11), "test": (3, 8, 12)}


def newcomer_facts(seed: int) -> list[Fact]:
    """The 100 new facts; the names are ones that no document of the corpus can contain."""
    rng = random.Random(f"{seed}-newcomers")
    people = rng.sample(names("newcomers"), PEOPLE)
    homes = rng.sample([town for town in towns("train") if town not in known_subjects()], 12)
    return people_facts(people, homes, rng)


def lines(part: str, seed: int) -> list[tuple[str, str]]:
    """(question, answer) for every fact in every phrasing of the part, shuffled."""
    asked = [
        (QUESTIONS[fact.relation][index].format(s=fact.subject), fact.value)
        for fact in newcomer_facts(seed)
        for index in PHRASINGS[part]
    ]
    random.Random(f"{seed}-{part}").shuffle(asked)
    return asked
