import csv
import json
import logging
from functools import partial
from itertools import pairwise, product
from operator import mul

import pytest
import torch

from prune_lab.cache.store import Store
from prune_lab.errors import BadInput
from prune_lab.pruning.allocation.allocation import Workplace
from prune_lab.pruning.allocation.atp import ATP
from prune_lab.pruning.allocation.evolution import Evolution
from prune_lab.pruning.allocation.measured import Measured
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.search.course import Course
from prune_lab.pruning.search.levels import make_levels
from prune_lab.pruning.target import Target

SMALL = {"generations": 6, "offspring": 4, "tokens": [12, 48], "survivors": [2, 1]}


@pytest.fixture
def found(tiny_model, random_tokens):
    """``found(settings, target, place)`` is a budget of a fresh model."""

    def found(settings=None, target=None, place=None, model=None):
        allocation, target = Evolution(**SMALL | (settings or {})), target or Target(level=0.5)
        model, calibration = model or tiny_model("llama"), Calibration(random_tokens(6, 24))
        allocation.check(target)
        allocation.check_model(model, target)
        allocation.check_calibration(calibration)
        return allocation.budget(model, calibration, target, place)

    return found


def counts_of(model, budget):
    return {linear.name: count_dropped(budget[linear.name], linear.weight.numel()) for linear in model.linears}


@pytest.mark.parametrize("level", [0.0, 0.05, 0.333, 0.7])
@pytest.mark.parametrize("settings", [{}, {"step": 16}, {"step": 7.0}, {"initial": ATP(0.02)}, {"max_level": 0.72}])
def test_the_total_is_exact_and_steps_are_whole(found, tiny_model, level, settings):
    model = tiny_model("llama")
    if level == 0 and "initial" in settings:
        settings = {}
    counts = counts_of(model, found(settings, Target(level=level)))
    sizes = {linear.name: linear.weight.numel() for linear in model.linears}
    assert sum(counts.values()) == sum(count_dropped(level, size) for size in sizes.values())
    if "initial" not in settings:
        for name, size in sizes.items():
            step = settings.get("step") or round(0.05 * size)
            moved = counts[name] - count_dropped(level, size)
            assert moved % step == 0
            assert abs(moved) <= 4 * step


def test_it_can_begin_where_errors_of_single_layers_add_up_to_least(found, tiny_model, monkeypatch):
    model, target = tiny_model("llama"), Target(level=0.7)
    begun = []
    search = Evolution._search
    monkeypatch.setattr(Evolution, "_search", lambda *args: (begun.append(args[5]), search(*args))[1])
    counts = counts_of(model, found({"initial": Measured(), "generations": 2}, target))
    total = sum(count_dropped(0.7, linear.weight.numel()) for linear in model.linears)
    assert sum(counts.values()) == sum(begun[0].values()) == total
    assert len({round(begun[0][linear.name] / linear.weight.numel(), 3) for linear in model.linears}) > 3


def test_it_brings_the_model_closer_to_the_dense_one(found, caplog):
    caplog.set_level(logging.INFO)
    found({"generations": 12})
    line = next(record for record in caplog.records if "all calibration windows" in record.message)
    _, before, _, after = line.args
    assert after < before


def test_the_seed_decides(found):
    assert found({"seed": 1}) == found({"seed": 1})
    assert found({"seed": 1}) != found({"seed": 2})


TRAINED = {"train_tokens": [2, 24], "train_lr": 1e-2}


def interrupt(found, place, monkeypatch, generation):
    """Runs a search that is stopped in the middle of a generation."""
    note = Course.note

    def stopping(self, state):
        if state.generation == generation:
            raise KeyboardInterrupt
        note(self, state)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Course, "note", stopping)
        found(place=place)


@pytest.mark.parametrize("settings", [{}, TRAINED, {"rounds": 2}], ids=["plain", "trained", "rounds"])
def test_an_interrupted_search_ends_with_the_same_bits(found, tmp_path, monkeypatch, settings):
    """The first is stopped in the middle of its fourth generation, and its levels are solved once."""
    found = partial(found, settings)
    whole = found()
    place = Workplace(tmp_path / "progress", tmp_path / "a.csv", None, Store(tmp_path / "store", 10**9))
    interrupt(found, place, monkeypatch, 4)
    assert len(json.loads((tmp_path / "progress" / "search.json").read_text())["history"]) == 3
    again = found(place=place)
    assert again == whole
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [int(row["generation"]) for row in rows] == list(range(1, 1 + 6 * settings.get("rounds", 1)))
    other = Workplace(tmp_path / "other", tmp_path / "b.csv")
    assert found(place=other) == whole
    for name in ("generation", "fitness", "parent_fitness", "improved", "evaluations", "tokens"):
        assert [row[name] for row in csv.DictReader((tmp_path / "b.csv").read_text().splitlines())] == [
            row[name] for row in rows
        ]


