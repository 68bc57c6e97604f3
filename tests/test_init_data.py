"""CorDA, EVA and LoRA-GA on whole small models: the factors, residuals and answers of PEFT, from the same data."""

import contextlib
import copy

import peft
import pytest
import torch
from batches_for_tests import aligned, batches, difference
from models_for_tests import ALPHA, LANGUAGE_MODELS, RANK, llama, logits, peft_factors, peft_twin
from peft.tuners.lora.config import CordaConfig, EvaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.tuners.lora.loraga import preprocess_loraga
from peft.utils.incremental_pca import IncrementalPCA as TheirPCA
from torch import Tensor, nn

from lora_lab import inject, lora_layers
from lora_lab.base import oriented_weight
from lora_lab.init import named
from lora_lab.init.eva import eva_alphas, eva_ranks
from lora_lab.init.lora_ga import DIRECTIONS, STABILIZATIONS
from lora_lab.init.statistics import input_components, input_covariances, mean_gradients

TARGETS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc", "c_proj"],
}
pytestmark = [  # what PEFT says of its own ways
    pytest.mark.filterwarnings("ignore:lora with eva initialization used with low_cpu_mem_usage=False:UserWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]


def adapted(name: str, base: nn.Module, statistics: dict, argument: str, rslora=False, **options) -> nn.Module:
    """A copy of `base` with the init of that name, each layer with its own statistic."""
    init = {path: named(name, **{argument: statistics[path]}, **options) for path in statistics}
    return inject(copy.deepcopy(base), list(statistics), RANK, ALPHA, rslora=rslora, init=init)


def assert_same_start(ours: nn.Module, twin: peft.PeftModel, base: nn.Module, tolerance: float) -> None:
    """The factors up to sign, what they leave of the base, and the answers, which are those of the base."""
    theirs = peft_factors(twin)
    assert list(lora_layers(ours)) == list(theirs)
    for path, layer in lora_layers(ours).items():
        A, B = aligned((layer.A, layer.B), theirs[path])
        assert difference(layer.A, A) < tolerance, path
        assert difference(layer.B, B) < tolerance, path
        W = oriented_weight(base.get_submodule(path))
        assert difference(oriented_weight(layer.base), W - layer.scale * B @ A) < tolerance, path
        assert difference(oriented_weight(layer.base), W) > 0.01, path
    assert difference(logits(ours), logits(twin)) < 1e-5
    assert difference(logits(ours), logits(base)) < 1e-5


def corda_twin(base: nn.Module, targets: list[str], method: str, rslora: bool) -> peft.PeftModel:
    twin = copy.deepcopy(base)
    config = {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method=method)}
    preprocess_corda(
        twin,
        peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, **config),
        run_model=lambda: [twin(**sample) for sample in batches(1)],  # PEFT takes one at a time
    )
    return peft_twin(twin, targets, rslora=rslora, **config)


def exact_corda(weight: Tensor, covariance: Tensor, scale: float, method: str) -> tuple[Tensor, Tensor]:
    """The definition, inverse and all, in fp64."""
    W, C = weight.double(), covariance.double()
    C = C + 0.01 * C.diagonal().mean() * torch.eye(len(C))
    U, S, Vh = torch.linalg.svd(W @ C, full_matrices=False)
    kept = slice(RANK) if method == "ipm" else slice(-RANK, None)
    U, S, Vh = U[:, kept], S[kept] / scale, Vh[kept]
    return S.sqrt()[:, None] * Vh @ torch.linalg.inv(C), U * S.sqrt()


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("method", ["ipm", "kpm"])
@pytest.mark.parametrize("name", TARGETS)
def test_corda(name, method, rslora):
    """Our statistic comes from padded batches of three, PEFT's from one sample at a time."""
    base = LANGUAGE_MODELS[name]()
    covariances = input_covariances(base, TARGETS[name], batches(3), progress=False)
    ours = adapted("corda", base, covariances, "covariance", rslora, method=method)
    twin = corda_twin(base, TARGETS[name], method, rslora)
    assert_same_start(ours, twin, base, 1e-4)  # what PEFT loses by inverting in fp32
    for path, layer in lora_layers(ours).items():
        W = oriented_weight(base.get_submodule(path))
        A, B = aligned((layer.A, layer.B), exact_corda(W, covariances[path], layer.scale, method))
        assert difference(layer.A, A) < (1e-5 if method == "ipm" else 5e-5), path
        assert difference(layer.B, B) < (1e-5 if method == "ipm" else 5e-5), path
        assert difference(oriented_weight(layer.base), W - layer.scale * B @ A) < 1e-5, path
        residual = twin.base_model.model.get_submodule(path).base_layer
        assert difference(layer.base.weight, residual.weight) < 3e-5


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_corda_in_bf16(method):
    """The residual is the same to one unit; PEFT then rounds A and B to bf16, so that base + s·BA misses W by more."""
    base = llama(torch.bfloat16)
    covariances = input_covariances(base, TARGETS["llama"], batches(1), progress=False)
    ours = adapted("corda", base, covariances, "covariance", method=method)
    twin = corda_twin(base, TARGETS["llama"], method, False)
    theirs = peft_factors(twin)
    for path, layer in lora_layers(ours).items():
        for our, their in zip((layer.A, layer.B), aligned((layer.A, layer.B), theirs[path]), strict=True):
            assert difference(our, their) < 2**-8
        residual = twin.base_model.model.get_submodule(path).base_layer.weight
        assert layer.base.weight.dtype == residual.dtype == torch.bfloat16
        torch.testing.assert_close(layer.base.weight, residual, rtol=2**-7, atol=1e-6)
        W = base.get_submodule(path).weight
        if method == "kpm":
            continue  # of directions that hardly matter
        missed = difference(residual.double() + layer.scale * theirs[path][1].double() @ theirs[path][0].double(), W)
        assert difference(layer.base.weight.double() + layer.delta_weight(), W) < missed


