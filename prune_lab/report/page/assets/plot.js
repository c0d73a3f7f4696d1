// What all plots share: frame, axes, colours, and the point that is nearest to the pointer.

const HEIGHT = 270;
const MARGIN = { left: 54, right: 12, top: 10, bottom: 40 };
const REACH = 24; // pixels around a point in which it is meant
const COLOURS = 8;

const isNumber = (found) => typeof found === "number";

// Colours go by the values of all runs, so that they stay when runs are filtered.
function styleOf(run) {
  return styleOfPlace(RUNS.attributes[view.colour].of[run]);
}

function styleOfPlace(place) {
  return `s${place % COLOURS} ${Math.floor(place / COLOURS) % 2 ? "square" : "round"}`;
}

// One path for all points of a style: thousands of elements would take seconds.
function dots(points, kind = "dots") {
  const paths = new Map();
  for (const { run, x, y } of points) {
    const style = styleOf(run);
    if (!paths.has(style)) paths.set(style, []);
    paths.get(style).push(`M${x.toFixed(1)} ${y.toFixed(1)}h0`);
  }
  return [...paths].map(([style, steps]) => drawn("path", { class: `${kind} ${style}`, d: steps.join("") }));
}

function lineThrough(places) {
  return places.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function axes(width, x, y, xTitle) {
  const bottom = HEIGHT - MARGIN.bottom;
  const right = width - MARGIN.right;
  const marks = [];
  const room = Math.max(1, Math.ceil((x.ticks.length * 58) / (right - MARGIN.left)));
  x.ticks.forEach(([place, text], index) => {
    marks.push(drawn("line", { class: "tick", x1: place, x2: place, y1: MARGIN.top, y2: bottom }));
    if (index % room === 0) marks.push(drawn("text", { x: place, y: bottom + 15, "text-anchor": "middle" }, text));
  });
  for (const [place, text] of y.ticks) {
    marks.push(drawn("line", { class: "tick", x1: MARGIN.left, x2: right, y1: place, y2: place }));
    marks.push(drawn("text", { x: MARGIN.left - 6, y: place + 4, "text-anchor": "end" }, text));
  }
  marks.push(drawn("path", { class: "axis", d: `M${MARGIN.left} ${MARGIN.top}V${bottom}H${right}` }));
  marks.push(drawn("text", { x: (MARGIN.left + right) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, xTitle));
  return marks;
}

// A figure whose `draw(width)` returns `{marks, points, tell}`: what to draw, where runs are, what the tip says of one.
class Plot {
  constructor(caption, name, draw) {
    this.draw = draw;
    this.points = [];
    this.svg = drawn("svg", {
      tabindex: 0,
      role: "group",
      "aria-roledescription": "plot",
      "aria-label": name,
      height: HEIGHT,
      onpointermove: (event) => this.follow(event),
      onpointerleave: () => point(null),
      onblur: () => point(null),
      onclick: (event) => {
        this.follow(event);
        if (pointed !== null) openDetails(pointed);
      },
      onkeydown: (event) => this.step(event),
    });
    this.tip = element("div", { class: "tip", hidden: true });
    this.figure = element("figure", {}, element("figcaption", {}, ...caption), this.svg, this.tip);
    watchers.change.push(() => this.render());
    watchers.point.push((run, from, mean) => this.mark(run, from, mean));
    new ResizeObserver(() => {
      if (this.svg.clientWidth !== this.width) this.render();
    }).observe(this.svg);
  }

  render() {
    this.width = this.svg.clientWidth;
    if (!this.width) return;
    const { marks, points, tell } = this.draw(this.width);
    this.points = points;
    this.tell = tell;
    this.here = drawn("g");
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.svg.replaceChildren(...marks, this.here);
    this.tip.hidden = true;
    if (!points.length) {
      this.svg.append(
        drawn("text", { x: this.width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "no run that is shown has both"),
      );
    }
  }

  follow(event) {
    const box = this.svg.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    let nearest = null;
    let distance = REACH ** 2;
    for (const each of this.points) {
      const away = (each.x - left) ** 2 + (each.y - top) ** 2;
      if (away < distance) [nearest, distance] = [each, away];
    }
    this.svg.style.cursor = nearest ? "pointer" : "";
    point(nearest ? nearest.run : null, this, nearest?.mean ?? null);
  }

  step(event) {
    if (event.key === "Enter" && pointed !== null) {
      event.preventDefault(); // or the same key presses the button that has the focus in the dialog
      openDetails(pointed);
    }
    if (event.key === "Escape") point(null);
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!way || !this.points.length) return;
    event.preventDefault();
    const order = this.points
      .filter((each) => !each.mean)
      .sort((one, other) => one.x - other.x || one.y - other.y)
      .map(({ run }) => run);
    const runs = [...new Set(order)];
    const next = runs[(runs.indexOf(pointed) + way + runs.length) % runs.length];
    point(next, this);
    say(`${titleOf(next)}: ${this.tell(next)}`);
  }

  // `mean`: what is pointed at is the mean of a run and of others.
  mark(run, from, mean) {
    this.tip.hidden = true;
    if (!this.here) return;
    const runs = mean ? mean.runs : [run];
    const found = run === null ? [] : this.points.filter((each) => !each.mean && runs.includes(each.run));
    const centre = mean ? this.points.find((each) => each.mean === mean) : null;
    if (centre) found.push(centre);
    this.here.replaceChildren(...found.map(({ x, y }) => drawn("circle", { class: "here", cx: x, cy: y, r: 7 })));
    if (from !== this || !found.length) return;
    const title = mean ? `${titleOf(run, { seed: false })}, ${mean.runs.length} runs` : titleOf(run);
    this.tip.replaceChildren(element("b", {}, title), this.tell(run, mean));
    this.tip.hidden = false;
    const { x, y } = found.at(-1);
    const left = Math.min(Math.max(4, x + 14), this.figure.clientWidth - this.tip.offsetWidth - 4);
    const above = this.svg.offsetTop + y - this.tip.offsetHeight - 12;
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${above > 0 ? above : this.svg.offsetTop + y + 14}px`;
  }
}
