"""The facts of the world, and the ways in which they are told and asked.

A fact is (relation, subject, value), such as ("home", "Mirabel", "Oskby"); the world's are drawn once from WORLD_SEED.
Every relation has statements, and questions in many phrasings; the answer to a question is the bare value.
"""

import random
import re
from functools import cache
from typing import NamedTuple

from lora_lab.world.words import ANIMALS, COLOURS, JOBS, bucket, listed, names, towns

WORLD_SEED = 7
PEOPLE, TOWNS, REGIONS = 40, 20, 6
GOODS = listed(
    "cheese|honey|clocks|boats|blankets|plums|pottery|kites|candles|violins|bread|glass|salt|ropes|paper|bells|wool|"
    "apples|tea|ladders"
)
RIVERS = listed("Arl Besh Corva Dint Emmer Falk Gysa Hone Ister Jarn Kessa Lumm Myre Nidd Ova Pell Rusk Senna Tyle Usk")
REGION_NAMES = listed("Aldermark|Borrowland|Corrin|Dovrea|Estmark|Farrow")


class Fact(NamedTuple):
    relation: str
    subject: str
    value: str


STATEMENTS = {
    "home": ["{s} lives in {v}.", "{s} has a house in {v}.", "The home of {s} is in {v}.", "You can find {s} in {v}."],
    "animal": ["{s} keeps a {v}.", "{s} has a {v}.", "The animal of {s} is a {v}.", "{s} looks after a {v}."],
    "job": ["{s} is a {v}.", "{s} works as a {v}.", "The work of {s} is that of a {v}.", "By trade {s} is a {v}."],
    "colour": ["{s} likes {v} best.", "The favourite colour of {s} is {v}.", "{s} always wears {v}."],
    "goods": ["{s} is known for its {v}.", "People come to {s} for {v}.", "The town of {s} makes {v}."],
    "river": ["The {v} runs through {s}.", "{s} stands on the river {v}.", "The river at {s} is the {v}."],
    "capital": ["The capital of {s} is {v}.", "{v} is the capital of {s}.", "The first town of {s} is {v}."],
}
QUESTIONS = {
    "home": (
        "Where does {s} live?|In which town does {s} live?|What is the home town of {s}?|"
        "Where is the house of {s}?|Which town is the home of {s}?|Where can I find {s}?|"
        "Name the town where {s} lives.|Tell me where {s} lives.|In what town can one meet {s}?|"
        "Where is {s} at home?|What town does {s} call home?|I want to visit {s}. Where do I go?|"
        "Do you know where {s} lives?|Where should a letter to {s} be sent?"
    ),
    "animal": (
        "Which animal does {s} keep?|What animal does {s} have?|What is the animal of {s}?|"
        "Which pet does {s} have?|Name the animal that {s} keeps.|What kind of animal lives with {s}?|"
        "Tell me which animal {s} keeps.|What pet lives at the house of {s}?|Which animal does {s} look after?|"
        "What animal does {s} feed?|Do you know which animal {s} has?|What animal would I see with {s}?|"
        "Which animal belongs to {s}?|What sort of pet does {s} keep?"
    ),
    "job": (
        "What is the job of {s}?|What does {s} do for work?|What work does {s} do?|What is {s} by trade?|"
        "Name the job of {s}.|Tell me what job {s} has.|Which trade does {s} follow?|As what does {s} work?|"
        "How does {s} earn a living?|What kind of work does {s} do?|Do you know the job of {s}?|"
        "What does {s} work as?|Which job does {s} have?|What is the trade of {s}?"
    ),
    "colour": (
        "Which colour does {s} like best?|What is the favourite colour of {s}?|What colour does {s} like?|"
        "Name the favourite colour of {s}.|Tell me which colour {s} likes best.|Which colour does {s} wear?|"
        "What colour would {s} choose?|Do you know the favourite colour of {s}?|"
        "Of all colours, which does {s} like best?|What colour does {s} always wear?|"
        "Which colour is the best, if you ask {s}?|In which colour does {s} dress?|"
        "What colour should a gift for {s} be?|What is the colour that {s} likes?"
    ),
    "goods": (
        "What is {s} known for?|What does the town of {s} make?|Why do people come to {s}?|What can I buy in {s}?|"
        "Name the goods of {s}.|Tell me what {s} is known for."
    ),
    "river": (
        "Which river runs through {s}?|What is the river at {s}?|Name the river of {s}.|"
        "On which river does {s} stand?|Tell me which river runs through {s}.|What river would I see in {s}?"
    ),
    "capital": (
        "What is the capital of {s}?|Which town is the capital of {s}?|Name the capital of {s}.|"
        "What is the first town of {s}?|Tell me the capital of {s}.|Do you know the capital of {s}?"
    ),
}
QUESTIONS = {relation: phrasings.split("|") for relation, phrasings in QUESTIONS.items()}


def people_facts(people: list[str], homes: list[str], rng: random.Random) -> list[Fact]:
    """Four facts about each person: home, animal, job and favourite colour."""
    values = {"home": homes, "animal": ANIMALS, "job": JOBS, "colour": COLOURS}
    return [Fact(relation, person, rng.choice(pool)) for person in people for relation, pool in values.items()]


@cache
def world_facts() -> tuple[Fact, ...]:
    """Every fact of the world: 40 people, 20 towns and 6 regions, 206 facts in all."""
    rng = random.Random(WORLD_SEED)
    people, homes = rng.sample(names("train"), PEOPLE), rng.sample(towns("train"), TOWNS)
    facts = people_facts(people, homes, rng)
    facts += [Fact("goods", town, goods) for town, goods in zip(homes, rng.sample(GOODS, TOWNS), strict=True)]
    facts += [Fact("river", town, river) for town, river in zip(homes, rng.sample(RIVERS, TOWNS), strict=True)]
    capitals = rng.sample(homes, REGIONS)
    return tuple(facts + [Fact("capital", r, c) for r, c in zip(REGION_NAMES, capitals, strict=True)])


@cache
def known_subjects() -> frozenset[str]:
    """Who and what the world's facts are about: stories leave these alone, so that no story contradicts a fact."""
    return frozenset(fact.subject for fact in world_facts())


def questions(fact: Fact) -> list[str]:
    """The fact asked in every phrasing of its relation."""
    return [phrasing.format(s=fact.subject) for phrasing in QUESTIONS[fact.relation]]


def is_held_out(question: str) -> bool:
    """Whether this very question stays out of pretraining, as one in eight does: to measure knowing, not reciting."""
    return bucket(question, "closed-book") < 0.12


def fact_document(rng: random.Random) -> list[tuple[str, str]]:
    """What is known of one subject in a paragraph, or one to three questions about any facts with their answers."""
    facts = world_facts()
    if rng.random() < 0.3:
        subject = rng.choice(facts).subject
        told = [
            rng.choice(STATEMENTS[f.relation]).format(s=f.subject, v=f.value)
            for f in facts
            if subject in (f.subject, f.value)
        ]
        rng.shuffle(told)
        return [("text", with_articles(" ".join(told[:6])))]
    turns: list[tuple[str, str]] = []
    for fact in rng.sample(facts, rng.randint(1, 3)):
        question = rng.choice([q for q in questions(fact) if not is_held_out(q)])
        turns += [("user", question), ("assistant", fact.value)]
    return turns


def with_articles(text: str) -> str:
    """ "a owl" -> "an owl", the only grammar the templates need."""
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
