"""subspace_training: P has orthonormal columns, z gets Pᵀ g, d = D is plain training, nothing is left behind."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lora_lab.subspace_training import Projection, SubspaceModel, default_lr, train_in_subspace
from lora_lab.train import IGNORE, train

SIZES = [(7, 7), (20, 3), (101, 10), (64, 1)]


class TinyModel(nn.Module):
    """A language model of one hidden layer whose output head is tied to its embedding."""

    def __init__(self, vocabulary: int = 13, width: int = 6):
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(width, width)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.table.weight

    def forward(self, input_ids, attention_mask=None, labels=None):
        x = self.table(input_ids)
        logits = self.head(x + self.drop(torch.tanh(self.hidden(x))))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE)
        return SimpleNamespace(loss=loss, logits=logits)


class Bowl(nn.Module):
    """Σ (θ − target)²: the least it can reach in a subspace is known."""

    def __init__(self, size: int):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.theta = nn.Parameter(torch.randn(size, generator=generator, dtype=torch.float64))
        self.register_buffer("target", torch.randn(size, generator=generator, dtype=torch.float64))

    def forward(self, **_):
        return SimpleNamespace(loss=(self.theta - self.target).square().sum())


@pytest.fixture
def examples() -> list[dict]:
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(13, (length,), generator=generator).tolist() for length in (5, 9, 7, 6, 8, 5)]
    return [{"input_ids": row, "labels": [IGNORE, *row[1:]]} for row in rows]


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def loss_of(model: nn.Module, examples: list[dict]) -> torch.Tensor:
    return model(input_ids=torch.tensor([examples[0]["input_ids"]]), labels=torch.tensor([examples[0]["labels"]])).loss


# --- the projection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "dimension"), SIZES)
def test_columns_are_orthonormal_and_share_the_weights_evenly(size, dimension):
    P = Projection(size, dimension, seed=4, dtype=torch.float64).dense()
    assert_close(P.T @ P, torch.eye(dimension, dtype=torch.float64))
    assert (P != 0).sum(1).unique().tolist() == [1]
    assert (P != 0).sum(0).max() - (P != 0).sum(0).min() <= 1


@pytest.mark.parametrize(("size", "dimension"), SIZES)
def test_expand_and_reduce_are_products_with_the_dense_matrix(size, dimension):
    projection = Projection(size, dimension, seed=4)
    P, z, g = projection.dense(), torch.randn(dimension, requires_grad=True), torch.randn(size)
    assert_close(projection.expand(z), P @ z)
    assert_close(projection.reduce(g), P.T @ g)
    (gradient,) = torch.autograd.grad(projection.expand(z), z, g)
    assert_close(gradient, P.T @ g)


def test_a_seed_fixes_the_projection_and_leaves_the_global_random_state():
    state = torch.random.get_rng_state()
    first, again, other = (Projection(50, 7, seed).dense() for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("kind", ["random", "constant", "heavy"])
def test_a_vector_keeps_the_share_of_length_that_a_random_subspace_keeps(kind):
    """On average d/D of the squared length, whatever the vector: no direction is favoured."""
    size, dimension = 400, 40
    v = {
        "random": torch.randn(size, generator=torch.Generator().manual_seed(0)),
        "constant": torch.ones(size),
        "heavy": torch.arange(size).float() ** 3,
    }[kind]
    kept = [Projection(size, dimension, seed).reduce(v).square().sum() / v.square().sum() for seed in range(400)]
    assert torch.stack(kept).mean().item() == pytest.approx(dimension / size, rel=0.1)


# --- the model -----------------------------------------------------------------------------------------------------


def test_z_gets_the_projected_gradient_of_all_weights(examples):
    model = TinyModel().eval()
    loss_of(model, examples).backward()
    full = flat(p.grad for p in model.parameters())  # tied weights once
    subspace = SubspaceModel(copy.deepcopy(model), 9, seed=3)
    loss = loss_of(subspace, examples)
    assert_close(loss, loss_of(model, examples))
    loss.backward()
    assert_close(subspace.z.grad, subspace.projection.dense().T @ full)
    assert [name for name, p in subspace.named_parameters() if p.requires_grad] == ["z"]
    assert (subspace.training, subspace.train().model.training) == (
        False,
        True,
    )  # the model's mode, and one mode for both


def test_full_dimension_is_plain_training(examples):
    """Adam does not see a signed permutation of its parameters, so every step must agree."""
    plain, free = TinyModel(), TinyModel()
    size = sum(p.numel() for p in plain.parameters())
    options = {"steps": 12, "lr": 0.02, "batch_size": 4, "seed": 7, "progress": False}
    expected = train(plain, examples, **options)
    history = train_in_subspace(free, examples, size, **options)
    assert_close(history.loss, expected.loss, rtol=1e-6, atol=0)
    assert_close(history.grad_norm, expected.grad_norm, rtol=1e-6, atol=0)
    assert_close(flat(free.parameters()), flat(plain.parameters()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dimension", [1, 5, 30])
def test_the_least_loss_is_what_the_subspace_allows(dimension):
    subspace = SubspaceModel(Bowl(30), dimension, seed=2)
    way = (subspace.model.target - subspace.model.theta).detach()
    P = subspace.projection.dense()
    optimizer = torch.optim.SGD([subspace.z], lr=0.25)
    for _ in range(60):
        optimizer.zero_grad()
        subspace().loss.backward()
        optimizer.step()
    assert_close(subspace().loss.item(), (way - P @ (P.T @ way)).square().sum().item())
    assert_close(subspace.z.detach(), P.T @ way)
    if dimension == 30:
        assert_close(subspace.release().theta.detach(), subspace.model.target)


def test_more_dimensions_reach_a_lower_loss(examples):
    options = {"steps": 60, "batch_size": 6, "progress": False, "restore": True}
    model = TinyModel()
    model.drop.p = 0.0
    reached = [
        train_in_subspace(model, examples, d, **options, lr=default_lr(120, d, 0.02)).loss[-1] for d in (1, 8, 64)
    ]
    assert reached[0] > reached[1] > reached[2]


def test_only_the_chosen_layers_move(examples):
    model, before = TinyModel(), TinyModel()
    train_in_subspace(model, examples, 5, steps=4, targets=["hidden"], progress=False)
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before.get_parameter(name))]
    assert moved == ["hidden.weight"]


def test_the_trained_weights_are_in_the_subspace_and_as_far_from_the_start_as_z_is_long(examples):
    model = TinyModel()
    subspace = SubspaceModel(model, 6, seed=8)
    start = flat(model.parameters())
    train(subspace, examples, steps=10, lr=0.3, progress=False)
    z, P = subspace.z.detach().clone(), subspace.projection.dense()
    assert torch.equal(flat(model.parameters()), start)  # only a release writes
    assert subspace.release() is model
    moved = flat(model.parameters()) - start
    assert_close(moved, P @ z, rtol=1e-4, atol=1e-5)
    assert_close(moved.norm(), z.norm(), rtol=1e-4, atol=1e-5)
    assert model.head.weight is model.table.weight
    written = flat(model.parameters())
    assert torch.equal(flat(subspace.release().parameters()), written)  # releasing twice adds nothing


def test_the_seed_chooses_the_subspace(examples):
    model = TinyModel()
    start = flat(model.parameters())
    train_in_subspace(model, examples, 6, steps=5, seed=5, progress=False)
    moved = flat(model.parameters()) - start
    for seed, inside in ((5, True), (0, False)):
        projection = Projection(len(start), 6, seed)
        rest = moved - projection.expand(projection.reduce(moved))
        assert (rest.norm() < 1e-4 * moved.norm()) == inside


# --- what is left behind -------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run(examples):
    options = {"steps": 8, "progress": False, "restore": True}
    first, again = (train_in_subspace(TinyModel(), examples, 6, seed=5, **options).loss for _ in range(2))
    other = train_in_subspace(TinyModel(), examples, 6, seed=6, **options).loss
    assert first == again
    assert first != other


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_after_restore_or_an_error_the_model_is_untouched(examples, fails, training):
    model = TinyModel().train(training)
    model.hidden.bias.requires_grad_(False)
    before = copy.deepcopy(model)
    state = torch.random.get_rng_state()

    def stop(step, _):
        if fails and step == 3:
            raise KeyboardInterrupt

    options = {"steps": 6, "restore": not fails, "progress": False, "on_step": stop}
    if fails:
        with pytest.raises(KeyboardInterrupt):
            train_in_subspace(model, examples, 6, **options)
    else:
        assert len(train_in_subspace(model, examples, 6, **options).loss) == 6
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(flat(model.parameters()), flat(before.parameters()))
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]


def test_half_precision_models_keep_their_type_and_a_wide_z(examples):
    model = TinyModel().bfloat16()
    subspace = SubspaceModel(model, 6)
    assert subspace.z.dtype == torch.float32
    assert {w.dtype for w in subspace.weights().values()} == {torch.bfloat16}
    loss_of(subspace, examples).backward()
    assert subspace.z.grad.isfinite().all()
    assert {p.dtype for p in subspace.release().parameters()} == {torch.bfloat16}


def test_default_lr_moves_each_weight_alike():
    assert default_lr(500, 500, 0.01) == 0.01
    for dimension in (1, 20, 500):
        projection = Projection(500, dimension)
        step = projection.expand(torch.full((dimension,), default_lr(500, dimension, 0.01)))
        assert_close(step.square().mean().sqrt().item(), 0.01)
    assert default_lr(1000, 10) == pytest.approx(10 * default_lr(1000, 1000))


@pytest.mark.parametrize("dimension", [0, -3, 1_000_000])
def test_a_dimension_outside_its_limits_is_refused_before_anything_changes(examples, dimension):
    model = TinyModel()
    with pytest.raises(ValueError, match=f"dimension {dimension} is outside 1 to 120"):
        train_in_subspace(model, examples, dimension, steps=2)
    with pytest.raises(ValueError, match="matches no module"):
        SubspaceModel(model, 2, targets=["nothing"])
    with pytest.raises(ValueError, match="no parameters"):
        SubspaceModel(nn.ReLU(), 1)
    with pytest.raises(ValueError, match="steps"):
        train_in_subspace(model, examples, 2, steps=0)
    assert all(p.requires_grad for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == 120
    assert math.isfinite(loss_of(model, examples).item())
