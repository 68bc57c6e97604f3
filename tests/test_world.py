"""The world: seeded generators, held-out names that stay out, a tokenizer that loses nothing, a base model that does
what its measurements say."""

import json
import random
import re
from collections import Counter

import pytest

from lora_lab.paths import BASE, MEASUREMENTS
from lora_lab.world import measure, pretrain, words
from lora_lab.world.corpus import MIX, SECOND_MIX, documents, render
from lora_lab.world.drills import twice
from lora_lab.world.facts import is_held_out, known_subjects, questions, world_facts
from lora_lab.world.newcomers import newcomer_facts
from lora_lab.world.stories import story
from lora_lab.world.tokenizer import encode_documents, train_tokenizer


@pytest.fixture(scope="module")
def sample():
    """Documents as pretraining draws them, of both stages."""
    return [*documents(1000, 4000), *documents(2000, 2000, SECOND_MIX)]


@pytest.fixture(scope="module")
def base():
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(BASE, local_files_only=True, dtype="float32")
    return model.eval(), AutoTokenizer.from_pretrained(BASE, local_files_only=True)


@pytest.fixture(scope="module")
def measured():
    return json.loads((MEASUREMENTS / "base_model.json").read_text())


def test_documents_depend_on_the_seed_alone(sample):
    assert sample[:500] == list(documents(1000, 500))
    assert sample[:500] != list(documents(1001, 500))