@contextlib.contextmanager
def exact_svd():
    """PEFT's incremental PCA with all singular vectors, instead of its randomised search for them."""
    patch = pytest.MonkeyPatch()
    patch.setattr(TheirPCA, "_svd_fn_lowrank", lambda self, X: torch.linalg.svd(X, full_matrices=False))
    try:
        yield
    finally:
        patch.undo()


@pytest.mark.parametrize(
    ("name", "rank", "rho", "tau", "size"),
    [("llama", 4, 2.0, 0.99, 2), ("llama", 3, 1.5, 0.9, 3), ("llama", 4, 1.0, 0.99, 2), ("gpt2", 5, 2.0, 0.97, 2)],
)
def test_eva(name, rank, rho, tau, size):
    """Ranks, alphas and directions, after as many rounds over the data as PEFT makes until they settle."""
    base, data = LANGUAGE_MODELS[name](), batches(size)
    config = EvaConfig(rho=rho, tau=tau)
    twin = peft_twin(base, TARGETS[name], rank, ALPHA, init_lora_weights="eva", eva_config=config)
    with exact_svd():
        initialize_lora_eva_weights(twin, data, show_progress_bar=False)
    found = input_components(base, TARGETS[name], data, rank, rho=rho, tau=tau, progress=False)
    ranks = eva_ranks({path: one.explained for path, one in found.items()}, rank, rho)
    alphas = eva_alphas(ranks, rank, ALPHA)
    assert found.batches > len(data)
    assert sum(ranks.values()) == rank * len(ranks)
    assert rho == 1 or len(set(ranks.values())) > 2
    init = {path: named("eva", components=found[path]) for path in alphas}
    ours = inject(copy.deepcopy(base), list(alphas), {path: ranks[path] for path in alphas}, alphas, init=init)
    theirs = peft_factors(twin)
    assert list(theirs) == list(alphas)
    for path, layer in lora_layers(ours).items():
        assert layer.rank == len(theirs[path][0])
        assert layer.scale == pytest.approx(ALPHA / rank)
        assert twin.base_model.model.get_submodule(path).scaling["default"] == pytest.approx(layer.scale)
        torch.testing.assert_close(layer.A, theirs[path][0], rtol=0, atol=1e-3)  # signs included
        assert not layer.B.any()
    assert torch.equal(logits(ours), logits(base))


def test_eva_with_peft_as_it_is():
    """PEFT's search is randomised, but it is exact if it looks for as many directions as there are inputs."""
    base, data, rank = llama(), batches(2), 8  # 2·2·8 = 32 inputs
    targets = [name for name in TARGETS["llama"] if name != "down_proj"]
    twin = peft_twin(base, targets, rank, ALPHA, init_lora_weights="eva", eva_config=EvaConfig())
    initialize_lora_eva_weights(twin, data, show_progress_bar=False)
    found = input_components(base, targets, data, rank, progress=False)
    ranks = eva_ranks({path: one.explained for path, one in found.items()}, rank)
    for path, (A, _) in peft_factors(twin).items():
        assert len(A) == ranks[path]
        torch.testing.assert_close(found[path].directions[: len(A)], A, rtol=0, atol=1e-3)


