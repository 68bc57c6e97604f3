"""CorDA and EVA on whole small models: the factors, residuals and answers of PEFT, from the same data."""

import contextlib
import copy

import peft
import pytest
import torch
from batches_for_tests import TARGETS, adapted, aligned, assert_same_start, batches, difference
from models_for_tests import ALPHA, LANGUAGE_MODELS, RANK, llama, logits, peft_factors, peft_twin
from peft.tuners.lora.config import CordaConfig, EvaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.utils.incremental_pca import IncrementalPCA as TheirPCA
from torch import Tensor, nn

from lora_lab import inject, lora_layers
from lora_lab.base import oriented_weight
from lora_lab.init import named
from lora_lab.init.eva import eva_alphas, eva_ranks
from lora_lab.init.statistics import input_components, input_covariances

pytestmark = pytest.mark.filterwarnings(  # PEFT's advice
    "ignore:lora with eva initialization used with low_cpu_mem_usage=False:UserWarning"
)


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
