import pytest
import torch

from prune_lab.errors import BadInput, RunFailed
from prune_lab.pruning.calibration.blocks import BlockInputs, Calibration, iterate_blocks
from prune_lab.pruning.calibration.statistics import Hessian, InputNorm


class Inputs:
    """A statistic that keeps everything."""

    def __init__(self):
        self.batches = []

    def update(self, inputs):
        self.batches.append(inputs.clone())


def own_forward(model, calibration, **kwargs):
    """The model's own forward passes, with the batches of the walk."""
    with torch.no_grad():
        return [model.hf(calibration.tokens[batch], use_cache=False, **kwargs) for batch in calibration.batches()]


def first_block(model, calibration) -> BlockInputs:
    return next(iterate_blocks(model, calibration))[1]


def test_the_last_batch_may_be_smaller():
    assert [(b.start, b.stop) for b in Calibration(torch.zeros(5, 8), batch_size=2).batches()] == [
        (0, 2),
        (2, 4),
        (4, 5),
    ]
    assert len(Calibration(torch.zeros(5, 8)).batches()) == 1
    assert len(Calibration(torch.zeros(5, 2048)).batches()) == 5


def test_the_first_batch_alone_shares_the_rows():
    calibration = Calibration(torch.arange(10).view(5, 2), batch_size=2, seed=3)
    first = calibration.first_batch()
    assert first.tokens.tolist() == [[0, 1], [2, 3]]
    assert (first.seed, first.rows is calibration.rows) == (3, True)


def test_the_walk_equals_the_models_own_hidden_states_exactly(tiny_model, family, random_tokens):
    model = tiny_model(family)
    calibration = Calibration(random_tokens(5, 24), batch_size=2)
    batches = [out.hidden_states for out in own_forward(model, calibration, output_hidden_states=True)]
    seen = 0
    for block, inputs in iterate_blocks(model, calibration):
        expected = torch.cat([states[block.index] for states in batches])
        assert torch.equal(inputs.hidden, expected), f"block {block.index}"
        seen += 1
    assert seen == len(model.blocks) == 3


