"""Tiny models and tokenizers, made on the spot, for the tests of loading and answering. Needs transformers."""

import json
from pathlib import Path

import torch
import transformers

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[bot]{% endif %}"
)
PROMPTS = [
    "the red fox sleeps",
    "where is the key of the small house by the river, and who took it",
    "a",
    "anna has two dogs and a cat",
]
KINDS = ["llama", "gpt2", "gpt_neox"]


def make_tokenizer(chat: bool = True, special: tuple[str, ...] = ("<end>", "<start>")):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        PROMPTS, trainers.BpeTrainer(vocab_size=300, special_tokens=[*special], initial_alphabet=alphabet)
    )
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", bos_token="<start>")
    tokenizer.chat_template = CHAT if chat else None
    return tokenizer


def make_model(kind: str, vocabulary: int):
    torch.manual_seed(3)
    common = {"vocab_size": vocabulary, "eos_token_id": 0, "bos_token_id": 1, "initializer_range": 0.2}
    if kind == "gpt2":
        config = transformers.GPT2Config(n_embd=24, n_layer=2, n_head=3, n_positions=96, **common)
    else:
        sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
        config = transformers.AutoConfig.for_model(kind, **sizes, **common, max_position_embeddings=96)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def save_folder(kind: str, folder: Path) -> Path:
    """A standard model folder of that kind; GPT-2's comes without a chat template."""
    tokenizer = make_tokenizer(chat=kind != "gpt2")
    tokenizer.save_pretrained(folder)
    make_model(kind, len(tokenizer)).save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
