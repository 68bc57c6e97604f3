"""A batch in which every row has its own adapter: `rows` beside PEFT's `adapter_names`, on a small Llama.

Prefill: all tokens of the prompts in one call. Decode: 16 tokens more for each row, by `generate`, prompts of 8 tokens.
Every call of ours includes entering `rows` and stacking the factors anew. The floor is the same without any adapter.
"""

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.timing import Case, device
from lora_lab import Adapter, Factors
from lora_lab.base import is_linear, weight_shape
from lora_lab.many import add_adapter, rows, use

RANK, ALPHA, VOCAB, NEW = 16, 24, 512, 16


def llama(width: int, layers: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 11 * width // 4, "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 128, "eos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, **sizes, **heads)).to(device()).eval().requires_grad_(False)


def adapters(base: nn.Module, number: int) -> dict[str, Adapter]:
    """`number` random adapters for every linear layer but the head."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * shape[1] ** -0.5

    layers = {path: weight_shape(m) for path, m in base.named_modules() if is_linear(m) and path != "lm_head"}
    return {
        f"a{n}": {path: Factors(draw(RANK, in_), draw(out, RANK), ALPHA) for path, (out, in_) in layers.items()}
        for n in range(number)
    }


def both(width: int, layers: int, number: int) -> tuple[nn.Module, nn.Module]:
    """The same model with the same adapters, by us and by PEFT."""
    import peft

    found = adapters(llama(width, layers), number)
    ours, theirs = llama(width, layers), None
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", init_lora_weights=False)
    for name, adapter in found.items():
        add_adapter(ours, name, adapter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if theirs is None:
                theirs = peft.get_peft_model(llama(width, layers), config, adapter_name=name)
            else:
                theirs.add_adapter(name, config)
        for path, factors in adapter.items():
            layer = theirs.base_model.model.get_submodule(path)
            layer.lora_A[name].weight.data.copy_(factors.A)
            layer.lora_B[name].weight.data.copy_(factors.B)
    return use(ours, None), theirs.eval()


def apart(ours: Tensor, theirs: Tensor) -> float | bool:
    """Relative distance of logits; tokens must be the same."""
    if not ours.is_floating_point():
        return torch.equal(ours, theirs)
    distance = ((ours - theirs).norm() / theirs.norm()).item()
    assert distance < 1e-4, f"the logits differ by {distance:.1e}"
    return distance


def case(model: nn.Module, twin: nn.Module, number: int, batch: int, length: int, decode: bool) -> Case:
    generator = torch.Generator().manual_seed(2)
    names = [f"a{n}" for n in torch.randint(number, (batch,), generator=generator).tolist()]
    if batch == number:
        names = [f"a{n}" for n in range(number)]
    ids = torch.randint(VOCAB, (batch, length), generator=generator).to(device())
    more = {"attention_mask": torch.ones_like(ids)}
    if decode:
        more |= {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}

    @torch.no_grad()
    def run(one: nn.Module, **peft_names) -> Tensor:
        return one.generate(input_ids=ids, **more, **peft_names) if decode else one(ids, **more, **peft_names).logits

    def ours() -> Tensor:
        with rows(model, names):
            return run(model)

    group = "decode" if decode else "prefill"
    name = f"{group}, {batch} rows x {NEW if decode else length}, {number} adapters"
    return Case(
        "many",
        name,
        ours,
        lambda: run(twin, adapter_names=names),
        check=apart,
        group=group,
        floor=lambda: run(model),
        memory=not decode,
    )


def cases(quick: bool) -> Iterator[Case]:
    width, layers = (256, 2) if quick else (1024, 4)
    for number in (8,) if quick else (8, 32):
        model, twin = both(width, layers, number)
        for decode, length in ((False, 16), (True, 8)) if quick else ((False, 16), (False, 64), (True, 8)):
            for batch in (32,) if quick else dict.fromkeys((number, 32)):
                yield case(model, twin, number, batch, length, decode)
