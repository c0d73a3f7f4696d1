"""What each sampler searches, and that its trials follow from seed and results."""

import pickle

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from prune_lab.errors import BadInput
from prune_lab.sweep.search import samplers
from prune_lab.sweep.search.sampler_settings import SAMPLERS, CmaEs, Grid, NsgaII
from prune_lab.sweep.search.samplers import check_sampler, points_of
from prune_lab.sweep.search.space import parse_space

NUMBERS = ("x=interval(-2,2)", "k=range(1,9)", "c=interval(0,1)")
STEPS = ("x=range(-2,2,0.5)", "k=range(1,9,2)", "c=choice(a,b)")
ONCE = {  # settings with which twelve trials are past the draws at random
    "tpe": {"n_startup_trials": 4},
    "random": {},
    "grid": {},
    "cmaes": {"popsize": 4},
    "nsgaii": {"population_size": 3},
}
VARIANTS = [
    *ONCE.items(),
    ("cmaes", {"popsize": 4, "use_separable_cma": True}),
    ("cmaes", {"popsize": 4, "with_margin": True}),
]


def space_of(*arguments):
    return parse_space({}, arguments, OverridesParser.create()).searched


def sampler_of(name, given, seed=0):
    if name == "cmaes":
        pytest.importorskip("cmaes", reason="needs cmaes, of the extra optuna")
    return {"name": name, "seed": seed, **given}


def made(search, folder, name):
    return search(folder, arguments=STEPS if name == "grid" else NUMBERS)


@pytest.mark.parametrize(("name", "given"), VARIANTS)
def test_the_same_seed_gives_the_same_trials_again_also_after_interruptions(search, name, given):
    whole, cut, other = (made(search, folder, name) for folder in ("whole", "cut", "other"))
    whole.run(n_trials=12, sampler=sampler_of(name, given))
    launch = cut.launch

    def killed(batch, first):
        raise KeyboardInterrupt

    for trials in (1, 5, 8, 12):
        cut.launch = killed
        with pytest.raises(KeyboardInterrupt):
            cut.run(n_trials=trials, sampler=sampler_of(name, given))
        cut.launch = launch
        cut.run(n_trials=trials, sampler=sampler_of(name, given))
    assert len(cut.rows("interrupted")) == 4
    assert cut.results() == whole.results()
    assert len(set(whole.results())) == 12
    other.run(n_trials=12, sampler=sampler_of(name, given, seed=1))
    assert other.results() != whole.results()


@pytest.mark.parametrize("name", ["cmaes", "nsgaii"])
def test_evolution_learns_where_to_look(search, name):
    it, given = made(search, "it", name), {"cmaes": {}, "nsgaii": {"population_size": 10}}[name]
    it.run(n_trials=60, sampler=sampler_of(name, given))
    losses = [float(row["loss"]) - 1 for row in it.rows()]  # c is never a
    assert sum(losses[-20:]) < sum(losses[:20]) / 2


def test_a_grid_is_every_combination_once_and_then_ends(search):
    it = search(arguments=STEPS)
    with it.opened(sampler={"name": "grid"}) as study:
        study.enqueue_defaults({"x": 0.5, "k": 3, "c": "b"})
    it.run(n_trials=7, sampler={"name": "grid", "seed": 5})
    it.run(n_trials=99, n_jobs=5, sampler={"name": "grid"})
    found = {(float(row["x"]), int(row["k"]), row["c"]) for row in it.rows("complete")}
    assert len(it.rows()) == len(found) == 8 * 4 * 2
    assert found == {tuple(point.values()) for point in points_of(space_of(*STEPS))}
    assert {x for x, _, _ in found} == {-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5}
    launched = len(it.launched)
    it.run(n_trials=99, sampler={"name": "grid"})
    assert len(it.launched) == launched


