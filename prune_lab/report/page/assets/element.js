// Makes elements. Text goes in as text only, never as markup: what records say is not trusted.

const byId = (id) => document.getElementById(id);

function element(tag, options = {}, ...children) {
  return filled(document.createElement(tag), options, children);
}

function drawn(tag, options = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), options, children);
}

function filled(made, options, children) {
  for (const [name, value] of Object.entries(options)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, label]) => element("option", { value }, label)));
  select.value = chosen;
}

// A plain table; `numbers` are the columns that hold numbers.
function tableOf(heads, rows, numbers, kind = "") {
  const side = (place) => (numbers.includes(place) ? "number" : null);
  const head = heads.map((each, place) => element("th", { scope: "col", class: side(place) }, each));
  const body = rows.map(([first, ...rest]) =>
    element(
      "tr",
      {},
      element("th", { scope: "row" }, first),
      ...rest.map((each, place) => element("td", { class: side(place + 1) }, each)),
    ),
  );
  return element(
    "div",
    { class: `scroll plain ${kind}`.trim() },
    element(
      "table",
      { class: "plain" },
      element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...body),
    ),
  );
}

// Tells those who do not see the page what has happened.
function say(text) {
  byId("said").textContent = text;
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = element("textarea", { class: "unseen" }); // where a browser has no clipboard for local files
    field.value = text;
    (button.closest("dialog") ?? document.body).append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    button.focus();
  }
  const label = button.textContent;
  button.textContent = "copied";
  say("The command is copied.");
  setTimeout(() => {
    button.textContent = label;
  }, 1200);
}