def test_candidates_that_are_trained_leave_the_total_exact_and_the_model_as_it_was(found, tiny_model):
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.hf.state_dict().items()}
    counts = counts_of(model, found(TRAINED, model=model))
    assert sum(counts.values()) == sum(count_dropped(0.5, linear.weight.numel()) for linear in model.linears)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.hf.state_dict().items())
    assert len(set(counts.values())) > 3  # something was moved


@pytest.mark.parametrize("settings", [{}, {"step": 16}, {"step": 9}, {"initial": ATP(0.02)}, {"max_level": 0.72}])
def test_the_total_is_exact_after_every_round_and_steps_are_halved(found, tiny_model, settings):
    model, level = tiny_model("llama"), 0.333
    counts = counts_of(model, found({"generations": 3, "rounds": 3, **settings}, Target(level=level)))
    sizes = {linear.name: linear.weight.numel() for linear in model.linears}
    assert sum(counts.values()) == sum(count_dropped(level, size) for size in sizes.values())
    if "initial" in settings:
        return
    for name, size in sizes.items():
        steps = [round(0.05 * size / 2**number) for number in range(3)]
        if "step" in settings:
            steps = [settings["step"] >> number for number in range(3)]
        moved = {sum(map(mul, times, steps)) for times in product(range(-4, 5), repeat=3)}
        assert counts[name] - count_dropped(level, size) in moved


def test_a_round_goes_on_from_the_one_before_with_half_the_step(found, tmp_path, monkeypatch):
    """Its levels lie around what was found, its generations are further ones, and the first is as without it."""
    seen = []
    plain = Evolution._round

    def watching(self, *args):
        state = plain(self, *args)
        counts, begin, number = args[4], args[5], args[6]
        seen.append((number, counts, begin, state))
        return state

    monkeypatch.setattr(Evolution, "_round", watching)
    place = Workplace(tmp_path / "progress", tmp_path / "a.csv")
    found({"rounds": 2, "step": 16}, place=place)
    (first, wide, _, one), (second, narrow, begin, two) = seen
    assert (first, second) == (1, 2)
    for name, level, at in zip(wide, one.parent, begin.parent, strict=True):
        assert narrow[name][at] == wide[name][level]
        assert {high - low for low, high in pairwise(wide[name])} == {16}
        assert {high - low for low, high in pairwise(narrow[name])} == {8}
    assert two.history[:6] == one.history
    assert [each.number for each in two.history] == list(range(1, 13))
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 13
    seen.clear()
    found({"step": 16})
    assert seen[0][3] == one


def test_a_search_that_is_interrupted_in_its_second_round_ends_with_the_same_bits(found, tmp_path, monkeypatch):
    """It is stopped in the middle of its ninth generation; the levels of the first round are not solved again."""
    found = partial(found, {"rounds": 2})
    whole = found()
    place = Workplace(tmp_path / "progress", tmp_path / "a.csv")
    interrupt(found, place, monkeypatch, 9)
    solved = []
    monkeypatch.setattr(
        "prune_lab.pruning.allocation.evolution.make_levels",
        lambda *args, **kwargs: (solved.append(args), make_levels(*args, **kwargs))[1],
    )
    assert found(place=place) == whole
    assert len(solved) == 1
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [int(row["generation"]) for row in rows] == list(range(1, 13))
    assert [float(row["seconds"]) for row in rows] == sorted(float(row["seconds"]) for row in rows)


def test_the_training_of_candidates_follows_its_settings(found):
    assert found({"train_tokens": [0, 0], "train_lr": 1.0}) == found()
    assert found(TRAINED) == found(TRAINED)
    seen = [found({"train_tokens": [24, 24], "train_lr": lr, "seed": 3}) for lr in (1e-9, 3e-2)]
    assert seen[0] != seen[1]


