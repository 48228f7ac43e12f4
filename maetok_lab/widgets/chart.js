// Line charts as SVG. A spec: { width, height, x: { label, range, log, percent }, y: the same, lines: [{ name, colour, x, y,
// dash, marks }], points: [{ x, y, colour }], bands: [{ from, to, name, colour }], legend }. A page may add `pick`, which a
// click calls with its place on x.

const SVG = "http://www.w3.org/2000/svg";

// How far right the pointer is, in the units of a chart of that width.
function unitsAt(event, svg, width) {
  const place = svg.getBoundingClientRect();
  return ((event.clientX - place.left) / place.width) * width;
}

function shape(tag, settings, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(settings)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// Three digits, and words for what is very large or small.
function short(value, percent) {
  if (percent) return `${Math.round(100 * value)} %`;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  if (size >= 1e-3) return `${+value.toPrecision(3)}`;
  return value.toExponential(1);
}

function roundTicks(low, high, count) {
  const step = 10 ** Math.floor(Math.log10((high - low) / count));
  const unit = [1, 2, 5, 10].map((factor) => factor * step).find((size) => (high - low) / size <= count);
  const ticks = [];
  for (let tick = Math.ceil(low / unit) * unit; tick <= high + unit * 1e-6; tick += unit) ticks.push(+tick.toPrecision(12));
  return ticks;
}

function powerTicks(low, high) {
  const ticks = [];
  const factors = high / low > 1000 ? [1] : high / low > 20 ? [1, 3] : [1, 2, 3, 5, 7];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of factors) {
      const tick = factor * 10 ** power;
      if (tick >= low && tick <= high) ticks.push(tick);
    }
  return ticks;
}

// From values to pixels on one side, and its ticks.
function scaleOf(side, values, from, to, room) {
  const finite = values.filter((value) => Number.isFinite(value) && (!side.log || value > 0));
  let [low, high] = side.range || [Math.min(...finite), Math.max(...finite)];
  if (!Number.isFinite(low)) [low, high] = [side.log ? 0.1 : 0, 1];
  if (low === high) [low, high] = side.log ? [low / 2, high * 2] : [low - 1, high + 1];
  if (!side.range && side.log) [low, high] = [low / 1.1, high * 1.1];
  if (!side.range && !side.log && room) [low, high] = [low - 0.05 * (high - low), high + 0.05 * (high - low)];
  const warp = side.log ? Math.log : (value) => value;
  const place = (value) => from + ((warp(value) - warp(low)) / (warp(high) - warp(low))) * (to - from);
  const ticks = side.log ? powerTicks(low, high) : roundTicks(low, high, Math.abs(to - from) / (room ? 30 : 70));
  return { place, ticks };
}

