// Samples as tiles with their class under each, and their way from noise: where guidance acts, and the step that is shown.
function samples({ model, el }) {
  const tiles = make("div", { class: "maetok-samples" });
  const way = make("div", {});
  el.classList.add("maetok", "maetok-live");
  el.replaceChildren(way, tiles);

  let turn = 0;
  const showTiles = async () => {
    const { sheet, names, side, columns } = model.get("tiles");
    const mine = ++turn;
    const all = await bitmapOf(sheet);
    if (mine !== turn || !all) return;
    tiles.style.gridTemplateColumns = `repeat(${columns}, minmax(0, ${columns > 4 ? 88 : 144}px))`;
    // the same tiles are painted anew, so that nothing flickers while samples form
    while (tiles.children.length > names.length) tiles.lastChild.remove();
    names.forEach((name, index) => {
      let tile = tiles.children[index];
      if (!tile) tiles.append((tile = make("figure", {}, make("canvas", { role: "img" }), make("figcaption", {}))));
      const [picture, caption] = tile.children;
      if (picture.width !== side) picture.width = picture.height = side;
      picture.setAttribute("aria-label", name);
      picture.getContext("2d").drawImage(all, (index % columns) * side, Math.floor(index / columns) * side, side, side, 0, 0, side, side);
      // "Flags / noto": what comes after the stroke goes to a line of its own
      const [first, ...more] = name.split(" / ");
      caption.title = name;
      caption.replaceChildren(make("div", {}, first), make("div", { class: "maetok-faint" }, more.join(" / ")));
    });
  };

  const showWay = () => {
    const { times, place, low, high, scale } = model.get("way");
    const [width, left, right] = [600, 60, 540];
    const at = (t) => left + (1 - t) * (right - left);
    const svg = shape("svg", { class: "maetok-chart", viewBox: `0 0 ${width} 46`, width, height: 46, role: "img" });
    const guided = scale !== 1 && high > low;
    svg.append(shape("title", {}, guided ? `guided at scale ${scale} for t from ${high} to ${low}` : "not guided"));
    if (guided) {
      svg.append(shape("rect", { class: "maetok-band maetok-guided", x: at(high), y: 6, width: at(low) - at(high), height: 20 }));
      svg.append(shape("text", { x: (at(low) + at(high)) / 2, y: 40, "text-anchor": "middle" }, `guided × ${scale}`));
    }
    svg.append(shape("line", { class: "maetok-rule", x1: left, x2: right, y1: 16, y2: 16 }));
    for (const t of times) svg.append(shape("line", { class: "maetok-step", x1: at(t), x2: at(t), y1: 12, y2: 20 }));
    if (times.length) svg.append(shape("circle", { class: "maetok-ring", cx: at(times[place]), cy: 16, r: 6, style: "stroke:var(--maetok-accent)" }));
    svg.append(shape("text", { x: left - 10, y: 20, "text-anchor": "end" }, "noise"));
    svg.append(shape("text", { x: right + 10, y: 20 }, "sample"));
    svg.style.cursor = "pointer";
    svg.addEventListener("click", (event) => {
      const t = 1 - (unitsAt(event, svg, width) - left) / (right - left);
      const far = times.map((time) => Math.abs(time - t));
      model.set("goto", far.indexOf(Math.min(...far)));
      model.save_changes();
    });
    way.replaceChildren(svg);
  };

  model.on("change:tiles", showTiles);
  model.on("change:way", showWay);
  showTiles();
  showWay();
  hearUpdates(model, el);
  return ending(el);
}

const page = { render: samples };
export default page;
