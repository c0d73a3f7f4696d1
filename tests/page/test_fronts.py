"""What the page plots and marks: fronts, means over seeds, spreads, and what is best."""

import random

from prune_lab.report.pareto import front_of
from tests.page.conftest import choose, column, dots, evaluated, run_of


def test_the_front_is_that_of_tables(show):
    numbers = random.Random(0)
    points = [(numbers.randrange(30) / 10, numbers.randrange(30) / 10) for _ in range(200)]
    metrics = [{"evaluate/smallest_bytes": 1 + x, "evaluate/perplexity": 1 + y} for x, y in points]
    alone = [run_of(0).attributes | {"allocation": str(number)} for number in range(200)]  # no two are seeds of one
    page = show([run_of(0, metrics=found, attributes=alone[number]) for number, found in enumerate(metrics)])
    assert page.run("document.querySelectorAll('#scatters .best').length") == len(front_of(points))


def paths(page, kind, plot=0):
    script = f"[...document.querySelectorAll('#scatters svg')[{plot}].querySelectorAll('.{kind}')]"
    return page.run(f"{script}.map((each) => each.getAttribute('d'))")


def test_fronts_join_runs_of_one_evaluation_protocol_only(show):
    page = show([evaluated(number, 8) for number in range(2)])
    assert len(paths(page, "front")) == 1 and page.run("document.getElementById('evaluations').hidden")
    runs = [evaluated(0, 8), evaluated(1, 8), evaluated(2, 3), evaluated(3, 3, dense__perplexity=12.0)]
    page = show(runs)
    # 0 is better than 2, and 1 than 3: one front would have the first two alone
    assert [path.count("L") for path in paths(page, "front")] == [1, 1]
    assert len(paths(page, "dense")) == 2
    assert page.run("[...document.querySelectorAll('#evaluation-list li')].map((each) => each.textContent)") == [
        "toy, stdlib, stdlib, 8 x 512 (2)",
        "toy, stdlib, stdlib, 3 x 512 (2)",
    ]


def test_the_dense_model_is_the_mean_of_its_protocol_and_not_its_first_value(show):
    runs = [evaluated(0, 8, dense__perplexity=10.0), evaluated(1, 8, dense__perplexity=14.0)]
    page = show([*runs, evaluated(2, 3, dense__perplexity=90.0)])
    titles = "[...document.querySelector('#scatters svg').querySelectorAll('.dense title')].map((e) => e.textContent)"
    assert page.run(titles) == ["toy, dense: 12 ± 2.828, mean of 2 runs", "toy, dense: 90"]


def test_means_over_seeds_have_their_runs_behind_them(show):
    runs = [run_of(0), run_of(0, attributes=run_of(0).attributes | {"seed": 1}), run_of(1)]
    runs[1].metrics["evaluate/perplexity"] = 24.0
    other = run_of(0, settings={"data": {"samples": 4}, "seed": 2})  # the same attributes, and not a seed of the first
    page = show([*runs, other])
    assert [path.count("M") for path in paths(page, "behind")] == [2]
    assert [path.count("M") for path in paths(page, "means")] == [1]
    assert dots(page) == 4
    page.run("document.querySelector('#scatters svg').focus()")
    page.press("ArrowRight")
    assert "mean of 2 runs: 22 ± 2.828" in page.run("document.querySelector('.tip:not([hidden])').textContent")


SPREADS = {"dense__prefill_seconds": 0.010, "dense__prefill_seconds_spread": 0.002}


def test_a_speed_has_its_spread_and_is_noise_within_it(show):
    columns = "#columns=evaluate/prefill_seconds"
    fast = evaluated(0, 8, evaluate__prefill_seconds=0.005, evaluate__prefill_seconds_spread=0.001, **SPREADS)
    same = evaluated(1, 8, evaluate__prefill_seconds=0.009, evaluate__prefill_seconds_spread=0.001, **SPREADS)
    page = show([fast, same], columns)
    assert column(page, "seconds of a prompt, pruned") == [
        "5.00 ms (spread 1.00 ms)",
        "9.00 ms (spread 1.00 ms), noise",
    ]
    assert [path.count("M") for path in paths(page, "hollow", plot=3)] == [1]
    assert not paths(page, "hollow", plot=0)


def test_a_lucky_speed_is_not_on_the_front(show):
    def run(number, perplexity, seconds):
        metrics = {"evaluate__perplexity": perplexity, "evaluate__prefill_seconds": seconds}
        return evaluated(number, 8, evaluate__prefill_seconds_spread=0.002, **metrics, **SPREADS)

    page = show([run(0, 20.0, 0.0101), run(1, 30.0, 0.0099)])
    assert page.run("document.querySelectorAll('#scatters svg')[3].querySelectorAll('.best').length") == 1


def test_the_best_of_alike_runs_is_bold_with_what_is_not_told_from_it(show):
    def run(method, seed, perplexity, windows=8):
        made = evaluated(0, windows, evaluate__perplexity=perplexity)
        made.attributes.update(method=method, seed=seed)
        return made

    runs = [run("wanda", 0, 20.0), run("wanda", 1, 22.0), run("ria", 0, 20.5), run("magnitude", 0, 30.0)]
    page = show([*runs, run("wanda", 0, 15.0, windows=3), evaluated(1, 8)])
    bold = "[...document.querySelectorAll('#table td.best')].map((cell) => cell.textContent)"
    assert page.run(bold) == ["20", "22", "20.50"]  # the others have nothing beside them
    choose(page, "#choice-method", "magnitude")
    assert page.run(bold) == []
