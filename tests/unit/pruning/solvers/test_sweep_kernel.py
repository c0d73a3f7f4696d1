"""The sweep as one kernel does what the sweep by plain operations does; Triton's interpreter stands in for a GPU."""

import os
import subprocess
import sys

import pytest

INTERPRETED = """
import torch
from prune_lab.pruning.solvers import obs, sweep_kernel

torch.manual_seed(0)
for n_of_m in (None, (2, 4), (1, 4), (4, 8)):
    for columns, out_features in ((32, 40), (24, 33)):
        inputs = torch.randn(200, columns)
        inputs[:, 3] = 0
        factor = obs.factorize(inputs.T @ inputs, 0.01)
        weight, pending = torch.randn(columns, out_features), torch.randn(columns, out_features)
        weight[5, ::2] = weight[6, ::2]  # equal scores, perhaps
        keep = None if n_of_m else torch.rand(columns, out_features) < 0.5
        for zero in (None, torch.rand(columns, out_features) < 0.3) if n_of_m else (None,):
            pruned, expected = weight.clone(), weight.clone()
            change, expected_change = torch.empty_like(weight), torch.empty_like(weight)
            can = sweep_kernel.can_run_on
            sweep_kernel.can_run_on = lambda device: False
            obs._sweep(expected, pending.clone(), factor, keep, n_of_m, expected_change, zero)
            sweep_kernel.can_run_on = can
            assert can(weight.device)
            obs._sweep(pruned, pending.clone(), factor, keep, n_of_m, change, zero)
            assert torch.equal(pruned != 0, expected != 0), n_of_m
            torch.testing.assert_close(pruned, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(change, expected_change, rtol=1e-4, atol=1e-5)

# a layer wider than one launch, by both ways
weight, inputs = torch.randn(40, 150), torch.randn(400, 150)
factor = obs.factorize(inputs.T @ inputs, 0.01)
found = obs.sparsegpt(weight, factor, 0.5, block_size=150)
sweep_kernel.can_run_on = lambda device: False
expected = obs.sparsegpt(weight, factor, 0.5, block_size=150)
torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
"""


@pytest.mark.slow
def test_the_kernel_prunes_as_plain_operations_do():
    pytest.importorskip("triton", reason="Triton, which test.sh installs and PyTorch's CUDA builds bring")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
