"""The latency table of tiny models, by a clock that counts."""

import itertools
import json

import pytest
import torch

from prune_lab.cache.store import Store
from prune_lab.errors import BadInput
from prune_lab.models.model_units import all_heads, all_neurons, heads_of, neurons_of
from prune_lab.pruning.latency.curve import Curve
from prune_lab.pruning.latency.measure import Clock, _small_model, measure, shapes_of
from prune_lab.pruning.latency.settings import Latency
from prune_lab.pruning.latency.table import LatencyTable, Phase, read_table
from prune_lab.utils.files import write_json

CPU = torch.device("cpu")


def counting() -> Clock:
    ticks = itertools.count()
    return Clock(lambda device: float(next(ticks)), lambda first, second: second - first)


def table_of(model, **settings) -> LatencyTable:
    asked = Latency(seqlen=8, new_tokens=2, repeats=2, steps=4, **settings)
    return measure(model, CPU, asked.workload.fit(model), asked.conditions(model, CPU), asked.steps, counting())


def test_every_part_is_timed_once_a_pass(tiny_model, family):
    model = tiny_model(family)
    before = model.fingerprint()
    table, blocks = table_of(model), len(model.blocks)
    assert model.fingerprint() == before and len(model.blocks) == blocks
    for phase in table.phases.values():
        marks = 2 * 2 * blocks + 1  # two of each part, and the ends of the pass: so many ticks
        assert phase.seconds == marks and phase.spread == 0
        for curve in phase.curves.values():
            assert curve.seconds[0] == 0 and set(curve.seconds[1:]) <= {1.0, 3.0}  # 3: the other part lies within
        inner = sum(phase.curves[shape].seconds[-1] for shapes in table.blocks.values() for shape in shapes)
        assert phase.rest == marks - inner


def test_the_widths_are_those_of_the_model(tiny_model, family):
    model = tiny_model(family)
    curves = list(table_of(model).phases["prefill"].curves.values())
    counts = {each.count for each in (*all_heads(model), *all_neurons(model))}
    assert {curve.count for curve in curves} == counts
    assert all(len(curve.counts) <= 5 for curve in curves)


def test_a_small_model_computes_what_the_blocks_without_those_units_do(tiny_model, random_tokens, family):
    model, tokens = tiny_model(family), random_tokens(2, 8)
    small = _small_model(model, [1], 1, 3)
    assert [heads_of(each).count for each in small.blocks] == [1]
    assert [neurons_of(each).count for each in small.blocks] == [3]
    assert torch.isfinite(small.hf(tokens).logits).all()
    # what it shares is what it does not change
    shared = [each.hf.get_input_embeddings().weight for each in (small, model)]
    assert shared[0] is not shared[1] and shared[0].data_ptr() == shared[1].data_ptr()
    assert all_neurons(model)[1].count > 3 and model.hf.config is not small.hf.config


def test_experts_are_refused_before_anything_is_timed(tiny_model, moe_family):
    with pytest.raises(BadInput, match=r"has mixtures of experts \(model\.layers\.0 is the first\).*sparsity\.level"):
        Latency().table(tiny_model(moe_family), CPU)


def by_hand(model) -> LatencyTable:
    """Seconds that are the number of units: a head takes 10, a neuron 1, and the rest 5."""
    blocks = shapes_of(model)
    curves = {}
    for name, (attention, mlp) in blocks.items():
        block = next(each for each in model.blocks if each.name == name)
        heads, neurons = heads_of(block).count, neurons_of(block).count
        curves[attention] = Curve((0, heads), (0.0, 10.0 * heads), (0.0, 0.0))
        curves[mlp] = Curve((0, neurons), (0.0, 1.0 * neurons), (0.0, 0.0))
    phase = Phase(1.0, 0.0, 5.0, curves)
    return LatencyTable(Latency().conditions(model, CPU), blocks, {"prefill": phase, "decode": phase})


def test_a_budget_leaves_what_does_not_compete_as_it_is(tiny_model):
    model = tiny_model("llama")
    heads, neurons = all_heads(model), all_neurons(model)
    budget = by_hand(model).budget(neurons, "prefill", 2.0)
    of_heads = 10 * sum(each.count for each in heads)
    assert budget.fixed == 5 + of_heads
    assert budget.dense == 5 + of_heads + sum(each.count for each in neurons)
    assert budget.seconds == budget.dense / 2
    assert budget.of({neurons[0].name: 2}) == budget.dense - 2


def test_a_table_comes_back_from_its_json(tiny_model, tmp_path):
    table = by_hand(tiny_model("opt"))
    write_json(tmp_path / "t.json", table.to_json())
    again = read_table(tmp_path / "t.json")
    assert again == table and again.digest == table.digest


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 2}', '{"format": 3, "phases": []}'])
def test_a_file_that_is_no_table_is_refused(tiny_model, tmp_path, text):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"Latency\.path=.*prune-lab-latency"):
        Latency(path=str(path)).table(tiny_model("llama"), CPU)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("machine", "device", "another card"), ("model", "dtype", "bfloat16"), ("model", "blocks", {}),
     ("workload", "batch_size", 7), ("machine", "threads", 99)],
)  # fmt: skip
def test_a_table_of_something_else_is_refused_with_both_named(tiny_model, tmp_path, section, key, value):
    model, path = tiny_model("llama"), tmp_path / "t.json"
    plain = json.loads(json.dumps(by_hand(model).to_json()))
    write_json(path, plain)
    asked = Latency(path=str(path))
    assert asked.table(model, CPU).digest == by_hand(model).digest
    here = plain["conditions"][section][key]
    plain["conditions"][section][key] = value
    write_json(path, plain)
    with pytest.raises(BadInput) as raised:
        asked.table(model, CPU)
    assert f"{key} {value} in the table, {here} here" in str(raised.value)


def test_the_store_has_it_the_second_time_and_again_measures_anew(tiny_model, tmp_path):
    model, store, made = tiny_model("llama"), Store(tmp_path, 10**9), []

    def make(*_given):
        made.append(1)
        return by_hand(model)

    asked = Latency()
    first = asked.table(model, CPU, store, make)
    assert asked.table(model, CPU, store, make) == first and len(made) == 1
    asked.table(model, CPU, store, make, again=True)
    assert len(made) == 2
    Latency(seqlen=7).table(model, CPU, store, make)
    assert len(made) == 3


@pytest.mark.parametrize("given", [{"phase": "both"}, {"steps": 0}, {"batch_size": 0}, {"path": ""}, {"path": "/no"}])
def test_bad_settings_are_refused(given):
    with pytest.raises(BadInput, match=rf"Latency\.{next(iter(given))}="):
        Latency(**given)
