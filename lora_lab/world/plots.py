"""The plots of the stories: what can happen in the world, each beat in several ways (slots: see stories.py)."""

from typing import NamedTuple


class Plot(NamedTuple):
    beats: list[list[str]]  # one sentence is chosen from each
    questions: list[tuple[list[str], str]]  # (phrasings, the slot that answers)


OPENINGS = [
    "It was a {still} {time}.", "One {time} there was {weather} over {T}.", "This happened on a {time}.",
    "The {weather} had come and gone.", "There was {weather} that {time}.", "It was early and all was quiet.",
]  # fmt: skip
ENDINGS = [
    "They were {mood} and went home.", "Everyone was {mood}.", "Then it was time to sleep.", "It was a good day.",
    "That evening they ate {f} together.", "Nobody in town forgot that day.", "And so the day ended well.",
]  # fmt: skip

FOUND = Plot(
    beats=[
        ["{A} went to {P}.", "{A} walked to {P}.", "That day {A} was at {P}.", "{A} came to {P} alone."],
        ["Under a tree {A} found a {c} {o}.", "There {A} saw a {c} {o} on the ground.", "A {c} {o} was lying there."],
        ["It belonged to {B}, a {j}.", "It was the {o} of {B}, the {j}.", "Only {B} the {j} had such a {o}."],
        ["{B} was waiting at {Q}.", "So {A} carried it to {Q}, where {B} was working.", "{A} met {B} at {Q}."],
        [
            "{B} was {mood} and gave {A} some {f}.",
            "To say thanks, {B} gave {A} some {f}.",
            "{B} smiled and shared the {f}.",
        ],
    ],
    questions=[
        (["Who went to {P}?", "Who was at {P} first?", "Who found the {o}?"], "A"),
        (["What colour was the {o}?", "Which colour did the {o} have?"], "c"),
        (["What did {A} find?", "What was lying there?", "What belonged to {B}?"], "o"),
        (["Whose {o} was it?", "Who was the {j}?", "Who gave away the {f}?"], "B"),
        (["Where did {A} find the {o}?", "Where was the {o} found?", "Where did {A} go first?"], "P"),
        (["Where was {B}?", "Where did they meet?"], "Q"),
        (["What did {B} give to {A}?", "What did {A} get for it?"], "f"),
        (["What was the work of {B}?", "What job did {B} have?"], "j"),
    ],
)
LOST_ANIMAL = Plot(
    beats=[
        ["{A} from {T} had a {e} {k}.", "In {T} lived {A} with a {e} {k}.", "{A} of {T} kept a {adj} {e} {k}."],
        ["One day the {k} ran away.", "But the {k} was gone.", "In the {weather} the {k} got lost."],
        ["{A} looked for it at {P}.", "{A} ran to {P} and called.", "First {A} searched {P}."],
        ["{B} had seen it near {Q}.", "Then {B} heard a sound from {Q}.", "At last {B} found it at {Q}."],
        [
            "{A} came with a {c} {o} and some {f}.",
            "They took a {c} {o} and some {f} along.",
            "A {c} {o} and some {f} helped to catch it.",
        ],
    ],
    questions=[
        (["Who had a {k}?", "Who lost the {k}?", "Whose {k} was it?"], "A"),
        (["What colour was the {k}?", "Which colour did the {k} have?"], "e"),
        (["Which animal was lost?", "What animal did {A} have?"], "k"),
        (["Where did {A} look first?", "Where did {A} search?"], "P"),
        (["Who helped {A}?", "Who was the helper?"], "B"),
        (["Where was the {k} in the end?", "Where was the {k}?"], "Q"),
        (["What colour was the {o}?"], "c"),
        (["Where did {A} live?", "Which town was {A} from?"], "T"),
        (["What food did they use?", "What food is in the story?"], "f"),
    ],
)
TWO_THINGS = Plot(
    beats=[
        ["{A} has a {c} {o}.", "{A} bought a {c} {o}.", "{A} owns a {fine} {c} {o}."],
        ["{B} has a {d} {p}.", "{B} bought a {d} {p}.", "{B} owns a {d} {p}."],
        ["{C} only has a {e} {k}.", "{C} has nothing but a {e} {k}.", "And {C} brought a {e} {k}."],
        ["They meet at {P}.", "They all came to {P}.", "All three go to {P}."],
    ],
    questions=[
        (["Who has the {o}?", "Whose is the {o}?"], "A"),
        (["Who has the {p}?", "Whose is the {p}?"], "B"),
        (["Who has the {k}?", "Whose is the {k}?"], "C"),
        (["What colour is the {o}?", "What colour is the {o} of {A}?"], "c"),
        (["What colour is the {p}?", "What colour is the {p} of {B}?"], "d"),
        (["What colour is the {k}?"], "e"),
        (["What does {A} have?"], "o"),
        (["What does {B} have?"], "p"),
        (["Which animal does {C} have?"], "k"),
        (["Where do they meet?", "Where did they go?"], "P"),
    ],
)
PARCEL = Plot(
    beats=[
        ["{A} sent a parcel from {T}.", "A parcel from {A} left {T}.", "In {T}, {A} packed a parcel."],
        ["It was for {B}.", "{B} was to have it.", "The name on it was {B}."],
        ["The number on the box was {n}.", "On the box stood the number {n}.", "It had the number {n}."],
        ["A {c} {o} was inside.", "Inside was a {c} {o}.", "It held a {c} {o} and some {f}."],
        ["{C} the {j} carried it to {P}.", "{C}, a {j}, left it at {P}.", "The {j} {C} put it down at {P}."],
        ["{B} opened it and was {mood}.", "How {mood} {B} was!", "{B} danced with joy."],
    ],
    questions=[
        (["Who sent the parcel?", "From whom was the parcel?"], "A"),
        (["Who was the parcel for?", "Who got the parcel?"], "B"),
        (
            ["What number was on the box?", "What was the number of the parcel?", "Which number did the parcel have?"],
            "n",
        ),
        (["What was the number?"], "n"),
        (["What was in the parcel?", "What did {A} send?"], "o"),
        (["What colour was the {o}?"], "c"),
        (["Who carried the parcel?", "Who was the {j}?"], "C"),
        (["Where did the parcel go?", "Where was the parcel left?"], "P"),
        (["Where did the parcel come from?", "Which town did it leave?"], "T"),
    ],
)
MARKET = Plot(
    beats=[
        ["{A} is a {j} in {T}.", "In the town of {T}, {A} works as a {j}.", "The {j} of {T} is called {A}."],
        ["{A} wanted to sell a {c} {o}.", "On market day {A} brought a {c} {o}.", "{A} made a {c} {o}."],
        ["{B} wanted it, but had only a {d} {p}.", "{B} came by with a {d} {p}.", "{B} offered a {d} {p} for it."],
        ["They talked for a long time.", "They thought about it.", "A {e} {k} watched them."],
        ["In the end {A} took {n} coins from {B}.", "{B} paid {n} coins.", "The price was {n} coins."],
    ],
    questions=[
        (["Who is the {j}?", "Who wanted to sell something?", "Who sold the {o}?"], "A"),
        (["Who bought the {o}?", "Who had a {p}?", "Who paid?"], "B"),
        (["How many coins was it?", "What was the price?", "How much was paid?"], "n"),
        (["What colour was the {o}?"], "c"),
        (["What colour was the {p}?"], "d"),
        (["What was sold?", "What did {A} sell?"], "o"),
        (["What did {B} have?"], "p"),
        (["Where does {A} work?", "In which town was this?"], "T"),
        (["What is the job of {A}?", "What does {A} work as?"], "j"),
    ],
)
BUILDING = Plot(
    beats=[
        [
            "{A} and {B} wanted to build a {o}.",
            "{A} asked {B} to help with a {o}.",
            "{A} had no {o}, so {A} and {B} made one.",
        ],
        ["They worked at {P}.", "They met at {P}.", "Every {time} they went to {P}."],
        ["{B} said it must be {c}.", "{B} painted it {c}.", "It was to be {c}, said {B}."],
        ["{C} came by with a {k}.", "Then {C} brought a {k} to see it.", "{C} and a {e} {k} looked on."],
        ["After {m} days it was done.", "It took {m} days.", "It was ready in {m} days."],
        ["It was even better than they had hoped.", "{C} liked the {o} very much.", '"Well done!" said {C}.'],
    ],
    questions=[
        (["Who helped {A}?", "Who chose the colour?"], "B"),
        (["Who came by?", "Who had the {k}?", "Who looked on?"], "C"),
        (["What did they build?", "What did {A} and {B} make?"], "o"),
        (["What colour was the {o}?", "Which colour did {B} choose?"], "c"),
        (["Where did they work?", "Where did {A} and {B} meet?"], "P"),
        (["How many days did it take?", "How long did it take?"], "m"),
        (["Which animal came?", "What animal did {C} bring?"], "k"),
    ],
)
BIRTHDAY = Plot(
    beats=[
        ["It was the birthday of {A}.", "{A} had a birthday.", "Today {A} had a birthday in {T}."],
        ["{B} came first and brought a {c} {o}.", "From {B} there was a {c} {o}.", "{B} gave {A} a {c} {o}."],
        ["{C} brought a {d} {p}.", "Then {C} came with a {d} {p}.", "{C} had made a {d} {p}."],
        ["They ate {f} and sang.", "They shared some {f}.", "All of them had some {f}."],
        ["Later they played at {P}.", "After that they walked to {P}.", "In the evening they went to {P}."],
        ['{A} said, "I have never been so {mood}."', '"Thank you," said {A}.', "{A} was {mood} all day."],
    ],
    questions=[
        (["Who had a birthday?", "Whose birthday was it?"], "A"),
        (["Who came first?", "Who brought the {o}?", "Who gave the {o}?"], "B"),
        (["Who brought the {p}?", "Who came with the {p}?"], "C"),
        (["What did {B} bring?", "What was the gift of {B}?"], "o"),
        (["What did {C} bring?", "What was the gift of {C}?"], "p"),
        (["What colour was the {o}?"], "c"),
        (["What colour was the {p}?"], "d"),
        (["What did they eat?", "Which food was there?"], "f"),
        (["Where did they go later?", "Where were they in the evening?"], "P"),
    ],
)
STORM = Plot(
    beats=[
        ["{A}, the {j}, was alone at {P}.", "The {j} {A} was still at {P}.", "{A} worked as a {j} at {P}."],
        ["A storm came up from {T}.", "Over {T} the sky was black.", "From {T} came a great storm."],
        ["{A} could not see the way home.", "It was too dark to walk.", "The road was gone."],
        [
            "Then a light came: it was {B} with a {c} {o}.",
            "But {B} came, holding a {c} {o}.",
            "There was {B}, with a {c} {o}.",
        ],
        [
            "A {e} {k} ran ahead and showed the way.",
            "They followed a {e} {k} through the night.",
            "With them went a {e} {k}.",
        ],
        ["They came to {Q} and were safe.", "At {Q} they were warm and dry.", "They slept at {Q}."],
    ],
    questions=[
        (["Who was alone?", "Who was the {j}?", "Who could not go home?"], "A"),
        (["Who came to help?", "Who had the {o}?", "Who came with a light?"], "B"),
        (["Where was {A} when the storm came?", "Where did {A} work?"], "P"),
        (["Where were they safe?", "Where did they sleep?"], "Q"),
        (["Where did the storm come from?"], "T"),
        (["What colour was the {o}?"], "c"),
        (["What did {B} hold?", "What did {B} bring?"], "o"),
        (["Which animal went with them?", "Which animal showed the way?"], "k"),
        (["What colour was the {k}?"], "e"),
        (["What was the job of {A}?"], "j"),
    ],
)
PLOTS = [FOUND, LOST_ANIMAL, TWO_THINGS, PARCEL, MARKET, BUILDING, BIRTHDAY, STORM]
