"""What the tests of the variants share: DoRA beside PEFT's, and two ways to look at tensors."""

import peft
import torch
from models_for_tests import ALPHA, RANK, copy_factors, fill, linear, token_ids
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_lab import inject, lora_layers
from lora_lab.init import Start
from lora_lab.variants.dora import DoRALinear


def dora(base: nn.Module, targets, rank=RANK, alpha=ALPHA, **more) -> nn.Module:
    return inject(base, targets, rank, alpha, layer=DoRALinear, **more)


@torch.no_grad()
def trained(model: nn.Module) -> nn.Module:
    """`fill`, and magnitudes as if trained: some rows longer, some shorter, one turned round."""
    generator = torch.Generator().manual_seed(7)
    for layer in lora_layers(fill(model)).values():
        layer.magnitude.mul_(1 + 0.4 * torch.randn(layer.magnitude.shape, generator=generator))
        layer.magnitude[1] *= -1
    return model


def peft_magnitudes(twin: peft.PeftModel) -> dict[str, nn.Parameter]:
    return {
        name: module.lora_magnitude_vector["default"].weight
        for name, module in twin.base_model.model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }


@torch.no_grad()
def copy_all(ours: nn.Module, twin: peft.PeftModel) -> None:
    copy_factors(ours, twin)
    for name, magnitude in peft_magnitudes(twin).items():
        magnitude.copy_(lora_layers(ours)[name].magnitude)


def one_layer(kind: str, dtype=torch.float32, shape=(24, 40), rank=RANK, alpha=ALPHA, **more) -> DoRALinear:
    return dora(nn.Sequential(linear(*shape, kind == "bias", dtype, kind == "Conv1D")), ["0"], rank, alpha, **more)[0]


def directions(layer: DoRALinear, weight: Tensor) -> Tensor:
    """W + s·BA (out, in) in fp64, straight from the formula."""
    return weight.double() + layer.scale * layer.B.double() @ layer.A.double()


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * theirs.detach().abs().max().item())


def ten_steps(model: nn.Module) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.1)
    model.train()
    torch.manual_seed(4)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = model(input_ids=token_ids(), labels=token_ids()).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def halves(weight: Tensor, rank: int, scale: float) -> Start:
    """A residual init: takes half of the first `rank` rows' worth of W out of the base."""
    B, R = torch.linalg.qr(weight.detach().to(torch.promote_types(weight.dtype, torch.float32)))
    A, B = R[:rank] / 2, B[:, :rank].contiguous()
    return Start(A, B, (A, B))


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation makes (a view makes none)."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given:
            self.numel = max(self.numel, result.numel())
        return result
