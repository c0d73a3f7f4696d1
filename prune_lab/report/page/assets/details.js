// Everything about one run, in a dialog.

let opened = null;

function openDetails(run) {
  opened = run;
  turnTo(run);
  byId("details-title").textContent = titleOf(run);
  byId("details-body").replaceChildren(
    element("p", { class: "quiet" }, `${text("status", run)}, run folder ${RUNS.folders[run]}`),
    ...message(run),
    ...command(run),
    ...continuations(run),
    ...ownCurve(run),
    ...heatMaps(run),
    ...metricsOf(run),
    ...protocol(run),
  );
  if (!byId("details").open) byId("details").showModal();
  byId("details").scrollTop = 0;
}

function message(run) {
  return RUNS.messages[run] ? [element("pre", { class: "bad" }, RUNS.messages[run])] : [];
}

function command(run) {
  const line = RUNS.commands[run];
  if (!line) return [element("p", { class: "quiet" }, "What it was started with was not kept.")];
  const button = element("button", { type: "button", onclick: () => copy(line, button) }, "copy command");
  return [element("h3", {}, "The command that repeats it"), element("pre", { id: "command" }, line), button];
}

// What the models wrote after each prompt, side by side.
function continuations(run) {
  const found = continuationsOf(run);
  if (!found.length) return [];
  return [
    element("h3", {}, "Continuations"),
    ...found.map(([prompt, ...texts]) =>
      element(
        "figure",
        { class: "continued" },
        element("figcaption", {}, prompt),
        element(
          "div",
          { class: "beside" },
          ...["dense", "pruned"].map((name, index) =>
            texts[index] === null
              ? null
              : element(
                  "div",
                  {},
                  element("span", { class: "quiet" }, name),
                  element("p", {}, texts[index].trim() || "(nothing: the text ends here)"),
                ),
          ),
        ),
      ),
    ),
  ];
}

function ownCurve(run) {
  const rows = RUNS.heldOut[run];
  const rounds = RUNS.rounds[run];
  const shown = [];
  if (rows) shown.push(["Loss of held-out samples", ["step", "loss"], rows]);
  if (rounds) shown.push(["Rounds", ["round", "sparsity", "perplexity, pruned", "perplexity, tuned", "loss"], rounds]);
  return shown
    .flatMap(([title, heads, lines]) => [
      element("h3", {}, title),
      lines.length > 1 ? ownPlot(run, title, lines) : null,
      element(
        "div",
        { class: "scroll plain" },
        element(
          "table",
          { class: "plain" },
          element(
            "thead",
            {},
            element("tr", {}, ...heads.map((head) => element("th", { scope: "col", class: "number" }, head))),
          ),
          element(
            "tbody",
            {},
            ...lines.map((line) =>
              element(
                "tr",
                {},
                ...line.map((each, index) =>
                  element("td", { class: "number" }, written(each, heads[index] === "sparsity" ? "share" : "number")),
                ),
              ),
            ),
          ),
        ),
      ),
    ])
    .filter(Boolean);
}

function ownPlot(run, title, lines) {
  const width = 420;
  const last = lines[0].length > 2 ? 3 : 1;
  const { marks } = curves(
    width,
    [run],
    { [run]: lines.map((line) => [line[0], line[last]]) },
    (rows) => rows,
    last === 3 ? "round" : "step",
    "number",
  );
  const svg = drawn(
    "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${title}; the numbers are below` },
    ...marks,
  );
  svg.style.maxWidth = "32rem";
  return svg;
}

// What was measured of the dense model stands beside the same of the pruned one.
function metricsOf(run) {
  const known = METRICS.filter((name) => value(name, run) !== null);
  if (!known.length) return [];
  const pairs = [
    ...new Set(known.filter((name) => /^(dense|evaluate)\//.test(name)).map((name) => name.replace(/^\w+\//, ""))),
  ];
  const others = known.filter((name) => !/^(dense|evaluate)\//.test(name));
  const cell = (name) => element("td", { class: "number" }, isMetric(name) ? shownText(name, run) : "");
  const rows = pairs.map((name) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, name.replaceAll("_", " ")),
      cell(`dense/${name}`),
      cell(`evaluate/${name}`),
    ),
  );
  const head = element(
    "tr",
    {},
    ...["", "dense", "pruned"].map((name) => element("th", { scope: "col", class: name ? "number" : null }, name)),
  );
  const facts = others.map((name) =>
    element("div", { title: name }, element("span", {}, label(name)), element("span", {}, shownText(name, run))),
  );
  return [
    element("h3", {}, "Metrics"),
    element("div", { class: "facts" }, ...facts),
    rows.length
      ? element(
          "div",
          { class: "scroll plain" },
          element("table", { class: "plain" }, element("thead", {}, head), element("tbody", {}, ...rows)),
        )
      : null,
  ].filter(Boolean);
}

function protocol(run) {
  const found = protocolOf(run);
  if (!Object.keys(found).length) return [];
  return [
    element("h3", {}, "Protocol"),
    element("pre", { tabindex: 0, id: "protocol" }, JSON.stringify(found, null, 2)),
  ];
}

function makeDetails() {
  const dialog = byId("details");
  byId("close").onclick = () => dialog.close();
  dialog.onclick = (event) => {
    if (event.target === dialog) dialog.close();
  }; // on the backdrop
  dialog.onclose = () => {
    const row = byId("table").tBodies[0].querySelector(`[data-run="${opened}"] [data-does=open]`);
    if (document.activeElement === document.body) row?.focus({ preventScroll: true });
  };
}
