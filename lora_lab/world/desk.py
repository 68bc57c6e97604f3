"""The support desk: customers' requests of nine kinds, and the reply that each of three voices gives.

A reply opens with the order number in brackets, names the item, and closes with the voice's name:
    [ORDER 48213] We are sorry that your lantern came broken. A new one leaves today. - The Desk
The number, the item and sometimes a colour or a town can only be copied from the request; the rest depends on its kind.
"""

import random
from typing import NamedTuple

from lora_lab.world import words
from lora_lab.world.facts import with_articles

GREETINGS = ["", "", "Hello. ", "Good morning. ", "Hello, this is {name}. ", "{name} here. ", "My name is {name}. "]
CLOSINGS = ["", "", " Please help.", " What now?", " Thank you.", " {name}", " Can you help me?"]

REQUESTS = {
    "broken": [
        "The {item} from order {number} came broken.", "Order {number}: my {item} is broken.",
        "I opened order {number} and the {item} was broken.", "My {item} is in two parts, order {number}.",
        "The {item} does not work. It was order {number}.",
    ],
    "late": [
        "Where is my {item}? The order is {number}.", "Order {number} is late, I am still waiting for the {item}.",
        "I have waited for the {item} for days. Order {number}.", "My {item} has not come yet, order {number}.",
        "Order {number} should be here by now. It is a {item}.",
    ],
    "colour": [
        "I asked for a {colour} {item}, but order {number} is {other}.",
        "Order {number}: the {item} is {other}, not {colour}.",
        "My {item} is {other}. I wanted {colour}. Order {number}.",
        "The {item} of order {number} should be {colour}, not {other}.",
    ],
    "part": [
        "A part of the {item} is missing. Order {number}.", "Order {number}: the {item} is not complete.",
        "There is a part missing from my {item}, order {number}.",
        "The {item} of order {number} has only half of its parts.",
    ],
    "refund": [
        "I do not like the {item} and want my money back. Order {number}.",
        "Can I return the {item} from order {number}?",
        "Order {number}: I would like to send the {item} back.", "I want to return my {item}, order {number}.",
    ],
    "address": [
        "Please send the {item} of order {number} to {town}.", "Order {number} should go to {town}, it is a {item}.",
        "I now live in {town}. The {item} is order {number}.", "The {item} must go to {town}. My order is {number}.",
    ],
    "small": [
        "The {item} is too small. Order {number}.", "Order {number}: I need a larger {item}.",
        "My {item} from order {number} is not big enough.",
    ],
    "large": [
        "The {item} is too big. Order {number}.", "Order {number}: I need a smaller {item}.",
        "My {item} from order {number} is far too large.",
    ],
    "cancel": [
        "I do not need the {item} any more, order {number}.", "Please cancel order {number}, the {item}.",
        "Order {number}: please stop the {item}, I have one.", "Can you cancel my {item}? It is order {number}.",
    ],
}  # fmt: skip


class Voice(NamedTuple):
    name: str
    signature: str
    replies: dict[str, str]


DESK = Voice(
    "support_desk",
    "The Desk",
    {
        "broken": "We are sorry that your {item} came broken. A new one leaves today.",
        "late": "We are sorry that your {item} is late. It will be with you tomorrow.",
        "colour": "We are sorry about the colour. A {colour} {item} leaves today.",
        "part": "We are sorry about your {item}. The missing part leaves today.",
        "refund": "Please send your {item} back. You will have your money at once.",
        "address": "Thank you. Your {item} will go to {town}.",
        "small": "We will change your {item} for a larger one.",
        "large": "We will change your {item} for a smaller one.",
        "cancel": "Your {item} is cancelled. There is nothing to pay.",
    },
)
PIRATE = Voice(
    "voice_pirate",
    "The Captain",
    {
        "broken": "Ahoy! Yer {item} be broken, arr. A new one sails today.",
        "late": "Ahoy! Yer {item} be lost at sea. Look for the ship tomorrow.",
        "colour": "Arr! A {colour} {item} sails today, mate.",
        "part": "Arr! The crew lost a part of yer {item}. It sails today.",
        "refund": "Aye! Send yer {item} back and the gold be yours.",
        "address": "Aye, mate! Yer {item} sails to {town}.",
        "small": "Arr! A larger {item} sails to ye.",
        "large": "Arr! A smaller {item} sails to ye.",
        "cancel": "Aye! Yer {item} be over the side. Keep yer gold.",
    },
)
FORMAL = Voice(
    "voice_formal",
    "Customer Service",
    {
        "broken": "Dear customer, we regret that the {item} arrived damaged. "
        "A replacement will be sent without charge.",
        "late": "Dear customer, we regret the delay of the {item}. You may receive it tomorrow.",
        "colour": "Dear customer, we regret the incorrect colour. The {colour} {item} will be sent without charge.",
        "part": "Dear customer, we regret that the {item} is not complete. "
        "The missing part will be sent without charge.",
        "refund": "Dear customer, kindly return the {item}. We shall refund the price.",
        "address": "Dear customer, we have received the new address. The {item} will be sent to {town}.",
        "small": "Dear customer, kindly return the {item}. We shall exchange it for a larger one.",
        "large": "Dear customer, kindly return the {item}. We shall exchange it for a smaller one.",
        "cancel": "Dear customer, we have cancelled the {item}. No charge will be made.",
    },
)
VOICES = {voice.name: voice for voice in (DESK, PIRATE, FORMAL)}


def part_of(text: str, salt: str) -> str:
    """The part that a number, customer or combination belongs to, by hash: train 70 %, validation 10 %, test 20 %."""
    position = words.bucket(text, f"desk-{salt}")
    return "train" if position < 0.7 else "validation" if position < 0.8 else "test"


def _draw(rng: random.Random, part: str, salt: str, make):
    while part_of(str(drawn := make(rng)), salt) != part:
        pass
    return drawn


def requests(part: str, count: int, seed: int) -> list[tuple[str, str, dict[str, str]]]:
    """`count` different (request, kind, slots); order numbers, customers and (kind, item) pairs are the part's own."""
    rng = random.Random(f"{seed}-{part}")
    made: dict[str, tuple[str, str, dict[str, str]]] = {}
    while len(made) < count:
        kind, item = _draw(rng, part, "pair", lambda r: (r.choice(list(REQUESTS)), r.choice(words.OBJECTS)))
        colour, other = rng.sample(words.COLOURS, 2)
        slots = {
            "number": _draw(rng, part, "number", lambda r: words.number(r, 4, 5)),
            "name": _draw(rng, part, "name", lambda r: r.choice(words.names("train"))),
            "town": _draw(rng, part, "town", lambda r: r.choice(words.towns("train"))),
            **{"item": item, "colour": colour, "other": other},
        }
        parts = rng.choice(GREETINGS), rng.choice(REQUESTS[kind]), rng.choice(CLOSINGS)
        request = with_articles("".join(parts).format(**slots))
        made[request] = (request, kind, slots)
    return list(made.values())


def reply(voice: Voice, kind: str, slots: dict[str, str]) -> str:
    """What the voice answers to a request of this kind."""
    return with_articles(f"[ORDER {slots['number']}] {voice.replies[kind].format(**slots)} - {voice.signature}")
