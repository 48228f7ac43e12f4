// What all our pages share: elements, pictures, a model that hears every update, and what the kernel does.

const HIDDEN_GREY = "rgb(205, 200, 195)"; // of hidden patches; the artwork has no such colour

function make(tag, settings = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(settings)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

// PNG bytes as something a canvas can draw. Without bytes: null.
async function bitmapOf(bytes) {
  if (!bytes || !bytes.byteLength) return null;
  return createImageBitmap(new Blob([bytes], { type: "image/png" }));
}

// One of the pictures that lie side by side on a sheet.
function cut(sheet, place, side, settings = {}) {
  const picture = make("canvas", { width: side, height: side, ...settings });
  picture.getContext("2d").drawImage(sheet, place * side, 0, side, side, 0, 0, side, side);
  return picture;
}

// Buttons of which one is chosen; `mark(buttons, name)` says which.
function choices(label, names, choose) {
  const box = make("div", { class: "maetok-kinds", role: "radiogroup", "aria-label": label });
  for (const name of names) {
    const button = make("button", { type: "button", role: "radio", onclick: () => choose(name) }, name);
    button.dataset.name = name;
    box.append(button);
  }
  return box;
}

function mark(box, name) {
  for (const button of box.children) button.setAttribute("aria-checked", button.dataset.name === name);
}

// The cell of a grid over a box that the pointer is in, numbered row by row; null outside.
function cellAt(event, box, rows, columns) {
  const place = box.getBoundingClientRect();
  const column = Math.floor(((event.clientX - place.left) / place.width) * columns);
  const row = Math.floor(((event.clientY - place.top) / place.height) * rows);
  return row < 0 || column < 0 || row >= rows || column >= columns ? null : row * columns + column;
}

// Where an arrow key takes a cursor on such a grid; null for another key.
function cellAfter(key, cursor, rows, columns) {
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
  if (!(key in moves)) return null;
  const next = cursor + moves[key];
  return next >= 0 && next < rows * columns ? next : cursor;
}

// A file as Python takes it. One over the limit is not read: servers cut connections that send one.
async function sendable(file, limit) {
  const content = file.size <= limit ? await file.arrayBuffer() : new ArrayBuffer(0);
  return { name: file.name, length: file.size, content: new DataView(content) };
}

// Keys are the page's own: JupyterLab would take the arrows, for its headings and to move between cells.
function ownKeys(el) {
  el.dataset.lmSuppressShortcuts = "true";
  el.addEventListener("keydown", (event) => event.stopPropagation());
}

// Bytes arrive as a DataView from the kernel, as a Uint8Array in a still.
function numbersOf(bytes) {
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

// Work that goes on while the page is shown; `ending(el)` is what its render returns.
function every(el, milliseconds, work) {
  el.timers = el.timers || [];
  el.timers.push(setInterval(() => el.isConnected && work(), milliseconds));
}

function ending(el) {
  return () => (el.timers || []).forEach(clearInterval);
}

// anywidget drops every update of a model for good where its script took over two seconds to start, as on
// a busy machine. Its updates are therefore taken from the kernel without it, and whatever was dropped
// before is asked for once more; so too after the connection was lost and made anew.
async function hearUpdates(model, el) {
  const id = model.get("identity");
  if (!model.widget_manager || !id) return;
  const real = await model.widget_manager.get_model(id);
  let waiting = Object.getPrototypeOf(real);
  while (!Object.hasOwn(waiting, "_handle_comm_msg")) waiting = Object.getPrototypeOf(waiting);
  const plain = Object.getPrototypeOf(waiting)._handle_comm_msg.bind(real);
  let heard = null;
  const listen = () => {
    if (!real.comm || !real.comm_live || real.comm === heard) return;
    heard = real.comm;
    heard.on_msg(plain);
    model.send({ kind: "state" });
  };
  listen();
  every(el, 2000, listen);
}

// A line that says when the kernel cannot answer: it is busy with another cell, gone, or was never there.
function kernelLine(model, el) {
  const line = make("span", { class: "maetok-kernel", role: "status" });
  let busySince = null;
  const look = () => {
    const kernel = model.widget_manager ? model.widget_manager.kernel : null;
    const busy = kernel && kernel.status === "busy";
    busySince = busy ? busySince || performance.now() : null;
    let words = "";
    if (!kernel) words = "no kernel: this is the stored state";
    else if (kernel.isDisposed || kernel.status === "dead" || kernel.connectionStatus === "disconnected")
      words = "the kernel is gone: run the cell again to go on";
    else if (busy && performance.now() - busySince > 1500) words = "the kernel is busy: it answers afterwards";
    if (line.textContent !== words) line.textContent = words;
  };
  every(el, 500, look);
  look();
  return line;
}

// The model of a still: what was stored, changed by this page alone.
class StillModel {
  constructor(state) {
    this.stored = true;
    this.state = state;
    this.heard = {};
  }
  get(name) {
    return this.state[name];
  }
  set(name, value) {
    const changes = typeof name === "string" ? { [name]: value } : name;
    for (const [key, now] of Object.entries(changes)) {
      this.state[key] = now;
      for (const listener of this.heard["change:" + key] || []) listener();
    }
  }
  on(name, listener) {
    (this.heard[name] = this.heard[name] || []).push(listener);
  }
  save_changes() {}
  send() {}
}

// Show a stored state in the element of that id: once it is seen, so that stills beside a living view cost nothing.
function showStill(id, text, show) {
  const el = document.getElementById(id);
  const bytes = (value) => Uint8Array.from(atob(value), (letter) => letter.charCodeAt(0));
  const revive = (_, value) => (value && value.base64 !== undefined ? bytes(value.base64) : value);
  // where a kernel may be, the living view comes a little later than this; its style hides the still
  const patience = document.querySelector(".jp-LabShell") ? 3000 : 0;
  const watch = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    setTimeout(() => {
      if (el.offsetParent === null || el.classList.contains("maetok")) return;
      watch.disconnect();
      el.replaceChildren();
      show({ model: new StillModel(JSON.parse(text, revive)), el });
    }, patience);
  });
  watch.observe(el);
}
