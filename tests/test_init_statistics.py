"""What is read off a model: the right numbers in any batching and dtype, and a model that is as it was."""

import contextlib
import copy

import pytest
import torch
from batches_for_tests import LENGTHS, TOKENS, UNLABELLED, batches
from models_for_tests import HALF, LANGUAGE_MODELS, llama, unchanged
from torch import Tensor, nn

from lora_lab import find_targets
from lora_lab.base import is_conv1d, oriented_weight
from lora_lab.init.components import FLIPS, IncrementalPCA
from lora_lab.init.statistics import input_components, input_covariances, mean_gradients


def inputs_of(model: nn.Module, data: list[dict]) -> dict[str, list[Tensor]]:
    """The inputs (tokens, in) of every linear layer, sample by sample, padding left out."""
    seen: dict[str, list[Tensor]] = {path: [] for path in find_targets(model, "all-linear")}
    with contextlib.ExitStack() as stack, torch.no_grad():
        mask = None
        for path in seen:

            def keep(module, args, path=path):
                seen[path] += [x[m.bool()] for x, m in zip(args[0], mask, strict=True)]

            stack.callback(model.get_submodule(path).register_forward_pre_hook(keep).remove)
        for batch in data:
            mask = batch["attention_mask"]
            model(**batch)
    return seen


