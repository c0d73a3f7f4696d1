// What is shown: filters, columns, order, and the run that is pointed at. The address keeps it for a reload.

const CHOICES = ATTRIBUTES.filter(
  (name) => !["seed", "written"].includes(name) && RUNS.attributes[name].values.length > 1,
);
const varying = ATTRIBUTES.filter((name) => RUNS.attributes[name].values.length > 1 && name !== "written");
const DEFAULT_COLUMNS = [...varying, ...RUNS.shown];

const view = {
  words: "",
  chosen: {},
  columns: DEFAULT_COLUMNS,
  sort: null,
  descending: false,
  page: 0,
  size: 25,
  quality: RUNS.qualities[0] ?? null,
  colour: ["method", "model", "finetune", "settings"].find((name) => RUNS.attributes[name].values.length > 1) ?? "method",
  axes: Object.fromEntries(RUNS.axes.map(([title, choices]) => [title, choices[0]])),
  runs: [], // that match, in order
};

const watchers = { change: [], point: [] };
let pointed = null;
let pointedFrom = null;
let pointedMean = null;

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  view.words = given.get("q") ?? "";
  for (const name of CHOICES) {
    const place = RUNS.attributes[name].values.findIndex((each) => String(each) === given.get(`is.${name}`));
    if (place >= 0) view.chosen[name] = place;
  }
  if (given.has("columns"))
    view.columns = given
      .get("columns")
      .split(" ")
      .filter((name) => isMetric(name) || ATTRIBUTES.includes(name));
  if (isMetric(given.get("sort")) || ATTRIBUTES.includes(given.get("sort"))) view.sort = given.get("sort");
  view.descending = given.get("order") === "falling";
  view.page = Math.max(0, Number.parseInt(given.get("page"), 10) || 0);
  if (["25", "50", "200"].includes(given.get("rows"))) view.size = Number(given.get("rows"));
  if (RUNS.qualities.includes(given.get("quality"))) view.quality = given.get("quality");
  if (ATTRIBUTES.includes(given.get("colour"))) view.colour = given.get("colour");
  for (const [title, choices] of RUNS.axes)
    if (choices.includes(given.get(`over.${title}`))) view.axes[title] = given.get(`over.${title}`);
}

function writeAddress() {
  const kept = new URLSearchParams();
  const keep = (name, value, usual) => {
    if (String(value) !== String(usual)) kept.set(name, value);
  };
  keep("q", view.words, "");
  // By value: places are others when runs have come.
  for (const [name, place] of Object.entries(view.chosen)) kept.set(`is.${name}`, RUNS.attributes[name].values[place]);
  keep("columns", view.columns.join(" "), DEFAULT_COLUMNS.join(" "));
  keep("sort", view.sort ?? "", "");
  keep("order", view.descending ? "falling" : "rising", "rising");
  keep("page", view.page, 0);
  keep("rows", view.size, 25);
  keep("quality", view.quality ?? "", RUNS.qualities[0] ?? "");
  keep("colour", view.colour, "");
  for (const [title, choices] of RUNS.axes) keep(`over.${title}`, view.axes[title], choices[0]);
  history.replaceState(null, "", `#${kept}`);
}

// "finite first, texts behind them, nothing last" holds in both directions.
function compare(one, other, descending) {
  const rank = (found) => (found === null || found === undefined ? 2 : typeof found === "number" ? 0 : 1);
  if (rank(one) !== rank(other)) return rank(one) - rank(other);
  const order =
    typeof one === "number" ? one - other : String(one).localeCompare(String(other), "en", { numeric: true });
  return descending ? -order : order;
}

function update({ keepPage = false } = {}) {
  const words = view.words.toLowerCase().split(/\s+/).filter(Boolean);
  const chosen = Object.entries(view.chosen).map(([name, place]) => [RUNS.attributes[name].of, Number(place)]);
  view.runs = [];
  for (let run = 0; run < RUNS.runs; run += 1) {
    if (!chosen.every(([of, place]) => of[run] === place)) continue;
    if (words.length && !words.every((word) => searchText(run).includes(word))) continue;
    view.runs.push(run);
  }
  if (view.sort)
    view.runs.sort(
      (one, other) => compare(value(view.sort, one), value(view.sort, other), view.descending) || one - other,
    );
  const last = Math.max(0, Math.ceil(view.runs.length / view.size) - 1);
  view.page = keepPage ? Math.min(view.page, last) : 0;
  marked.clear();
  writeAddress();
  for (const changed of watchers.change) changed();
}

// `from` is the plot that shows the tip, if any; `mean` is given where it is not the run but its mean with others.
function point(run, from = null, mean = null) {
  if (run === pointed && from === pointedFrom && mean === pointedMean) return;
  [pointed, pointedFrom, pointedMean] = [run, from, mean];
  for (const told of watchers.point) told(run, from, mean);
}
