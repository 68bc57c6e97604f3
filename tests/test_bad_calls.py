"""Bad calls over the public functions: a clear error that names value and limit, before anything has changed.

A row is a call and the words that its error must hold. Models, files and the global random state are compared with
what they were before.
"""

import copy
import hashlib
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models_for_tests import ALPHA, RANK, assert_unchanged, fill, fingerprint, linear, llama, plain
from torch import nn

from lora_lab import (
    Factors,
    LoRALinear,
    adapter_of,
    eject,
    find_targets,
    inject,
    load_adapter,
    merge_,
    merged,
    merged_weight,
    read_adapter,
    save_adapter,
    train,
    unmerge_,
    validate_merge,
    write_adapter,
)
from lora_lab.combine import combination_error, combine, linear_cross_terms, reduce_intruders
from lora_lab.fused import lora_linear
from lora_lab.init import named
from lora_lab.init.corda import corda_factors
from lora_lab.init.eva import Components, eva_factors, eva_ranks
from lora_lab.init.loftq import loftq_factors
from lora_lab.init.lora_ga import lora_ga_factors
from lora_lab.init.prepare import prepare
from lora_lab.init.statistics import input_components, input_covariances, mean_gradients
from lora_lab.lowrank import bottom_left, top_svd
from lora_lab.many import add_adapter, folded, merged_mix, remove_adapter, rows, use
from lora_lab.quantize import quantize
from lora_lab.quantized_linear import QuantizedLinear, quantize_model_
from lora_lab.spectrum import (
    amplification_factor,
    effective_rank,
    energy,
    energy_rank,
    factor_singular_values,
    intruder_dimensions,
    numerical_rank,
    principal_angles,
    random_similarity,
    singular_values,
    subspace_similarity,
    truncate,
)
from lora_lab.train import mean_loss
from lora_lab.variants import DoRALinear, parameter_groups

ERRORS = (ValueError, TypeError, FileNotFoundError)
NAN, INF = math.nan, math.inf
W, G = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), torch.ones(12, 8)
C = torch.eye(8)
A, B = torch.ones(3, 8), torch.ones(12, 3)
IDS = {"input_ids": torch.arange(2, 8).view(1, 6), "labels": torch.arange(2, 8).view(1, 6)}
EXAMPLES = [{"input_ids": [2, 3, 4], "labels": [-100, 3, 4]}]


def spoiled(matrix: torch.Tensor, value: float) -> torch.Tensor:
    matrix = matrix.clone()
    matrix[1, 2] = value
    return matrix


