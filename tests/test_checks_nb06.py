"""What the checks of notebook 06 take for right, held against the libraries. The answers: `test_checks_answers`."""

import copy
import inspect
import warnings

import pytest
import torch
from torch import nn

from lora_lab import tasks
from lora_lab.checks.harness import Cases
from lora_lab.checks.nb06_health import Adapted, part, problems
from lora_lab.checks.nb06_labels import reference as masked
from lora_lab.checks.nb06_log import MAKE, reference
from lora_lab.checks.nb06_repair import NEW_NAMES
from lora_lab.checks.nb06_targets import Unknown, inside_blocks
from lora_lab.models import load_base, prompt_ids

pytestmark = pytest.mark.usefixtures("away")


def test_the_new_names_are_the_libraries_own():
    """Each new name is a parameter today, and the old one is gone or kept only to grumble."""
    trl = pytest.importorskip("trl")
    settings = inspect.signature(trl.SFTConfig).parameters
    trainer = inspect.signature(trl.SFTTrainer).parameters
    assert {"max_length", "warmup_steps", "activation_checkpointing"} <= set(settings)
    assert not {"max_seq_length", "warmup_ratio"} & set(settings)
    assert "processing_class" in trainer
    assert "tokenizer" not in trainer
    assert set(NEW_NAMES.values()) == {
        "dtype", "max_length", "warmup_steps", "processing_class", "activation_checkpointing",
    }  # fmt: skip


def test_the_models_are_named_as_peft_names_its_own():
    peft = pytest.importorskip("peft")
    model = nn.ModuleDict({"q_proj": nn.Linear(7, 5), "norm": nn.LayerNorm(5)})
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"]))
    assert {part(name) for name, _ in wrapped.named_parameters()} == {"A", "B", None}
    assert problems(wrapped) == (set(), set())
    theirs = {name.partition("q_proj.")[2] for name, _ in wrapped.named_parameters() if "q_proj." in name}
    ours = {name.partition("q_proj.")[2] for name, _ in Adapted(Cases(1)).named_parameters() if "q_proj." in name}
    assert theirs == ours


def test_masking_agrees_with_the_library_on_a_task():
    _, tokenizer = load_base()
    examples = tasks.load("voice_pirate", "validation", 20)
    for example, row in zip(examples, tasks.encode(examples, tokenizer), strict=True):
        answer = tokenizer(" " + example.completion, add_special_tokens=False)["input_ids"]
        ids, labels = masked(prompt_ids(tokenizer, example.prompt), answer, tokenizer.eos_token_id)
        assert {"input_ids": ids, "labels": labels} == row


@pytest.mark.parametrize("seed", range(4))
def test_the_logs_are_what_their_words_say(seed):
    for word, (make, count) in MAKE.items():
        for variant in range(count):
            assert reference(make(Cases(seed), variant)) == word, (word, variant)


def test_the_logs_have_the_keys_of_trainer(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = nn.Linear(3, 1)

    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = copy.deepcopy(model)

        def forward(self, x, labels):
            return {"loss": (self.inner(x) - labels).square().mean()}

    rows = [{"x": torch.randn(3, generator=torch.Generator().manual_seed(i)), "labels": 1.0} for i in range(8)]
    settings = {"logging_steps": 1, "max_steps": 3, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    settings |= {"eval_strategy": "steps", "eval_steps": 2, "prediction_loss_only": True, "save_strategy": "no"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = transformers.TrainingArguments(output_dir=str(tmp_path), **settings)
        trainer = transformers.Trainer(model=Squared(), args=args, train_dataset=rows, eval_dataset=rows)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    kinds = ({"loss", "grad_norm", "learning_rate", "step"}, {"eval_loss", "step"}, {"train_loss", "step"})
    log = MAKE["healthy"][0](Cases(0), 0)
    for kind in kinds:
        assert any(kind <= set(entry) for entry in trainer.state.log_history)
        assert any(kind <= set(entry) for entry in log)


def test_whole_paths_are_targets_that_peft_takes():
    peft = pytest.importorskip("peft")
    model = Unknown(Cases(2), "shared")
    paths = inside_blocks(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Conv1D: fan_in_fan_out is set by PEFT itself
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=3, target_modules=sorted(paths)))
    found = {
        n.removeprefix("base_model.model.")[: -len(".lora_A")]
        for n, _ in wrapped.named_modules()
        if n.endswith("lora_A")
    }
    assert found == paths
