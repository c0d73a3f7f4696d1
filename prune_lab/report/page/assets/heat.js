// Sparsity and error of every weight: blocks from left to right, weights of a block from top to bottom.

function heatMap(title, names, values, form) {
  const known = values
    .map((each, index) => [names[index], each])
    .filter(([[block], each]) => block >= 0 && isNumber(each));
  if (!known.length) return null;
  const kinds = [...new Set(known.map(([[, kind]]) => kind))];
  const blocks = [...new Set(known.map(([[block]]) => block))].sort((one, other) => one - other);
  const [least, most] = extremes(known.map(([, each]) => each));
  const [left, high, width] = [120, 20, 620];
  const wide = Math.min(60, (width - left) / blocks.length);
  const cells = known.flatMap(([[block, kind], each]) => {
    const share = most > least ? (each - least) / (most - least) : 0.5;
    const [x, y] = [left + blocks.indexOf(block) * wide, kinds.indexOf(kind) * high];
    const shown = form === "share" ? written(each, form) : each.toPrecision(3);
    const cell = drawn(
      "rect",
      { x, y, width: Math.max(wide - 1, 1), height: high - 1, "fill-opacity": (0.08 + 0.92 * share).toFixed(3) },
      drawn("title", {}, `block ${block}, ${kind}: ${shown}`),
    );
    if (wide < 38) return [cell];
    return [
      cell,
      drawn(
        "text",
        {
          class: share > 0.55 ? "value strong" : "value",
          x: x + wide / 2,
          y: y + 13,
          "text-anchor": "middle",
          "pointer-events": "none",
        },
        shown,
      ),
    ];
  });
  const bottom = kinds.length * high;
  const every = Math.ceil(blocks.length / Math.floor((width - left) / 30));
  const marks = blocks
    .filter((_, index) => index % every === 0)
    .map((block) =>
      drawn(
        "text",
        { x: left + (blocks.indexOf(block) + 0.5) * wide, y: bottom + 13, "text-anchor": "middle" },
        String(block),
      ),
    );
  const rows = kinds.map((kind, index) =>
    drawn(
      "text",
      { x: left - 6, y: index * high + 14, "text-anchor": "end" },
      kind.length > 18 ? `…${kind.slice(-17)}` : kind,
    ),
  );
  const range =
    least === most ? `${written(most, form)} everywhere` : `${written(least, form)} to ${written(most, form)}`;
  const right = left + blocks.length * wide;
  const svg = drawn(
    "svg",
    {
      class: "heat",
      viewBox: `0 0 ${Math.max(right, 320)} ${bottom + 30}`,
      role: "img",
      "aria-label": `${title} by block and weight, ${range}`,
    },
    ...rows,
    ...cells,
    ...marks,
    drawn("text", { x: (left + right) / 2, y: bottom + 27, "text-anchor": "middle" }, "block"),
  );
  svg.style.maxWidth = `${Math.max(right, 320) * 1.35}px`;
  return element("figure", {}, element("figcaption", {}, `${title}: ${range}`), svg);
}

function heatMaps(run) {
  const layers = layersOf(run);
  if (!layers) return [];
  const maps = [
    heatMap("Sparsity", layers.names, layers.sparsity, "share"),
    heatMap("Relative output error of the weight", layers.names, layers.error, "number"),
    heatMap("Relative output error of the block", ...blockErrors(layers), "number"),
  ].filter(Boolean);
  return maps.length
    ? [element("h3", {}, "Layers"), element("div", { class: "grid" }, ...maps), layerTable(layers)]
    : [];
}

// All weights of a block repeat the error of the block.
function blockErrors({ names, blockError }) {
  const found = new Map(names.map(([block], index) => [block, blockError[index]]));
  return [[...found.keys()].map((block) => [block, "block"]), [...found.values()]];
}

// The same for those who read rather than look; made when it is opened.
function layerTable({ names, sparsity, error }) {
  const shown = element("details", {}, element("summary", {}, "The same as a table"));
  shown.addEventListener(
    "toggle",
    () => {
      const head = element(
        "tr",
        {},
        ...["block", "weight", "sparsity", "error"].map((name) => element("th", { scope: "col" }, name)),
      );
      const rows = names.map(([block, kind], index) =>
        element(
          "tr",
          {},
          ...[
            block < 0 ? "" : String(block),
            kind,
            written(sparsity[index], "share"),
            written(error[index], "number"),
          ].map((cell) => element("td", {}, cell)),
        ),
      );
      shown.append(
        element(
          "div",
          { class: "scroll plain" },
          element("table", { class: "plain" }, element("thead", {}, head), element("tbody", {}, ...rows)),
        ),
      );
    },
    { once: true },
  );
  return shown;
}
