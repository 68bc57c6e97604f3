"""What holds for every test: a fixed global seed, and one thread."""

import pytest
import torch


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)
    # On a busy machine two threads wait for each other: ten training steps of a tiny model took 15 s instead of 0.7 s.
    torch.set_num_threads(1)
