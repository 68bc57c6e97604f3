"""The base model: find it, load it safely, ask it questions.

    load_base(source) -> (model, tokenizer)          source: None | folder | Hub id
    answer(model, tokenizer, prompts) -> [str, ...]  greedy: token = argmax p(token | prompt, answer so far)

A folder is a standard Hugging Face one: config.json, the tokenizer's files, weights in safetensors. Pickled weights are
never opened and code that comes with a model is never run. transformers is imported only when a function needs it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lora_lab.model_source import check_folder, find_folder
from lora_lab.modes import evaluating


def load_base(source=None, *, device=None, dtype: torch.dtype = torch.float32):
    """Load a causal language model and its tokenizer, in evaluation mode, without a word on the screen.

    Args:
        source: a folder or a Hub id. None: the environment variable LORA_LAB_BASE, else the course's own base model.
            A Hub id that is already in the Hub's cache comes from there, without asking the network.
        device: None means CUDA if there is a GPU, else the CPU. Apple's "mps" has to be asked for: it has no float64
            and falls short of the CPU in some operations of the course.
        dtype: the weights' type, whatever they are stored in.

    A tokenizer without a padding token gets the end-of-text token for it. Where a configuration names Python code of
    its own (auto_map), transformers' own class for that model type is used instead, and a type it does not know is
    refused: such code is never run.

    Raises:
        FileNotFoundError: something is missing; it is named.
        ValueError: everything is there, but it cannot be used.
        ConnectionError: the Hub cannot be reached; within seconds, and at once if HF_HUB_OFFLINE=1.
    """
    folder = find_folder(source)
    check_folder(folder)
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"local_files_only": True, "trust_remote_code": False}
    with _no_progress_bar():
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
            )
        except SafetensorError as error:
            raise ValueError(f"{folder}: a safetensors file is damaged or cut short ({error})") from error
    if report["missing_keys"]:  # transformers would go on with random numbers in their place
        missing = sorted(report["missing_keys"])
        raise ValueError(f"{folder}: {len(missing)} weights are not in the file: {', '.join(missing[:3])}, ...")
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ValueError(f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model's table only {rows} rows")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


@torch.no_grad()
def answer(model, tokenizer, prompts: list[str], max_new_tokens: int = 48, batch_size: int = 64) -> list[str]:
    """The model's greedy answers, in the order of the prompts, without special tokens and outer white space.

    Each prompt goes through `prompt_ids`: the chat template or, for a tokenizer without one, the plain prompt. Prompts
    of similar length share a batch, padded on the left; an answer ends before the first end-of-text token. The mode and
    settings of the model, the tokenizer and the random state are left as found.

    Raises ValueError for a prompt that is empty, or too long for the model's positions together with its answer.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts is one string, {prompts[:40]!r}: give a list of strings")
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} and batch_size {batch_size} must be at least 1")
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    _check_lengths(rows, max_new_tokens, getattr(model.config, "max_position_embeddings", None))
    stops = _stop_tokens(model, tokenizer)
    answers = [""] * len(rows)
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
    with _plain_answers(model):
        for start in range(0, len(rows), batch_size):
            chosen = by_length[start : start + batch_size]
            for i, new in zip(chosen, _generate(model, [rows[i] for i in chosen], max_new_tokens, stops), strict=True):
                end = next((k for k, token in enumerate(new) if token in stops), len(new))
                text = tokenizer.decode(new[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
                answers[i] = text.strip()
    return answers


def prompt_ids(tokenizer, prompt: str) -> list[int]:
    """The tokens a model sees before its answer: the prompt as a user's turn in the chat template, ready for the reply.

    A tokenizer without a chat template gets the plain prompt, with the special tokens it adds itself.
    """
    if not tokenizer.chat_template:
        return tokenizer(prompt)["input_ids"]
    turn = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]  # the template has written them already


def _generate(model, rows: list[list[int]], max_new_tokens: int, stops: set[int]) -> list[list[int]]:
    """Greedy continuations of one batch, each at most max_new_tokens long; what follows a stop token is padding."""
    width = max(map(len, rows))
    device = next(model.parameters()).device
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    new = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=min(stops, default=0),
        eos_token_id=sorted(stops) or None,
    )
    return new[:, width:].tolist()


def _stop_tokens(model, tokenizer) -> set[int]:
    """End-of-text tokens by the model's own account (a chat model may have several) and by the tokenizer's."""
    own = model.generation_config.eos_token_id
    found = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
    return {token for token in found if token is not None}


@contextmanager
def _plain_answers(model) -> Iterator[None]:
    """Evaluation mode and plain settings for a while: a model may come with sampling or penalties switched on."""
    from transformers import GenerationConfig

    # vars(): a wrapper such as PEFT's has no settings of its own and passes on those of the model inside.
    settings = [(module, module.generation_config) for module in model.modules() if "generation_config" in vars(module)]
    with evaluating(model):
        for module, _ in settings:
            module.generation_config = GenerationConfig()
        try:
            yield
        finally:
            for module, config in settings:
                module.generation_config = config


def _check_lengths(rows: list[list[int]], max_new_tokens: int, limit: int | None) -> None:
    for i, row in enumerate(rows):
        if not row:
            raise ValueError(f"prompt {i} is empty: a model needs at least one token to go on from")
        if limit is not None and len(row) + max_new_tokens > limit:
            raise ValueError(
                f"prompt {i}: {len(row)} tokens and {max_new_tokens} new ones exceed the model's {limit} positions"
            )


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
