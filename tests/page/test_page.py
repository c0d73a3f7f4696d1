"""The page of ``prune-lab-report`` as a browser shows it."""

import json
import math
import random
import time

import pytest

from prune_lab.report.page.run import Layers
from prune_lab.run.continuations import Continued
from tests.page.conftest import WEIGHTS, choose, click, column, dots, evaluated, layers_of, run_of

pytestmark = pytest.mark.slow

ATTACK = '"><img src=x onerror="document.title=\'broken\'"><script>document.title="broken"</script>'


def type_into(page, selector, text):
    given = json.dumps(selector)
    page.run(f"document.querySelector({given}).value = {json.dumps(text)}")
    page.run(f"document.querySelector({given}).dispatchEvent(new Event('input'))")


def place_of(page, run, plot=0):
    """Where a plot has a run, in the window; found by its mark while its row has the focus."""
    script = """(([run, plot]) => {
      document.querySelector(`#table tr[data-run="${run}"] button`).focus({ preventScroll: true });
      const svg = document.querySelectorAll("#scatters svg")[plot];
      svg.scrollIntoView();
      const mark = svg.querySelector(".here").getBoundingClientRect();
      document.activeElement.blur();
      return [mark.x + mark.width / 2, mark.y + mark.height / 2];
    })"""
    return page.run(f"{script}({json.dumps([run, plot])})")


def test_a_click_on_a_column_sorts_by_it_and_another_one_turns_the_order(show):
    page = show([run_of(number) for number in (4, 2, 3, 0, 1)])
    click(page, '[data-sort="evaluate/perplexity"]')
    rising = column(page, "perplexity, pruned")
    assert rising == sorted(rising, key=float)
    assert page.run("document.querySelector('[aria-sort=ascending]').textContent") == "perplexity, pruned"
    click(page, '[data-sort="evaluate/perplexity"]')
    assert column(page, "perplexity, pruned") == rising[::-1]
    assert page.run("document.activeElement.dataset.sort") == "evaluate/perplexity"
    click(page, '[data-sort="method"]')
    assert column(page, "method") == ["magnitude", "magnitude", "sparsegpt", "wanda", "wanda"]


def test_what_a_run_lacks_comes_last_in_both_orders(show):
    runs = [
        run_of(0, metrics={"prune/seconds": math.inf}),
        run_of(1, metrics={}),
        run_of(2),
        run_of(3, metrics={"prune/seconds": 0.5}),
    ]
    page = show(runs)
    for wanted in (["0.500 s", "1.50 s", "inf", ""], ["1.50 s", "0.500 s", "inf", ""]):
        click(page, '[data-sort="prune/seconds"]')
        assert column(page, "seconds to prune") == wanted


def test_filters_act_on_table_and_plots_and_can_be_cleared(show):
    page = show([run_of(number) for number in range(12)])
    assert dots(page) == 12
    choose(page, "#choice-method", "wanda")
    assert set(column(page, "method")) == {"wanda"}
    assert dots(page) == 4
    choose(page, "#choice-finetune", "lora")
    assert (dots(page), page.run("document.getElementById('matching').textContent")) == (2, "2 of 12 runs")
    click(page, "#reset")
    type_into(page, "#search", "SPARSEGPT seed=5")
    assert column(page, "method") == ["sparsegpt"]
    type_into(page, "#search", "no such words")
    assert "No run matches." in page.run("document.querySelector('#table tbody').textContent")
    assert dots(page) == 0


def test_what_is_shown_outlives_a_reload(show, browser):
    page = show([run_of(number) for number in range(60)])
    choose(page, "#choice-method", "wanda")
    click(page, '[data-sort="evaluate/perplexity"]')
    click(page, '[data-sort="evaluate/perplexity"]')
    before, fragment = column(page, "perplexity, pruned"), page.run("location.hash")
    page = show([run_of(number) for number in range(60)], fragment)
    assert column(page, "perplexity, pruned") == before == sorted(before, key=float, reverse=True)
    assert page.run("document.querySelector('#choice-method').selectedOptions[0].textContent") == "wanda"


