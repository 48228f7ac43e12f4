// A picture under a grid of cells. "brush": press and drag to hide cells or show them again; "pick": click to choose cells.
// Keys: arrows move a cursor, space or enter acts on its cell. Python sets the picture; the marks are drawn here, at once.
function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "maetok-grid";
  box.tabIndex = 0;
  box.setAttribute("role", "application");
  box.style.cssText = "position:relative;touch-action:none;cursor:crosshair;background:var(--jp-layout-color2, #eee)";
  const picture = document.createElement("img");
  const marks = document.createElement("canvas");
  const said = document.createElement("span");
  said.setAttribute("aria-live", "polite");
  said.style.cssText = "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)";
  for (const part of [picture, marks]) part.style.cssText = "position:absolute;left:0;top:0;width:100%;height:100%";
  picture.style.imageRendering = "pixelated";
  picture.draggable = false;
  picture.alt = "";
  box.append(picture, marks, said);
  el.append(box);
  el.classList.add("maetok-live");
  ownKeys(el);
  let cursor = 0, painting = null, address = null;

  const rows = () => model.get("rows"), columns = () => model.get("columns");
  const shape = () => {
    const size = model.get("size"), cell = size / Math.max(rows(), columns());
    box.style.width = `min(100%, ${cell * columns()}px)`;
    box.style.aspectRatio = `${columns()} / ${rows()}`;
    box.setAttribute("aria-label", model.get("label"));
    marks.width = Math.round(cell * columns());
    marks.height = Math.round(cell * rows());
    draw();
  };
  const outline = (pen, index, colour, width) => {
    const w = marks.width / columns(), h = marks.height / rows();
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.strokeRect((index % columns()) * w + width / 2, Math.floor(index / columns()) * h + width / 2, w - width, h - width);
  };
  const draw = () => {
    const pen = marks.getContext("2d"), w = marks.width / columns(), h = marks.height / rows();
    pen.clearRect(0, 0, marks.width, marks.height);
    for (const index of model.get("hidden")) {
      const x = (index % columns()) * w, y = Math.floor(index / columns()) * h;
      pen.fillStyle = HIDDEN_GREY;
      pen.fillRect(x, y, w, h);
      pen.strokeStyle = "rgba(90,90,90,.55)";
      pen.lineWidth = 1;
      pen.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
    }
    for (const index of model.get("selection")) outline(pen, index, "#D55E00", 3);
    if (document.activeElement === box) outline(pen, cursor, "#0072B2", 2);
  };
  const show = () => {
    const bytes = model.get("picture");
    if (!bytes || !bytes.byteLength) return;
    const old = address;
    address = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    picture.onload = () => old && URL.revokeObjectURL(old);
    picture.src = address;
  };
  const act = (index) => {
    cursor = index;
    const name = model.get("mode") === "brush" ? "hidden" : "selection";
    const now = new Set(model.get(name));
    if (painting === null) painting = !now.has(index);
    if (now.has(index) !== painting) {
      painting ? now.add(index) : now.delete(index);
      model.set(name, [...now].sort((a, b) => a - b));
      if (name === "selection") model.set("last", index);
      model.save_changes();
      const word = name === "hidden" ? "hidden" : "chosen";
      said.textContent = `row ${Math.floor(index / columns()) + 1}, column ${(index % columns()) + 1}: ${painting ? word : "not " + word}`;
    }
    draw();
  };
  const at = (event) => cellAt(event, box, rows(), columns());
  box.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    box.focus();
    painting = null;
    const index = at(event);
    if (index === null) return;
    act(index);
    if (model.get("mode") === "brush") box.setPointerCapture(event.pointerId);
    else painting = null;
  });
  box.addEventListener("pointermove", (event) => {
    if (painting === null || !(event.buttons & 1)) return;
    const index = at(event);
    if (index !== null) act(index);
  });
  box.addEventListener("pointerup", () => (painting = null));
  box.addEventListener("pointercancel", () => (painting = null));
  box.addEventListener("keydown", (event) => {
    const next = cellAfter(event.key, cursor, rows(), columns());
    if (next !== null) {
      cursor = next;
      said.textContent = `row ${Math.floor(cursor / columns()) + 1}, column ${(cursor % columns()) + 1}`;
      draw();
    } else if (event.key === " " || event.key === "Enter") {
      painting = null;
      act(cursor);
      painting = null;
    } else return;
    event.preventDefault();
  });
  box.addEventListener("focus", draw);
  box.addEventListener("blur", draw);
  model.on("change:picture", show);
  for (const name of ["hidden", "selection"]) model.on(`change:${name}`, draw);
  for (const name of ["rows", "columns", "size", "label"]) model.on(`change:${name}`, shape);
  shape();
  show();
  hearUpdates(model, el);
  const end = ending(el);
  return () => {
    end();
    if (address) URL.revokeObjectURL(address);
  };
}
const page = { render };
export default page;
