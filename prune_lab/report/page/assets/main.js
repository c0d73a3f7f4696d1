// Puts the parts together.

function makeFilters() {
  for (const name of CHOICES) {
    const column = RUNS.attributes[name];
    const places = column.values
      .map((_, place) => place)
      .sort((one, other) => compare(column.values[one], column.values[other], false));
    const told = (found) => (found === null ? "none" : name === "level" ? written(found, "share") : String(found));
    const select = element("select", { id: `choice-${name}` });
    options(
      select,
      [["", "all"], ...places.map((place) => [String(place), told(column.values[place])])],
      view.chosen[name] ?? "",
    );
    select.onchange = () => {
      if (select.value === "") delete view.chosen[name];
      else view.chosen[name] = select.value;
      update();
    };
    byId("choices").append(element("label", {}, name, select));
  }
  byId("search").value = view.words;
  byId("search").oninput = (event) => {
    view.words = event.target.value;
    update();
  };
  byId("filters").onsubmit = (event) => event.preventDefault();
  byId("filters").onreset = () => {
    view.words = "";
    view.chosen = {};
    for (const select of byId("choices").querySelectorAll("select")) select.value = "";
    update();
  };
}

function listProblems() {
  const line = (name, why, run) => {
    const first = why.split("\n")[0];
    const title =
      run === null
        ? element("code", {}, name)
        : element("button", { type: "button", onclick: () => openDetails(run) }, titleOf(run));
    const rest = why.includes("\n")
      ? element("details", {}, element("summary", {}, "whole message"), element("pre", {}, why))
      : null;
    return element(
      "li",
      {},
      title,
      ` ${run === null ? "" : `(${name}) `}`,
      element("span", { class: "bad" }, first || "no reason given"),
      rest,
    );
  };
  const runs = Array.from({ length: RUNS.runs }, (_, run) => run).filter(
    (run) => attribute("status", run) !== "finished",
  );
  const most = 200;
  const lines = [
    ...runs
      .slice(0, most)
      .map((run) => line(RUNS.folders[run], `${attribute("status", run)}: ${RUNS.messages[run] ?? ""}`, run)),
    ...RUNS.unreadable.slice(0, most).map(([name, why]) => line(`${name}/record.json`, `unreadable: ${why}`, null)),
    ...RUNS.open
      .slice(0, most)
      .map((name) => element("li", {}, element("code", {}, name), " has no record yet: it is at work, or was killed")),
  ];
  const more = [runs, RUNS.unreadable, RUNS.open].reduce((sum, list) => sum + Math.max(0, list.length - most), 0);
  if (more) lines.push(element("li", {}, `and ${more} more`));
  byId("problems").hidden = !lines.length;
  byId("problem-list").append(...lines);
}

// While runs are followed. Who is reading a run or typing is left alone.
function reloadLater() {
  if (!RUNS.watch) return;
  setInterval(() => {
    const busy =
      byId("details").open || document.hidden || ["INPUT", "SELECT"].includes(document.activeElement?.tagName);
    if (!busy) location.reload();
  }, 1000 * RUNS.watch);
}

readAddress();
makeFilters();
makeScatters();
makeCurves();
makeTable();
makeChosen();
makeDetails();
listProblems();
update({ keepPage: true });
reloadLater();