def lora_ga_twin(base: nn.Module, targets: list[str], data: list[dict], **config) -> peft.PeftModel:
    twin = copy.deepcopy(base)
    config = {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig(**config)}
    torch.manual_seed(2)  # dropout
    preprocess_loraga(
        twin,
        peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, **config),
        train_step=lambda: [twin(**batch).loss.backward() for batch in data],
    )
    torch.manual_seed(7)
    return peft_twin(twin, targets, **config)


@pytest.mark.parametrize(
    ("name", "direction", "stabilization"),
    [("llama", direction, STABILIZATIONS[i % 2]) for i, direction in enumerate(DIRECTIONS)]
    + [("llama", "ArB2r", "gd_scale"), ("llama", "random", "unit")]
    + [("gpt2", direction, stabilization) for direction, stabilization in zip(DIRECTIONS, STABILIZATIONS, strict=True)],
)
def test_lora_ga_with_pefts_own_search_is_equal_to_the_bit(name, direction, stabilization):
    base, data = LANGUAGE_MODELS[name](), batches(3)
    # PEFT's stable scale takes the wrong side of a Conv1D that is not square.
    targets = ["h.0.attn.c_proj", "h.1.attn.c_proj"] if (name, stabilization) == ("gpt2", "stable") else TARGETS[name]
    twin = lora_ga_twin(base, targets, data, direction=direction, scale=stabilization, stable_gamma=9)
    torch.manual_seed(2)
    gradients = mean_gradients(base, targets, data, progress=False)
    torch.manual_seed(7)
    options = {"direction": direction, "stabilization": stabilization, "gamma": 9, "niter": 4}
    ours = adapted("lora_ga", base, gradients, "gradient", **options)
    for path, (A, B) in peft_factors(twin).items():
        layer = lora_layers(ours)[path]
        assert torch.equal(layer.A, A)
        assert torch.equal(layer.B, B)
    assert difference(logits(ours), logits(twin)) < 1e-5
    assert difference(logits(ours), logits(base)) < 1e-5


@pytest.mark.parametrize("direction", DIRECTIONS[:3])
@pytest.mark.parametrize("name", TARGETS)
def test_lora_ga(name, direction):
    """Exact singular vectors, and nothing random. PEFT's are near: of 24 or more directions it looks for 16."""
    base, data = LANGUAGE_MODELS[name](), batches(3)
    twin = lora_ga_twin(base, TARGETS[name], data, direction=direction, scale="unit")
    torch.manual_seed(2)
    gradients = mean_gradients(base, TARGETS[name], data, progress=False)
    before = torch.get_rng_state()
    ours = adapted("lora_ga", base, gradients, "gradient", direction=direction, stabilization="unit")
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_start(ours, twin, base, 2e-2)
    for path, layer in lora_layers(ours).items():
        U, S, Vh = torch.linalg.svd(gradients[path].double(), full_matrices=False)
        for_A = {"ArB2r": slice(RANK), "A2rBr": slice(RANK, 2 * RANK), "ArBr": slice(1, 2 * RANK, 2)}[direction]
        for_B = {"ArB2r": slice(RANK, 2 * RANK), "A2rBr": slice(RANK), "ArBr": slice(0, 2 * RANK, 2)}[direction]
        A, B = aligned((layer.A, layer.B), (Vh[for_A], U[:, for_B] * S[for_B]))
        assert difference(layer.A, A) < 1e-4
        assert difference(layer.B, B) < 1e-4


def test_lora_ga_in_bf16():
    """PEFT rounds A and B before it forms the residual, so that it fits; ours are the ones not rounded."""
    base, data = llama(torch.bfloat16), batches(3)
    twin = lora_ga_twin(base, TARGETS["llama"], data)
    gradients = mean_gradients(base, TARGETS["llama"], data, progress=False)
    ours = adapted("lora_ga", base, gradients, "gradient")
    for path, layer in lora_layers(ours).items():
        W = base.get_submodule(path).weight
        restored = layer.base.weight.double() + layer.scale * layer.B.double() @ layer.A.double()
        size = torch.maximum(W.double().abs(), layer.base.weight.double().abs())
        assert ((restored - W).abs() <= 0.5 * torch.finfo(torch.bfloat16).eps * size + 1e-7).all()
        A, B = aligned((layer.A, layer.B), peft_factors(twin)[path])
        assert difference(layer.A, A) < 0.1
        assert difference(layer.B, B) < 0.1
