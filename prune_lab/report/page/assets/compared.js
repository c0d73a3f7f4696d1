// What may be compared: runs of one evaluation protocol. Means over seeds, the dense model beside them, and noise.

const COMPARABLE = RUNS.comparable;

// The number of the protocol by which a run's metric was measured.
function evaluationOf(name, run) {
  return COMPARABLE.pool[COMPARABLE.of[run]][name] ?? -1;
}

function denseName(name) {
  return name.replace(/^(evaluate|prune|shrink)\//, "dense/");
}

function denseValue(name, run) {
  return denseName(name) === "dense/sparsity" ? 0 : RUNS.metrics[denseName(name)]?.[run];
}

function grouped(items, keyOf) {
  const groups = new Map();
  for (const each of items) {
    const key = keyOf(each);
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(each);
  }
  return groups;
}

// Mean and standard deviation.
function meanOf(values) {
  const mean = values.reduce((sum, each) => sum + each, 0) / values.length;
  if (values.every((each) => each === values[0])) return { mean: values[0], spread: 0, count: values.length };
  const squares = values.reduce((sum, each) => sum + (each - mean) ** 2, 0);
  return { mean, spread: Math.sqrt(squares / (values.length - 1)), count: values.length };
}

function writtenMean({ mean, spread, count }, form) {
  if (count < 2) return written(mean, form);
  return `${written(mean, form)}${spread ? ` ± ${written(spread, form)}` : ""}`;
}

// The metric from whose passes a speed is made, with its spread: seconds, of tokens a second and of ratios, too.
function timedBy(name) {
  const timed = name.replace(/_ratio$/, "").replace(/_tokens_per_second$/, "_seconds");
  return isMetric(`${timed}_spread`) ? timed : null;
}

// Longest less shortest of the passes of a run; null where it was not measured.
function rangeOf(name, run) {
  return RUNS.metrics[`${name}_spread`]?.[run] ?? null;
}

// Whether a run's speed differs from that of its dense model by no more than the passes of either differ.
function isNoise(name, run) {
  const timed = timedBy(name);
  if (timed === null || !/^evaluate\//.test(name)) return false;
  const [pruned, dense] = [value(timed, run), denseValue(timed, run)];
  const ranges = [rangeOf(timed, run), rangeOf(denseName(timed), run)];
  if (![pruned, dense, ...ranges].every(isNumber)) return false;
  return Math.abs(pruned - dense) <= Math.max(...ranges);
}

// A metric as text, a speed with the spread of its passes and marked where it is noise.
function shownText(name, run) {
  const shown = text(name, run);
  const range = timedBy(name) === name ? rangeOf(name, run) : null;
  const spread = shown && isNumber(range) ? ` (spread ${written(range, "seconds")})` : "";
  return `${shown}${spread}${isNoise(name, run) ? ", noise" : ""}`;
}

// Runs of one protocol in two metrics, as `[{runs, setups, dense}]`: a setup is a mean over the runs that differ only
// in their seeds; the dense model is a mean over all runs.
function subjectsOf(found, xName, yName) {
  const key = ({ run }) => `${evaluationOf(yName, run)} ${evaluationOf(xName, run)}`;
  return [...grouped(found, key).values()].map((runs) => {
    const beside = runs
      .map(({ run }) => [denseValue(xName, run), denseValue(yName, run)])
      .filter((each) => each.every(isNumber));
    const dense = beside.length ? { x: meanOf(beside.map(([x]) => x)), y: meanOf(beside.map(([, y]) => y)) } : null;
    const setups = [...grouped(runs, ({ run }) => COMPARABLE.setups[run]).values()].map((alike) => {
      const x = meanOf(alike.map((each) => each.xValue));
      const y = meanOf(alike.map((each) => each.yValue));
      return { runs: alike.map(({ run }) => run), x, y, noise: isNoiseBeside(xName, alike, x, dense?.x) };
    });
    return { runs, setups, dense };
  });
}

// As `isNoise`, of a mean: by the spread over runs where there are several.
function isNoiseBeside(name, alike, x, dense) {
  if (!dense || timedBy(name) === null) return false;
  if (x.count === 1) return isNoise(name, alike[0].run);
  return Math.abs(x.mean - dense.mean) <= Math.max(x.spread, dense.spread);
}

// The setups that none of their protocol beats. A speed that is noise counts as the dense model's.
function frontOfSubject({ setups, dense }, xName, yName) {
  const [xSign, ySign] = [xName, yName].map((name) => (isBetterHigher(name) ? -1 : 1));
  const at = (setup) => [xSign * (setup.noise ? dense.x.mean : setup.x.mean), ySign * setup.y.mean];
  return frontOf(setups.map(at)).map((index) => setups[index]);
}

// Of each metric, the runs whose setup is the best of its model, protocol, pattern and level, or not told from it.
const marked = new Map();

function isBest(name, run) {
  if (!marked.has(name)) marked.set(name, bestRuns(name));
  return marked.get(name).has(run);
}

function bestRuns(name) {
  const better = RUNS.described[name][2];
  const best = new Set();
  if (!better || /^dense\/|_spread$/.test(name)) return best;
  const found = view.runs.filter((run) => isNumber(value(name, run)));
  const alike = (run) =>
    [evaluationOf(name, run), ...["model", "pattern", "level"].map((each) => text(each, run))].join("\n");
  for (const rivals of grouped(found, alike).values()) {
    const setups = [...grouped(rivals, (run) => COMPARABLE.setups[run]).values()].map((runs) => ({
      runs,
      ...meanOf(runs.map((run) => value(name, run))),
    }));
    if (setups.length < 2 || setups.every(({ mean }) => mean === setups[0].mean)) continue;
    const first = setups.reduce((one, other) => ((better === "higher") === other.mean > one.mean ? other : one));
    for (const each of setups) {
      if (Math.abs(each.mean - first.mean) > Math.max(each.spread, first.spread)) continue;
      for (const run of each.runs) best.add(run);
    }
  }
  return best;
}
