// Writes values for readers.

const PREFIXES = [
  [1e15, "P"],
  [1e12, "T"],
  [1e9, "G"],
  [1e6, "M"],
  [1e3, "k"],
  [1, ""],
];

function prefixed(value, unit) {
  const [size, prefix] = PREFIXES.find(([least]) => Math.abs(value) >= least) ?? [1, ""];
  return `${Number((value / size).toPrecision(3))} ${prefix}${unit}`.trim();
}

function plainNumber(value) {
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en");
  if (size >= 1e6 || size < 1e-3) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return size >= 100 ? value.toFixed(1) : size >= 10 ? value.toFixed(2) : String(Number(value.toPrecision(4)));
}

const FORMS = {
  share: (value) => `${Number((100 * value).toPrecision(4))} %`,
  bytes: (value) => prefixed(value, "B"),
  count: (value) => prefixed(value, ""),
  seconds: (value) =>
    Math.abs(value) < 0.1
      ? `${(1000 * value).toPrecision(3)} ms`
      : `${Math.abs(value) < 1000 ? value.toPrecision(3) : plainNumber(value)} s`,
  number: plainNumber,
};

function written(value, form) {
  if (value === null || value === undefined) return "";
  return typeof value === "number" ? FORMS[form](value) : String(value); // infinity and the like come as texts
}

// Ticks are round: they need no digits that say how exact they are.
function writtenTick(value, form) {
  if (form === "number")
    return Math.abs(value) >= 1e6 || (value && Math.abs(value) < 1e-4)
      ? value.toExponential()
      : value.toLocaleString("en", { maximumFractionDigits: 5 });
  if (form === "seconds")
    return Math.abs(value) < 1
      ? `${Number((1000 * value).toPrecision(3))} ms`
      : `${Number(value.toPrecision(3)).toLocaleString("en")} s`;
  return written(value, form);
}