def test_documents_do_not_depend_on_the_process():
    import hashlib
    import os
    import subprocess
    import sys

    command = "from lora_lab.world.corpus import documents; print(repr(list(documents(1000, 500))))"
    here = hashlib.sha256(repr(list(documents(1000, 500))).encode()).hexdigest()
    for seed in ("1", "2"):  # Python's own order of a set of strings
        told = subprocess.run(
            [sys.executable, "-c", command], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        assert hashlib.sha256(told.stdout.strip()).hexdigest() == here


def test_hash_splits_do_not_depend_on_the_process():
    import hashlib

    # By hand: the split of a name may never move, or a new version would train on what is held out.

    digest = hashlib.blake2b(b"split:Mirali", digest_size=8).digest()
    assert words.bucket("Mirali", "split") == int.from_bytes(digest, "big") / 2**64


def test_names_towns_and_pairs_belong_to_one_split():
    for pool in (words.names, words.towns, lambda s: words.pairs(s, "object"), lambda s: words.pairs(s, "animal")):
        parts = [set(pool(split)) for split in ("train", "held_out", "newcomers")]
        assert all(parts)
        assert sum(map(len, parts)) == len(set.union(*parts))


def test_pretraining_never_says_a_held_out_name_or_pair(sample):
    text = " ".join(map(render, sample))
    said = set(re.findall(r"[A-Z][a-z]+", text))
    hidden = {*words.names("held_out"), *words.names("newcomers"), *words.towns("held_out")}
    # Scraps of words are glued at random: a chance hit there is no leak, three would be.
    assert len(said & hidden) <= 3
    assert len(said & set(words.names("train"))) > 1000
    stories = " ".join(t for d in sample for role, t in d if role != "assistant" and len(t) > 150 and t.count(".") > 3)
    for colour, thing in words.pairs("held_out", "object"):
        assert f"{colour} {thing}" not in stories


def test_held_out_questions_are_asked_nowhere(sample):
    asked = {text for document in sample for role, text in document if role == "user"}
    hidden = {q for fact in world_facts() for q in questions(fact) if is_held_out(q)}
    assert len(hidden) > 150
    assert not asked & hidden


def test_every_fact_is_told_and_no_two_contradict():
    facts = world_facts()
    assert len({(f.relation, f.subject) for f in facts}) == len(facts) == 206
    assert not {f.subject for f in newcomer_facts(0)} & known_subjects()


def test_stories_leave_known_people_alone():
    rng = random.Random(5)
    said = {name for _ in range(500) for name in re.findall(r"[A-Z][a-z]+", story(rng).text)}
    assert not said & known_subjects()


def test_answers_stand_in_the_story():
    rng = random.Random(6)
    for _ in range(300):
        told = story(rng, "held_out")
        assert "{" not in told.text
        assert all(answer in told.text for _, answer in told.questions)


def test_a_third_of_the_documents_are_lists_said_twice():
    assert 0.3 <= MIX[twice] <= 0.4
    assert sum(MIX.values()) == pytest.approx(1)
    assert sum(SECOND_MIX.values()) == pytest.approx(1)
    for seed in range(50):
        texts = [text for _, text in twice(random.Random(seed))]
        said = texts[-1]
        words_said = re.findall(r"\S+", said)
        assert len(words_said) >= 5
        if len(texts) == 2:
            assert texts[0].endswith(said)


def test_tokenizer_gives_back_what_it_was_given(base):
    tokenizer = base[1]
    texts = ["[ORDER 48213] We are sorry. - The Desk", " (a)  b—é\n\t{x}", "Mirali lives in Velmoor.", "12345"]
    for text in texts:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert len(tokenizer("12345", add_special_tokens=False)["input_ids"]) == 5
    assert 1000 <= len(tokenizer) <= 2000


def test_chat_template_and_corpus_render_alike(base, sample):
    tokenizer = base[1]
    for document in [d for d in sample if d[0][0] == "user"][:50]:
        messages = [{"role": role, "content": text} for role, text in document]
        assert tokenizer.apply_chat_template(messages, tokenize=False) == render(document)


def test_training_the_tokenizer_again_gives_the_same():
    first, second = (train_tokenizer(count=300, vocabulary=600).get_vocab() for _ in range(2))
    assert first == second


def test_pretraining_uses_every_ascii_token(base):
    tokenizer = base[1]
    pool, rng = pretrain.scrap_ids(tokenizer), random.Random(0)
    text = [token for token in tokenizer.get_vocab().values() if tokenizer.decode([token]).isascii()]
    assert set(text) - set(pool) == set(tokenizer.all_special_ids)
    drawn = Counter(i for _ in range(4000) for i in pretrain.scraps(tokenizer, pool, rng))
    assert not set(pool) - drawn.keys()
    # One document in 17 is made of scraps: "said : said" without a chat, with tokens that text would have joined.
    source = pretrain.windows(tokenizer, 1000, tokenizer.pad_token_id)
    ids = [i for _ in range(100) for i in next(source)]
    assert set(ids) - {i for row in encode_documents(tokenizer, list(documents(1000, 700))) for i in row}


def test_windows_hold_whole_documents(base):
    tokenizer = base[1]
    source = pretrain.windows(tokenizer, 3, tokenizer.pad_token_id)
    for _ in range(20):
        window = next(source)
        assert len(window) == pretrain.CONTEXT
        filled = [i for i in window if i != tokenizer.pad_token_id]
        assert filled[0] == tokenizer.bos_token_id
        assert filled[-1] == tokenizer.eos_token_id


def test_pretraining_stops_and_resumes_with_the_same_numbers(base, tmp_path, monkeypatch):
    import argparse

    import torch

    tokenizer = base[1]
    args = argparse.Namespace(seed=0, batch=1, compile=False, float32=True, every=2)
    stage = pretrain.Stage(SECOND_MIX, 4, 1e-3, 2000)

    def run(folder):
        model = pretrain.build(tokenizer, 0)
        return model, pretrain.pretrain(model, tokenizer, args, stage, folder)

    whole, told = run(tmp_path / "whole")
    original = pretrain.snapshot

    def stop(*given):
        original(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "snapshot", stop)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    assert torch.load(tmp_path / "cut" / "state.pt", weights_only=True)["step"] == 2
    resumed, told_again = run(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert {**told, "seconds": 0} == {**told_again, "seconds": 0}


def test_base_is_a_small_standard_folder_without_pickles(base):
    model, _ = base
    names = {path.name for path in BASE.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".pth"))]
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 8e6
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 3e6
    assert type(model).__name__ == "LlamaForCausalLM"
    assert json.loads((BASE / "config.json").read_text())["dtype"] in ("bfloat16", "float16")


def test_measured_base_meets_the_bars(measured):
    assert measured["reading"]["all"] >= 0.90
    assert min(measured["reading"][kind] for kind in ("name", "town", "spot", "number", "thing")) >= 0.90
    assert measured["reading"]["colour"] >= 0.75  # with several in a story it takes another of them
    assert measured["closed_book"]["all"] >= 0.95
    assert measured["perplexity"]["stories"] < 4
    assert len(measured["samples"]) == 5
    assert {"command", "date", "versions", "hardware"} <= measured.keys()


def test_reading_again_agrees_with_the_measurement(base):
    assert measure.reading(*base, 40)["all"] >= 0.85


def test_generation_stops_by_itself(base):
    from lora_lab.models import answer

    told = answer(*base, ["Tell me a story."], max_new_tokens=150)[0]
    assert 60 < len(told) < 1000
    assert told.endswith((".", '"'))
