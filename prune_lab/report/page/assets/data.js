// The embedded data. Large parts are parsed when they are first needed.

const parsed = {};

function part(name) {
  parsed[name] ??= JSON.parse(byId(`data-${name}`).textContent);
  return parsed[name];
}

const RUNS = part("runs");
const ATTRIBUTES = Object.keys(RUNS.attributes);
const METRICS = Object.keys(RUNS.metrics);
const NUMERIC = ["level", "seed"];

function attribute(name, run) {
  const column = RUNS.attributes[name];
  return column.values[column.of[run]];
}

function value(name, run) {
  return name in RUNS.metrics ? RUNS.metrics[name][run] : attribute(name, run);
}

function isMetric(name) {
  return name in RUNS.metrics;
}

function label(name) {
  return isMetric(name) ? RUNS.described[name][0] : name;
}

function text(name, run) {
  if (isMetric(name)) return written(value(name, run), RUNS.described[name][1]);
  const found = attribute(name, run);
  if (found === null) return "";
  return name === "level"
    ? written(found, "share")
    : name === "written"
      ? String(found).slice(0, 16).replace("T", " ")
      : String(found);
}

function isBetterHigher(name) {
  return RUNS.described[name][2] === "higher";
}

function titleOf(run, { seed = true } = {}) {
  const parts = ["model", "method", "level", "pattern", "allocation", "finetune", "settings"].map((name) => text(name, run));
  const [model, method, level, pattern, allocation, finetune, settings] = parts;
  return (
    [
      model,
      method,
      `${level} ${pattern}`.trim(),
      allocation === "uniform" ? "" : allocation,
      finetune === "none" ? "" : finetune,
      settings,
    ]
      .filter(Boolean)
      .join(", ") + (seed && text("seed", run) && `, seed ${text("seed", run)}`) || RUNS.folders[run]
  );
}

// What the text search looks into: everything a run is told by.
const searched = new Map();

function searchText(run) {
  if (!searched.has(run)) {
    const words = [
      ...ATTRIBUTES.map((name) => text(name, run)),
      RUNS.folders[run],
      RUNS.commands[run],
      RUNS.messages[run],
    ];
    searched.set(run, words.filter(Boolean).join(" ").toLowerCase());
  }
  return searched.get(run);
}

function protocolOf(run) {
  const { pool, of } = part("protocols");
  return Object.fromEntries(Object.entries(of[run]).map(([name, place]) => [name, pool[place]]));
}

function settingsOf(run) {
  const { pool, of } = part("settings");
  return Object.fromEntries(Object.entries(of[run]).map(([name, place]) => [name, pool[place]]));
}

function layersOf(run) {
  const { pool, of } = part("layers");
  if (of[run] === null) return null;
  const [place, sparsity, error, blockError] = of[run];
  return { names: pool[place], sparsity, error, blockError };
}

function continuationsOf(run) {
  const { pool, of } = part("continuations");
  return of[run].map((places) => places.map((place) => (place === null ? null : pool[place])));
}
