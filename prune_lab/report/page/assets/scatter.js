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
  watchers.change.push(renderLegend, renderProtocols);
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
  const subjects = subjectsOf(found, xName, yName);
  const means = subjects.flatMap(({ setups, dense }) => [...setups, ...(dense ? [dense] : [])]);
  const [xForm, yForm] = [xName, yName].map((name) => RUNS.described[name][1]);
  const [xValues, yValues] = [found.map((each) => each.xValue), found.map((each) => each.yValue)];
  const x = scaleOf([...xValues, ...ends(means, "x")], MARGIN.left, width - MARGIN.right, xForm);
  const y = scaleOf([...yValues, ...ends(means, "y")], HEIGHT - MARGIN.bottom, MARGIN.top, yForm);
  const several = means.filter(({ runs }) => runs?.length > 1);
  const behind = new Set(several.flatMap(({ runs }) => runs));
  const points = found.map((each) => ({ ...each, x: x.at(each.xValue), y: y.at(each.yValue) }));
  const atMean = (setup) => ({ run: setup.runs[0], mean: setup, x: x.at(setup.x.mean), y: y.at(setup.y.mean) });
  const centres = means.filter(({ runs }) => runs).map(atMean);
  const fronts = subjects.map((subject) => frontOfSubject(subject, xName, yName).map(atMean));
  const best = new Set(fronts.flat().map((each) => each.mean));
  const setupOf = new Map(means.flatMap((setup) => (setup.runs ?? []).map((run) => [run, setup])));
  const names = subjectNames(subjects, xName, yName);
  return {
    marks: [
      ...axes(width, x, y, label(xName)),
      ...fronts.map((front, place) =>
        drawn("path", { class: `front subject${place % 4}`, d: lineThrough(front.map((each) => [each.x, each.y])) }),
      ),
      ...dots(points.filter(({ run }) => behind.has(run)), "dots behind"),
      ...several.flatMap((setup) => bars(setup, x, y, styleOf(setup.runs[0]))),
      ...dots(points.filter(({ run }) => !behind.has(run)), "dots"),
      ...dots(several.map(atMean), "means"),
      ...hollow(centres.filter(({ mean }) => mean.noise)),
      ...fronts.flat().map((each) => drawn("circle", { class: "best", cx: each.x, cy: each.y, r: 6 })),
      ...subjects.flatMap(({ dense, runs }, place) =>
        dense
          ? [
              ...bars(dense, x, y, "of-dense"),
              diamond(dense, runs, x, y, yForm),
              nameAt(x.at(dense.x.mean), y.at(dense.y.mean), names[place]),
            ]
          : [],
      ),
    ],
    points: [...points, ...centres.filter(({ mean }) => mean.runs.length > 1)],
    tell: (run, mean) => {
      const setup = setupOf.get(run);
      const own = `${label(yName)} ${text(yName, run)}, ${label(xName)} ${shownText(xName, run)}`;
      const means = `${writtenMean(setup.y, yForm)}, ${label(xName)} ${writtenMean(setup.x, xForm)}`;
      const all = setup.runs.length > 1 ? `mean of ${setup.runs.length} runs: ${means}` : "";
      const notes = [
        setup.noise ? "no faster or slower than dense beyond the spread (noise)" : "",
        best.has(setup) ? "on the front" : "",
      ];
      return [mean ? "" : own, all, ...notes].filter(Boolean).join("; ");
    },
  };
}

function ends(means, axis) {
  return means.flatMap(({ [axis]: found }) => reachOf(found));
}

// An axis may be of logarithms: what would not be above zero is left out.
function reachOf({ mean, spread }) {
  return [mean > spread ? mean - spread : mean, mean + spread];
}

// One standard deviation to either side.
function bars(setup, x, y, style) {
  const [left, top] = [x.at(setup.x.mean), y.at(setup.y.mean)];
  const reach = (scale, found) => reachOf(found).map(scale.at);
  const steps = [];
  if (setup.y.spread) {
    const [low, high] = reach(y, setup.y);
    steps.push(`M${left} ${low}V${high}`);
  }
  if (setup.x.spread) {
    const [near, far] = reach(x, setup.x);
    steps.push(`M${near} ${top}H${far}`);
  }
  return steps.length ? [drawn("path", { class: `bar ${style}`, d: steps.join("") })] : [];
}

// A point without its inside: a speed that is not told from the dense model's.
function hollow(points) {
  if (!points.length) return [];
  const d = points.map(({ x, y }) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`).join("");
  return [drawn("path", { class: "hollow", d })];
}

function diamond(dense, runs, x, y, form) {
  const [left, top] = [x.at(dense.x.mean), y.at(dense.y.mean)];
  const count = dense.y.count > 1 ? `, mean of ${dense.y.count} runs` : "";
  return drawn(
    "path",
    { class: "dense", d: `M${left} ${top - 6}l6 6l-6 6l-6 -6z` },
    drawn("title", {}, `${text("model", runs[0].run)}, dense: ${writtenMean(dense.y, form)}${count}`),
  );
}

function nameAt(left, top, name) {
  return name ? drawn("text", { class: "subject", x: left + 9, y: top + 4 }, name) : "";
}

// Protocols by numbers, where there are several; a letter tells apart those that differ in the metric below alone.
function subjectNames(subjects, xName, yName) {
  const numbers = evaluationsShown(yName);
  const of = subjects.map(({ runs }) => evaluationOf(yName, runs[0].run));
  return of.map((number, place) => {
    const before = of.slice(0, place).filter((each) => each === number).length;
    const alike = of.filter((each) => each === number).length;
    const letter = alike > 1 ? "abcdefghij"[before % 10] : "";
    return numbers.length > 1 || alike > 1 ? `${numbers.indexOf(number) + 1}${letter}` : "";
  });
}

function evaluationsShown(name) {
  return [...new Set(view.runs.filter((run) => isNumber(value(name, run))).map((run) => evaluationOf(name, run)))];
}

// Says which protocols there are, where runs of several are shown.
function renderProtocols() {
  const name = view.quality;
  const numbers = evaluationsShown(name);
  byId("evaluations").hidden = numbers.length < 2;
  byId("evaluation-list").replaceChildren(
    ...numbers.slice(0, 40).map((number) => {
      const runs = view.runs.filter((run) => evaluationOf(name, run) === number && isNumber(value(name, run)));
      const found = ["model", "data", "evaluation"].map((each) => text(each, runs[0])).filter(Boolean);
      return element("li", {}, `${found.join(", ")} (${runs.length})`);
    }),
  );
}