def test_the_next_block_sees_this_one_as_it_was_left(tiny_model, family, random_tokens):
    model = tiny_model(family)
    calibration = Calibration(random_tokens(3, 24), batch_size=2)
    walked = []
    for block, inputs in iterate_blocks(model, calibration):
        walked.append(inputs.hidden.clone())
        for linear in block.linears:
            linear.write(linear.weight * (torch.arange(linear.shape[1]) % 2))  # every other input is cut
    batches = [out.hidden_states for out in own_forward(model, calibration, output_hidden_states=True)]
    for index, hidden in enumerate(walked):
        assert torch.equal(hidden, torch.cat([states[index] for states in batches]))
    assert not torch.equal(walked[1], walked[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_walk_is_exact_in_half_precision_too(tiny_model, random_tokens, dtype):
    model = tiny_model("llama", dtype)
    calibration = Calibration(random_tokens(3, 24), batch_size=2)
    batches = [out.hidden_states for out in own_forward(model, calibration, output_hidden_states=True)]
    for block, inputs in iterate_blocks(model, calibration):
        assert inputs.hidden.dtype == dtype
        assert torch.equal(inputs.hidden, torch.cat([states[block.index] for states in batches]))


def test_hidden_states_are_overwritten_in_place(tiny_model, random_tokens):
    storages = {
        inputs.hidden.data_ptr()
        for _, inputs in iterate_blocks(tiny_model("opt"), Calibration(random_tokens(4, 8), batch_size=2))
    }
    assert len(storages) == 1


def test_the_model_is_left_as_it_was(tiny_model, family, random_tokens):
    model = tiny_model(family)
    calibration = Calibration(random_tokens(3, 24))
    before = model.fingerprint()
    logits = own_forward(model, calibration)[0].logits
    for _, inputs in iterate_blocks(model, calibration):
        inputs.collect(Hessian)
    assert model.fingerprint() == before
    assert torch.equal(own_forward(model, calibration)[0].logits, logits)
    for block in model.blocks:
        assert "forward" not in vars(block.module)
        assert not any(module._forward_pre_hooks for module in block.module.modules())


def test_a_walk_that_breaks_off_leaves_the_model_usable(tiny_model, random_tokens):
    model = tiny_model("llama")
    calibration = Calibration(random_tokens(2, 8))
    logits = own_forward(model, calibration)[0].logits
    for _ in iterate_blocks(model, calibration):
        break
    assert torch.equal(own_forward(model, calibration)[0].logits, logits)


def test_a_statistic_sees_what_every_site_reads(tiny_model, family, random_tokens):
    model = tiny_model(family)
    calibration = Calibration(random_tokens(5, 16), batch_size=2)
    block = model.blocks[1]
    read: dict[str, list[torch.Tensor]] = {linear.name: [] for linear in block.linears}
    hooks = [
        linear.module.register_forward_pre_hook(
            lambda _, args, name=linear.name: read[name].append(args[0].flatten(0, -2))
        )
        for linear in block.linears
    ]
    own_forward(model, calibration)
    for hook in hooks:
        hook.remove()
    for walked, inputs in iterate_blocks(model, calibration):
        if walked is block:
            collected = inputs.collect(Inputs)
            assert list(collected) == [linear.name for linear in block.linears]
            for name, statistic in collected.items():
                assert torch.equal(torch.cat(statistic.batches), torch.cat(read[name])), name


def test_sites_that_read_the_same_tensor_share_one_statistic(tiny_model, random_tokens):
    collected = first_block(tiny_model("llama"), Calibration(random_tokens())).collect(InputNorm)
    by_site = {name.rpartition(".")[2]: id(statistic) for name, statistic in collected.items()}
    assert by_site["q_proj"] == by_site["k_proj"] == by_site["v_proj"]
    assert by_site["gate_proj"] == by_site["up_proj"]
    assert len(set(by_site.values())) == 4


def test_a_shared_statistic_counts_every_token_once(tiny_model, random_tokens):
    for statistic in (
        first_block(tiny_model("llama"), Calibration(random_tokens(5, 16), batch_size=2)).collect(Hessian).values()
    ):
        assert statistic.tokens == 5 * 16


def test_some_sites_can_be_asked_for(tiny_model, random_tokens):
    inputs = first_block(tiny_model("llama"), Calibration(random_tokens(5, 16), batch_size=2))
    linears = [inputs.block.linears[1], inputs.block.linears[3]]
    collected = inputs.collect(InputNorm, linears)
    everything = inputs.collect(InputNorm)
    assert list(collected) == [linear.name for linear in linears]
    for name, statistic in collected.items():
        assert torch.equal(statistic.value, everything[name].value)
    assert inputs.collect(InputNorm, []) == {}


def test_a_pass_ends_at_the_last_site_that_is_wanted(tiny_model, family, random_tokens):
    model = tiny_model(family)
    inputs = first_block(model, Calibration(random_tokens(4, 16), batch_size=2))
    executed: list[str] = []
    for linear in inputs.block.linears:
        linear.module.register_forward_hook(lambda *_, name=linear.name: executed.append(name))
    inputs.collect(InputNorm)
    assert inputs.block.linears[-1].name not in executed
    assert inputs.block.linears[0].name in executed
    executed.clear()
    inputs.collect(InputNorm, inputs.block.linears[:1])
    assert executed == []


def test_the_hessian_is_the_mean_outer_product_however_the_tokens_are_split():
    x = torch.randn(500, 300, generator=torch.Generator().manual_seed(0))  # wider than a panel of the triangle
    expected = (x.double().T @ x.double() / len(x)).float()
    for split in (500, 130, 7):
        hessian = Hessian()
        for batch in x.split(split):
            hessian.update(batch)
        value = hessian.value
        assert value.dtype == torch.float32
        assert torch.equal(value, value.T)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_a_hessian_of_two_tokens():
    hessian = Hessian()
    hessian.update(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    assert hessian.value.tolist() == [[5.0, 1.0], [1.0, 2.0]]


def test_a_hessian_of_half_precision_inputs_is_float32():
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    hessian = Hessian()
    hessian.update(x)
    torch.testing.assert_close(hessian.value, x.float().T @ x.float() / 64)


def test_a_released_hessian_is_the_sum_and_is_given_away():
    x = torch.randn(50, 200, generator=torch.Generator().manual_seed(0))
    hessian = Hessian()
    hessian.update(x)
    torch.testing.assert_close(hessian.release().triu(), (x.T @ x).triu(), rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        hessian.release()


def test_the_input_norm_is_taken_over_all_tokens():
    norm = InputNorm()
    norm.update(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    norm.update(torch.tensor([[4.0, 0.0]]))
    assert norm.value.tolist() == [5.0, 1.0]


def test_the_input_norm_of_half_precision_does_not_overflow():
    norm = InputNorm()
    norm.update(torch.full((4, 1), 60000.0, dtype=torch.float16))
    assert norm.value.tolist() == [120000.0]


def test_install_writes_the_weight_and_records_its_relative_error(tiny_model, random_tokens):
    calibration = Calibration(random_tokens(2, 16))
    inputs = first_block(tiny_model("gpt2"), calibration)
    linear = inputs.block.linears[1]
    x = torch.cat(inputs.collect(Inputs)[linear.name].batches).double()
    dense = linear.weight.clone().double()
    pruned = dense.clone()
    pruned[:, ::4] = 0
    keep = inputs.install(linear, pruned.float(), seconds=1.5)
    assert torch.equal(linear.weight, pruned.float())
    assert torch.equal(keep, pruned != 0)
    (row,) = calibration.rows
    assert (row.name, row.shape, row.sparsity, row.seconds) == (linear.name, (32, 32), 0.25, 1.5)
    expected = (x @ (dense - pruned).T).square().sum() / (x @ dense.T).square().sum()
    assert row.error == pytest.approx(float(expected), rel=1e-4)
    assert 0.01 < row.error < 1


def test_the_error_of_a_site_is_measured_on_inputs_from_the_dense_block(tiny_model, random_tokens):
    """The first linear layer is emptied; what reaches the last one in the record is still the dense block's."""
    calibration = Calibration(random_tokens(2, 16))
    inputs = first_block(tiny_model("opt"), calibration)
    first, last = inputs.block.linears[0], inputs.block.linears[-1]
    x = torch.cat(inputs.collect(Inputs)[last.name].batches)
    dense, pruned = last.weight.clone(), last.weight.clone()
    pruned[:8] = 0
    inputs.probes.clear()
    inputs.install(first, first.weight * 0)
    inputs.install(last, pruned)
    assert calibration.rows[0].error == pytest.approx(1.0)
    expected = (x @ (dense - pruned).T).square().sum() / (x @ dense.T).square().sum()
    assert calibration.rows[1].error == pytest.approx(float(expected), rel=1e-4)


def prune_half(block, inputs):
    for linears in inputs.parts():
        inputs.collect(InputNorm, linears)
        for linear in linears:
            inputs.install(linear, linear.weight * (torch.arange(linear.shape[1]) % 2))


def test_dense_propagation_shows_every_block_what_the_dense_model_would(tiny_model, family, random_tokens):
    calibration = Calibration(random_tokens(5, 16), batch_size=2, propagate="dense")
    expected = [inputs.hidden.clone() for _, inputs in iterate_blocks(tiny_model(family), calibration)]
    model = tiny_model(family)
    for block, inputs in iterate_blocks(model, calibration):
        assert torch.equal(inputs.hidden, expected[block.index])
        prune_half(block, inputs)
    for linear in model.linears:
        assert not linear.weight[:, ::2].any()
        assert linear.weight[:, 1::2].all()


def test_sequential_by_site_collects_again_behind_what_is_pruned(tiny_model, family, random_tokens):
    model = tiny_model(family)
    calibration = Calibration(random_tokens(5, 16), batch_size=2, sequential="layer")
    block, inputs = next(iterate_blocks(model, calibration))
    assert [len(part) for part in inputs.parts()] == [len(shared_inputs) for shared_inputs in block.shared_inputs]
    assert tuple(linear for part in inputs.parts() for linear in part) == block.linears
    down = block.mlp.down
    before = inputs.collect(InputNorm, [down])[down.name].value
    for linear in block.mlp.linears[:-1]:
        inputs.install(linear, linear.weight * (torch.arange(linear.shape[1]) % 2))
    assert not torch.equal(inputs.collect(InputNorm, [down])[down.name].value, before)


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
def test_the_error_of_a_block_is_relative_to_what_it_adds(tiny_model, family, random_tokens, propagate):
    model, dense = tiny_model(family), tiny_model(family)
    calibration = Calibration(random_tokens(3, 16), batch_size=2, propagate=propagate)
    for block, inputs in iterate_blocks(model, calibration):
        prune_half(block, inputs)
    rows = {row.name: row.block_error for row in calibration.rows}
    for index in (0, 2):  # the first, and the last, whose outputs nobody reads
        errors = {rows[linear.name] for linear in model.blocks[index].linears}
        assert len(errors) == 1
        assert 0 < errors.pop() < 3
    first = Calibration(random_tokens(3, 16)[:2])
    before = next(iterate_blocks(dense, first))[1]
    was = dense.blocks[0].hidden(before.run(slice(0, 2), before.calls[0]))
    after = next(iterate_blocks(model, first))[1]
    now = model.blocks[0].hidden(after.run(slice(0, 2), after.calls[0]))
    expected = (now - was).square().sum() / (was - before.hidden).square().sum()
    assert rows[model.blocks[0].linears[0].name] == pytest.approx(float(expected), rel=1e-4)


def test_a_site_that_is_installed_again_has_one_row_with_the_error_from_dense(tiny_model, random_tokens):
    calibration = Calibration(random_tokens(2, 16))
    inputs = first_block(tiny_model("opt"), calibration)
    linear = inputs.block.linears[0]
    dense = linear.weight.clone()
    inputs.install(linear, dense * 0, seconds=1.0)
    inputs.install(linear, dense, seconds=2.0)
    (row,) = calibration.rows
    assert (row.error, row.sparsity, row.seconds) == (0.0, 0.0, 3.0)


@pytest.mark.parametrize(("key", "value"), [("propagate", "both"), ("sequential", "site")])
def test_an_unknown_order_is_refused(key, value):
    with pytest.raises(BadInput, match=f"{key}='{value}' is not allowed; allowed"):
        Calibration(torch.zeros(1, 2), **{key: value})


@pytest.mark.parametrize("wrong", [64, -1])
def test_a_token_outside_the_vocabulary_is_refused(tiny_model, random_tokens, wrong):
    tokens = random_tokens()
    tokens[1, 2] = wrong
    with pytest.raises(BadInput, match=f"{wrong}.*0 to 63"):
        next(iterate_blocks(tiny_model("opt"), Calibration(tokens)))


def test_activations_that_are_not_finite_name_the_block(tiny_model, random_tokens):
    model = tiny_model("llama")
    model.blocks[1].linears[-1].weight[0, 0] = float("nan")
    with pytest.raises(RunFailed, match=r"model\.layers\.1: .*NaN.*samples 0 to 1.*model\.dtype=float32"):
        for _ in iterate_blocks(model, Calibration(random_tokens(3, 8), batch_size=2)):
            pass


def test_inputs_that_are_not_finite_name_the_site(tiny_model, random_tokens):
    model = tiny_model("opt")
    model.hf.get_input_embeddings().weight.fill_(float("inf"))
    inputs = first_block(model, Calibration(random_tokens(3, 8)))
    with pytest.raises(RunFailed, match=r"layers\.0\.self_attn\.q_proj: the inputs"):
        inputs.collect(InputNorm)


def test_an_overflow_in_half_precision_is_not_passed_on(tiny_model, random_tokens):
    model = tiny_model("llama", torch.float16)
    model.blocks[0].linears[-1].weight.fill_(6e4)
    with pytest.raises(RunFailed, match=r"model\.layers\.0"):
        list(iterate_blocks(model, Calibration(random_tokens(2, 8))))
