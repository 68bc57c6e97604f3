"""The cipher: each letter of a spelled word is replaced by another, by one fixed secret table.

Far from anything in pretraining: the base copies letters well, and must now send all 26 of them somewhere else.
    Cipher: b r o t        ->   the letters that the table gives, one by one
"""

import random
import string

from lora_lab.world.words import bucket

TABLE_SEED = 11


def table() -> dict[str, str]:
    """The secret table: a permutation of the alphabet in which no letter stays itself."""
    rng = random.Random(TABLE_SEED)
    letters = list(string.ascii_lowercase)
    while any(a == b for a, b in zip(string.ascii_lowercase, letters, strict=True)):
        rng.shuffle(letters)
    return dict(zip(string.ascii_lowercase, letters, strict=True))


def part_of(word: str) -> str:
    """The part a word belongs to, by its hash: train 70 %, validation 10 %, test 20 %."""
    position = bucket(word, "cipher")
    return "train" if position < 0.7 else "validation" if position < 0.8 else "test"


def lines(part: str, count: int, seed: int) -> list[tuple[str, str]]:
    """`count` different words of 4 to 8 random letters with their ciphers."""
    rng, secret, made = random.Random(f"{seed}-{part}"), table(), {}
    while len(made) < count:
        word = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(4, 8)))
        if part_of(word) == part:
            made["Cipher: " + " ".join(word)] = " ".join(secret[letter] for letter in word)
    return list(made.items())