def test_a_failed_point_of_a_grid_is_not_tried_again(search):
    it = search(arguments=("x=choice(1,2,3)", "k=3", "c=a"), function=lambda values: 1 / (int(values["x"]) - 2))
    with pytest.raises(Exception, match="1 trials failed"):
        it.run(n_trials=9, sampler={"name": "grid"})
    assert sorted(row["x"] for row in it.rows()) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("x=interval(0,1)", r"grid: x is an interval from 0 to 1, which has no steps.*x=range\(START,STOP,STEP\)"),
        ("x=tag(log,int,interval(1,100))", "x is an interval from 1 to 100, which has no steps"),
        ("x=range(0,20000)", "20000 = 20000 combinations are more than 10000"),
    ],
)
def test_what_is_no_grid(argument, words):
    with pytest.raises(BadInput, match=words):
        check_sampler(Grid(), space_of(argument), ["loss"])


def test_whole_numbers_are_steps_of_a_grid():
    points = points_of(space_of("x=int(interval(1,3))", "y=range(0,0.3,0.1)"))
    assert [tuple(point.values()) for point in points[:4]] == [(1, 0.0), (1, 0.1), (1, 0.2), (2, 0.0)]


@pytest.mark.parametrize(
    ("arguments", "objectives", "words"),
    [
        (("x=interval(0,1)", "c=choice(a,b)"), ["loss"], "numbers only, and c has choices"),
        (("x=interval(0,1)",), ["loss"], "at least two numbers to search, and has x"),
        (("x=interval(0,1)", "y=range(3,4)"), ["loss"], "at least two numbers to search, and has x"),
        (NUMBERS, ["loss", "time"], "one objective, and not loss,time; use hydra/sweeper/sampler=nsgaii"),
    ],
)
def test_what_cma_es_cannot_search(monkeypatch, arguments, objectives, words):
    monkeypatch.setattr("prune_lab.utils.extras.is_installed", lambda module: True)
    with pytest.raises(BadInput, match=words):
        check_sampler(CmaEs(), space_of(*arguments), objectives)


def test_without_cmaes_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("prune_lab.utils.extras.is_installed", lambda module: False)
    with pytest.raises(BadInput, match=r"needs cmaes, which is not installed; pip install 'prune-lab\[optuna\]'"):
        check_sampler(CmaEs(), space_of(*NUMBERS), ["loss"])


class Dangerous:
    def __reduce__(self):
        return print, ("run by a study",)


def test_the_state_of_cma_es_runs_nothing(search, capsys):
    pytest.importorskip("cmaes", reason="needs cmaes, of the extra optuna")
    it = search(arguments=NUMBERS)
    it.run(n_trials=2, sampler={"name": "cmaes"})
    with it.opened() as study:
        last = study.trials[-1]
        state = pickle.dumps(Dangerous()).hex()
        trial = study.ask()
        study.storage.set_trial_system_attr(trial._trial_id, "cma:optimizer:0", state)
        study.tell(trial, last.values)
    capsys.readouterr()
    with pytest.raises(BadInput, match=r"state of CMA-ES in trial 2 .* damaged, or not by Optuna \(builtins\.print\)"):
        it.run(n_trials=4, sampler={"name": "cmaes"})
    assert "run by a study" not in capsys.readouterr().out


def test_nsga_ii_takes_several_objectives(search):
    it = search(
        arguments=NUMBERS,
        objectives=("loss", "size"),
        function=lambda values: (float(values["x"]) ** 2, float(values["k"])),
    )
    it.run(n_trials=12, direction=["minimize", "maximize"], sampler={"name": "nsgaii", "population_size": 4})
    assert len(it.rows("complete")) == 12
    check_sampler(NsgaII(), space_of(*NUMBERS), ["loss", "size"])


def test_all_samplers_are_made():
    for name, kind in SAMPLERS.items():
        if name == "cmaes":
            pytest.importorskip("cmaes", reason="needs cmaes, of the extra optuna")
        assert samplers.make_sampler(kind(), space_of("x=1,2"), [], 0) is not None
