"""What a study is asked and told, with jobs that are functions."""

import csv
import math
import statistics

import optuna
import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from prune_lab.errors import BadInput, RunFailed
from prune_lab.sweep.search.loop import Jobs, run_trials
from prune_lab.sweep.search.report import MARKS
from prune_lab.sweep.search.study import STOPPED
from prune_lab.utils.outputs import refuse_foreign

SPACE = ("x=interval(-2,2)", "k=range(1,9)", "c=choice(a,b)")


def test_the_study_gets_as_many_trials_as_it_should_have_and_not_more(search):
    it = search()
    it.run(n_trials=5)
    assert len(it.rows("complete")) == len(it.launched) == 5
    it.run(n_trials=5)
    assert len(it.launched) == 5
    it.run(n_trials=7)
    assert len(it.rows("complete")) == len(it.launched) == 7
    assert [row["number"] for row in it.rows()] == [str(number) for number in range(7)]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_several_starts_give_the_trials_of_one(search, sampler):
    whole, parts = search("whole"), search("parts")
    whole.run(n_trials=16, sampler={"name": sampler})
    for trials in (3, 11, 12, 16):
        parts.run(n_trials=trials, sampler={"name": sampler})
    assert parts.results() == whole.results()
    assert len(set(whole.results())) > 12


def test_seeds_differ_and_are_not_shifted_against_each_other(search):
    found = []
    for seed in (0, 1):
        it = search(str(seed))
        it.run(n_trials=8, sampler={"name": "random", "seed": seed})
        found.append({row["x"] for row in it.rows()})
    assert not found[0] & found[1]


def test_tpe_learns_where_to_look_and_random_does_not(search):
    late = {}
    for sampler in ("tpe", "random"):
        it = search(sampler)
        it.run(n_trials=30, sampler={"name": sampler})
        late[sampler] = statistics.fmean(float(row["loss"]) for row in it.rows()[20:])
    assert late["tpe"] < late["random"] / 2


def fails_for_b(values):
    if values["c"] == "b":
        raise RunFailed("no b today")
    return float(values["x"])


def test_a_failing_job_does_not_stop_the_others(search):
    it = search(function=fails_for_b)
    with pytest.raises(RunFailed, match=r"\d trials failed; the first was trial \d+: no b today"):
        it.run(n_trials=6, sampler={"name": "random"})
    assert len(it.rows("complete")) == 6
    assert len(it.rows("failed")) > 0
    assert {row["message"] for row in it.rows("failed")} == {"no b today"}
    assert {row["c"] for row in it.rows("failed")} == {"b"}


def test_failures_in_a_row_end_the_search(search):
    def fail(values):
        raise RunFailed("never")

    it = search(function=fail)
    with pytest.raises(RunFailed, match="3 trials failed, the last 3 in a row: the search was given up"):
        it.run(give_up_after=3)
    assert len(it.launched) == 3
    assert len({row["x"] for row in it.rows("failed")}) == 3  # not the same values again and again
    assert "No trial is complete yet." in (it.folder / "study.md").read_text()


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "text", (1.0, 2.0)])
def test_what_is_no_number_is_a_failure(search, value):
    it = search(function=lambda values: value)
    with pytest.raises(RunFailed, match="not a number for loss"):
        it.run(give_up_after=1)


def test_values_that_do_not_compose_are_a_failure_of_their_trial(search):
    def compose(overrides):
        if "c=b" in overrides:
            raise ConfigCompositionException("b has no x")
        return OmegaConf.create()

    it = search()
    with (
        it.opened(n_trials=4, n_jobs=2, sampler={"name": "random"}) as study,
        pytest.raises(RunFailed, match="b has no x"),
    ):
        run_trials(study, Jobs(compose, it.launch), it.folder)
    assert len(it.rows("complete")) == 4
    assert {row["c"] for row in it.rows("complete")} == {"a"}
    assert all(values["c"] == "a" for values in it.launched)


def test_jobs_are_launched_together(search):
    it = search()
    it.run(n_trials=7, n_jobs=3)
    assert it.batches == [3, 3, 1]
    assert [values["hydra.sweep.subdir"] for values in it.launched] == [f"'{number}'" for number in range(7)]
    assert [values["++hydra.job.env_set.PRUNE_LAB_TRIAL"] for values in it.launched][-1] == "'6'"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"arguments": ("x=interval(-2,3)", "k=range(1,9)", "c=a,b")}, r"x is Float.*high=3\.0.*and was .*high=2\.0"),
        ({"arguments": ("x=interval(-2,2)", "k=range(1,9)")}, "c is not there, and was Categorical"),
        ({"fixed": {"steps": 200}}, "steps is 200, and was 100"),
        ({"fixed": {"steps": 100, "new": 1}}, "new is 1, and was not there"),
        ({"objectives": ("time",)}, "objective loss is not there, and was minimize"),
        ({"direction": "maximize"}, "objective loss is maximize, and was minimize"),
    ],
)
def test_another_study_of_the_same_name_is_refused(search, other, words):
    search(fixed={"steps": 100}).run(n_trials=1)
    given = {key: value for key, value in other.items() if key == "direction"}
    fields = {"fixed": {"steps": 100}, **{key: value for key, value in other.items() if key != "direction"}}
    another = search(**fields)
    with pytest.raises(BadInput, match=words) as refused:
        another.run(n_trials=2, **given)
    assert "hydra.sweeper.study_name=NAME" in str(refused.value)
    assert another.launched == []


