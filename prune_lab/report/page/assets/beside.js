// Two runs side by side: settings and protocols where they differ, all metrics with differences, and the layers.

const chosen = []; // of which the earlier one is A

function choose(run) {
  const place = chosen.indexOf(run);
  if (place >= 0) chosen.splice(place, 1);
  else {
    if (chosen.length === 2) chosen.shift();
    chosen.push(run);
  }
  renderChosen();
  if (place < 0 && chosen.length === 2) openBeside();
}

function renderChosen() {
  byId("chosen").hidden = !chosen.length;
  byId("chosen-runs").textContent =
    chosen.length === 1
      ? `To compare: ${titleOf(chosen[0])}. Choose a second run in the table.`
      : `To compare: ${chosen.map((run) => titleOf(run)).join("; and ")}.`;
  byId("open-chosen").hidden = chosen.length < 2;
  for (const button of byId("table").tBodies[0].querySelectorAll("[data-does=compare]"))
    button.setAttribute("aria-pressed", String(chosen.includes(Number(button.closest("tr").dataset.run))));
}

function makeChosen() {
  byId("open-chosen").onclick = openBeside;
  byId("clear-chosen").onclick = () => {
    chosen.length = 0;
    renderChosen();
  };
  watchers.change.push(renderChosen);
}

function openBeside() {
  const [a, b] = chosen;
  opened = b;
  byId("details-title").textContent = "Two runs side by side";
  byId("details-body").replaceChildren(
    element(
      "ol",
      { class: "letters" },
      ...chosen.map((run) => element("li", {}, `${titleOf(run)} (${RUNS.folders[run]})`)),
    ),
    ...warning(a, b),
    ...differing("Settings that differ", settingsOf(a), settingsOf(b)),
    ...metricsBeside(a, b),
    ...layersBeside(a, b),
    ...differing("Protocol: what differs", protocolOf(a), protocolOf(b)),
  );
  if (!byId("details").open) byId("details").showModal();
  byId("details").scrollTop = 0;
}

const isComparable = (name, a, b) => evaluationOf(name, a) === evaluationOf(name, b);

function warning(a, b) {
  const names = METRICS.filter(
    (name) => /^evaluate\//.test(name) && isNumber(value(name, a)) && isNumber(value(name, b)),
  );
  const bad = names.filter((name) => !isComparable(name, a, b));
  if (!bad.length) return [];
  const all = bad.length === names.length ? "All metrics" : `${bad.length} of ${names.length} metrics`;
  return [
    element(
      "p",
      { class: "notice" },
      `${all} were measured in different ways or of different models, so that no difference is given; how, is below.`,
    ),
  ];
}

const isNested = (found) => found !== null && typeof found === "object" && !Array.isArray(found);

// Where two nested values differ, as `[["data.seqlen", 512, 1024], ...]`; what only one of them has is one line.
function differences(one, other, at = "") {
  if (isNested(one) && isNested(other)) {
    const keys = [...new Set([...Object.keys(one), ...Object.keys(other)])];
    return keys.flatMap((key) => differences(one[key], other[key], at ? `${at}.${key}` : key));
  }
  return JSON.stringify(one) === JSON.stringify(other) ? [] : [[at, one, other]];
}

const MOST_SHOWN = 200; // characters of a value

function brief(found) {
  if (found === undefined) return "-";
  const shown = typeof found === "string" ? found : JSON.stringify(found);
  return shown.length > MOST_SHOWN ? `${shown.slice(0, MOST_SHOWN)}…` : shown;
}

function differing(title, one, other) {
  const rows = differences(one, other).map(([at, ...values]) => [at, ...values.map(brief)]);
  return [
    element("h3", {}, title),
    rows.length ? tableOf(["", "A", "B"], rows, [], "wraps") : element("p", { class: "quiet" }, "None."),
  ];
}

function metricsBeside(a, b) {
  const first = [...RUNS.qualities, ...RUNS.shown];
  const rank = (name) => (/^dense\//.test(name) ? 2 : first.includes(name) ? 0 : 1); // what is looked for comes first
  const names = METRICS.filter((name) => value(name, a) !== null || value(name, b) !== null).sort(
    (one, other) => rank(one) - rank(other),
  );
  if (!names.length) return [];
  const rows = names.map((name) => [label(name), shownText(name, a), shownText(name, b), difference(name, a, b)]);
  return [element("h3", {}, "Metrics"), tableOf(["", "A", "B", "B less A"], rows, [1, 2, 3])];
}

function difference(name, a, b) {
  const [one, other] = [value(name, a), value(name, b)];
  if (!isNumber(one) || !isNumber(other)) return "";
  if (!isComparable(name, a, b)) return "not comparable";
  if (one === other) return "0";
  const form = RUNS.described[name][1];
  const sign = other > one ? "+" : "-";
  const share = one && form !== "share" ? ` (${sign}${written(Math.abs((other - one) / one), "share")})` : "";
  const better = name.endsWith("_spread") ? null : RUNS.described[name][2];
  const timed = timedBy(name);
  const ranges = timed ? [a, b].map((run) => rangeOf(timed, run)) : [];
  const isTold = !ranges.length || !ranges.every(isNumber);
  const noise = !isTold && Math.abs(value(timed, b) - value(timed, a)) <= Math.max(...ranges);
  const verdict = noise ? ", noise" : better ? ((better === "higher") === other > one ? ", better" : ", worse") : "";
  return `${sign}${written(Math.abs(other - one), form)}${share}${verdict}`;
}

function layersBeside(a, b) {
  const [one, other] = [layersOf(a), layersOf(b)];
  if (!one || !other) return [];
  const named = ({ names, sparsity }) =>
    new Map(names.map(([block, kind], place) => [`${block} ${kind}`, sparsity[place]]));
  const [first, second] = [named(one), named(other)];
  const all = [...new Set([...first.keys(), ...second.keys()])];
  const names = all.filter((name) => first.get(name) !== second.get(name));
  const maps = [
    heatMap("Sparsity of A", one.names, one.sparsity, "share"),
    heatMap("Sparsity of B", other.names, other.sparsity, "share"),
  ];
  const rows = names.map((name) => {
    const [left, right] = [first.get(name), second.get(name)];
    const known = isNumber(left) && isNumber(right);
    const less = known ? `${right > left ? "+" : "-"}${written(Math.abs(right - left), "share")}` : "";
    return [name, written(left, "share"), written(right, "share"), less];
  });
  return [
    element("h3", {}, "Sparsity of the layers"),
    element("div", { class: "grid" }, ...maps.filter(Boolean)),
    rows.length
      ? element(
          "details",
          {},
          element("summary", {}, `${rows.length} layers that differ`),
          tableOf(["block and weight", "A", "B", "B less A"], rows, [1, 2, 3]),
        )
      : element("p", { class: "quiet" }, "The same in all layers."),
  ];
}