def test_a_filter_means_the_same_when_runs_have_come_before_those_it_was_made_for(show):
    page = show([run_of(0), run_of(1)])
    choose(page, "#choice-method", "magnitude")
    fragment = page.run("location.hash")
    page = show([run_of(2), run_of(0), run_of(1)], fragment)
    assert column(page, "method") == ["magnitude"]


def test_columns_can_be_chosen(show):
    page = show([run_of(0), run_of(1)])
    assert column(page, "smallest size, dense") == []
    click(page, '#columns input[value="dense/smallest_bytes"]')
    assert column(page, "smallest size, dense") == ["1 MB", "1 MB"]
    click(page, '#columns input[value="method"]')
    assert column(page, "method") == []


def test_the_command_is_copied(show):
    page = show([run_of(3)])
    page.run("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    click(page, "[data-does=copy]")
    assert (
        page.run("new Promise((done) => setTimeout(() => done(window.copied), 50))") == "prune-lab method=wanda seed=3"
    )
    assert page.run("document.querySelector('[data-does=copy]').textContent") == "copied"
    assert page.run("document.getElementById('said').textContent") == "The command is copied."


def test_the_command_is_copied_where_there_is_no_clipboard(show):
    page = show([run_of(3)])
    page.run("navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed'))")
    page.run("document.execCommand = () => { window.copied = document.activeElement.value; return true; }")
    click(page, "[data-does=copy]")
    assert (
        page.run("new Promise((done) => setTimeout(() => done(window.copied), 50))") == "prune-lab method=wanda seed=3"
    )


def test_the_pointer_on_a_point_marks_the_run_everywhere_and_a_click_opens_it(show):
    page = show([run_of(number) for number in range(6)])
    x, y = place_of(page, 5)
    assert page.run("document.querySelectorAll('svg .here').length") == 0
    page.move(x, y)
    assert page.run("document.querySelector('tr.here').dataset.run") == "5"
    assert page.run("document.querySelectorAll('#scatters svg .here').length") == 4
    assert "perplexity, pruned 28.50" in page.run("document.querySelector('.tip:not([hidden])').textContent")
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    assert page.run("document.getElementById('details').open")
    assert page.run("document.querySelector('#details-title').textContent").startswith("toy, sparsegpt, 70 %")


def test_the_pointer_on_a_row_marks_its_points(show):
    page = show([run_of(number) for number in range(6)])
    page.run("document.querySelector('#table tr[data-run=\"2\"]').scrollIntoView()")
    box = page.run(
        "(({ x, y }) => [x, y])(document.querySelector('#table tr[data-run=\"2\"]').getBoundingClientRect())"
    )
    page.move(box[0] + 20, box[1] + 10)
    assert page.run("document.querySelectorAll('#scatters svg .here').length") == 4
    assert page.run("document.querySelectorAll('#curves svg .here').length") == 2  # both steps of its curve


def test_everything_works_from_the_keyboard(show):
    page = show([run_of(number) for number in range(6)])
    page.run("document.querySelector('#scatters svg').focus()")
    page.press("ArrowRight")
    first = page.run("document.querySelector('tr.here').dataset.run")
    page.press("ArrowRight")
    second = page.run("document.querySelector('tr.here').dataset.run")
    assert first != second
    page.press("ArrowLeft")
    assert page.run("document.querySelector('tr.here').dataset.run") == first
    page.press("Enter")
    assert page.run("document.getElementById('details').open")
    page.press("Escape")
    assert not page.run("document.getElementById('details').open")


def compare_rows(page, one, other):
    for run in (one, other):
        click(page, f"tr[data-run='{run}'] [data-does=compare]")


def cells(page):
    rows = "[...document.querySelectorAll('#details-body tbody tr')]"
    return {row[0]: row[1:] for row in page.run(f"{rows}.map((row) => [...row.cells].map((each) => each.textContent))")}


def test_two_runs_stand_side_by_side(show):
    settings = [
        {"method": {"name": "wanda", "damping": 0.1}, "seed": 0},
        {"method": {"name": "ria", "damping": 0.1}, "seed": 0},
    ]
    pair = [run_of(number, settings=settings[number], layers=layers_of(WEIGHTS, 0.5 + number / 5)) for number in (0, 1)]
    page = show(pair)
    compare_rows(page, 0, 1)
    found = cells(page)
    assert found["method.name"] == ["wanda", "ria"] and "method.damping" not in found
    assert found["perplexity, pruned"] == ["20", "21.70", "+1.7 (+8.5 %), worse"]
    assert found["perplexity, dense"] == ["10", "10", "0"]
    assert found["0 q"] == ["50 %", "70 %", "+20 %"]
    assert page.run("document.querySelectorAll('#details .heat').length") == 2
    click(page, "#close")
    click(page, "#clear-chosen")
    assert page.run("document.querySelectorAll('[data-does=compare][aria-pressed=true]').length") == 0
    assert page.run("document.getElementById('chosen').hidden")


def test_no_difference_is_given_between_protocols(show):
    page = show([evaluated(0, 8), evaluated(1, 3)])
    compare_rows(page, 0, 1)
    assert cells(page)["perplexity, pruned"][-1] == "not comparable"
    assert cells(page)["data.evaluation.windows"] == ["8", "3"]
    assert "measured in different ways" in page.run("document.querySelector('#details .notice').textContent")


def test_continuations_stand_side_by_side_as_text(show):
    texts = {"dense": f" Paris.\n\n{ATTACK}", "evaluate": " the the"}
    continued = (Continued("The capital is", texts), Continued("Fox", {"evaluate": ""}))
    page = show([run_of(0, continuations=continued), run_of(1)])
    click(page, "[data-does=open]")
    found = page.run(
        "[...document.querySelectorAll('.continued')].map((each) => "
        "[each.querySelector('figcaption').textContent, ...[...each.querySelectorAll('p')].map((p) => p.textContent)])"
    )
    assert found == [["The capital is", f"Paris.\n\n{ATTACK}", "the the"], ["Fox", "(nothing: the text ends here)"]]
    boxes = page.run("[...document.querySelector('.beside').children].map((each) => each.getBoundingClientRect().y)")
    assert boxes[0] == boxes[1]
    assert page.run("document.title") == "sweep - prune_lab"


def test_details_show_curves_layers_and_protocol(show):
    sparsity = tuple(0.5 + block / 100 for block in range(12) for _ in range(6))
    errors = tuple(block / 10 for block in range(12) for _ in range(6))
    layers = Layers(
        WEIGHTS, {"sparsity": sparsity, "relative_output_error": errors, "block_relative_output_error": errors}
    )
    page = show([run_of(0, layers=layers, rounds=((1.0, 0.3, 30.0, 20.0, 2.0), (2.0, 0.5, 40.0, 25.0, 2.5)))])
    click(page, "[data-does=open]")
    captions = page.run("[...document.querySelectorAll('#details figcaption')].map((each) => each.textContent)")
    assert captions == [
        "Sparsity: 50 % to 61 %",
        "Relative output error of the weight: 0 to 1.1",
        "Relative output error of the block: 0 to 1.1",
    ]
    assert page.run("document.querySelectorAll('#details .heat rect').length") == 72 + 72 + 12
    assert json.loads(page.run("document.getElementById('protocol').textContent")) == {"model": {"dtype": "float32"}}
    assert page.run("document.querySelectorAll('#details .curve').length") == 2
    assert not page.run("document.getElementById('training').hidden")


def test_runs_without_a_result_are_listed_with_their_messages(show):
    failed = run_of(1)
    failed = run_of(
        1, attributes=failed.attributes | {"status": "failed"}, metrics={}, message="RunFailed: layer 3\nmore of it"
    )
    page = show([run_of(0), failed], unreadable=[("sweep/9", "it is not JSON")], at_work=["sweep/10"])
    lines = page.run("[...document.querySelectorAll('#problem-list li')].map((each) => each.textContent)")
    assert "failed: RunFailed: layer 3" in lines[0] and "more of it" in lines[0]
    assert lines[1].startswith("sweep/9/record.json") and "it is not JSON" in lines[1]
    assert lines[2].startswith("sweep/10 has no record yet")


def test_what_records_say_is_shown_as_text(show):
    run = run_of(0)
    attributes = run.attributes | {"model": ATTACK, "method": ATTACK, "status": ATTACK, "data": "x"}
    bad = run_of(
        0,
        folder=ATTACK,
        attributes=attributes,
        metrics=run.metrics | {f"evaluate/{ATTACK}": 1.0, "evaluate/perplexity": 40.0},
        message=ATTACK,
        command=ATTACK,
        protocol={ATTACK: ATTACK},
        layers=layers_of([f"a.0.{ATTACK}"], 0.5),
    )
    page = show([run, bad], unreadable=[(ATTACK, ATTACK)])
    page.run("document.querySelectorAll('[data-does=open]')[1].click()")
    title = page.run("document.getElementById('details-title').textContent")
    closed = "new Promise((done) => document.getElementById('details').addEventListener('close', () => done()))"
    page.run(f"(() => {{ const closed = {closed}; document.getElementById('close').click(); return closed; }})()")
    page.move(*place_of(page, 1))
    assert ATTACK in title and ATTACK in page.run("document.querySelector('.tip:not([hidden])').textContent")
    assert page.run("document.title") == "sweep - prune_lab"
    assert page.run("document.querySelectorAll('img').length") == 0
    assert page.run("document.querySelectorAll('script').length") == 6


def test_an_empty_page_says_so(show):
    page = show([])
    assert "no runs yet" in page.run("document.body.innerText")
    assert page.run("document.getElementById('plots').hidden")


def test_a_followed_page_loads_itself_again_unless_someone_reads_a_run(show):
    page = show([run_of(0)], watch=2)
    page.run("window.old = true")
    click(page, "[data-does=open]")
    time.sleep(2.5)
    assert page.run("window.old === true")
    page.run("document.getElementById('details').close()")
    end = time.monotonic() + 20
    while page.run("window.old === true") and time.monotonic() < end:
        time.sleep(0.1)
    assert page.run("window.old === undefined")


def test_three_thousand_runs_are_there_within_three_seconds(show):
    page = show([many(number) for number in range(3000)])
    took = page.run("performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
    assert took < 3
    assert (dots(page), page.run("document.getElementById('page').textContent")) == (3000, "1 to 25 of 3000")
    timed = """((does) => {
      const start = performance.now();
      does();
      document.body.offsetHeight;  // lays out what has changed
      return performance.now() - start;
    })"""
    find = "const box = document.querySelector('#search'); box.value = 'wanda'; box.oninput({ target: box });"
    filtered = page.run(f"{timed}(() => {{ {find} }})")
    sorting = page.run(f"{timed}(() => document.querySelector('[data-sort=\"evaluate/perplexity\"]').click())")
    opening = page.run(f"{timed}(() => document.querySelector('[data-does=open]').click())")
    assert max(filtered, sorting, opening) < 1000
    print(f"loaded in {took:.2f} s, {filtered:.0f} ms to filter, {sorting:.0f} to sort, {opening:.0f} to open")


def many(number):
    """A run with as much in it as those of a study: 80 metrics, 72 weights, and a protocol."""
    numbers = random.Random(number)
    rest = {f"evaluate/metric_{index}": numbers.random() * 1e6 for index in range(72)}
    measures = {
        name: tuple(numbers.random() for _ in WEIGHTS)
        for name in ("sparsity", "relative_output_error", "block_relative_output_error")
    }
    protocol = {
        "data": {"seed": number % 5, "text": "x" * 2000},
        "evaluate": {"about": "y" * 4000},
        "finetune": {"loss": numbers.random()},
    }
    return run_of(number, metrics=run_of(number).metrics | rest, layers=Layers(WEIGHTS, measures), protocol=protocol)
