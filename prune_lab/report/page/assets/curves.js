// Losses of held-out samples, and rounds of pruning and training in turns.

function makeCurves() {
  const kinds = [
    ["held-out loss over steps", RUNS.heldOut, (rows) => rows, "step", "number"],
    [
      "perplexity after each round, over sparsity",
      RUNS.rounds,
      (rows) => rows.map((row) => [row[1], row[3]]),
      "sparsity",
      "share",
    ],
  ].filter(([, kept]) => Object.keys(kept).length);
  byId("training").hidden = !kinds.length;
  for (const [title, kept, select, xTitle, form] of kinds) {
    const plot = new Plot([title], title, (width) => curves(width, view.runs, kept, select, xTitle, form));
    byId("curves").append(plot.figure);
  }
}

function curves(width, runs, kept, select, xTitle, form) {
  const lines = runs
    .filter((run) => run in kept)
    .map((run) => ({ run, rows: select(kept[run]).filter(([x, y]) => isNumber(x) && isNumber(y)) }))
    .filter(({ rows }) => rows.length);
  if (!lines.length) return { marks: [], points: [], tell: () => "" };
  const rows = lines.flatMap((line) => line.rows);
  const x = scaleOf(
    rows.map((row) => row[0]),
    MARGIN.left,
    width - MARGIN.right,
    form,
  );
  const y = scaleOf(
    rows.map((row) => row[1]),
    HEIGHT - MARGIN.bottom,
    MARGIN.top,
    "number",
  );
  const paths = new Map();
  const points = [];
  for (const line of lines) {
    const places = line.rows.map(([step, loss]) => [x.at(step), y.at(loss)]);
    const style = styleOf(line.run);
    paths.set(style, (paths.get(style) ?? "") + lineThrough(places));
    for (const [left, top] of places) points.push({ run: line.run, x: left, y: top });
  }
  return {
    marks: [
      ...axes(width, x, y, xTitle),
      ...[...paths].map(([style, d]) => drawn("path", { class: `curve ${style}`, d })),
    ],
    points,
    tell: (run) =>
      select(kept[run])
        .map(([at, loss]) => `${written(at, form)}: ${written(loss, "number")}`)
        .slice(-4)
        .join(", "),
  };
}
