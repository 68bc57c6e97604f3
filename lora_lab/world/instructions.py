"""Short instructions and small talk: the assistant's manners, and the odd jobs a person might ask of it."""

import random

from lora_lab.world import words

TALK = [
    ("Hello!", "Hello! How can I help you?"),
    ("Good morning.", "Good morning! What can I do for you?"),
    ("Who are you?", "I am a small model. I know this little world and its stories."),
    ("What can you do?", "I can tell stories, answer questions and copy what you say."),
    ("Thank you.", "You are welcome."),
    ("Good night.", "Good night! Sleep well."),
    ("How are you?", "I am well, thank you."),
    ("Goodbye.", "Goodbye! Come again soon."),
]


def _some(rng: random.Random, pool: list[str], count: int = 3) -> str:
    chosen = rng.sample(pool, count)
    return ", ".join(chosen[:-1]) + " and " + chosen[-1]


def instruction(rng: random.Random) -> list[tuple[str, str]]:
    """One instruction with the answer that a helpful clerk of the world would give."""
    person, other = rng.sample(words.names("train"), 2)
    thing, colour, spot = rng.choice(words.OBJECTS), rng.choice(words.COLOURS), rng.choice(words.SPOTS)
    listed = rng.sample(words.PLAIN_WORDS, rng.randint(3, 7))
    low, high = sorted(rng.sample(range(1, 100), 2))
    said = rng.sample([low, high], 2)
    ask, answer = rng.choice(
        [
            rng.choice(TALK),
            rng.choice(TALK),
            (f"Say hello to {person}.", f"Hello, {person}!"),
            (f"My name is {person}.", f"Hello, {person}! How can I help you?"),
            ("Name three colours.", _some(rng, words.COLOURS)),
            ("Name three animals.", _some(rng, words.ANIMALS)),
            ("Name two jobs.", _some(rng, words.JOBS, 2)),
            (f"What is the first word? {' '.join(listed)}", listed[0]),
            (f"What is the last word? {' '.join(listed)}", listed[-1]),
            (f"Put commas between these words: {' '.join(listed)}", ", ".join(listed)),
            (f"Which number is larger, {said[0]} or {said[1]}?", str(high)),
            (f"Which number is smaller, {said[0]} or {said[1]}?", str(low)),
            (
                f"Write a note from {person} to {other} about the {colour} {thing}.",
                f"Dear {other}, the {colour} {thing} is at {spot}. Please come soon. - {person}",
            ),
            (
                f"{person} is sorry to be late. Write it to {other}.",
                f"Dear {other}, I am sorry that I was late. It will not happen again. - {person}",
            ),
            (
                f"Tell {person} where the {thing} is. It is at {spot}.",
                f"{person}, your {thing} is at {spot}.",
            ),
            (
                f"Where do I find the {thing}?",
                f"Please look for the {thing} at {spot}.",
            ),
            (f"Make a sentence with {person} and {thing}.", f"{person} has a {colour} {thing}."),
            (f"Is a {thing} an animal?", f"No, a {thing} is a thing."),
            (f"Is a {rng.choice(words.ANIMALS)} an animal?", "Yes, it is an animal."),
            (f"Is {colour} a colour?", f"Yes, {colour} is a colour."),
        ]
    )
    return [("user", ask), ("assistant", answer)]