def test_a_finished_search_is_taken_without_solving_again(found, tmp_path, monkeypatch):
    place = Workplace(tmp_path)
    first = found(place=place)
    monkeypatch.setattr("prune_lab.pruning.allocation.evolution.make_levels", None)
    assert found(place=place) == first


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": 1}'])
def test_a_state_that_cannot_be_read_begins_anew(found, tmp_path, content):
    (tmp_path / "search.json").write_text(content)
    assert found(place=Workplace(tmp_path)) == found()


def test_a_state_of_other_settings_is_not_taken(found, tmp_path):
    found({"seed": 1}, place=Workplace(tmp_path))
    assert found({"seed": 2}, place=Workplace(tmp_path)) == found({"seed": 2})


def test_zeros_that_stay_are_a_part_of_every_level(found, tiny_model):
    """A layer that has more zeros than its share: it begins there, and never has fewer."""
    model = tiny_model("llama")
    linear = model.blocks[0].linears[0]
    linear.write(torch.where(torch.rand(linear.shape) < 0.8, 0.0, linear.weight))
    zeros = int((linear.weight == 0).count_nonzero())
    counts = counts_of(model, found(model=model))
    assert counts[linear.name] >= zeros
    assert sum(counts.values()) == sum(count_dropped(0.5, each.weight.numel()) for each in model.linears)


def test_only_the_blocks_of_the_target_are_searched(found, tiny_model):
    budget = found(target=Target(level=0.5, layers=[1, 3]))
    model = tiny_model("llama")
    assert list(budget) == [linear.name for block in model.blocks[1:3] for linear in block.linears]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner": Magnitude()}, r"Evolution\.inner=Magnitude"),
        ({"step": 0}, r"Evolution\.step=0 .*above 0"),
        ({"step": 1.5}, r"Evolution\.step=1\.5 is no whole number of weights"),
        ({"generations": 0}, r"Evolution\.generations=0"),
        ({"offspring": 2.5}, r"Evolution\.offspring=2\.5"),
        ({"fitness": "ppl"}, r"Evolution\.fitness='ppl' .*kl, loss"),
        ({"tokens": []}, r"Evolution\.tokens=\[\] .*\[512,2048\]"),
        ({"tokens": [12, 24, 48]}, r"Evolution\.survivors=\[2, 1\] has 2 stages, and Evolution\.tokens 3"),
        ({"survivors": [2, 2]}, r"Evolution\.survivors=\[2, 2\] .*1 as the last"),
        ({"survivors": [8, 1]}, r"Evolution\.survivors=\[8, 1\] keeps more than Evolution\.offspring=4"),
        ({"train_tokens": []}, r"Evolution\.train_tokens=\[\] .*at least 0, one a stage, as in \[0,2048\]; null"),
        ({"train_tokens": [24]}, r"train_tokens=\[24\] has 1 stages, and Evolution\.tokens 2; give as many"),
        ({"train_tokens": [0, -1]}, r"train_tokens=\[0, -1\] .*at least 0"),
        ({"train_tokens": [0, 1]}, r"train_tokens=\[0, 1\] has a stage with one token"),
        ({"train_tokens": 24}, r"train_tokens=24 .*a list"),
        ({"rounds": 0}, r"Evolution\.rounds=0"),
        ({"train_lr": 0}, r"Evolution\.train_lr=0 .*above 0"),
        ({"seed": -1}, r"Evolution\.seed=-1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        Evolution(**SMALL | settings)


def test_what_cannot_be_done_is_refused_before_anything_runs(found):
    with pytest.raises(BadInput, match=r"tokens=\[12, 145\] asks for more than the 144 tokens .*\(6 x 24\)"):
        found({"tokens": [12, 145]})
    message = r"train_tokens=\[0, 97\] asks for 5 of the .* 6 samples of 24 tokens at stage 2, beside the 2 .*tokens=48"
    with pytest.raises(BadInput, match=message):
        found({"train_tokens": [0, 97]})
    found({"train_tokens": [0, 96], "generations": 1})
    with pytest.raises(BadInput, match=r"step=1e-06 is less than one weight of "):
        found({"step": 1e-6})
    with pytest.raises(BadInput, match=r"step=1 halved 1 times is less than one .*or lower Evolution\.rounds"):
        found({"step": 1, "rounds": 2})
    with pytest.raises(BadInput, match="allocation=uniform"):
        found(target=Target("2:4"))
    with pytest.raises(BadInput, match="max_level"):
        found({"max_level": 0.4})
