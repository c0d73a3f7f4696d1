// The table of runs, a page at a time.

function makeTable() {
  options(
    byId("sort"),
    [["", "as found"], ...[...ATTRIBUTES, ...METRICS].map((name) => [name, label(name)])],
    view.sort ?? "",
  );
  byId("size").value = String(view.size);
  byId("sort").onchange = (event) => {
    view.sort = event.target.value || null;
    update();
  };
  byId("direction").onclick = () => {
    view.descending = !view.descending;
    update();
  };
  byId("size").onchange = (event) => {
    view.size = Number(event.target.value);
    update();
  };
  byId("previous").onclick = () => {
    view.page -= 1;
    update({ keepPage: true });
  };
  byId("next").onclick = () => {
    view.page += 1;
    update({ keepPage: true });
  };
  const body = byId("table").tBodies[0];
  const runAt = (event) => {
    const row = event.target.closest?.("tr");
    return row?.dataset.run ? Number(row.dataset.run) : null; // one row says that there are none
  };
  body.onpointerover = (event) => point(runAt(event));
  body.onpointerleave = () => point(null);
  body.addEventListener("focusin", (event) => point(runAt(event))); // there is no onfocusin
  body.addEventListener("focusout", () => point(null));
  body.onclick = (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const run = runAt(event);
    if (button.dataset.does === "copy") copy(RUNS.commands[run], button);
    else if (button.dataset.does === "compare") choose(run);
    else openDetails(run);
  };
  watchers.change.push(renderTable);
  watchers.point.push(markRow);
  makeChooser();
  const same = ATTRIBUTES.filter((name) => RUNS.runs && !varying.includes(name) && name !== "written" && text(name, 0));
  byId("same").textContent = same.length
    ? `The same in all runs: ${same.map((name) => `${name} ${text(name, 0)}`).join(", ")}.`
    : "";
}

function makeChooser() {
  const boxes = [...ATTRIBUTES, ...METRICS].map((name) => {
    const box = element("input", { type: "checkbox", value: name });
    box.checked = view.columns.includes(name);
    box.onchange = () => {
      const order = [
        ...DEFAULT_COLUMNS,
        ...[...ATTRIBUTES, ...METRICS].filter((each) => !DEFAULT_COLUMNS.includes(each)),
      ];
      view.columns = order.filter((each) => (each === name ? box.checked : view.columns.includes(each)));
      update({ keepPage: true });
    };
    return element("label", { title: name }, box, label(name));
  });
  byId("columns").append(...boxes);
  byId("find-column").oninput = (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const box of boxes) box.hidden = !`${box.title} ${box.textContent}`.toLowerCase().includes(wanted);
  };
}

function renderTable() {
  const table = byId("table");
  const first = view.page * view.size;
  const shown = view.runs.slice(first, first + view.size);
  table.tHead.replaceChildren(
    element(
      "tr",
      { role: "row" },
      element("th", { role: "columnheader", class: "actions" }, element("span", { class: "unseen" }, "actions")),
      ...view.columns.map(heading),
    ),
  );
  const rows = shown.map(rowOf);
  table.tBodies[0].replaceChildren(
    ...(rows.length
      ? rows
      : [element("tr", {}, element("td", { class: "empty", colspan: view.columns.length + 1 }, "No run matches."))]),
  );
  const last = Math.ceil(view.runs.length / view.size);
  byId("page").textContent = rows.length ? `${first + 1} to ${first + rows.length} of ${view.runs.length}` : "";
  byId("previous").disabled = view.page === 0;
  byId("next").disabled = view.page + 1 >= last;
  byId("sort").value = view.sort ?? "";
  byId("direction").textContent = view.descending ? "falling" : "rising";
  byId("matching").textContent = `${view.runs.length.toLocaleString("en")} of ${RUNS.runs.toLocaleString("en")} runs`;
}

const isRight = (name) => isMetric(name) || NUMERIC.includes(name);

function heading(name) {
  const sorted = view.sort === name ? (view.descending ? "descending" : "ascending") : "none";
  const button = element(
    "button",
    {
      type: "button",
      title: name,
      "data-sort": name,
      onclick: () => {
        view.descending = view.sort === name && !view.descending;
        view.sort = name;
        update();
        byId("table")
          .tHead.querySelector(`[data-sort="${CSS.escape(name)}"]`)
          .focus();
      },
    },
    label(name),
  );
  return element(
    "th",
    { role: "columnheader", scope: "col", "aria-sort": sorted, class: isRight(name) ? "number" : null },
    button,
  );
}

const BEST = "the best of its model, evaluation, pattern and level, or not told from it by the spread over seeds";

function rowOf(run) {
  const cells = view.columns.map((name) => {
    const shown = isMetric(name) ? shownText(name, run) : text(name, run);
    const best = isMetric(name) && isBest(name, run);
    const kind = [
      best ? "best" : "",
      isRight(name) ? "number" : "",
      shown ? "" : "empty-cell",
      name === "status" && shown === "failed" ? shown : "",
    ];
    return element(
      "td",
      {
        role: "cell",
        "data-label": label(name),
        title: best ? BEST : null,
        class: kind.filter(Boolean).join(" ") || null,
      },
      shown,
    );
  });
  const name = titleOf(run);
  const buttons = [
    element("button", { type: "button", "data-does": "open", "aria-label": `details of ${name}` }, "details"),
    element(
      "button",
      { type: "button", "data-does": "compare", "aria-label": `compare ${name}`, "aria-pressed": "false" },
      "compare",
    ),
    RUNS.commands[run]
      ? element(
          "button",
          {
            type: "button",
            "data-does": "copy",
            "aria-label": `copy the command of ${name}`,
            title: RUNS.commands[run],
          },
          "copy",
        )
      : null,
  ];
  return element(
    "tr",
    { role: "row", "data-run": run },
    element("td", { role: "cell", class: "actions" }, ...buttons),
    ...cells,
  );
}

function markRow(run, _, mean) {
  const runs = run === null ? [] : (mean?.runs ?? [run]);
  for (const row of byId("table").tBodies[0].rows) row.classList.toggle("here", runs.includes(Number(row.dataset.run)));
}

// Turns to the page that a run is on.
function turnTo(run) {
  const place = view.runs.indexOf(run);
  if (place < 0 || Math.floor(place / view.size) === view.page) return;
  view.page = Math.floor(place / view.size);
  writeAddress();
  renderTable();
}
