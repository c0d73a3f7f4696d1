"""Writes a table of runs: a CSV of every run, Markdown and LaTeX with mean and spread, and a plot for each metric.

A table with published numbers has them beside its own, in the Markdown and in a second CSV.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prune_lab.report.archive import write_runs
from prune_lab.report.best import BOLD, NOISE, best_cells, is_noise
from prune_lab.report.compare import (
    Comparison,
    Findings,
    brief_reason,
    compare,
    comparison_csv,
    comparison_grid,
    footnotes,
    remark,
)
from prune_lab.report.grid import Grid, latex, markdown
from prune_lab.report.metric import Metric, key_of, plain_name, small_title
from prune_lab.report.pareto import front_grid, front_note
from prune_lab.report.records import Records, dense_with_error, measured, said, with_error
from prune_lab.report.recovery import explanation, recovery_grid
from prune_lab.report.spec import CONTROL, Choices, Front, TableSpec
from prune_lab.run.record import section_of
from prune_lab.utils.extras import has_plots
from prune_lab.utils.files import write_atomically, write_text


def write_report(findings: Findings, folder: Path) -> str:
    """Writes ``NAME.csv``, ``tables/NAME.md`` and ``.tex``, and, with matplotlib installed, ``plots/NAME_METRIC.svg``.

    How the numbers came about is in ``protocols/NAME.json``, see `prune_lab.report.archive`. A table with published
    numbers also gets ``comparisons/NAME.csv``.

    Returns:
        The Markdown.
    """
    spec, records, text = findings.spec, findings.records, report_text(findings)
    write_runs(findings, folder)
    write_text(folder / "tables" / f"{spec.name}.md", text)
    write_text(folder / "tables" / f"{spec.name}.tex", report_latex(findings))
    if spec.reference:
        lines = [line for compared in _comparisons(findings).values() for line in compared]
        write_text(folder / "comparisons" / f"{spec.name}.csv", comparison_csv(spec, lines))
    if not has_plots():
        return text
    from prune_lab.report.plot import plot_metric
    from prune_lab.report.plot_front import plot_front

    figures = {metric.name: plot_metric(spec, metric, records) for metric in measured(spec, records)}
    figures |= {f"{f.y}_over_{f.x}": plot_front(spec, f, metric, records) for f, metric in _fronts(spec, records)}
    for name, figure in figures.items():
        write_atomically(folder / "plots" / f"{spec.name}_{name.replace('/', '_')}.svg", figure)
    return text


def marks_of(spec: TableSpec) -> dict[str, str]:
    """Returns what `write_report` writes, with what is in each file; see `prune_lab.utils.outputs`."""
    figures = [metric.name for metric in spec.metrics] + [f"{front.y}_over_{front.x}" for front in spec.fronts]
    return {
        f"{spec.name}.csv": ",column,seed,",
        f"protocols/{spec.name}.json": '"protocols"',
        f"tables/{spec.name}.md": "## Protocol",
        f"tables/{spec.name}.tex": "\\usepackage{booktabs}; the protocol of these numbers is in",
        f"comparisons/{spec.name}.csv": "not_run,protocol,table,source,evidence",
        **{f"plots/{spec.name}_{name.replace('/', '_')}.svg": "Matplotlib" for name in figures},
    }


@dataclass(frozen=True)
class _Section:
    """A table of the report with what stands above and below it."""

    title: str
    grid: Grid
    above: str | None = None
    below: str | None = None
    beside: bool = False  # beside the published numbers


def _sections(findings: Findings, origins: list[str]) -> Iterator[_Section]:
    """All tables of a report; ``origins`` grows by those of the published numbers."""
    spec, records, compared = findings.spec, findings.records, _comparisons(findings)
    for metric in measured(spec, records) or list(compared):
        if records:
            yield _Section(metric.title, table_grid(spec, metric, records))
        lines = compared.get(metric, [])
        if any(line.published or line.elsewhere for line in lines):
            yield _Section(metric.title, comparison_grid(spec, lines, origins), below=remark(lines), beside=True)
    if spec.recovery and records:
        for name in spec.recovery.metrics:
            shares = recovery_grid(spec, spec.recovery, name, records)
            yield _Section(f"What training gives back of {plain_name(name)}", shares, above=explanation(name))
    for front, metric in _fronts(spec, records):
        title = f"{metric.title} over {small_title(front.title)}: what no other cell beats in both"
        note = front_note(spec, front, records)
        yield _Section(title, front_grid(spec, front, metric, records), below=note)


def report_text(findings: Findings) -> str:
    """The Markdown of a table."""
    origins: list[str] = []
    lines = [f"# {findings.spec.title}", ""]
    if findings.failures and not findings.spec.reference:  # a comparison gives the reason in each line
        lines += [_missing(findings), ""]
    grids = []
    for section in _sections(findings, origins):
        grids.append(section.grid)
        if not section.beside or not findings.records:
            lines += [f"## {section.title}", ""]
        lines += ["### Beside the published numbers", ""] if section.beside else []
        lines += [section.above, ""] if section.above else []
        lines += [*markdown(section.grid), ""]
        lines += [section.below, ""] if section.below else []
    marks = [f"- {mark}" for mark in _marks(grids)]
    lines += ["## Protocol", "", *_protocol(findings.spec, findings.records, marks), ""]
    if origins:
        lines += ["## Sources", "", *footnotes(origins), ""]
    return "\n".join(lines)


def report_latex(findings: Findings) -> str:
    """The same tables in LaTeX, to be included."""
    origins: list[str] = []
    sections = list(_sections(findings, origins))
    name = findings.spec.name
    lines = [f"% {findings.spec.title}: needs \\usepackage{{booktabs}}; the protocol of these numbers is in {name}.md."]
    for section in sections:
        title = f"{findings.spec.title}: {small_title(section.title)}{' beside the published numbers' * section.beside}"
        marks = [mark[:1].upper() + mark[1:] for mark in _marks([section.grid])]
        text = ". ".join(filter(None, [title, section.above, section.below, *marks]))
        marked = any("[^" in cell for row in section.grid.rows for cell in row)
        lines += ["", *latex(section.grid, text, origins if marked else ())]
    return "\n".join([*lines, ""])


def _missing(findings: Findings) -> str:
    """How many runs have not finished, and why."""
    reasons = Counter(brief_reason(reason).rstrip(".") for _, reason in findings.failures)
    all_runs = len(findings.records) + len(findings.failures)
    why = "; ".join(f"{reason} ({count})" if len(reasons) > 1 else reason for reason, count in reasons.most_common())
    return f"**Not whole: {len(findings.failures)} of {all_runs} runs are missing.** {why}."


def first_table(findings: Findings) -> str:
    """The table of the first metric that was measured, below a line that says what it is, for a page of others."""
    spec, records = findings.spec, findings.records
    metric = next(iter(measured(spec, records)), spec.metrics[0])
    spread = f"mean ± standard deviation over {_count(spec.most_seeds)}"
    title = f"{spec.title}: {small_title(metric.title)}, {spread}{' where there is one' if spec.more_seeds else ''}."
    title += f" {_missing(findings)}" if findings.failures else ""
    grid = table_grid(spec, metric, records)
    title += "".join(f" {mark[:1].upper()}{mark[1:]}." for mark in _marks([grid]))
    return "\n".join([title, "", *markdown(grid)])


def table_grid(spec: TableSpec, metric: Metric, records: Records) -> Grid:
    """One metric: a row for each combination of the row keys."""
    heads = ["dense", *(["dense, trained alike"] if spec.control else []), *spec.columns]
    best, first = best_cells(spec, metric, records), len(spec.rows) + len(heads) - len(spec.columns)
    rows, strong = [], set()
    for number, row in enumerate(spec.row_values):
        cells = [dense_with_error(spec, records, row, metric)]
        if spec.control:
            cells.append(with_error(records, spec.control_of(row), CONTROL, metric))
        for place, column in enumerate(spec.columns):
            noise = " (noise)" if is_noise(spec, metric, records, row, column) else ""
            cells.append(with_error(records, row, column, metric) + noise)
            strong |= {(number, first + place)} if (row, column) in best else set()
        rows.append([*row, *cells])
    return Grid([*spec.rows, *heads], rows, frozenset(range(len(spec.rows))), frozenset(strong))


def _marks(grids: Iterable[Grid]) -> list[str]:
    """What bold and noise mean, where there is any."""
    found = list(grids)
    noise = any("(noise)" in cell for grid in found for row in grid.rows for cell in row)
    return ["bold: " + BOLD] * any(grid.strong for grid in found) + ["noise: " + NOISE] * noise


def _fronts(spec: TableSpec, records: Records) -> list[tuple[Front, Metric]]:
    """The fronts whose metrics any run has, each with the metric that is tabulated too."""
    metrics = {metric.name: metric for metric in measured(spec, records)}
    has = {front.x: any(key_of(front.x) in record["metrics"] for _, record in records) for front in spec.fronts}
    return [(front, metrics[front.y]) for front in spec.fronts if front.y in metrics and has[front.x]]


def _comparisons(findings: Findings) -> dict[Metric, list[Comparison]]:
    """The comparison of each metric; none for a table without published numbers."""
    if not findings.spec.reference:
        return {}
    metrics = measured(findings.spec, findings.records) or findings.spec.metrics
    return {metric: compare(findings, metric) for metric in metrics}


def _protocol(spec: TableSpec, records: Records, marks: Sequence[str]) -> list[str]:
    """What all numbers have in common, and where runs differ."""
    lines = [
        f"- cells: {_spread(spec)}",
        *marks,
        f"- settings of every run: `{' '.join(spec.overrides)}`; columns: "
        + "; ".join(f"{name} = `{' '.join(added)}`" for name, added in spec.columns.items()),
        *(f"- {key}: {_named(choices)}" for key, choices in spec.rows.items() if key in spec.named),
        *(f"- {name}: {_of_models(spec, found)}" for name, found in spec.per_model.items()),
    ]
    seen: dict[str, set[str]] = {}
    for _, record in records:
        for name, value in _facts(record).items():
            seen.setdefault(name, set()).add(value)
    return lines + [f"- {name}: {'; '.join(sorted(found))}" for name, found in seen.items()]


def _spread(spec: TableSpec) -> str:
    """What a cell shows of its seeds, and of the standard errors of its questions."""
    listed = f"mean ± standard deviation over {_count(spec.seeds)} ({', '.join(map(str, spec.seeds))})"
    if spec.more_seeds:
        listed = f"one run (seed {spec.seeds[0]})" if len(spec.seeds) == 1 else listed
        listed += "".join(f"; {each.text}" for each in spec.more_seeds)
    return listed + ("; in brackets: standard error" if any(metric.error for metric in spec.metrics) else "")


def _count(seeds: tuple[int, ...]) -> str:
    return f"{len(seeds)} seed" + ("s" if len(seeds) != 1 else "")


def _named(choices: Choices) -> str:
    return "; ".join(
        f"{name} = " + (f"`{' '.join(added)}`" if added else "as it is") for name, added in choices.items()
    )


def _of_models(spec: TableSpec, found: Mapping[str, str]) -> str:
    return ", ".join(f"{found[model]} ({model})" for model in spec.rows["model"] if model in found)


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    packages = section_of(record, "protocol", "packages")
    calibration, evaluation = (section_of(record, "protocol", "data", part) for part in ("calibration", "evaluation"))
    training, tuned = section_of(record, "protocol", "training"), section_of(record, "protocol", "finetune")
    versions = ", ".join(
        f"{name} {said(packages, name)}" for name in ("prune_lab", "python", "torch", "transformers", "lm-eval")
    )
    pruned = section_of(record, "protocol", "prune")
    facts = {}
    if "steps" in pruned:  # the method trains the model, and does not look at calibration samples
        text = _brief(training, "source", "split", "seqlen", "windows", "samples")
        facts["training"] = f"{text}; {_steps(pruned)}"
        if "schedule" in pruned:
            facts["training"] += f", schedule {str(said(section_of(pruned, 'schedule'), 'name')).lower()}"
    else:
        facts["calibration"] = _brief(calibration, "source", "split", "sampling", "samples", "seqlen")
    if "steps" in tuned:
        text = _brief(training, "source", "split", "seqlen", "windows", "samples")
        facts["fine-tuning"] = f"{text}; {_steps(tuned)}"
    dtype = said(section_of(record, "protocol", "model"), "dtype")
    if "labels" in evaluation:  # texts that have some, of which there is no perplexity
        facts["evaluation"] = _brief(evaluation, "source", "task", "split", "samples", "seqlen")
    else:
        facts["perplexity"] = (
            "exp of the mean over windows of the mean next-token cross-entropy; "
            + _brief(evaluation, "source", "split", "join", "seqlen", "windows", "dropped_tokens")
            + _bos(section_of(record, "protocol", "data", "bos"))
        )
    return facts | {
        "weights": f"{dtype} on {said(section_of(record, 'protocol'), 'device')}",
        "packages": versions,
    }


def _steps(part: Mapping[str, Any]) -> str:
    return f"{part['steps']} steps of {said(part, 'batch_size')} samples"


def _bos(bos: Mapping[str, Any]) -> str:
    """Where the token that begins a text stands, if not once before the text."""
    place = {"window": "before every window", "none": "nowhere"}.get(str(bos.get("mode")))
    return f"; the token that begins a text stands {place}" if place else ""


def _brief(part: dict[str, Any], *names: str) -> str:
    return ", ".join(f"{name} {part[name]!r}" for name in names if part.get(name) is not None)
