"""TRL's tokenisation of the course's tasks against `lora_lab.tasks.encode`, token for token."""

import copy

import pytest
from practice_for_tests import tokenizer, trainer

from lora_lab.practice.data import (
    chat_dataset,
    completion_dataset,
    same_tokens,
    text_dataset,
    trained_part,
    with_generation_marks,
)
from lora_lab.tasks import TASKS, load

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.mark.parametrize("task", TASKS)
def test_trl_trains_on_the_tokens_that_the_course_trains_on(tmp_path, task):
    rows = trainer(tmp_path, dataset=completion_dataset(task, "train", 64)).train_dataset
    assert same_tokens(rows, load(task, "train", 64), tokenizer()) == []


def test_chats_with_marks_train_on_the_assistant_alone_and_without_them_on_everything(tmp_path):
    examples = load("support_desk", "train", 24)
    made = trainer(tmp_path, dataset=chat_dataset("support_desk", "train", 24))
    assert all(row["labels"] == row["input_ids"] for row in made.train_dataset)

    from trl import SFTConfig, SFTTrainer

    from lora_lab.practice.device import training_arguments

    marked = with_generation_marks(tokenizer())
    config = SFTConfig(**training_arguments(tmp_path, "cpu", max_steps=1, assistant_only_loss=True))
    made = SFTTrainer(
        made.model, args=config, train_dataset=chat_dataset("support_desk", "train", 24), processing_class=marked
    )
    assert same_tokens(made.train_dataset, examples, tokenizer()) == []


def test_marks_change_no_text_and_leave_the_original_alone():
    before = tokenizer().chat_template
    marked = with_generation_marks(tokenizer())
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    for messages, open_end in ((chat, True), (chat[:2], False)):
        texts = [
            t.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_end)
            for t in (marked, tokenizer())
        ]
        assert texts[0] == texts[1]
    assert tokenizer().chat_template == before
    other = copy.deepcopy(tokenizer())
    other.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ValueError, match="not the course's"):
        with_generation_marks(other)


def test_rendered_text_holds_the_same_tokens_with_one_begin_token_and_all_of_them_in_the_loss(tmp_path):
    examples = load("cipher", "train", 16)
    rows = trainer(tmp_path, dataset=text_dataset("cipher", "train", tokenizer(), 16)).train_dataset
    from lora_lab.tasks import encode

    assert [row["input_ids"] for row in rows] == [row["input_ids"] for row in encode(examples, tokenizer())]
    assert all(row["labels"] == row["input_ids"] for row in rows)


def test_trained_part_shows_where_the_loss_looks_and_refuses_what_is_no_row(tmp_path):
    example = load("new_facts", "train", 1)[0]
    row = trainer(tmp_path, dataset=completion_dataset("new_facts", "train", 1)).train_dataset[0]
    unseen, seen = trained_part(row, tokenizer())
    assert unseen == f"<|bos|><|user|> {example.prompt}<|end|><|assistant|>"
    assert seen == f" {example.completion}<|end|>"
    with pytest.raises(ValueError, match="2 input_ids and 1 labels"):
        trained_part({"input_ids": [1, 2], "labels": [1]}, tokenizer())
    with pytest.raises(ValueError, match="neither -100 nor token 2"):
        trained_part({"input_ids": [1, 2], "labels": [-100, 5]}, tokenizer())


def test_same_tokens_names_the_rows_that_differ():
    examples = load("cipher", "train", 3)
    from lora_lab.tasks import encode

    rows = encode(examples, tokenizer())
    rows[1]["labels"] = list(rows[1]["input_ids"])  # the loss on the prompt too
    rows[2]["input_ids"] = [1, *rows[2]["input_ids"]]  # begun twice
    assert same_tokens(rows, examples, tokenizer()) == [1, 2]
    with pytest.raises(ValueError, match="2 rows for 3"):
        same_tokens(rows[:2], examples, tokenizer())
    with pytest.raises(ValueError, match="no labels"):
        same_tokens([{"input_ids": [1]}] * 3, examples, tokenizer())
