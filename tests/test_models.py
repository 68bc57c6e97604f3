"""load_base and answer, on folders made here (Llama, GPT-2, GPT-NeoX) and on the course's own base."""

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_lab import models, paths

transformers = pytest.importorskip("transformers")
from tiny_models import KINDS, PROMPTS, edit_json, make_model, make_tokenizer, save_folder  # noqa: E402

load = functools.partial(models.load_base, device="cpu")  # also where there is a GPU


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {kind: save_folder(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A Llama folder that a test may damage."""
    return save_folder("llama", tmp_path)


def slow_answer(model, tokenizer, prompt: str, tokens: int) -> str:
    """Greedy decoding by its definition: one prompt, no padding, no cache, all positions anew for each token."""
    ids = models.prompt_ids(tokenizer, prompt)
    new: list[int] = []
    while len(new) < tokens:
        token = model(torch.tensor([ids + new])).logits[0, -1].argmax().item()
        if token == tokenizer.eos_token_id:
            break
        new.append(token)
    return tokenizer.decode(new, skip_special_tokens=True).strip()


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_loads_as_it_was_saved_and_in_silence(folders, kind, capfd):
    state = torch.random.get_rng_state()
    model, tokenizer = load(folders[kind], device="cpu")
    assert torch.equal(state, torch.random.get_rng_state())
    assert capfd.readouterr() == ("", "")
    assert not model.training
    assert tokenizer.pad_token == "<end>"  # it came without one
    ids = torch.tensor([tokenizer(PROMPTS[1])["input_ids"]])
    expected = make_model(kind, len(tokenizer))(ids).logits
    torch.testing.assert_close(model(ids).logits, expected)


def test_dtype_is_the_one_asked_for_whatever_is_stored(folder):
    weights = {name: value.half() for name, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", dtype="float16")
    for dtype in (torch.float32, torch.bfloat16):
        model, _ = load(folder, dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}


def test_source_comes_from_the_argument_then_the_variable_then_the_course(folders, monkeypatch):
    monkeypatch.setattr(paths, "BASE", folders["llama"])
    monkeypatch.delenv("LORA_LAB_BASE", raising=False)
    assert load()[0].config.model_type == "llama"
    monkeypatch.setenv("LORA_LAB_BASE", str(folders["gpt_neox"]))
    assert load()[0].config.model_type == "gpt_neox"
    assert load(str(folders["gpt2"]))[0].config.model_type == "gpt2"


def test_a_padding_token_of_its_own_is_kept(folder):
    tokenizer = make_tokenizer(special=("<end>", "<start>", "<pad>"))
    tokenizer.pad_token = "<pad>"
    tokenizer.save_pretrained(folder)
    make_model("llama", len(tokenizer)).save_pretrained(folder)
    assert load(folder)[1].pad_token == "<pad>"


def test_weights_in_several_parts_load_and_a_lost_part_is_named(folder):
    model, _ = load(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    parts = sorted(folder.glob("model-*.safetensors"))
    assert len(parts) > 1
    again, _ = load(folder)
    torch.testing.assert_close(again.state_dict(), model.state_dict())
    parts[0].unlink()
    with pytest.raises(FileNotFoundError, match=parts[0].name):
        load(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_are_those_of_greedy_decoding_whatever_the_batch(folders, kind, batch_size, capfd):
    model, tokenizer = load(folders[kind])
    expected = [slow_answer(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    assert len(set(expected)) == len(PROMPTS)
    capfd.readouterr()
    assert models.answer(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size) == expected
    assert capfd.readouterr() == ("", "")


def test_an_answer_ends_before_the_first_stop_token(folders):
    model, tokenizer = load(folders["llama"])
    ids = models.prompt_ids(tokenizer, PROMPTS[0])
    new = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12, pad_token_id=0)[
        0, len(ids) :
    ].tolist()
    stop = new[5]
    assert stop not in new[:5]
    until = tokenizer.decode(new[:5]).strip()
    model.generation_config.eos_token_id = [0, stop]  # as chat models have it: a list
    assert models.answer(model, tokenizer, PROMPTS, max_new_tokens=12)[0] == until
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop)
    assert models.answer(model, tokenizer, PROMPTS, max_new_tokens=12)[0] == until


def test_special_tokens_do_not_show(folders):
    model, tokenizer = load(folders["llama"])
    plain = models.answer(model, tokenizer, PROMPTS[:1], max_new_tokens=12)[0]
    ids = tokenizer(plain, add_special_tokens=False)["input_ids"]
    tokenizer.add_special_tokens({"additional_special_tokens": [tokenizer.convert_ids_to_tokens(ids[3])]})
    shown = models.answer(model, tokenizer, PROMPTS[:1], max_new_tokens=12)[0]
    assert len(shown) < len(plain)


def test_the_prompt_goes_through_the_chat_template_or_stays_plain(folders):
    tokenizer = make_tokenizer(chat=True)
    assert tokenizer.decode(models.prompt_ids(tokenizer, "a key")) == "[user] a key\n[bot]"
    as_library = tokenizer.apply_chat_template([{"role": "user", "content": "a key"}], add_generation_prompt=True)
    assert models.prompt_ids(tokenizer, "a key") == as_library["input_ids"]
    assert tokenizer.decode(models.prompt_ids(make_tokenizer(chat=False), "a key")) == "a key"


def test_everything_is_left_as_found(folders):
    model, tokenizer = load(folders["gpt2"])
    model.generation_config.update(do_sample=True, temperature=0.3, repetition_penalty=9.0)  # would change the answers
    plain, _ = load(folders["gpt2"])
    model.train()
    model.transformer.h[0].eval()  # a frozen part stays in evaluation mode
    modes = [module.training for module in model.modules()]
    config, side = model.generation_config, tokenizer.padding_side
    state = torch.random.get_rng_state()
    assert models.answer(model, tokenizer, PROMPTS, 12) == models.answer(plain, tokenizer, PROMPTS, 12)
    assert torch.equal(state, torch.random.get_rng_state())
    assert [module.training for module in model.modules()] == modes
    assert model.generation_config is config
    assert tokenizer.padding_side == side
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT 0.21 under transformers 5.23
def test_a_peft_model_answers_too_and_keeps_its_settings(folders):
    peft = pytest.importorskip("peft")
    model, tokenizer = load(folders["llama"])
    expected, config = models.answer(model, tokenizer, PROMPTS, 12), model.generation_config
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=5, target_modules=["q_proj"]))
    assert models.answer(wrapped, tokenizer, PROMPTS, 12) == expected  # B = 0
    assert wrapped.generation_config is config


def test_what_cannot_be_answered_is_refused(folders):
    model, tokenizer = load(folders["gpt2"])  # no chat template: an empty prompt has no tokens
    assert models.answer(model, tokenizer, []) == []
    for prompts, options, message in [
        ("one string", {}, "give a list"),
        (["fine", ""], {}, "prompt 1 is empty"),
        (
            ["fine", "a key " * 60],
            {"max_new_tokens": 20},
            r"prompt 1: \d+ tokens and 20 new ones exceed .* 96 positions",
        ),
        (["fine"], {"max_new_tokens": 0}, "max_new_tokens 0"),
        (["fine"], {"batch_size": 0}, "batch_size 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            models.answer(model, tokenizer, prompts, **options)


@pytest.mark.skipif(not (paths.BASE / "model.safetensors").exists(), reason="data/base is not there yet")
def test_the_course_has_a_base_that_answers(capfd):
    model, tokenizer = load(paths.BASE, device="cpu")
    assert tokenizer.chat_template
    answers = models.answer(model, tokenizer, PROMPTS, max_new_tokens=8)
    assert capfd.readouterr() == ("", "")
    assert answers == [slow_answer(model, tokenizer, prompt, 8) for prompt in PROMPTS]