// Draw into `host`; draws anew what it drew before.
function drawChart(host, spec) {
  const { width, height, lines = [], points = [], bands = [] } = spec;
  const legend = spec.legend !== false && lines.length > 0;
  const box = { left: 52, right: width - 24, top: legend ? 26 : 10, bottom: height - 40 };
  const xs = lines.flatMap((line) => line.x).concat(points.map((point) => point.x));
  const ys = lines.flatMap((line) => line.y).concat(points.map((point) => point.y));
  const x = scaleOf(spec.x, xs, box.left, box.right, false);
  const y = scaleOf(spec.y, ys, box.bottom, box.top, true);
  const svg = shape("svg", { class: "maetok-chart", viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  svg.append(shape("title", {}, `${spec.y.label} over ${spec.x.label}`));

  // what lies below the lines: shaded parts and the axes
  for (const band of bands) {
    const [left, right] = [x.place(band.from), x.place(band.to)];
    svg.append(shape("rect", { class: "maetok-band", x: left, y: box.top, width: right - left, height: box.bottom - box.top }));
    if (band.name) svg.append(shape("text", { x: (left + right) / 2, y: box.bottom - 6, "text-anchor": "middle", class: "maetok-faint" }, band.name));
  }
  for (const tick of x.ticks) {
    svg.append(shape("line", { class: "maetok-rule", x1: x.place(tick), x2: x.place(tick), y1: box.bottom, y2: box.bottom + 4 }));
    svg.append(shape("text", { x: x.place(tick), y: box.bottom + 16, "text-anchor": "middle" }, short(tick, spec.x.percent)));
  }
  for (const tick of y.ticks) {
    svg.append(shape("line", { class: "maetok-rule", x1: box.left, x2: box.right, y1: y.place(tick), y2: y.place(tick) }));
    svg.append(shape("text", { x: box.left - 6, y: y.place(tick) + 4, "text-anchor": "end" }, short(tick, spec.y.percent)));
  }
  svg.append(shape("text", { x: (box.left + box.right) / 2, y: height - 6, "text-anchor": "middle" }, spec.x.label));
  const middle = (box.top + box.bottom) / 2;
  svg.append(shape("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, spec.y.label));

  // the lines; one that leaves the finite numbers, or the positive ones of a logarithm, has a gap
  const visible = (value, side) => Number.isFinite(value) && (!side.log || value > 0);
  for (const line of lines) {
    let path = "";
    let pen = "M";
    line.x.forEach((value, index) => {
      const shown = visible(value, spec.x) && visible(line.y[index], spec.y);
      if (shown) path += `${pen}${x.place(value).toFixed(1)} ${y.place(line.y[index]).toFixed(1)}`;
      pen = shown ? "L" : "M";
      if (shown && (line.marks || line.x.length === 1))
        svg.append(shape("circle", { cx: x.place(value), cy: y.place(line.y[index]), r: 2.5, style: `fill:${line.colour}` }));
    });
    svg.append(shape("path", { d: path, style: `stroke:${line.colour}`, "stroke-dasharray": line.dash || "none" }));
  }
  for (const point of points) {
    if (!visible(point.x, spec.x) || !visible(point.y, spec.y)) continue;
    svg.append(shape("circle", { class: "maetok-ring", cx: x.place(point.x), cy: y.place(point.y), r: 6, style: `stroke:${point.colour}` }));
  }
  if (legend) drawLegend(svg, lines, box);
  host.replaceChildren(svg);
  readValues(svg, spec, x, box);
  if (!spec.pick) return;
  svg.style.cursor = "pointer";
  const [low, high] = spec.x.range;
  svg.addEventListener("click", (event) => {
    spec.pick(low + ((unitsAt(event, svg, width) - box.left) / (box.right - box.left)) * (high - low));
  });
}

function drawLegend(svg, lines, box) {
  // as wide as its longest names need; what does not fit one row is left to the readout
  let left = box.left;
  for (const line of lines) {
    const wide = 26 + 6.6 * line.name.length;
    if (left + wide > box.right + 10) break;
    svg.append(shape("line", { x1: left, x2: left + 16, y1: 12, y2: 12, style: `stroke:${line.colour};stroke-width:2.5`, "stroke-dasharray": line.dash || "none" }));
    svg.append(shape("text", { x: left + 20, y: 16 }, line.name));
    left += wide + 8;
  }
}

// Under the pointer: the nearest place that has values, and the values.
function readValues(svg, spec, x, box) {
  const rule = shape("line", { class: "maetok-pointer", y1: box.top, y2: box.bottom, visibility: "hidden" });
  const words = shape("text", { y: box.top + 12, class: "maetok-readout", visibility: "hidden" });
  svg.append(rule, words);
  svg.addEventListener("pointerleave", () => [rule, words].forEach((part) => part.setAttribute("visibility", "hidden")));
  svg.addEventListener("pointermove", (event) => {
    const at = unitsAt(event, svg, spec.width);
    const nearest = (line) => line.x.reduce((best, value, index) => (Math.abs(x.place(value) - at) < Math.abs(x.place(line.x[best]) - at) ? index : best), 0);
    const rows = (spec.lines || []).filter((line) => line.x.length).map((line) => [line, nearest(line)]);
    if (!rows.length) return;
    const here = x.place(rows[0][0].x[rows[0][1]]);
    rule.setAttribute("x1", here);
    rule.setAttribute("x2", here);
    const left = here < (box.left + box.right) / 2;
    words.replaceChildren();
    const heading = `${spec.x.label} ${short(rows[0][0].x[rows[0][1]], spec.x.percent)}`;
    const texts = [heading, ...rows.slice(0, 8).map(([line, index]) => `${line.name} ${short(line.y[index], spec.y.percent)}${spec.y.unit || ""}`)];
    texts.forEach((text, index) => words.append(shape("tspan", { x: here + (left ? 8 : -8), dy: index ? 14 : 0 }, text)));
    words.setAttribute("text-anchor", left ? "start" : "end");
    [rule, words].forEach((part) => part.setAttribute("visibility", "visible"));
  });
}
