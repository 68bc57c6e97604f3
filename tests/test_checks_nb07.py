"""What the checks of notebook 07 take for right, and cases of their own. The answers: `test_checks_answers`."""

import pytest
import torch

from lora_lab.checks.harness import Cases
from lora_lab.checks.nb07_toy import adapted, plain
from lora_lab.merge import merged
from lora_lab.merge_check import validate_merge

pytestmark = pytest.mark.usefixtures("away")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_models_of_the_checks_are_merged_as_the_library_merges(dtype):
    """An independent sum in fp64 on one side, `merged` on the other, the bound of `validate_merge` between them."""
    model = adapted(Cases(3), dtype)
    tokens = model.tokens(Cases(4))
    for after in (plain(model), merged(model)):
        assert validate_merge(model, after, tokens).passed
    assert not validate_merge(model, plain(model, 2.0), tokens).passed


def test_a_small_update_is_lost_as_the_quiz_says():
    """Near 1 the steps of bfloat16 are 2⁻⁷ = 0.0078: 1.002 rounds to 1, and a weight ten times smaller keeps more."""
    half = torch.bfloat16
    assert torch.tensor(1.0 + 0.002).to(half) == 1.0
    assert torch.nextafter(torch.tensor(1.0, dtype=half), torch.tensor(2.0, dtype=half)) == 1.0078125
    assert not (torch.tensor(float("nan")) > 1).any()