def test_a_study_of_someone_else_is_refused(search):
    it = search()
    with it.opened() as study:
        strange = optuna.create_study(study_name="other", storage=study.storage)
        strange.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(BadInput, match="is there already"):
        it.run(study_name="other")


def test_other_samplers_and_more_trials_are_no_other_study(search):
    it = search()
    it.run(n_trials=1)
    it.run(n_trials=2, sampler={"name": "random", "seed": 5}, n_jobs=2)
    assert len(it.rows("complete")) == 2


def test_defaults_are_asked_first_and_named(search):
    it = search()
    defaults = {"x": 1.5, "k": 3, "c": "b"}
    for trials in (1, 3):
        with it.opened(n_trials=trials) as study:
            if not study.trials:
                study.enqueue_defaults(defaults)
        it.run(n_trials=trials)
    assert (it.rows()[0]["x"], it.rows()[0]["k"], it.rows()[0]["c"]) == ("1.5", "3", "b")
    text = (it.folder / "study.md").read_text()
    assert "0 (defaults)" in text


def test_a_stopped_trial_counts_as_finished_and_has_no_value(search):
    it = search(storage="study.journal")

    def stop_first(batch, first):
        results = type(it).launch(it, batch, first)
        if len(it.launched) == 1:
            study = optuna.load_study(study_name="s", storage=storage[0])
            trial = optuna.trial.Trial(study, study.get_trials()[0]._trial_id)
            trial.report(77.0, 3)
            trial.set_user_attr(STOPPED, True)
            trial.set_user_attr("message", "was stopped at step 3")
        return results

    storage = []
    it.launch = stop_first
    with it.opened(n_trials=3) as study:
        storage.append(study.storage)
        run_trials(study, Jobs(lambda overrides: OmegaConf.create(), it.launch), it.folder)
        assert study.trials[0].state.name == "PRUNED"
        assert study.trials[0].value == 77.0
    assert [row["state"] for row in it.rows()] == ["stopped", "complete", "complete"]
    assert (it.rows()[0]["loss"], it.rows()[0]["message"]) == ("", "was stopped at step 3")


def two(values):
    """The first is lowest at x = -1, the second at x = 1; between them all is on the front where c is a."""
    x = float(values["x"])
    penalty = 10.0 * (values["c"] != "a")
    return ((x + 1) ** 2 + penalty, (x - 1) ** 2 + penalty)


def test_two_objectives_have_a_front(search):
    it = search(function=two, objectives=("left", "right"))
    it.run(n_trials=15)
    values = [(float(row["left"]), float(row["right"])) for row in it.rows("complete")]
    front = {one for one in values if not any(a <= one[0] and b <= one[1] and (a, b) != one for a, b in values)}
    found = list(csv.DictReader((it.folder / "pareto.csv").read_text().splitlines()))
    assert {(float(row["left"]), float(row["right"])) for row in found} == front
    assert 1 < len(front) < 15
    assert [float(row["left"]) for row in found] == sorted(float(row["left"]) for row in found)
    assert "## Pareto front" in (it.folder / "study.md").read_text()


def test_directions_are_those_asked_for(search):
    it = search(function=two, objectives=("left", "right"))
    it.run(n_trials=6, direction=["minimize", "maximize"])
    with it.opened(n_trials=6, direction=["minimize", "maximize"]) as study:
        best = {trial.number for trial in study.best()}
        lowest = min(study.trials, key=lambda trial: trial.values[0]).number
        highest = max(study.trials, key=lambda trial: trial.values[1]).number
    assert {lowest, highest} <= best
    with pytest.raises(BadInput, match="direction"):
        it.run(direction=["minimize"])


def test_what_is_best_can_be_repeated(search, capsys):
    it = search(arguments=("seed=3", "path='a b'", *SPACE))
    it.run(n_trials=6)
    best = min(it.rows(), key=lambda row: float(row["loss"]))
    command = f"prune-lab seed=3 'path='\"'\"'a b'\"'\"'' x={best['x']} k={best['k']} c={best['c']}"
    assert command in (it.folder / "study.md").read_text()
    out = capsys.readouterr().out
    assert command in out
    assert str(it.folder) in out
    assert "6 complete" in out
    assert "hydra.sweeper.n_trials" in out


def test_plots_show_trials_and_are_the_same_every_time(search):
    it = search(function=two, objectives=("left", "right"))
    it.run(n_trials=4)
    before = {name: (it.folder / name).read_bytes() for name in ("history.svg", "pareto.svg")}
    it.run(n_trials=4)
    assert before == {name: (it.folder / name).read_bytes() for name in before}
    it.run(n_trials=5)
    assert all((it.folder / name).read_bytes() != content for name, content in before.items())


def test_a_database_may_be_shared_and_running_trials_are_left_alone(search, tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    one, two_ = search("one", storage=url), search("two", storage=url)
    with one.opened() as study:
        running = study.ask()
        with two_.opened(n_trials=2) as other:
            run_trials(other, Jobs(lambda overrides: OmegaConf.create(), two_.launch), two_.folder)
        study.tell(running, [0.5])
        states = [trial.state.name for trial in study.trials]
        study.optuna._storage.remove_session()
    assert states == ["COMPLETE"] * 3


def test_its_tables_are_known_as_its_own(search):
    (it := search()).run(n_trials=2)
    refuse_foreign(it.folder, MARKS, "")
    assert {path.name for path in it.folder.iterdir() if path.suffix in (".csv", ".md", ".svg")} <= set(MARKS)
