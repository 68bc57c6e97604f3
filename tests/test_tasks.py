"""The tasks: disjoint splits, answers of tokens that training used, labels on the answer alone, metrics that bite."""

import json
import re
from collections import Counter

import pytest

from lora_lab import tasks
from lora_lab.paths import BASE, MEASUREMENTS
from lora_lab.world import cipher, desk, make_tasks, pretrain
from lora_lab.world.corpus import documents
from lora_lab.world.tokenizer import encode_documents

VOICES = ["support_desk", "voice_pirate", "voice_formal"]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(BASE, local_files_only=True)


def test_files_are_what_the_generator_makes(tmp_path):
    made = make_tasks.build(0)
    assert made.keys() == tasks.TASKS.keys()
    for name, parts in made.items():
        for split, pairs in parts.items():
            assert [tuple(e) for e in tasks.load(name, split)] == pairs


def test_another_seed_gives_other_requests():
    first, second = ({text for text, _, _ in desk.requests("test", 50, seed)} for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize("name", tasks.TASKS)
def test_sizes_and_no_prompt_in_two_splits(name):
    sizes, seen = {}, Counter()
    for split in tasks.SPLITS:
        prompts = [e.prompt for e in tasks.load(name, split)]
        sizes[split] = len(prompts)
        assert len(set(prompts)) == len(prompts)
        seen.update(prompts)
    assert max(seen.values()) == 1
    assert 900 <= sizes["train"] <= 2000
    assert (sizes["validation"], sizes["test"]) == (200, 300)


def test_desk_splits_share_no_number_no_customer_and_no_kind_with_item():
    numbers, pairs, names = {}, {}, {}
    for split in tasks.SPLITS:
        made = desk.requests(split, 200, 0)
        numbers[split] = {slots["number"] for _, _, slots in made}
        pairs[split] = {(kind, slots["item"]) for _, kind, slots in made}
        names[split] = {slots["name"] for _, _, slots in made}
        found = {re.search(r"\d+", e.completion)[0] for e in tasks.load("support_desk", split)}
        assert numbers[split] <= found
        numbers[split] = found
    for kinds in (numbers, pairs, names):
        assert not kinds["train"] & kinds["test"]
        assert not kinds["train"] & kinds["validation"]
        assert not kinds["validation"] & kinds["test"]


@pytest.mark.parametrize("name", VOICES)
def test_desk_answers_copy_from_the_request_and_follow_the_format(name):
    for prompt, completion in tasks.load(name, "test"):
        number = re.match(r"\[ORDER (\d+)\]", completion)[1]
        assert number in prompt
        assert set(tasks.TASKS[name].measure(completion, completion).values()) == {1.0}


def test_voices_answer_the_same_requests_differently():
    asked = [[e.prompt for e in tasks.load(name, "test")] for name in VOICES]
    assert asked[0] == asked[1] == asked[2]
    replies = [{e.completion for e in tasks.load(name, "test")} for name in VOICES]
    assert not replies[0] & replies[1]
    assert not replies[1] & replies[2]


def test_new_facts_are_the_same_in_every_split_and_asked_otherwise():
    from lora_lab.world.newcomers import PHRASINGS, newcomer_facts

    subjects = {fact.subject for fact in newcomer_facts(0)}
    for split in tasks.SPLITS:
        asked = " ".join(e.prompt for e in tasks.load("new_facts", split))
        assert all(subject in asked for subject in subjects)
    used = [index for indices in PHRASINGS.values() for index in indices]
    assert sorted(used) == list(range(14))


def test_cipher_is_a_permutation_without_fixed_letters():
    secret = cipher.table()
    assert sorted(secret) == sorted(secret.values())
    assert all(a != b for a, b in secret.items())
    for prompt, completion in tasks.load("cipher", "test", 50):
        plain = prompt.removeprefix("Cipher: ").split()
        assert [secret[letter] for letter in plain] == completion.split()


@pytest.mark.parametrize("name", tasks.TASKS)
def test_pretraining_has_used_every_token_of_every_answer(name, tokenizer):
    examples = [e for split in tasks.SPLITS for e in tasks.load(name, split, 300)]
    wanted = {i for encoded in tasks.encode(examples, tokenizer) for i in encoded["labels"]} - {-100}
    scraps = set(pretrain.scrap_ids(tokenizer))  # pretraining draws each of these some 200 times
    assert wanted - scraps == {tokenizer.eos_token_id}
    said = Counter(i for row in encode_documents(tokenizer, list(documents(1000, 5000))) for i in row)
    assert sum(said[i] >= 5 for i in wanted) >= 0.95 * len(wanted)


def test_labels_cover_the_answer_and_its_end_alone(tokenizer):
    example = tasks.Example("Where is my lamp?", "[ORDER 12] Here. - The Desk")
    (encoded,) = tasks.encode([example], tokenizer)
    ids, labels = encoded["input_ids"], encoded["labels"]
    assert len(ids) == len(labels)
    assert ids[-1] == labels[-1] == tokenizer.eos_token_id
    learned = [i for i, label in zip(ids, labels, strict=True) if label != -100]
    assert learned == [label for label in labels if label != -100]
    assert tokenizer.decode(learned, skip_special_tokens=True).strip() == example.completion
    messages = [{"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.completion}]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False)


def test_encode_without_a_chat_template_and_with_a_trailing_newline(tokenizer):
    import copy

    example = tasks.Example("One?", "Two.")
    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    (encoded,) = tasks.encode([example], plain)
    assert plain.decode(encoded["input_ids"]) == "<|bos|>One? Two.<|end|>"
    other = copy.deepcopy(tokenizer)
    other.chat_template = tokenizer.chat_template.replace("+ eos_token", "+ eos_token + '\\n'")
    (encoded,) = tasks.encode([example], other)
    assert encoded["labels"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[ORDER 48213] Your lamp is late. - The Desk", (1, 1, 0)),
        ("[ORDER 48231] Your lamp is here. - The Desk", (1, 0, 0)),
        ("ORDER 48213 Your lamp is here. - The Desk", (0, 0, 0)),
        ("48213", (0, 0, 0)),
        ("[ORDER 48213] Your lamp is here. - The Captain", (0, 1, 0)),
        ("[ORDER 48213] Your lamp is here. - The Desk", (1, 1, 1)),
        ("", (0, 0, 0)),
    ],
)
def test_desk_metrics(answer, expected):
    wanted = "[ORDER 48213] Your lamp is here. - The Desk"
    assert tuple(tasks.TASKS["support_desk"].measure(answer, wanted).values()) == expected


def test_cipher_metrics_count_letters_in_place():
    measure = tasks.TASKS["cipher"].measure
    assert measure("a b c d", "a b x d") == {"letters": 0.75, "exact": 0.0}
    assert measure("a b", "a b c d") == {"letters": 0.5, "exact": 0.0}
    assert measure("a b c d", "a b c d") == {"letters": 1.0, "exact": 1.0}


def test_unknown_names_are_refused():
    with pytest.raises(KeyError, match="support_desk"):
        tasks.load("suport_desk", "test")
    with pytest.raises(ValueError, match="validation"):
        tasks.load("cipher", "dev")
    with pytest.raises(ValueError, match="no examples"):
        tasks.score("cipher", None, None, [])


@pytest.mark.parametrize("task", tasks.TASKS.values(), ids=lambda task: task.name)
def test_every_metric_is_explained_and_measured(task):
    assert task.main in task.metrics
    assert task.measure("x", tasks.load(task.name, "test", 1)[0].completion).keys() == task.metrics.keys()
    assert all(len(meaning) > 20 for meaning in task.metrics.values())


def test_recorded_scores_meet_the_bars():
    recorded = json.loads((MEASUREMENTS / "tasks.json").read_text())
    assert recorded["tasks"].keys() == tasks.TASKS.keys()
    for name, result in recorded["tasks"].items():
        main = tasks.TASKS[name].main
        assert result["base"]["scores"][main] <= 0.2
        if name != "cipher":  # the far task, which this recipe does not learn
            assert result["lora"]["scores"][main] > result["base"]["scores"][main] + 0.3
    desk_scores = recorded["tasks"]["support_desk"]["lora"]["scores"]
    assert desk_scores["format"] >= 0.9
    assert desk_scores["order"] >= 0.9


def test_base_scores_poorly_live(tokenizer):
    from lora_lab.models import load_base

    model, tokenizer = load_base(BASE, device="cpu")
    scores = tasks.score("support_desk", model, tokenizer, tasks.load("support_desk", "test", 20))
    assert scores.keys() == tasks.TASKS["support_desk"].metrics.keys()
    assert scores["exact"] <= 0.2
