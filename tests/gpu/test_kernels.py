"""What is computed in another way on a GPU than on a CPU gives the same there."""

import pytest
import torch

from prune_lab.pruning import masks
from prune_lab.pruning.solvers import obs, sweep_kernel
from prune_lab.pruning.solvers.gram import accumulate_upper

pytestmark = pytest.mark.gpu


def layer(out_features=1000, in_features=300, tokens=900):
    """A weight, and a factor of the Hessian of inputs some of which are never active."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(tokens, in_features, generator=generator) @ torch.randn(
        in_features, in_features, generator=generator
    )
    inputs[:, ::37] = 0
    return torch.randn(out_features, in_features, generator=generator), inputs.T @ inputs


@pytest.mark.parametrize("block_size", [128, 48, 300])
@pytest.mark.parametrize("pattern", [None, (2, 4), (1, 4), (3, 20)])
def test_the_fused_sweep_prunes_as_plain_operations_do(cuda, monkeypatch, pattern, block_size):
    if not sweep_kernel.can_run_on(cuda):
        pytest.skip("no Triton")
    weight, hessian = layer()
    weight[::3, ::5] = 0
    for zero in (None, weight == 0):
        on_gpu = None if zero is None else zero.to(cuda)
        factor = obs.factorize(hessian.to(cuda), 0.01)
        found = obs.sparsegpt(weight.to(cuda), factor, 0.6, pattern, block_size=block_size, zero=on_gpu)
        with monkeypatch.context() as patched:
            patched.setattr(sweep_kernel, "can_run_on", lambda device: False)
            expected = obs.sparsegpt(weight.to(cuda), factor, 0.6, pattern, block_size=block_size, zero=on_gpu)
        assert ((found != 0) == (expected != 0)).float().mean() > 0.999
        error = [((each - weight.to(cuda)) @ factor.upper).square().sum() for each in (found, expected)]
        torch.testing.assert_close(error[0], error[1], rtol=1e-3, atol=0)


@pytest.mark.parametrize("shape", [(7,), (5, 1000), (3, 4, 33), (300000,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_selections_find_the_same_value(cuda, shape, dtype):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    scores[..., ::5] = 0.0
    scores[..., 1::5] = -0.0
    for k in (1, shape[-1] // 2, shape[-1]):
        expected = scores.kthvalue(k, dim=-1, keepdim=True).values
        assert torch.equal(masks._kth_smallest(scores.to(cuda), k).cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gram_matrices_of_half_precision_are_those_of_float64(cuda, dtype):
    inputs = torch.randn(2000, 400, generator=torch.Generator().manual_seed(2)).to(dtype)
    total = torch.zeros(400, 400, device=cuda)
    for _ in range(2):
        accumulate_upper(total, inputs.to(cuda))
    exact = 2 * inputs.double().T @ inputs.double()
    bound = inputs.double().abs().T @ inputs.double().abs()
    # Matrix units cut what they sum where others round it: 2000 products of 16 at a time lose up to 2000 / 16 * 2^-23.
    assert ((total.cpu().double() - exact).abs() / bound).triu().max() < 5e-5


def test_hidden_states_lie_where_there_is_room(cuda, tiny_model, random_tokens, monkeypatch):
    from prune_lab.pruning.calibration import blocks
    from prune_lab.pruning.calibration.calibration import Calibration
    from prune_lab.utils import device as utils

    calibration, states = Calibration(random_tokens(8, 24), batch_size=4, device=cuda), {}
    for place, free in {"cuda": 1 << 40, "cpu": 0}.items():
        monkeypatch.setattr(utils, "free_memory", lambda device, free=free: free)
        for _, inputs in blocks.iterate_blocks(tiny_model("llama"), calibration):
            assert inputs.hidden.device.type == place
        states[place] = inputs.hidden.cpu()
    assert torch.equal(states["cuda"], states["cpu"])


@pytest.mark.parametrize("name", ["sparsellm", "reconstruction"])
def test_networks_are_pruned_alike_wherever_their_inputs_lie(
    cuda, tiny_model, random_tokens, composed, monkeypatch, name
):
    from hydra.utils import instantiate

    from prune_lab.pruning.calibration.calibration import Calibration
    from prune_lab.pruning.context import PruningContext
    from prune_lab.pruning.target import Target
    from prune_lab.utils import device as utils

    found = []
    for free in (1 << 40, 0):
        monkeypatch.setattr(utils, "free_memory", lambda device, free=free: free)
        method, model = instantiate(composed(f"method={name}").method), tiny_model("llama")
        calibration = Calibration(random_tokens(8, 24), batch_size=4, device=cuda)
        method.prune(PruningContext(model, Target(level=0.5), calibration, device=cuda))
        found.append([linear.weight.clone() for linear in model.linears])
    for there, here in zip(*found, strict=True):
        torch.testing.assert_close(there, here)