def one(**changes) -> dict[str, Factors]:
    return {"proj": Factors(**({"A": A, "B": B, "alpha": 5} | changes))}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Models and files that bad calls are made with; every one of them is watched."""
    folder = tmp_path_factory.mktemp("bad_calls")
    adapted = fill(inject(llama(), ["q_proj", "down_proj"], RANK, ALPHA))
    save_adapter(adapted, folder / "good")
    (folder / "empty").mkdir()
    (folder / "text").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / "text" / name).write_text("no adapter")
    spoiled_model = llama()
    spoiled_model.model.layers[1].mlp.down_proj.weight.data[0, 0] = NAN
    many = add_adapter(llama(), "a", folder / "good")
    with torch.device("meta"):
        meta = llama()
    return SimpleNamespace(
        plain=llama(),
        adapted=adapted,
        merged=merge_(copy.deepcopy(adapted)),
        copy=merged(adapted),
        quantized=quantize_model_(llama(), ["q_proj", "down_proj"]),
        shifted_codes=inject(llama(), ["q_proj"], RANK, ALPHA, init="pissa", quantize="nf4"),
        spoiled=spoiled_model,
        broken=broken_adapter(),
        tied=llama(tied=True),
        toy=plain(),
        many=many,
        meta=meta,
        folder=folder,
    )


def broken_adapter() -> nn.Module:
    model = fill(inject(llama(), ["q_proj", "down_proj"], RANK, ALPHA))
    model.model.layers[1].mlp.down_proj.A.data[0, 0] = INF
    return model


def files(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


FACTORS = {"default": {}, "random": {}, "gaussian": {}, "orthogonal": {}, "pissa": {}, "olora": {}, "mica": {}}
FACTORS |= {"loftq": {}, "corda": {"covariance": C}, "lora_ga": {"gradient": G}}
FACTORS |= {"eva": {"components": Components(torch.eye(8)[:4], torch.ones(4), torch.ones(4) / 4)}}


def factor_rows() -> dict[str, tuple]:
    """What every init refuses of any weight, rank and scale."""
    rows_ = {}
    for name, options in FACTORS.items():
        start = named(name, **options)
        bad = {
            "rank 0": ((W, 0, 2.0), "from 1 to .* got 0"),
            "rank 9": ((W, 9, 2.0), "= 8, got 9"),
            "rank True": ((W, True, 2.0), "got True"),
            "rank 2.5": ((W, 2.5, 2.0), "got 2.5"),
            "three axes": ((W[None], 2, 2.0), r"\(1, 12, 8\)"),
            "whole numbers": ((W.long(), 2, 2.0), "torch.int64"),
        }
        if name in ("pissa", "olora", "mica", "loftq", "corda", "lora_ga"):
            bad["NaN"] = ((spoiled(W, NAN), 2, 2.0), "1 entries that are NaN or infinite")
            bad["infinity"] = ((spoiled(W, -INF), 2, 2.0), "1 entries")
            bad["scale 0"] = ((W, 2, 0.0), "scale must be .* got 0.0")
            bad["meta"] = ((W.to("meta"), 2, 2.0), "meta device")
        for case, (arguments, words) in bad.items():
            rows_[f"{name}: {case}"] = (lambda w, s=start, a=arguments: s(*a), words)
    return rows_


INJECT = {
    "no target": (lambda w: inject(w.plain, [], 4, 10), "targets is empty"),
    "matches nothing": (lambda w: inject(w.plain, ["x_proj"], 4, 10), "'x_proj' matches no module"),
    "one of two": (lambda w: inject(w.plain, ["q_proj", "x_proj"], 4, 10), "'x_proj' matches no module"),
    "no linear layer": (lambda w: inject(w.plain, ["embed_tokens"], 4, 10), "is a Embedding"),
    "bad pattern": (lambda w: inject(w.plain, "(", 4, 10), "not a regular expression"),
    "rank 0": (lambda w: inject(w.plain, ["q_proj"], 0, 10), "got 0"),
    "rank -1": (lambda w: inject(w.plain, ["q_proj"], -1, 10), "got -1"),
    "rank above one layer": (lambda w: inject(w.plain, "all-linear", 17, 10), r"k_proj.* = 16, got 17"),
    "rank True": (lambda w: inject(w.plain, ["q_proj"], True, 10), "got True"),
    "rank None": (lambda w: inject(w.plain, ["q_proj"], None, 10), "got None"),
    "rank text": (lambda w: inject(w.plain, ["q_proj"], "8", 10), "got '8'"),
    "alpha 0": (lambda w: inject(w.plain, ["q_proj"], 4, 0), "alpha must be .* got 0"),
    "alpha -1": (lambda w: inject(w.plain, ["q_proj"], 4, -1), "got -1"),
    "alpha NaN": (lambda w: inject(w.plain, ["q_proj"], 4, NAN), "got nan"),
    "alpha infinite": (lambda w: inject(w.plain, ["q_proj"], 4, INF), "got inf"),
    "dropout 1": (lambda w: inject(w.plain, ["q_proj"], 4, 10, 1.0), "dropout must be .* got 1.0"),
    "dropout -0.1": (lambda w: inject(w.plain, ["q_proj"], 4, 10, -0.1), "got -0.1"),
    "dropout text": (lambda w: inject(w.plain, ["q_proj"], 4, 10, "0"), "got '0'"),
    "twice": (lambda w: inject(w.adapted, ["q_proj"], 4, 10), "already injected"),
    "init": (lambda w: inject(w.plain, ["q_proj"], 4, 10, init="xavier"), "unknown init 'xavier': one of default"),
    "init None": (lambda w: inject(w.plain, ["q_proj"], 4, 10, init=None), "got None"),
    "init without data": (lambda w: inject(w.plain, ["q_proj"], 4, 10, init="eva"), "needs data"),
    "init shapes": (lambda w: inject(w.plain, ["q_proj"], 4, 10, init=lambda *_: (A, B)), "must return A and B"),
    "ranks by path": (lambda w: inject(w.plain, ["q_proj"], {"q_proj": 4}, 10), "rank by path"),
    "odd rank": (lambda w: inject(w.plain, ["q_proj"], 3, 10, init="orthogonal"), "even.* 3"),
    "NaN weight": (lambda w: inject(w.spoiled, ["down_proj"], 4, 10, init="pissa"), r"layers\.1.*1 entries"),
    "shared weight": (lambda w: inject(w.tied, ["lm_head"], 4, 10, init="olora"), "shares its weight"),
    "meta weight": (lambda w: inject(w.meta, ["q_proj"], 4, 10, init="pissa"), "meta device"),
    "codes": (lambda w: inject(w.quantized, ["q_proj"], 4, 10, init="pissa"), "quantized already"),
    "codes again": (lambda w: inject(w.quantized, ["q_proj"], 4, 10, quantize="nf4"), "QuantizedLinear"),
    "kind of code": (lambda w: inject(w.plain, ["q_proj"], 4, 10, quantize="nf3"), "'nf3'"),
    "block": (lambda w: inject(w.plain, ["q_proj"], 4, 10, quantize={"kind": "nf4", "block_size": 0}), "got 0"),
    "LoRALinear of an embedding": (lambda w: LoRALinear(nn.ReLU(), 1, 2), "got ReLU"),
    "LoRALinear of text": (lambda w: LoRALinear("layer", 1, 2), "got str"),
    "DoRA of mica": (lambda w: inject(w.plain, ["q_proj"], 4, 10, init="mica", layer=DoRALinear), "mica"),
    "beside other adapters": (lambda w: inject(w.many, "all-linear", 4, 10), "carries adapters of add_adapter already"),
    "eject nothing": (lambda w: eject(w.plain), "nothing to eject"),
    "eject merged": (lambda w: eject(w.merged), "merged"),
    "eject a lost base": (lambda w: eject(w.shifted_codes), "W is gone"),
    "targets of nothing": (lambda w: find_targets(nn.ReLU(), "all-linear"), "no linear layer"),
}
MERGE = {
    "no adapter": (lambda w: merge_(w.plain), "no LoRA layer"),
    "no adapter, copied": (lambda w: merged(w.plain), "no LoRA layer"),
    "unmerge no adapter": (lambda w: unmerge_(w.plain), "no LoRA layer"),
    "infinite factor": (lambda w: merge_(w.broken), r"down_proj: .* not finite"),
    "infinite factor, copied": (lambda w: merged(w.broken), "not finite"),
    "merged weight of the merged": (lambda w: merged_weight(w.merged.model.layers[0].mlp.down_proj), "is merged"),
    "validate itself": (lambda w: validate_merge(w.adapted, w.adapted, IDS), "with itself"),
    "validate the merged": (lambda w: validate_merge(w.merged, w.copy, IDS), "unmerged"),
    "validate without adapter": (lambda w: validate_merge(w.copy, w.copy, IDS), "no LoRA layer"),
    "validate on nothing": (lambda w: validate_merge(w.adapted, w.copy, []), "inputs is empty"),
}
FILES = {
    "save no adapter": (lambda w: save_adapter(w.plain, w.folder / "new"), "no LoRA layer"),
    "save over": (lambda w: save_adapter(w.broken, w.folder / "good"), "NaN or infinity"),
    "load nothing": (lambda w: load_adapter(w.plain, w.folder / "none"), "does not exist"),
    "load an empty folder": (lambda w: load_adapter(w.plain, w.folder / "empty"), "does not exist"),
    "load text": (lambda w: load_adapter(w.plain, w.folder / "text"), "is not JSON"),
    "load beside": (lambda w: load_adapter(w.many, w.folder / "good"), "carries adapters"),
    "load twice": (lambda w: load_adapter(w.adapted, w.folder / "good"), "already injected"),
    "load on another model": (lambda w: load_adapter(w.toy, w.folder / "good"), "wrong base: 4 of 4"),
    "read nothing": (lambda w: read_adapter(w.folder / "none"), "does not exist"),
    "read text": (lambda w: read_adapter(w.folder / "text"), "is not JSON"),
    "write nothing": (lambda w: write_adapter({}, w.folder / "new"), "names no layer"),
    "write NaN": (lambda w: write_adapter(one(A=spoiled(A, NAN)), w.folder / "good"), "NaN or infinity"),
    "write mixed rules": (
        lambda w: write_adapter({**one(), "x": Factors(A, B, 5, True)}, w.folder / "new"),
        "differ in use_rslora",
    ),
}
COMBINE = {
    "none": (lambda w: combine([], [], "cat"), "no adapters"),
    "weights": (lambda w: combine([one()], [1, 2], "cat"), "2 weights for 1 adapters"),
    "NaN weight": (lambda w: combine([one()], [NAN], "cat"), "weight 0 .* nan"),
    "method": (lambda w: combine([one()], [1], "average"), "unknown method 'average'"),
    "no layer": (lambda w: combine([{}], [1], "cat"), "has no layers"),
    "a list": (lambda w: combine([[A, B]], [1], "cat"), "got list"),
    "shapes": (lambda w: combine([one(), one(A=torch.ones(3, 9))], [1, 1], "cat"), "proj"),
    "factors": (lambda w: combine([one(B=torch.ones(12, 4))], [1], "cat"), "of one rank"),
    "NaN": (lambda w: combine([one(B=spoiled(B, NAN))], [1], "cat"), "B has 1 entries"),
    "alpha": (lambda w: combine([one(alpha=0)], [1], "cat"), "alpha must be .* got 0"),
    "DoRA": (lambda w: combine([one(magnitude=torch.ones(12))], [1], "cat"), "DoRA"),
    "rank": (lambda w: combine([one()], [1], "svd", rank=99), "99"),
    "rank 0": (lambda w: combine([one()], [1], "svd", rank=0), "0"),
    "no density": (lambda w: combine([one()], [1], "ties"), "density .* got None"),
    "density 0": (lambda w: combine([one()], [1], "ties", density=0.0), "got 0.0"),
    "density 2": (lambda w: combine([one()], [1], "dare_ties", density=2.0), "got 2.0"),
    "other layers": (lambda w: combine([one(), {"x": Factors(A, B, 5)}], [1, 1], "linear"), "x"),
    "error of nothing": (lambda w: combination_error([], [], one()), "no adapters"),
    "cross terms": (lambda w: linear_cross_terms([one()], [1, 1]), "2 weights for 1"),
    "intruders without base": (lambda w: reduce_intruders(one(), {}), "lacks 1 of 1 layers"),
    "intruders kept": (lambda w: reduce_intruders(one(), {"proj": W}, keep=2), "got 2"),
}
MANY = {
    "name twice": (lambda w: add_adapter(w.many, "a", w.folder / "good"), "called 'a' already"),
    "name": (lambda w: add_adapter(w.many, "a.b", w.folder / "good"), "'a.b' cannot be"),
    "no file": (lambda w: add_adapter(w.many, "b", w.folder / "none"), "does not exist"),
    "wrong base": (lambda w: add_adapter(w.toy, "b", w.folder / "good"), "layers"),
    "injected": (lambda w: add_adapter(w.adapted, "b", w.folder / "good"), "is injected"),
    "unknown": (lambda w: use(w.many, "b"), "no adapter is called 'b'"),
    "weight": (lambda w: use(w.many, {"a": NAN}), "finite number, got nan"),
    "train two": (lambda w: use(w.many, {"a": 1.0}, train=True), "one adapter can be trained"),
    "no adapters": (lambda w: use(w.plain, "a"), "carries no adapters"),
    "remove unknown": (lambda w: remove_adapter(w.many, "b"), "no adapter is called 'b'"),
    "rows of nothing": (lambda w: rows(w.many, []).__enter__(), "empty list"),
    "rows of text": (lambda w: rows(w.many, "a").__enter__(), "got str"),
    "rows of another": (lambda w: rows(w.many, ["a", "b"]).__enter__(), "row 1: no adapter is called 'b'"),
    "no mix to merge": (lambda w: merged_mix(use(copy.deepcopy(w.many), None)), "no adapter is in use"),
    "no mix to fold": (lambda w: folded(use(copy.deepcopy(w.many), None)).__enter__(), "no adapter is in use"),
}
QUANTIZE = {
    "kind": (lambda w: quantize(W, "nf3"), "'nf3'"),
    "block 0": (lambda w: quantize(W, block_size=0), "got 0"),
    "block 1.5": (lambda w: quantize(W, block_size=1.5), "got 1.5"),
    "double": (lambda w: quantize(W, double="yes"), "got 'yes'"),
    "vector": (lambda w: quantize(W[0]), r"\(8,\)"),
    "NaN": (lambda w: quantize(spoiled(W, NAN)), "1 entries"),
    "infinity": (lambda w: quantize(spoiled(W, INF)), "1 entries"),
    "whole": (lambda w: quantize(W.int()), "torch.int32"),
    "meta": (lambda w: quantize(W.to("meta")), "meta device"),
    "a layer": (lambda w: QuantizedLinear.from_linear(nn.ReLU()), "got ReLU"),
    "a tied head": (lambda w: quantize_model_(w.tied, ["lm_head"]), "shares its weight"),
    "under adapters": (lambda w: quantize_model_(w.many, "all-linear"), "carries adapters of add_adapter already"),
    "twice": (lambda w: quantize_model_(w.quantized, ["q_proj"]), "quantized already|is quantized"),
    "with an adapter": (lambda w: quantize_model_(w.adapted, ["k_proj"]), "adapter"),
    "NaN in a model": (lambda w: quantize_model_(w.spoiled, ["down_proj"]), "1 entries"),
    "another shape": (lambda w: w.quantized.model.layers[0].mlp.down_proj.requantize_(W), r"\(12, 8\)"),
}
SPECTRUM = {
    "vector": (lambda w: singular_values(W[0]), r"\(8,\)"),
    "NaN": (lambda w: numerical_rank(spoiled(W, NAN)), "1 entries"),
    "rtol": (lambda w: numerical_rank(W, 2.0), "rtol 2.0"),
    "rank": (lambda w: truncate(W, 9), "0 to 8"),
    "no values": (lambda w: energy([], 0), "one list of numbers"),
    "negative": (lambda w: effective_rank([-1.0]), "at least 0"),
    "share": (lambda w: energy_rank([1.0], 1.5), "1.5"),
    "widths": (lambda w: principal_angles(torch.ones(2, 8), torch.ones(2, 9)), "differ"),
    "zero": (lambda w: principal_angles(torch.zeros(2, 8), torch.ones(2, 8)), "is zero"),
    "i": (lambda w: subspace_similarity(torch.eye(8)[:2], torch.eye(8)[:2], 3, 1), "i 3"),
    "amplified": (lambda w: amplification_factor(W, W.T, 2), "differ in shape"),
    "intruders": (lambda w: intruder_dimensions(W, W, epsilon=0), "got 0"),
    "random": (lambda w: random_similarity(8, 9, 1), "9"),
    "factors": (lambda w: factor_singular_values(A, A), "of one rank"),
    "top": (lambda w: top_svd(W, 9), "= 8, got 9"),
    "bottom": (lambda w: bottom_left(spoiled(W, NAN), 2), "1 entries"),
}
DATA = {
    "covariance width": (lambda w: corda_factors(W, 2, 2.0, torch.eye(9)), "9"),
    "covariance NaN": (lambda w: corda_factors(W, 2, 2.0, spoiled(C, NAN)), "NaN|finite"),
    "covariance zero": (lambda w: corda_factors(W, 2, 2.0, 0 * C), "mean 0"),
    "covariance twisted": (lambda w: corda_factors(W, 2, 2.0, spoiled(C, 3.0)), "symmetric"),
    "method": (lambda w: corda_factors(W, 2, 2.0, C, "both"), "'both'"),
    "gradient": (lambda w: lora_ga_factors(W, 2, 2.0, G.T), r"\(8, 12\)"),
    "gradient zero": (lambda w: lora_ga_factors(W, 2, 2.0, 0 * G), "zero"),
    "gradient NaN": (lambda w: lora_ga_factors(W, 2, 2.0, spoiled(G, NAN)), "finite|NaN"),
    "direction": (lambda w: lora_ga_factors(W, 2, 2.0, G, "up"), "'up'"),
    "too many": (lambda w: lora_ga_factors(W, 5, 2.0, G), "2·5 > .* = 8"),
    "components": (
        lambda w: eva_factors(W, 2, 2.0, Components(torch.eye(9), torch.ones(9), torch.ones(9))),
        r"\(9, 9\)",
    ),
    "no ratios": (lambda w: eva_ranks({}, 2), "explained is empty"),
    "rho": (lambda w: eva_ranks({"a": torch.ones(4)}, 2, 0.5), "rho .* got 0.5"),
    "iterations": (lambda w: loftq_factors(W, 2, 2.0, iterations=0), "got 0"),
    "prepare what needs nothing": (lambda w: prepare("pissa", w.plain, ["q_proj"], [IDS], 4, 10), "needs no data"),
    "prepare an unknown option": (lambda w: prepare("corda", w.plain, ["q_proj"], [IDS], 4, 10, mode=1), "'mode'"),
    "prepare the statistic": (
        lambda w: prepare("corda", w.plain, ["q_proj"], [IDS], 4, 10, covariance=torch.eye(32)),
        "'covariance'",
    ),
    "prepare codes": (lambda w: prepare("lora_ga", w.quantized, ["q_proj"], [IDS], 4, 10), "quantized"),
    "prepare a rank": (lambda w: prepare("corda", w.plain, ["q_proj"], [IDS], 99, 10), "= 32, got 99"),
    "prepare 2·rank": (lambda w: prepare("lora_ga", w.plain, ["k_proj"], [IDS], 9, 10), "= 16, got 18"),
    "no batch": (lambda w: input_covariances(w.plain, ["q_proj"], []), "batches is empty"),
    "one batch itself": (lambda w: input_covariances(w.plain, ["q_proj"], IDS), "list .* of batches"),
    "few tokens": (lambda w: input_covariances(w.plain, ["q_proj"], [IDS]), "6 tokens, 32 are needed"),
    "few tokens for EVA": (lambda w: input_components(w.plain, ["q_proj"], [IDS], 4), "tokens"),
    "no loss": (lambda w: mean_gradients(w.plain, ["q_proj"], [{"input_ids": IDS["input_ids"]}]), "loss"),
    "codes": (lambda w: mean_gradients(w.quantized, ["q_proj"], [IDS]), "quantized"),
    "meta": (lambda w: input_covariances(w.meta, ["q_proj"], [IDS]), "meta device"),
}
TRAIN = {
    "no adapter": (lambda w: train(w.copy, EXAMPLES, steps=1, lr=0.1), "nothing to train"),
    "merged": (lambda w: train(w.merged, EXAMPLES, steps=1, lr=0.1), "merged into the base"),
    "no example": (lambda w: train(w.adapted, [], steps=1, lr=0.1), "examples is empty"),
    "no label": (lambda w: train(w.adapted, [{"input_ids": [1], "labels": [-100]}], steps=1, lr=0.1), "every label"),
    "a first label alone": (
        lambda w: train(w.adapted, [{"input_ids": [5, 6], "labels": [5, -100]}], steps=1, lr=0.1),
        "every label",
    ),
    "lengths": (lambda w: train(w.adapted, [{"input_ids": [1, 2], "labels": [1]}], steps=1, lr=0.1), "2 input_ids"),
    "steps": (lambda w: train(w.adapted, EXAMPLES, steps=0, lr=0.1), "got 0"),
    "rate": (lambda w: train(w.adapted, EXAMPLES, steps=1, lr=-1), "lr .* got -1"),
    "ratio": (lambda w: train(w.adapted, EXAMPLES, steps=1, lr=0.1, lr_ratio=0), "lr_ratio .* got 0"),
    "batch": (lambda w: train(w.adapted, EXAMPLES, steps=1, lr=0.1, batch_size=0), "batch_size .* got 0"),
    "warm-up": (lambda w: train(w.adapted, EXAMPLES, steps=1, lr=0.1, warmup=2), "got 2"),
    "clip": (lambda w: train(w.adapted, EXAMPLES, steps=1, lr=0.1, clip=0), "clip .* got 0"),
    "checkpoint": (
        lambda w: train(w.adapted, EXAMPLES, steps=1, lr=0.1, checkpoint=w.folder / "text" / "adapter_config.json"),
        "no readable checkpoint",
    ),
    "groups": (lambda w: parameter_groups(w.adapted, 0.1, -2), "ratio .* got -2"),
    "groups of nothing": (lambda w: parameter_groups(w.copy, 0.1, 2), "nothing to train"),
    "mean loss of nothing": (lambda w: mean_loss(w.plain, []), "examples is empty"),
}
FUSED = {
    "x": (lambda w: lora_linear(torch.ones(2, 9), W, None, A, B, 2.0), "in = 8, got"),
    "factors": (lambda w: lora_linear(torch.ones(2, 8), W, None, A, B.T, 2.0), "must fit"),
    "bias": (lambda w: lora_linear(torch.ones(2, 8), W, torch.ones(8), A, B, 2.0), r"\(12,\), got \(8,\)"),
    "dtypes": (lambda w: lora_linear(torch.ones(2, 8), W.half(), None, A, B, 2.0), "agree in dtype"),
    "whole numbers": (lambda w: lora_linear(torch.ones(2, 8).long(), W, None, A, B, 2.0), "int64"),
    "trained base": (lambda w: lora_linear(torch.ones(2, 8), W.clone().requires_grad_(), None, A, B, 2.0), "frozen"),
}
TABLES = {
    "factors": factor_rows(),
    "inject": INJECT,
    "merge": MERGE,
    "files": FILES,
    "combine": COMBINE,
    "many": MANY,
    "quantize": QUANTIZE,
    "spectrum": SPECTRUM,
    "data": DATA,
    "train": TRAIN,
    "fused": FUSED,
}
ROWS = {f"{table} / {name}": row for table, rows_ in TABLES.items() for name, row in rows_.items()}


def test_there_are_many():
    assert len(ROWS) >= 150


@pytest.mark.parametrize(("call", "words"), ROWS.values(), ids=ROWS)
def test_a_bad_call_is_refused_and_changes_nothing(call, words, world):
    models = {name: thing for name, thing in vars(world).items() if isinstance(thing, nn.Module) and name != "meta"}
    before = {name: fingerprint(model) for name, model in models.items()}
    on_disk, random_state = files(world.folder), torch.get_rng_state()
    with pytest.raises(ERRORS, match=words):
        call(world)
    for name, model in models.items():
        assert_unchanged(model, before[name])
    assert files(world.folder) == on_disk
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_watched_models_are_good():
    """The rows fail for the reason they name: with good arguments the same calls succeed."""
    model = fill(inject(llama(), ["q_proj"], RANK, ALPHA))
    assert validate_merge(model, merged(model), IDS).passed
    assert combine([adapter_of(model)], [1.0], "cat")
    assert lora_linear(torch.ones(2, 8), W, torch.ones(12), A, B, 2.0).shape == (2, 12)
    assert linear(3, 4)(torch.ones(4)).shape == (3,)
