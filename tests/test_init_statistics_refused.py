"""Collecting from a model leaves it as it was, also when it is refused or interrupted, and says what is missing."""

import contextlib

import pytest
import torch
from batches_for_tests import batches
from models_for_tests import fingerprint, gpt2, llama, plain, unchanged
from torch import Tensor, nn

from lora_lab.init.statistics import input_components, input_covariances, mean_gradients

COLLECT = {
    "covariances": input_covariances,
    "components": lambda model, targets, batches, **more: input_components(model, targets, batches, 4, tau=0.5, **more),
    "gradients": mean_gradients,
}


def clean(model: nn.Module) -> bool:
    hooks = [getattr(m, kind) for m in model.modules() for kind in ("_forward_pre_hooks", "_forward_hooks")]
    return not any(hooks) and not any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("collect", COLLECT.values(), ids=COLLECT)
@pytest.mark.parametrize("build", [llama, gpt2])
def test_the_model_is_as_it_was(build, collect, error):
    model = build()
    model.train()
    for i, (module, parameter) in enumerate(zip(model.modules(), model.parameters(), strict=False)):
        module.training = i % 3 == 0
        parameter.requires_grad_(i % 2 == 0)
        parameter.grad = torch.full_like(parameter, i) if i % 2 == 0 else None
    grads = [(p.grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]

    def run(model, batch, calls=[]):  # noqa: B006
        output = model(**batch)
        calls.append(output)
        if error and len(calls) == 2:
            raise error
        return output

    with unchanged(model), pytest.raises(error) if error else contextlib.nullcontext():
        collect(model, "all-linear", batches(3), run=run, progress=False)
    assert clean(model)
    for parameter, (grad, value) in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is grad
        assert grad is None or torch.equal(grad, value)


def test_an_iterator_is_read_only_as_far_as_needed():
    def endless():
        while True:
            yield from batches(4)

    found = input_components(llama(), ["q_proj"], endless(), 4, progress=False)
    assert 1 < found.batches < 100


def test_a_model_may_be_run_in_inference_mode():
    def run(model, batch):
        with torch.inference_mode():
            return model(**batch)

    for collect in (input_covariances, COLLECT["components"]):
        ours, plain = (collect(llama(), ["q_proj", "k_proj"], batches(2), run=r, progress=False) for r in (run, None))
        for path, found in ours.items():
            assert all(torch.equal(a, b) for a, b in zip(found, plain[path], strict=True))


def no_loss(model, batch):
    return model(input_ids=batch["input_ids"])


def with_nan(model, batch):
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.nan
    return model(**batch)


def one_pass(**more):
    return lambda model, targets, data: input_components(model, targets, data, 4, passes=1, progress=False, **more)


BAD = {
    "no batches": (input_covariances, [], {}, ValueError, "0 batches given, at least 1 needed"),
    "no batches for gradients": (mean_gradients, [], {}, ValueError, "0 batches given"),
    "no batches for components": (COLLECT["components"], [], {}, ValueError, "0 batches given"),
    "a dict for a list": (input_covariances, batches(8)[0], {}, TypeError, "an iterable of batches|list .* of batches"),
    "batches are None": (mean_gradients, None, {}, TypeError, "NoneType"),
    "a batch that is no dict": (input_covariances, [[1, 2]], {}, TypeError, "batch 0 must be a dict"),
    "run is no function": (input_covariances, batches(4), {"run": 3}, TypeError, "run must be a function"),
    "too few tokens": (input_covariances, batches(4), {"min_tokens": 999}, ValueError, "167 tokens, 999 are needed"),
    "fewer tokens than inputs": (input_covariances, batches(1)[:1], {}, ValueError, "1 batches gave 9 tokens, 32 are"),
    "min_tokens": (input_covariances, batches(4), {"min_tokens": 0}, ValueError, "whole number from 1, got 0"),
    "NaN": (input_covariances, batches(4), {"run": with_nan}, ValueError, "NaN or infinity"),
    "NaN in components": (one_pass(run=with_nan), batches(4), None, ValueError, "NaN or infinit"),
    "loss is NaN": (mean_gradients, batches(4), {"run": with_nan}, ValueError, "loss of batch 1 is nan"),
    "no loss": (mean_gradients, batches(4), {"run": no_loss}, ValueError, "batch 1 gave no loss"),
    "components of 3 tokens": (one_pass(labelled=False), [{"input_ids": torch.tensor([[3, 4, 5]])}], None, ValueError,
        "1 batches gave 3 tokens, 8 are needed"),
    "nothing labelled": (one_pass(), [{**b, "labels": b["labels"].fill_(-100)} for b in batches(4)], None, ValueError,
        "gave 0 tokens.*8 are needed"),
    "not settled": (one_pass(tau=1.0), batches(4), None, ValueError, "after 2 batches .* of 2 inputs still turn"),
    "an iterator ends": (lambda m, t, data: input_components(m, t, iter(data), 4, tau=1.0, progress=False), batches(4),
        None, ValueError, "of an iterator that cannot be read again"),
    "tau": (one_pass(tau=1.5), batches(4), None, ValueError, "tau is a cosine, 0 to 1, got 1.5"),
    "rho": (one_pass(rho=0.5), batches(4), None, ValueError, "rho must be a finite number of at least 1, got 0.5"),
    "rank": (lambda m, t, data: input_components(m, t, data, 33), batches(4), None, ValueError, "= 32, got 33"),
}  # fmt: skip


@pytest.mark.parametrize(("collect", "data", "options", "error", "message"), BAD.values(), ids=BAD)
def test_refusals(collect, data, options, error, message):
    model = llama(layers=1)
    before = fingerprint(model)[:2]
    with pytest.raises(error, match=message):
        collect(model, ["q_proj", "o_proj"], data, **({} if options is None else {"progress": False} | options))
    assert fingerprint(model)[:2] == before
    assert clean(model)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x).square().mean()


@pytest.mark.parametrize("collect", COLLECT.values(), ids=COLLECT)
def test_refused_layers(collect):
    data, run = [torch.randn(1, 30, 4)], lambda model, x: model(x)
    settings = {"run": run, "progress": False}
    with pytest.raises(ValueError, match=r"unused: .*(0 tokens|no gradient)"):
        collect(Unused(), ["used", "unused"], data, **settings)
    with pytest.raises(ValueError, match="matches no module"):
        collect(Unused(), ["typo"], data, **settings)
    with pytest.raises(ValueError, match="used is on the meta device"):
        collect(Unused().to("meta"), ["used"], data, **settings)
    with pytest.raises(TypeError, match="torch module, got str"):
        collect("model", ["used"], data, **settings)
    if collect is mean_gradients:
        with pytest.raises(ValueError, match="shares its weight"):
            collect(plain(), ["tied_a"], data, **settings)
