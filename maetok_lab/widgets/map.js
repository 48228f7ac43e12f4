// A map of pictures: points, their thumbnails when zoomed in, a card at the pointer, and what a click decodes at the right.
// All places, colours and thumbnails are in the page, so that hover, zoom and colours need no kernel.

const WIDE = 640;
const HIGH = 540;
const MOST_TILES = 400; // visible points from which on they are dots again

function latentMap({ model, el }) {
  const about = model.get("about");
  const view = { scale: 1, left: 0, top: 0, tool: "move", only: null, hover: null, sheet: null, lasso: null };
  const ratio = 2; // canvas pixels a unit: crisp on dense screens, and where the page is wider than usual

  // Parts -------------------------------------------------------------------------------------------

  const select = (label, options, value, change) => {
    const box = make("select", { "aria-label": label, onchange: () => change(box.value) });
    for (const option of options) box.append(make("option", { value: option }, option));
    box.value = value;
    return make("label", {}, `${label} `, box);
  };
  const methods = select("map", about.methods, model.get("method"), (method) => tell({ method }));
  const colours = select("colour", Object.keys(model.get("columns")), model.get("colour"), (colour) => {
    view.only = null;
    tell({ colour });
    showColours();
  });
  const number = make("input", { type: "number", min: 0, max: about.points - 1, value: model.get("point"), "aria-label": "number of a point" });
  number.addEventListener("change", () => {
    if (number.value !== "" && number.checkValidity()) return inspect(Number(number.value));
    message.textContent = `points are 0 to ${about.points - 1}`;
    number.value = model.get("point");
  });
  const tools = choices("what a drag does", ["move", "lasso"], (tool) => useTool(tool));
  const whole = make("button", { type: "button", class: "maetok-button", onclick: () => zoomOut() }, "whole map");
  const message = make("span", { class: "maetok-faint", role: "status" });
  const head = make("div", { class: "maetok-maphead" }, methods, colours, make("label", {}, "point ", number), tools, whole, message, kernelLine(model, el));

  const dots = make("canvas", { width: WIDE * ratio, height: HIGH * ratio });
  const marks = make("canvas", { width: WIDE * ratio, height: HIGH * ratio, tabindex: 0, role: "img", "aria-label": about.label });
  const card = make("div", { class: "maetok-card", hidden: "" });
  const cardPicture = make("canvas", {});
  const cardWords = make("span", {});
  card.append(cardPicture, cardWords);
  const board = make("div", { class: "maetok-board" }, dots, marks, card);
  const axis = make("div", { class: "maetok-faint maetok-axis" });
  const legend = make("div", { class: "maetok-legend" });
  const inspector = make("div", { class: "maetok-inspector" });
  const selection = make("div", { class: "maetok-selection" });
  const left = make("div", { class: "maetok-mapside" }, board, axis, legend);
  const body = make("div", { class: "maetok-mapbody" }, left, make("div", {}, inspector, selection));
  el.classList.add("maetok", "maetok-map");
  ownKeys(el);
  if (model.stored) {
    el.classList.add("maetok-stored");
    methods.querySelector("select").disabled = number.disabled = true;
  }
  el.replaceChildren(head, body);

  // Places and colours ------------------------------------------------------------------------------

  const shares = (bytes) => Float32Array.from(whole16(bytes), (value) => value / 65535);
  const whole16 = (bytes) => new Uint16Array(numbersOf(bytes).slice().buffer);
  let x = null;
  let y = null;
  const count = about.points;
  const overlay = numbersOf(model.get("overlays"));
  const tileOf = new Int32Array(count).fill(-1);
  const pens = new Uint32Array(count);
  let chips = [];
  const picked = new Uint8Array(count);
  let anyPicked = false;

  const tell = (change) => {
    model.set(change);
    model.save_changes();
  };
  const packed = (colour) => {
    const value = parseInt(colour.slice(1), 16);
    return ((255 << 24) | ((value & 255) << 16) | (value & 0xff00) | (value >> 16)) >>> 0;
  };
  const pixelOf = (index) => [(x[index] * view.scale + view.left) * WIDE, (y[index] * view.scale + view.top) * HIGH];

  const showColours = () => {
    const column = model.get("columns")[model.get("colour")];
    colours.querySelector("select").value = model.get("colour");
    const codes = whole16(column.codes);
    const inks = column.colours.map(packed);
    for (let index = 0; index < count; index++) pens[index] = inks[codes[index]];
    view.codes = codes;
    chips = column.names.map((name, code) => {
      const dot = make("i", {});
      dot.style.background = column.colours[code];
      const chip = make("button", { type: "button", "aria-pressed": view.only === code, onclick: () => isolate(code) }, dot, name);
      return chip;
    });
    legend.classList.toggle("maetok-ramp", Boolean(column.ramp));
    legend.replaceChildren(...chips);
    showCounts();
    draw();
  };
  const isolate = (code) => {
    view.only = view.only === code ? null : code;
    chips.forEach((chip, index) => chip.setAttribute("aria-pressed", index === view.only));
    draw();
  };

  // Drawing -----------------------------------------------------------------------------------------

  const pen = dots.getContext("2d");
  const picture = pen.createImageData(dots.width, dots.height);
  const pixels = new Uint32Array(picture.data.buffer);
  const faint = 0x60808080; // grey that lets the page through: it fits light and dark
  const shown = (index) => (view.only === null || view.codes[index] === view.only) && (!anyPicked || picked[index] === 1);

  const draw = () => {
    if (!x) return;
    // dots as squares written straight into the pixels: fifty thousand take a few milliseconds
    pixels.fill(0);
    const wide = dots.width;
    const high = dots.height;
    const visible = [];
    let inView = 0;
    const size = Math.max(2, Math.min(7, Math.sqrt(60000 / count) * Math.sqrt(view.scale))) * ratio;
    const radius = Math.round(size / 2);
    for (const pass of [false, true])
      for (let index = 0; index < count; index++) {
        if (shown(index) !== pass) continue;
        const column = Math.round((x[index] * view.scale + view.left) * wide);
        const row = Math.round((y[index] * view.scale + view.top) * high);
        if (column < radius || row < radius || column >= wide - radius || row >= high - radius) continue;
        inView += 1;
        if (pass) visible.push(index);
        const ink = pass ? pens[index] : faint;
        const hollow = overlay[index];
        const grown = hollow ? radius + Math.ceil(ratio) : radius;
        for (let down = -grown; down <= grown; down++)
          for (let across = -grown; across <= grown; across++) {
            const edge = Math.max(Math.abs(down), Math.abs(across));
            if (hollow ? edge === grown || edge === grown - 1 : across * across + down * down <= radius * (radius + 0.7)) {
              const place = (row + down) * wide + column + across;
              if (place >= 0 && place < pixels.length) pixels[place] = ink;
            }
          }
      }
    pen.putImageData(picture, 0, 0);

    // thumbnails, where there is room for them
    view.tile = 0;
    if (view.sheet && visible.length && inView <= MOST_TILES) {
      view.tile = Math.max(18, Math.min(56, 0.55 * Math.sqrt((WIDE * HIGH) / inView)));
      const side = view.tile * ratio;
      for (const index of visible) {
        if (tileOf[index] < 0) continue;
        const [left, top] = pixelOf(index).map((value) => value * ratio - side / 2);
        pen.drawImage(view.sheet, ...tilePlace(index), left, top, side, side);
        pen.strokeStyle = column32(pens[index]);
        pen.lineWidth = 1.5 * ratio;
        pen.strokeRect(left, top, side, side);
      }
    }
    drawMarks();
  };
  const column32 = (ink) => `rgb(${ink & 255},${(ink >> 8) & 255},${(ink >> 16) & 255})`;
  const tilePlace = (index) => {
    const tile = tileOf[index];
    const { columns, side } = model.get("thumbnails");
    return [(tile % columns) * side, Math.floor(tile / columns) * side, side, side];
  };

  const over = marks.getContext("2d");
  const drawMarks = () => {
    over.setTransform(ratio, 0, 0, ratio, 0, 0);
    over.clearRect(0, 0, WIDE, HIGH);
    const inspected = model.get("inspected");
    const ends = [inspected.previous, inspected.point].filter((point) => point !== null);
    over.strokeStyle = getComputedStyle(el).color;
    over.lineWidth = 2;
    const half = Math.max(8, view.tile / 2 + 3);
    if (ends.length === 2 && model.get("places").straight) {
      over.setLineDash([4, 4]);
      over.beginPath();
      over.moveTo(...pixelOf(ends[0]));
      over.lineTo(...pixelOf(ends[1]));
      over.stroke();
      over.setLineDash([]);
    }
    for (const end of ends) {
      const [left, top] = pixelOf(end);
      over.beginPath();
      over.arc(left, top, half, 0, 7);
      over.stroke();
    }
    if (view.hover !== null) {
      const [left, top] = pixelOf(view.hover);
      over.strokeStyle = "#d55e00";
      over.beginPath();
      over.arc(left, top, half, 0, 7);
      over.stroke();
    }
    if (view.lasso) {
      over.strokeStyle = "#d55e00";
      over.fillStyle = "rgba(213, 94, 0, .12)";
      over.beginPath();
      view.lasso.forEach(([left, top]) => over.lineTo(left, top));
      over.closePath();
      over.fill();
      over.stroke();
    }
  };

  // The pointer -------------------------------------------------------------------------------------

  const at = (event) => {
    const place = board.getBoundingClientRect();
    return [((event.clientX - place.left) / place.width) * WIDE, ((event.clientY - place.top) / place.height) * HIGH];
  };
  const nearest = ([left, top]) => {
    let best = null;
    let shortest = Math.max(12, view.tile * 0.7) ** 2;
    for (let index = 0; index < count; index++) {
      const dx = (x[index] * view.scale + view.left) * WIDE - left;
      const dy = (y[index] * view.scale + view.top) * HIGH - top;
      const far = dx * dx + dy * dy;
      if (far < shortest && shown(index)) [best, shortest] = [index, far];
    }
    return best;
  };
  const hover = (point) => {
    if (point === view.hover) return;
    view.hover = point;
    card.hidden = point === null;
    if (point !== null) {
      const [left, top] = pixelOf(point);
      const place = board.getBoundingClientRect();
      card.style.left = `${(left / WIDE) * place.width + (left > WIDE * 0.7 ? -130 : 14)}px`;
      card.style.top = `${Math.max(0, Math.min(place.height - 142, (top / HIGH) * place.height - 60))}px`;
      cardWords.textContent = nameOf(point);
      cardPicture.hidden = tileOf[point] < 0 || !view.sheet;
      if (!cardPicture.hidden) paintCard(view.sheet, ...tilePlace(point));
      // the picture itself follows, where a kernel has it
      if (!model.stored) tell({ hovered: point });
    }
    drawMarks();
  };
  const paintCard = (sheet, left, top, side) => {
    cardPicture.width = cardPicture.height = side;
    cardPicture.getContext("2d").drawImage(sheet, left, top, side, side, 0, 0, side, side);
  };
  const showNear = async () => {
    const { point, picture: png } = model.get("near");
    const image = await bitmapOf(png);
    if (!image || point !== view.hover) return;
    cardPicture.hidden = false;
    paintCard(image, 0, 0, image.width);
  };
  const nameOf = (point) => {
    const column = model.get("columns")[model.get("colour")];
    return `${point}: ${column.names[view.codes[point]]}`;
  };

  let drag = null;
  board.addEventListener("pointerdown", (event) => {
    marks.focus();
    board.setPointerCapture(event.pointerId);
    const lasso = view.tool === "lasso" || event.shiftKey;
    drag = { from: at(event), left: view.left, top: view.top, moved: false, lasso };
    if (lasso) view.lasso = [drag.from];
    event.preventDefault();
  });
  board.addEventListener("pointermove", (event) => {
    if (!x) return;
    const here = at(event);
    if (!drag) return hover(nearest(here));
    const [dx, dy] = [here[0] - drag.from[0], here[1] - drag.from[1]];
    if (Math.hypot(dx, dy) > 4) drag.moved = true;
    if (drag.lasso) {
      view.lasso.push(here);
      drawMarks();
    } else if (drag.moved) {
      hover(null);
      view.left = drag.left + dx / WIDE;
      view.top = drag.top + dy / HIGH;
      keepInView();
      draw();
    }
  });
  board.addEventListener("pointerup", (event) => {
    if (!drag) return;
    const { moved, lasso } = drag;
    drag = null;
    if (!moved) {
      view.lasso = null;
      const point = nearest(at(event));
      if (point !== null) inspect(point);
      else if (anyPicked) pick([]);
    } else if (lasso) {
      const inside = [];
      anyPicked = false;
      for (let index = 0; index < count; index++)
        if (shown(index) && holds(view.lasso, pixelOf(index))) inside.push(index);
      hover(null);
      view.lasso = null;
      pick(inside);
    }
    drawMarks();
  });
  board.addEventListener("pointerleave", () => !drag && hover(null));
  board.addEventListener("wheel", (event) => {
    event.preventDefault();
    const [left, top] = at(event);
    zoom(event.deltaY < 0 ? 1.25 : 0.8, left / WIDE, top / HIGH);
  }, { passive: false });
  board.addEventListener("dblclick", () => zoomOut());
  marks.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
    if (step) {
      view.left += step[0];
      view.top += step[1];
      keepInView();
      draw();
    } else if (event.key === "Escape") pick([]);
    else if (event.key === "0" || event.key === "Home") zoomOut();
    else if (event.key === "+" || event.key === "=") zoom(1.25, 0.5, 0.5);
    else if (event.key === "-") zoom(0.8, 0.5, 0.5);
    else return;
    event.preventDefault();
  });
  const zoom = (factor, left, top) => {
    const scale = Math.max(1, Math.min(400, view.scale * factor));
    view.left = left - ((left - view.left) * scale) / view.scale;
    view.top = top - ((top - view.top) * scale) / view.scale;
    view.scale = scale;
    keepInView();
    hover(null);
    draw();
  };
  const keepInView = () => {
    for (const side of ["left", "top"]) view[side] = Math.min(0.5, Math.max(0.5 - view.scale, view[side]));
  };
  const zoomOut = () => {
    Object.assign(view, { scale: 1, left: 0, top: 0 });
    draw();
  };
  const useTool = (tool) => {
    view.tool = tool;
    mark(tools, tool);
    board.style.cursor = tool === "lasso" ? "crosshair" : "grab";
  };

  const inspect = (point) => {
    if (model.stored) return;
    number.value = point;
    // a point that was asked for by its number, or as a neighbour, may lie outside
    const [left, top] = pixelOf(point);
    if (left < 0 || top < 0 || left > WIDE || top > HIGH) {
      view.left += (WIDE / 2 - left) / WIDE;
      view.top += (HIGH / 2 - top) / HIGH;
    }
    tell({ point, clicks: model.get("clicks") + 1 });
  };
  const pick = (points) => {
    picked.fill(0);
    for (const point of points) picked[point] = 1;
    anyPicked = points.length > 0;
    view.points = points;
    showCounts();
    draw();
    tell({ lasso: new DataView(new Int32Array(points).buffer) });
  };

  // The right side ----------------------------------------------------------------------------------

  const tileFrom = (sheet, place, side, title) => cut(sheet, place, side, { role: "img", title, "aria-label": title });
  let turn = 0;
  const showInspected = async () => {
    const inspected = model.get("inspected");
    const mine = ++turn;
    const sheet = await bitmapOf(inspected.sheet);
    if (mine !== turn || !sheet) return;
    const side = inspected.side;
    const figure = (place, title) => make("figure", {}, tileFrom(sheet, place, side, title), make("figcaption", {}, title));
    const near = inspected.near.map((name, index) => {
      const label = { type: "button", title: name, "aria-label": name, onclick: () => inspect(inspected.near_points[index]) };
      return make("button", label, tileFrom(sheet, 2 + index, side, name));
    });
    const parts = [
      make("h3", {}, inspected.title),
      make("div", { class: "maetok-two" }, figure(0, "image"), figure(1, "its latent decoded")),
      make("h3", {}, about.near_title),
      make("div", { class: "maetok-row" }, ...near),
    ];
    if (inspected.between) {
      const strip = Array.from({ length: inspected.between }, (_, index) => tileFrom(sheet, 2 + near.length + index, side, `${index + 1} of ${inspected.between}`));
      parts.push(make("h3", {}, `Decoded on the line from ${inspected.previous} to ${inspected.point}`), make("div", { class: "maetok-row" }, ...strip));
    } else if (!model.stored) parts.push(make("p", { class: "maetok-faint" }, about.hint));
    inspector.replaceChildren(...parts);
    draw();
  };
  const showCounts = () => {
    const points = view.points || [];
    const column = model.get("columns")[model.get("colour")];
    const counts = new Map();
    for (const point of points) counts.set(view.codes[point], (counts.get(view.codes[point]) || 0) + 1);
    const sorted = [...counts].sort((one, other) => other[1] - one[1]);
    const rows = sorted.slice(0, 8).map(([code, size]) => {
      const bar = make("i", {});
      bar.style.width = `${(100 * size) / points.length}px`;
      bar.style.background = column.colours[code];
      return make("div", {}, make("span", {}, column.names[code]), make("b", {}, String(size)), bar);
    });
    const others = sorted.slice(8).reduce((sum, [, size]) => sum + size, 0);
    if (others) rows.push(make("div", {}, make("span", {}, `${sorted.length - 8} more`), make("b", {}, String(others))));
    selection.replaceChildren();
    if (!points.length) return;
    const clear = make("button", { type: "button", class: "maetok-button", onclick: () => pick([]) }, "clear");
    view.mean = make("canvas", { width: 1, height: 1, role: "img", "aria-label": "mean image" });
    selection.append(make("h3", {}, `${points.length} points in the lasso, and their mean image `, clear), make("div", { class: "maetok-lassoed" }, make("div", {}, ...rows), view.mean));
  };
  const showMean = async () => {
    const image = await bitmapOf(model.get("mean"));
    if (!image || !view.mean) return;
    view.mean.width = view.mean.height = image.width;
    view.mean.getContext("2d").drawImage(image, 0, 0);
  };

  // Another map: points move from their old places to the new ones.
  const showPlaces = () => {
    const places = model.get("places");
    const [newX, newY] = [shares(places.x), shares(places.y)];
    axis.textContent = places.note;
    methods.querySelector("select").value = model.get("method");
    const [oldX, oldY] = [x, y];
    if (!oldX || window.matchMedia("(prefers-reduced-motion: reduce)").matches) {
      [x, y] = [newX, newY];
      draw();
      return;
    }
    [x, y] = [new Float32Array(oldX), new Float32Array(oldY)];
    const began = performance.now();
    const move = () => {
      const share = Math.min(1, (performance.now() - began) / 900);
      const eased = share * share * (3 - 2 * share);
      for (let index = 0; index < count; index++) {
        x[index] = oldX[index] + eased * (newX[index] - oldX[index]);
        y[index] = oldY[index] + eased * (newY[index] - oldY[index]);
      }
      draw();
      if (share < 1) requestAnimationFrame(move);
    };
    move();
  };
  const showThumbnails = async () => {
    const thumbnails = model.get("thumbnails");
    new Int32Array(numbersOf(thumbnails.points).slice().buffer).forEach((point, tile) => (tileOf[point] = tile));
    view.sheet = await createImageBitmap(new Blob([thumbnails.sheet], { type: "image/webp" }));
    draw();
  };

  model.on("change:places", showPlaces);
  model.on("change:inspected", showInspected);
  model.on("change:mean", showMean);
  model.on("change:near", showNear);
  model.on("change:message", () => (message.textContent = model.get("message")));
  message.textContent = model.get("message");
  useTool("move");
  showPlaces();
  showColours();
  showThumbnails();
  showInspected();
  hearUpdates(model, el);
  return ending(el);
}

// Whether a polygon holds a place: an odd number of its sides lies to the right.
function holds(polygon, [left, top]) {
  let inside = false;
  polygon.forEach(([x1, y1], index) => {
    const [x0, y0] = polygon[(index || polygon.length) - 1];
    if (y0 > top !== y1 > top && left < x0 + ((top - y0) / (y1 - y0)) * (x1 - x0)) inside = !inside;
  });
  return inside;
}

const page = { render: latentMap };
export default page;
