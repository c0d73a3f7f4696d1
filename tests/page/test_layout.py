"""The page of ``prune-lab-report`` fits its window, and its text can be read."""

import pytest

from tests.page.conftest import click, run_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 700, 1280, 2400])
def test_nothing_is_wider_than_the_window_and_text_can_be_read(show, width, dark):
    long = run_of(7, attributes=run_of(7).attributes | {"model": "m" * 120, "status": "failed"}, message="e" * 500)
    page = show([run_of(number) for number in range(7)] + [long], width=width, dark=dark)
    page.run("document.getElementById('chooser').open = true")
    assert page.run("document.documentElement.scrollWidth") <= width
    click(page, "[data-does=open]")
    assert (
        page.run("(({ scrollWidth, clientWidth }) => scrollWidth - clientWidth)(document.getElementById('details'))")
        <= 0
    )
    assert (contrast(page, "body", "body") > 7) and contrast(page, ".quiet", "body") > 4.5
    assert contrast(page, "#problem-list .bad", "body") > 4.5
    is_dark = page.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    assert is_dark == dark


def test_nothing_covers_the_table(show):
    attributes = run_of(0).attributes | {
        "model": "a model with a long name",
        "allocation": "owl",
        "evaluation": "e" * 30,
    }
    page = show([run_of(0), run_of(1), run_of(2, attributes=attributes)], width=1440)
    page.run("document.querySelector('#table').scrollIntoView()")
    covered = """(() => {
      const scroll = document.querySelector(".scroll");
      const seen = scroll.getBoundingClientRect();
      const found = [];
      for (const cell of document.querySelectorAll("#table th, #table td")) {
        const box = cell.getBoundingClientRect();
        const [x, y] = [Math.min(box.right, seen.right) - 4, box.top + box.height / 2];
        if (x <= box.left || y > innerHeight) continue;
        if (!cell.contains(document.elementFromPoint(x, y))) found.push(cell.dataset.label ?? cell.textContent);
      }
      return found;
    })()"""
    assert page.run(covered) == []


def contrast(page, text, ground):
    """The ratio of luminances by WCAG."""
    style = "getComputedStyle(document.querySelector({!r})).{}".format
    script = f"[{style(text, 'color')}, {style(ground, 'backgroundColor')}]"
    light, dark = sorted((luminance(colour) for colour in page.run(script)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
