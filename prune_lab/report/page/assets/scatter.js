// Quality over sparsity, size, FLOPs and latency.

function makeScatters() {
  options(
    byId("quality"),
    RUNS.qualities.map((name) => [name, label(name)]),
    view.quality,
  );
  options(
    byId("colour"),
    [...new Set([...varying, "method"])].filter((name) => name !== "status").map((name) => [name, name]),
    view.colour,
  );
  byId("quality").onchange = (event) => {
    view.quality = event.target.value;
    update({ keepPage: true });
  };
  byId("colour").onchange = (event) => {
    view.colour = event.target.value;
    update({ keepPage: true });
  };
  byId("plots").hidden = !view.quality || !RUNS.axes.length;
  if (byId("plots").hidden) return;
  for (const [title, choices] of RUNS.axes) {
    const select = element("select", { "aria-label": `${title}, measured as` });
    options(
      select,
      choices.map((name) => [name, label(name)]),
      view.axes[title],
    );
    select.onchange = () => {
      view.axes[title] = select.value;
      update({ keepPage: true });
    };
    const plot = new Plot(["over ", select], `quality over ${title}`, (width) => scatter(width, view.axes[title]));
    byId("scatters").append(plot.figure);
  }
  watchers.change.push(renderLegend);
}

function renderLegend() {
  const column = RUNS.attributes[view.colour];
  const counts = new Map();
  for (const run of view.runs) counts.set(column.of[run], (counts.get(column.of[run]) ?? 0) + 1);
  const shown = [...counts].sort((one, other) => compare(column.values[one[0]], column.values[other[0]], false));
  byId("legend").replaceChildren(
    ...shown.slice(0, 40).map(([place, count]) => {
      const dot = drawn(
        "svg",
        { viewBox: "0 0 14 14", "aria-hidden": "true" },
        drawn("path", { class: `dots ${styleOfPlace(place)}`, d: "M7 7h0" }),
      );
      const name =
        column.values[place] === null
          ? "none"
          : view.colour === "level"
            ? written(column.values[place], "share")
            : String(column.values[place]);
      return element("li", {}, dot, `${name} (${count})`);
    }),
  );
}

function scatter(width, xName) {
  const yName = view.quality;
  const found = view.runs
    .map((run) => ({ run, xValue: value(xName, run), yValue: value(yName, run) }))
    .filter(({ xValue, yValue }) => isNumber(xValue) && isNumber(yValue));
  if (!found.length) return { marks: [], points: [], tell: () => "" };
  const dense = densePoints(found, xName, yName);
  const all = [...found, ...dense];
  const x = scaleOf(
    all.map((each) => each.xValue),
    MARGIN.left,
    width - MARGIN.right,
    RUNS.described[xName][1],
  );
  const y = scaleOf(
    all.map((each) => each.yValue),
    HEIGHT - MARGIN.bottom,
    MARGIN.top,
    RUNS.described[yName][1],
  );
  const points = found.map((each) => ({ ...each, x: x.at(each.xValue), y: y.at(each.yValue) }));
  const fronts = frontsOf(points, xName, yName);
  const diamonds = dense.map(({ run, xValue, yValue }) =>
    drawn(
      "path",
      { class: "dense", d: `M${x.at(xValue)} ${y.at(yValue) - 6}l6 6l-6 6l-6 -6z` },
      drawn("title", {}, `${text("model", run)}, dense: ${written(yValue, RUNS.described[yName][1])}`),
    ),
  );
  const best = new Set(fronts.flat().map((each) => each.run));
  return {
    marks: [
      ...axes(width, x, y, label(xName)),
      ...fronts.map((front) =>
        drawn("path", { class: "front", d: lineThrough(front.map((each) => [each.x, each.y])) }),
      ),
      ...diamonds,
      ...dots(points),
      ...fronts.flat().map((each) => drawn("circle", { class: "best", cx: each.x, cy: each.y, r: 5.5 })),
    ],
    points,
    tell: (run) =>
      `${label(yName)} ${text(yName, run)}, ${label(xName)} ${text(xName, run)}${best.has(run) ? ", on the front" : ""}`,
  };
}

// Models and texts differ in what a perplexity means: each has a front of its own.
const subjectOf = (run) => `${RUNS.attributes.model.of[run]} ${RUNS.attributes.data.of[run]}`;

function frontsOf(points, xName, yName) {
  const subjects = new Map();
  for (const each of points) {
    const subject = subjectOf(each.run);
    if (!subjects.has(subject)) subjects.set(subject, []);
    subjects.get(subject).push(each);
  }
  const [xSign, ySign] = [xName, yName].map((name) => (isBetterHigher(name) ? -1 : 1));
  return [...subjects.values()].map((own) =>
    frontOf(own.map((each) => [xSign * each.xValue, ySign * each.yValue])).map((index) => own[index]),
  );
}

function densePoints(found, xName, yName) {
  const [xDense, yDense] = [xName, yName].map((name) => name.replace(/^(evaluate|prune|shrink)\//, "dense/"));
  const first = new Map();
  for (const { run } of found) {
    const yValue = RUNS.metrics[yDense]?.[run];
    const xValue = xDense === "dense/sparsity" ? 0 : RUNS.metrics[xDense]?.[run];
    if (isNumber(xValue) && isNumber(yValue) && !first.has(subjectOf(run)))
      first.set(subjectOf(run), { run, xValue, yValue });
  }
  return [...first.values()];
}