@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_covariances_are_the_same_in_any_batching(name, size):
    model = LANGUAGE_MODELS[name]()
    found = input_covariances(model, "all-linear", batches(size), min_tokens=100, progress=False)
    assert (found.tokens, found.batches) == (TOKENS, -(-len(LENGTHS) // size))
    for path, samples in inputs_of(model, batches(1)).items():
        expected = sum(x.T.double() @ x.double() / x.max().double() ** 2 for x in samples) / len(samples)
        torch.testing.assert_close(found[path].double(), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_statistics_of_half_precision_are_summed_in_fp32(dtype):
    """Inputs of 60000, whose squares fp16 cannot hold; gradients of which a sum in bf16 would lose the last."""
    model = nn.Sequential(nn.Linear(6, 5, bias=False)).to(dtype)
    x = torch.randn(1, 50, 6).mul(20000).clamp(-60000, 60000).to(dtype)

    def run(model, batch):
        return model(batch).float().mean()

    found = input_covariances(model, ["0"], [x], run=run, progress=False)["0"]
    expected = (x[0].float() / x[0].float().max()).double()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected.T @ expected, rtol=1e-5, atol=1e-5)
    components = input_components(model, ["0"], [x, x], 3, rho=1, run=run, progress=False)["0"]
    assert components.directions.dtype == torch.float32
    assert all(part.isfinite().all() for part in components)

    small, large = torch.full((1, 1, 6), 2.0**-3, dtype=dtype), torch.full((1, 1, 6), 2.0**10, dtype=dtype)
    alone = [mean_gradients(model, ["0"], [x], run=run, progress=False)["0"] for x in (large, small)]
    gradient = mean_gradients(model, ["0"], [large, *[small] * 7], run=run, progress=False)["0"]
    torch.testing.assert_close(gradient, (alone[0] + 7 * alone[1]) / 8, rtol=1e-6, atol=0)
    assert not torch.equal(gradient, alone[0] / 8)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_gradients_are_the_mean_over_batches(name):
    model, data = LANGUAGE_MODELS[name](), batches(3)
    found = mean_gradients(model, "all-linear", data, training=False, progress=False)
    twin = copy.deepcopy(model)
    sum(twin(**batch).loss / len(data) for batch in data).backward()
    for path, layer in find_targets(twin, "all-linear").items():
        weight = oriented_weight(layer)
        expected = layer.weight.grad.T if is_conv1d(layer) else layer.weight.grad
        assert found[path].shape == weight.shape
        torch.testing.assert_close(found[path], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert found.tokens == TOKENS - UNLABELLED * len(LENGTHS)


def test_dropout_is_as_in_training_and_the_random_state_as_it_was():
    model, data = llama(dropout=0.3), batches(4)
    with unchanged(model):
        noisy, quiet = (mean_gradients(model, ["q_proj"], data, training=on, progress=False) for on in (True, False))
    path = "model.layers.0.self_attn.q_proj"
    assert not torch.equal(noisy[path], quiet[path])
    torch.manual_seed(0)
    twin = copy.deepcopy(model).train()
    for batch in data:
        (twin(**batch).loss / len(data)).backward()
    torch.testing.assert_close(noisy[path], twin.get_submodule(path).weight.grad)


def test_layers_with_one_input_share_one_statistic():
    model, data = llama(), batches(4)
    found = input_covariances(model, "all-linear", data, progress=False)
    alone = input_covariances(model, "all-linear", data, share=False, progress=False)
    for layer in range(2):
        q, k, v, o, gate, up, down = list(found.values())[7 * layer : 7 * layer + 7]
        assert q is k is v
        assert gate is up
        assert len({id(one) for one in (q, o, gate, down)}) == 4
    assert all(torch.equal(found[path], alone[path]) for path in found)
    held, held_alone = (sum({id(C): C.nbytes for C in some.values()}.values()) for some in (found, alone))
    assert held < 0.7 * held_alone
    rows = max(batch["attention_mask"].sum().item() for batch in data)
    assert held <= found.peak_bytes <= held + 2 * rows * 48 * 4
    components = input_components(model, "all-linear", data, 4, progress=False)
    assert components["model.layers.1.self_attn.q_proj"].directions.data_ptr() == (
        components["model.layers.1.self_attn.v_proj"].directions.data_ptr()
    )


class Fickle(nn.Module):
    """Two layers that read the same input in the first batch only, or one of them twice."""

    def __init__(self, twice: bool):
        super().__init__()
        self.first, self.second, self.calls, self.twice = nn.Linear(4, 3), nn.Linear(4, 3), 0, twice

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.first(x) + self.second(x if self.calls == 1 else x.clone())
        return y + self.first(2 * x) if self.twice else y


@pytest.mark.parametrize("twice", [False, True])
def test_layers_that_only_seem_to_share_are_noticed(twice):
    data = [torch.randn(1, 9, 4) for _ in range(3)]
    with pytest.raises(ValueError, match="second and first read the same input at first, but not later"):
        input_covariances(Fickle(twice), ["first", "second"], data, run=lambda m, x: m(x), progress=False)
    found = input_covariances(
        Fickle(twice), ["first", "second"], data, run=lambda m, x: m(x), share=False, progress=False
    )
    assert torch.equal(found["first"], found["second"]) == (not twice)


class Router(nn.Module):
    """A layer that sees its tokens sample by sample, or in one row."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 3)

    def forward(self, x: Tensor, attention_mask: Tensor, flat: bool) -> Tensor:
        return self.gate(x.reshape(-1, 4) if flat else x)


def test_inputs_in_one_row_are_split_into_their_samples():
    batch = {"x": torch.randn(2, 5, 4), "attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])}
    flat, whole = (
        input_covariances(Router(), ["gate"], [{**batch, "flat": flat}], progress=False) for flat in (True, False)
    )
    assert (flat.tokens, whole.tokens) == (8, 8)
    assert torch.equal(flat["gate"], whole["gate"])
    odd = {**batch, "attention_mask": batch["attention_mask"][:1], "flat": True}
    with pytest.raises(ValueError, match=r"gate: inputs \(10, 4\) do not match the attention mask \(1, 5\)"):
        input_covariances(Router(), ["gate"], [odd], progress=False)


def test_components_of_all_rows():
    """With as many components as inputs nothing is cut off, and the batches give what all rows at once give."""
    X = torch.randn(90, 7) * torch.arange(1, 8) + torch.arange(7)
    pca = IncrementalPCA(7)
    for rows in X.split([20, 30, 7, 33]):
        pca.update(rows)
    directions, singular_values, explained = (part.double() for part in pca.components)
    _, S, Vh = torch.linalg.svd((X - X.mean(0)).double(), full_matrices=False)
    torch.testing.assert_close(singular_values, S, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(directions.abs(), Vh.abs(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(explained, S**2 / (S**2).sum(), rtol=1e-5, atol=1e-6)
    assert (directions.gather(1, directions.abs().argmax(1, keepdim=True)) > 0).all()


def test_batches_of_fewer_tokens_than_components_are_put_together():
    """PEFT skips each of them, and never returns."""
    model, path = llama(layers=1), "model.layers.0.self_attn.q_proj"
    small = [{key: tensor[:, :6] for key, tensor in batch.items()} for batch in batches(1)]
    found = input_components(model, [path], small, 8, labelled=False, tau=0.3, progress=False)
    assert found.tokens == 6 * found.batches
    samples = inputs_of(model, small * (1 + found.batches // len(small)))[path][: found.batches]
    pca = IncrementalPCA(16)  # three batches of 6 tokens
    for i in range(0, len(samples) - 2, 3):
        pca.update(torch.cat(samples[i : i + 3]))
    torch.testing.assert_close(found[path].directions, pca.components.directions)


def test_a_direction_that_only_flips_its_sign_has_settled():
    """Its largest entry is positive, by the rule. Where two are nearly as large and opposite it flips at every update,
    and PEFT, which waits for a cosine of +0.99, never returns."""

    def rows(a: float, b: float) -> Tensor:
        return torch.outer(torch.linspace(-1, 1, 8), torch.tensor([a, -b, 0, 0, 0, 0]))

    data, model = [rows(1.05, 1), *[rows(1, 1.1), rows(1.1, 1)] * 70], nn.Sequential(nn.Linear(6, 5))
    pca = IncrementalPCA(1)
    for number, X in enumerate(data[:FLIPS]):
        pca.update(X)
        assert pca.components.directions[0, 0].sign() == (-1) ** number
        assert number == 0 or pca.cosines < -0.99
    found = input_components(model, ["0"], data, 1, rho=1, run=lambda m, x: m(x), progress=False)
    assert found.batches == FLIPS + 1


def test_tokens_without_a_label_are_left_out_of_the_components():
    model, data, path = llama(layers=1), batches(2), "model.layers.0.self_attn.q_proj"
    found = input_components(model, [path], data, 3, progress=False)
    every = input_components(model, [path], data, 3, labelled=False, progress=False)
    assert not torch.allclose(found[path].directions[0], every[path].directions[0], atol=1e-3)
    samples = inputs_of(model, data * (1 + found.batches // len(data)))[path][: 2 * found.batches]
    pca = IncrementalPCA(6)
    for i in range(0, len(samples), 2):
        pca.update(torch.cat([x[UNLABELLED:] for x in samples[i : i + 2]]))
    torch.testing.assert_close(found[path].directions, pca.components.directions)
