"""The GPU experiment on the CPU with tiny shapes, and what it says where there is no GPU."""

from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from lora_lab.budget import budget
from lora_lab.experiments import gpu_training as gpu


@pytest.mark.parametrize("method", gpu.METHODS)
def test_every_method_runs_and_its_memory_is_near_the_prediction(method):
    setting = gpu.smaller(gpu.grid(["Llama-3.2-1B"], [method])[0])
    row = gpu.compare(setting, "cpu")
    assert row["skipped"] == ""
    assert row["measured_peak"] == pytest.approx(row["predicted_peak"], rel=0.1)
    assert row["tokens_per_second"] > 0
    assert row["trainable"] == budget(**setting, device="cpu").counts.trainable
    assert f"{row['measured_peak'] / 1e9:.3f}" in gpu.table([row])


def test_tokens_and_operations_are_divided_by_the_median_step():
    setting = gpu.smaller(gpu.grid(["Llama-3.2-1B"], ["lora"])[0])
    ticks = iter([0.0, 10.0, 12.0, 20.0, 24.0, 30.0, 33.0])  # the warm step is not timed; then: 2, 4 and 3 s
    with mock.patch.object(gpu, "time", SimpleNamespace(perf_counter=lambda: next(ticks))):
        found = gpu.throughput(setting, "cpu", warm=1, timed=3)
    assert found["seconds"] == [2, 4, 3]
    assert found["tokens_per_second"] == pytest.approx(setting["batch"] * setting["length"] / 3, abs=0.1)
    assert found["flops_per_second"] == round(budget(**setting, device="cpu").flops_per_step / 3)
    with pytest.raises(ValueError, match="timed = 0"):
        gpu.throughput(setting, "cpu", timed=0)


def test_what_cannot_fit_is_not_started_and_what_runs_out_is_said():
    setting = gpu.smaller(gpu.grid(["Llama-3.2-1B"], ["lora"])[0])
    with mock.patch.object(gpu, "build", side_effect=AssertionError("started")):
        row = gpu.compare(setting, "cpu", room=10**9)
    assert row["skipped"].startswith("needs ")
    assert row["skipped"] in gpu.table([row])
    with mock.patch.object(gpu, "measure", side_effect=torch.OutOfMemoryError("CUDA out of memory.\nmore")):
        assert "against the prediction: CUDA out of memory." in gpu.compare(setting, "cpu")["skipped"]


def test_without_a_gpu_nothing_is_written_and_that_is_said(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    with mock.patch.object(torch.cuda, "is_available", return_value=False):
        assert gpu.main(["--models", "Llama-3.2-1B", "--out", str(out)]) == 2
    said = capsys.readouterr().out
    assert "nothing was measured and nothing was written" in said
    assert not out.exists()
    assert gpu.main(["--tiny", "--models", "Llama-3.2-1B", "--methods", "lora", "--out", str(out)]) == 0
    assert "not written" in capsys.readouterr().out
    assert not out.exists()
    assert len(gpu.grid()) == 9
