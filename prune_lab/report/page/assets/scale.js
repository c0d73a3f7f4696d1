// From values to places on an axis, with ticks at round numbers.

function scaleOf(values, from, to, form) {
  let [least, most] = extremes(values);
  const isLog = least > 0 && most / least > 12 && form !== "share";
  const change = isLog ? Math.log10 : (each) => each;
  const margin = (change(most) - change(least)) * 0.06 || Math.abs(change(most)) * 0.1 || 0.1;
  least = change(least) - margin;
  most = change(most) + margin;
  const at = (each) => from + ((change(each) - least) / (most - least)) * (to - from);
  const back = isLog ? (each) => 10 ** each : (each) => each;
  const ticks = isLog ? logTicks(least, most) : linearTicks(back(least), back(most));
  return { at, ticks: ticks.map((tick) => [at(tick), writtenTick(tick, form)]) };
}

// Spreading thousands of values into a call is slow, and of hundreds of thousands an error.
function extremes(values) {
  let least = Infinity;
  let most = -Infinity;
  for (const each of values) {
    if (each < least) least = each;
    if (each > most) most = each;
  }
  return [least, most];
}

function linearTicks(least, most, wanted = 6) {
  const rough = (most - least) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  const ticks = [];
  for (let index = Math.ceil(least / step); index * step <= most; index += 1)
    ticks.push(Number((index * step).toPrecision(12)));
  return ticks;
}

function logTicks(least, most) {
  const spacing = most - least > 3 ? [1] : most - least > 1.5 ? [1, 3] : [1, 2, 5];
  const ticks = [];
  const skip = Math.ceil((most - least) / 6);
  for (let power = Math.floor(least); power <= most; power += 1) {
    if (skip > 1 && power % skip) continue;
    for (const factor of spacing) {
      const place = power + Math.log10(factor);
      if (place >= least && place <= most) ticks.push(Number((factor * 10 ** power).toPrecision(3)));
    }
  }
  return ticks;
}

// Which points no other one beats; lower is better in both. The same as front_of in pareto.py.
function frontOf(points) {
  const order = points
    .map((_, index) => index)
    .sort((one, other) => points[one][0] - points[other][0] || points[one][1] - points[other][1]);
  const front = [];
  let lowest = Infinity;
  for (const index of order) {
    if (points[index][1] < lowest) {
      front.push(index);
      lowest = points[index][1];
    }
  }
  return front;
}
