import json

import pytest

from prune_lab.errors import BadInput
from prune_lab.pruning.allocation.from_file import FromFile
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.masks import count_dropped
from prune_lab.pruning.target import Target

Q = "model.decoder.layers.0.self_attn.q_proj"


@pytest.fixture
def written(tmp_path):
    """``written("a.yaml", text)`` writes a file and returns its path."""

    def write(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def budget_of(tiny_model, random_tokens):
    """``budget_of(allocation, level)`` checks, and allocates on tiny OPT: three blocks of 8,192 weights."""

    def allocate(allocation, level, **where):
        model, target = tiny_model("opt"), Target(level=level, **where)
        allocation.check(target)
        allocation.check_model(model, target)
        return allocation.budget(model, Calibration(random_tokens(1, 8)), target)

    return allocate


def test_the_narrower_name_holds(written, budget_of):
    """Query of block 0 has 1,024 of 8,192 weights: its level and that of the others make 0.5 in the mean."""
    path = written("a.yaml", f"0: 0.25\nmodel.decoder.layers.1: 0.5\n2: 0.75\n{Q}: 0.25\n1: 0.99\n")
    budget = budget_of(FromFile(path), 0.5)
    assert [budget[f"model.decoder.layers.{index}.fc1"] for index in range(3)] == [0.25, 0.5, 0.75]
    assert budget[Q] == 0.25
    path = written("b.yaml", f"0: 0.25\n1: 0.5\n2: 0.75\n{Q}: 0.5\n")
    assert budget_of(FromFile(path), 0.5 + 0.25 / 24)[Q] == pytest.approx(0.5, abs=0.001)


def test_json_and_csv_are_read_too(written, budget_of):
    levels = {"0": 0.25, "1": 0.5, "2": 0.75}
    expected = budget_of(FromFile(written("a.json", json.dumps(levels))), 0.5)
    table = "name,rows,sparsity\n" + "".join(f"{name},8,{level}\n" for name, level in levels.items())
    assert budget_of(FromFile(written("a.csv", table)), 0.5) == expected


def test_what_is_not_pruned_may_be_in_the_file_or_not(written, budget_of):
    for text in ("1: 0.5\n2: 0.7\n", "0: 0.1\n1: 0.5\n2: 0.7\n"):
        budget = budget_of(FromFile(written("a.yaml", text)), 0.6, layers=[1, 3])
        assert len(budget) == 12


def test_a_layer_with_level_0_stays_dense_whatever_is_shifted(written, budget_of):
    path = written("a.yaml", "0: 0\n1: 0.3\n2: 0.6\n")
    budget = budget_of(FromFile(path, rescale=True), 0.5)
    assert {budget[name] for name in budget if ".layers.0." in name} == {0}
    assert budget["model.decoder.layers.1.fc1"] == pytest.approx(0.6, abs=0.001)
    assert budget["model.decoder.layers.2.fc1"] == pytest.approx(0.9, abs=0.001)


def test_a_total_that_is_nearly_right_is_made_exact(written, budget_of, tiny_model):
    budget = budget_of(FromFile(written("a.yaml", "0: 0.4004\n1: 0.5\n2: 0.6\n")), 0.5)
    sizes = {linear.name: linear.weight.numel() for linear in tiny_model("opt").linears}
    assert sum(count_dropped(budget[name], n) for name, n in sizes.items()) == sum(sizes.values()) // 2


def test_another_total_is_refused_with_both_numbers_and_the_remedy(written, budget_of):
    path = written("a.yaml", "0: 0.4\n1: 0.5\n2: 0.9\n")
    with pytest.raises(
        BadInput,
        match=r"removes 0\.6 of the weights, sparsity\.level=0\.5; set sparsity\.level=0\.6, or .*rescale=true",
    ):
        budget_of(FromFile(path), 0.5)
    assert budget_of(FromFile(path, rescale=True), 0.5)["model.decoder.layers.2.fc1"] == pytest.approx(0.8, abs=0.001)


def test_the_highest_level_of_a_file_is_not_cut_off(written, budget_of):
    """0.98 leaves less than one of 32 weights a row, which a file may ask for."""
    budget = budget_of(FromFile(written("a.yaml", "0: 0.5\n1: 0.5\n2: 0.98\n")), 0.66)
    assert budget["model.decoder.layers.2.fc1"] == pytest.approx(0.98, abs=0.001)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "0: [\n", r"is no YAML"),
        ("a.json", "{", r"is no JSON"),
        ("a.yaml", "- 0.5\n", r"holds no mapping"),
        ("a.yaml", "", r"is empty"),
        ("a.yaml", "0: 1.0\n", r": 0 has the level 1\.0; allowed: \[0, 1\)"),
        ("a.yaml", "0: much\n", r": 0 has the level 'much'"),
        ("a.yaml", "0: true\n", r": 0 has the level true"),
        ("a.yaml", "0: .nan\n", r": 0 has the level nan"),
        ("a.csv", "name,level\na,0.5\n", r"has no column sparsity"),
        ("a.csv", "name,sparsity\na,0.5\na,0.6\n", r"names a twice"),
        ("a.csv", "name,sparsity\na\n", r": a has the level null"),
        ("a.txt", "0: 0.5\n", r"of no known kind; allowed: \.yaml"),
    ],
)
def test_a_bad_file_is_found_before_the_model(written, name, text, message):
    with pytest.raises(BadInput, match=rf"FromFile\.path=.*{message}"):
        FromFile(written(name, text)).check(Target(level=0.5))


def test_a_missing_file_is_found_before_the_model(tmp_path):
    with pytest.raises(BadInput, match=r"FromFile\.path=.*nowhere\.yaml: there is no such file"):
        FromFile(str(tmp_path / "nowhere.yaml")).check(Target(level=0.5))


def test_unknown_names_are_told_up_to_three(written, budget_of):
    path = written("a.yaml", "0: 0.5\n1: 0.5\n2: 0.5\n3: 0.5\n4: 0.5\n5: 0.5\nfc: 0.5\n")
    with pytest.raises(BadInput, match=r"names 3, 4, 5 and 1 more, which tiny_opt does not have; allowed: .*0 to 2"):
        budget_of(FromFile(path), 0.5)


def test_a_layer_without_a_level_is_told(written, budget_of):
    with pytest.raises(BadInput, match=r"no level for .*layers\.2\.\S+, .* and 3 more; .*sparsity\.layers"):
        budget_of(FromFile(written("a.yaml", "0: 0.5\n1: 0.5\n")), 0.5)


def test_a_level_above_the_cap_is_refused_before_the_model(written):
    path = written("a.yaml", "0: 0.5\n1: 0.9\n")
    with pytest.raises(BadInput, match=r"1 has the level 0\.9, more than FromFile\.max_level=0\.8"):
        FromFile(path, max_level=0.8).check(Target(level=0.5))


def test_the_protocol_has_a_hash_of_the_file(written):
    described = FromFile(written("a.yaml", "0: 0.5\n")).describe()
    assert described["name"] == "FromFile"
    assert len(described["sha256"]) == 64
