// Hide part of a picture and watch a masked and a plain tokenizer cope, side by side.
// `study` holds all ratios of the chosen picture, so that the slider needs no kernel; a brushed mask is answered by it.

const BY_HAND = "by hand"; // what a brush chooses
const TILES = ["original", "seen", "masked", "plain"];

function maskDemo({ model, el }) {
  const about = model.get("about");
  const [down, across] = about.grid;
  const size = about.image_size;
  const cell = size / down;
  const view = { tiles: {}, sheet: null, original: null, token: null, patch: null, cursor: 0 };

  // Parts -------------------------------------------------------------------------------------------

  const title = make("h2", {}, about.title);
  const head = make("header", {}, title, kernelLine(model, el));
  const thumbnails = make("div", { class: "maetok-thumbnails", role: "radiogroup", "aria-label": "picture" });
  const own = ownPicture(model);
  const pick = make("div", { class: "maetok-pick" }, thumbnails, own);

  const slider = make("input", { type: "range", min: 0, max: about.ratios - 1, step: 1, "aria-label": "share of the picture that is hidden" });
  const band = make("div", { class: "maetok-trained" }, make("span", {}, `trained with ${Math.round(100 * about.band[0])}–${percent(about.band[1])} hidden`));
  const share = (part) => `calc(11px + ${part} * (100% - 22px))`;
  band.style.left = share(about.band[0]);
  band.style.width = `calc(${about.band[1] - about.band[0]} * (100% - 22px))`;
  const play = make("button", { type: "button", "aria-label": "play", onclick: () => togglePlay() }, "▶");
  const value = make("output", {});
  const slide = make("div", { class: "maetok-slide" }, play, make("div", { class: "maetok-track" }, band, slider), value);

  const kinds = choices("what is hidden", [...about.kinds, BY_HAND], (kind) => choose({ kind }));
  const byHand = kinds.lastChild;
  const hint = make("span", { class: "maetok-faint" }, "drag over the second picture to hide or show patches by hand");
  const ways = make("div", { class: "maetok-ways" }, make("span", {}, "Hide"), kinds, hint);

  const tiles = make("div", { class: "maetok-tiles" });
  for (const name of TILES) {
    const picture = make("canvas", { width: size, height: size, role: "img" });
    const marks = make("canvas", { width: 512, height: 512, class: "maetok-marks" });
    const stack = make("div", { class: "maetok-stack" }, picture, marks);
    const score = make("b", {});
    const name_ = make("span", {}, about.tiles[name][0]);
    const caption = make("figcaption", {}, make("div", {}, name_, score), make("small", {}, about.tiles[name][1]));
    tiles.append(make("figure", { class: `maetok-${name}`, title: about.tiles[name][2] || "" }, stack, caption));
    view.tiles[name] = { picture, marks, stack, score, caption };
  }
  const words = make("p", { class: "maetok-words", "aria-live": "polite" });

  const chart = make("div", {});
  const tokens = make("div", { class: "maetok-tokens", role: "group", "aria-label": "latent tokens" });
  tokens.style.gridTemplateColumns = `repeat(${about.token_grid[1]}, 1fr)`;
  view.tokens = [];
  for (let index = 0; index < about.tokens; index++) {
    const picture = make("canvas", { width: size, height: size, role: "img", tabindex: 0, "aria-label": `latent token ${index}` });
    for (const event of ["pointerenter", "focus"]) picture.addEventListener(event, () => point({ token: index }));
    for (const event of ["pointerleave", "blur"]) picture.addEventListener(event, () => point({}));
    view.tokens.push(picture);
    tokens.append(picture);
  }
  const right = make("div", {}, make("h3", {}, about.tokens_title), tokens);
  const lower = make("div", { class: "maetok-lower" }, make("div", {}, make("h3", {}, about.chart_title), chart), right);
  const deeper = lookDeeper(model, about);
  if (model.stored) el.classList.add("maetok-stored");
  el.classList.add("maetok", "maetok-demo");
  ownKeys(el);
  el.replaceChildren(head, pick, slide, ways, tiles, words, lower, deeper);

  // State -------------------------------------------------------------------------------------------

  // The mask and what both tokenizers made of it: by the slider's place, or the answer to a brushed one.
  const mask = () => {
    const brushed = model.get("brushed");
    if (brushed.length) return [...brushed];
    const study = model.get("study");
    const masks = numbersOf(study.masks);
    const step = Math.min(model.get("step"), about.ratios - 1);
    return Array.from(masks.subarray(step * down * across, (step + 1) * down * across));
  };
  const scores = () => {
    if (!model.get("brushed").length) return model.get("study").psnr.map((row) => row[model.get("step")]);
    const answer = model.get("answer");
    return answer.psnr || [NaN, NaN];
  };

  const choose = (change) => {
    model.set({ choice: { ...model.get("choice"), ...change }, brushed: [] });
    model.save_changes();
  };

  let timer = null;
  const togglePlay = () => {
    if (timer) {
      clearInterval(timer);
      timer = null;
    } else {
      let step = model.get("step");
      let forward = step < about.ratios - 1;
      timer = setInterval(() => {
        if (!el.isConnected) togglePlay();
        step += forward ? 1 : -1;
        if (step <= 0 || step >= about.ratios - 1) forward = !forward;
        moveTo(step);
      }, 110);
    }
    play.textContent = timer ? "❚❚" : "▶";
    play.setAttribute("aria-label", timer ? "pause" : "play");
  };
  const moveTo = (step) => {
    model.set({ step, brushed: [] });
    model.save_changes();
  };
  slider.addEventListener("input", () => moveTo(Number(slider.value)));

  // Hide by hand: on the picture that the tokenizers see, with a pointer or with the keyboard.
  const board = view.tiles.seen.stack;
  board.tabIndex = 0;
  board.setAttribute("role", "application");
  board.setAttribute("aria-label", "brush: drag to hide patches or show them again; arrows move, space hides");
  let hiding = null;
  const brush = (patch) => {
    const now = mask();
    if (hiding === null) hiding = !now[patch];
    if (Boolean(now[patch]) === hiding) return;
    now[patch] = hiding ? 1 : 0;
    model.set("brushed", now);
    model.save_changes();
  };
  board.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    board.focus();
    hiding = null;
    const patch = cellAt(event, board, down, across);
    if (patch === null || model.stored) return;
    brush(patch);
    board.setPointerCapture(event.pointerId);
  });
  board.addEventListener("pointermove", (event) => {
    const patch = cellAt(event, board, down, across);
    if (hiding !== null && event.buttons & 1 && patch !== null) brush(patch);
  });
  for (const end of ["pointerup", "pointercancel"]) board.addEventListener(end, () => (hiding = null));
  board.addEventListener("keydown", (event) => {
    const next = cellAfter(event.key, view.cursor, down, across);
    if (next !== null) {
      view.cursor = next;
      point({ patch: view.cursor });
    } else if (!model.stored && (event.key === " " || event.key === "Enter")) {
      hiding = null;
      brush(view.cursor);
      hiding = null;
    } else return;
    event.preventDefault();
  });
  for (const { stack } of Object.values(view.tiles)) {
    stack.addEventListener("pointermove", (event) => hiding === null && point({ patch: cellAt(event, stack, down, across) }));
    stack.addEventListener("pointerleave", () => point({}));
  }

  // Pictures ----------------------------------------------------------------------------------------

  const show = () => {
    const study = model.get("study");
    const now = mask();
    const brushed = model.get("brushed").length > 0;
    const count = now.filter(Boolean).length;
    const hidden = count / now.length;
    const psnr = scores();
    slider.value = model.get("step");
    value.textContent = `${percent(hidden)} hidden`;
    slider.setAttribute("aria-valuetext", value.textContent);

    // pictures: the original, the same under its mask, and what came out
    if (!view.sheet) return;
    const draw = (name, image, x, y) => {
      const pen = view.tiles[name].picture.getContext("2d");
      pen.clearRect(0, 0, size, size);
      pen.drawImage(image, x, y, size, size, 0, 0, size, size);
      return pen;
    };
    draw("original", view.original, 0, 0);
    const pen = draw("seen", view.original, 0, 0);
    pen.fillStyle = HIDDEN_GREY;
    now.forEach((hide, patch) => hide && pen.fillRect((patch % across) * cell, Math.floor(patch / across) * cell, cell, cell));
    if (!brushed) {
      draw("masked", view.sheet, model.get("step") * size, 0);
      draw("plain", view.sheet, model.get("step") * size, size);
    } else if (view.answer) {
      draw("masked", view.answer, 0, 0);
      draw("plain", view.answer, size, 0);
    }

    // numbers: the better one in bold, then all of them as a sentence
    const names = ["masked", "plain"];
    names.forEach((name, index) => {
      const { score, caption } = view.tiles[name];
      score.textContent = Number.isFinite(psnr[index]) ? `${psnr[index].toFixed(1)} dB` : "…";
      caption.classList.toggle("maetok-better", psnr[index] > psnr[1 - index]);
    });
    view.tiles.seen.score.textContent = `${percent(hidden)} hidden`;
    words.textContent = sentence(hidden, psnr, study.psnr.map((row) => row[0]));
    const points = names.map((name, index) => ({ x: hidden, y: psnr[index], colour: `var(--maetok-${name})` }));
    const lines = names.map((name, index) => ({ name: about.tiles[name][0], colour: `var(--maetok-${name})`, x: study.hidden, y: study.psnr[index] }));
    drawChart(chart, {
      width: 520, height: 212, lines, points,
      x: { label: "share of the picture hidden", range: [0, 1], percent: true },
      y: { label: "PSNR, dB", unit: " dB" },
      bands: [{ from: about.band[0], to: about.band[1], name: "trained here" }],
      pick: (share) => moveTo(Math.max(0, Math.min(about.ratios - 1, Math.round(share * (about.ratios - 1))))),
    });
    if (deeper.open) deeper.ask();
  };

  // A token glows where it draws, a patch lights up the tokens that draw there.
  const point = ({ token = null, patch = null }) => {
    if (view.token === token && view.patch === patch) return;
    Object.assign(view, { token, patch });
    const footprint = numbersOf(model.get("study").footprint);
    const patches = down * across;
    const strongest = patch === null ? 0 : Math.max(...view.tokens.map((_, index) => footprint[index * patches + patch]));
    view.tokens.forEach((picture, index) => {
      const part = patch === null ? 1 : footprint[index * patches + patch] / Math.max(strongest, 1);
      picture.classList.toggle("maetok-dim", patch !== null && part < 0.4);
      picture.classList.toggle("maetok-lit", (patch !== null && part >= 0.4) || index === token);
    });
    for (const [name, { marks }] of Object.entries(view.tiles)) {
      const pen = marks.getContext("2d");
      const [w, h] = [marks.width / across, marks.height / down];
      pen.clearRect(0, 0, marks.width, marks.height);
      if (patch !== null) {
        // black within white: seen on every picture, and no model's colour
        for (const [colour, width] of [["#fff", 7], ["#111", 4]]) {
          pen.strokeStyle = colour;
          pen.lineWidth = width;
          pen.strokeRect((patch % across) * w + 4, Math.floor(patch / across) * h + 4, w - 8, h - 8);
        }
      }
      if (token === null || name === "plain" || name === "seen") continue;
      // all but the token's places sinks into the page
      for (let index = 0; index < patches; index++) {
        const part = footprint[token * patches + index] / 255;
        pen.fillStyle = part > 0.25 ? hue(token, about.tokens, 0.45 * part) : "rgba(128,128,128,.6)";
        pen.fillRect((index % across) * w, Math.floor(index / across) * h, w, h);
      }
    }
  };

  const showTokens = () => {
    const footprint = numbersOf(model.get("study").footprint);
    view.tokens.forEach((picture, token) => {
      const pen = picture.getContext("2d");
      pen.clearRect(0, 0, size, size);
      pen.globalAlpha = 0.25;
      pen.drawImage(view.original, 0, 0);
      pen.globalAlpha = 1;
      for (let patch = 0; patch < down * across; patch++) {
        pen.fillStyle = hue(token, about.tokens, footprint[token * down * across + patch] / 255);
        pen.fillRect((patch % across) * cell, Math.floor(patch / across) * cell, cell, cell);
      }
    });
  };

  // A stored page has one picture, in one order of hiding: the slider alone goes on.
  const showChoice = () => {
    const brushed = model.get("brushed").length > 0;
    el.classList.toggle("maetok-byhand", brushed);
    for (const button of [...thumbnails.children, ...kinds.children]) button.disabled = model.stored || button === byHand;
    const choice = model.get("choice");
    const buttons = [...thumbnails.children];
    buttons.forEach((button, index) => button.setAttribute("aria-checked", index === choice.picture));
    own.classList.toggle("maetok-chosen", choice.picture < 0);
    mark(kinds, brushed ? BY_HAND : choice.kind);
  };

  // Bitmaps take a moment to decode: only the newest of them are shown, all of one study at once.
  let turn = 0;
  const showStudy = async () => {
    const study = model.get("study");
    const mine = ++turn;
    const [original, sheet] = await Promise.all([bitmapOf(study.original), bitmapOf(study.sheet)]);
    if (mine !== turn) return;
    Object.assign(view, { original, sheet });
    showTokens();
    show();
  };
  const showAnswer = async () => {
    const answer = model.get("answer");
    const pictures = await bitmapOf(answer.pictures);
    // an answer to a mask that has changed since comes too late
    if (!pictures || answer.mask.join() !== model.get("brushed").join()) return;
    view.answer = pictures;
    show();
  };
  const showThumbnails = async () => {
    const strip = await bitmapOf(model.get("thumbnails"));
    const names = model.get("names");
    const buttons = names.map((name, index) => {
      const settings = { type: "button", role: "radio", title: name, "aria-label": name, onclick: () => choose({ picture: index }) };
      return make("button", settings, cut(strip, index, size));
    });
    thumbnails.replaceChildren(...buttons);
    showChoice();
  };
  model.on("change:study", showStudy);
  model.on("change:answer", showAnswer);
  model.on("change:step", show);
  model.on("change:brushed", show);
  for (const name of ["choice", "brushed"]) model.on(`change:${name}`, showChoice);
  model.on("change:thumbnails", showThumbnails);
  showThumbnails();
  showStudy();
  showAnswer();
  hearUpdates(model, el);
  return ending(el);
}

const percent = (share) => `${Math.round(100 * share)} %`;
const hue = (token, count, alpha) => `hsla(${Math.round((360 * token) / count)}, 85%, 48%, ${alpha})`;

// What the numbers say, in words.
function sentence(hidden, psnr, whole) {
  if (!psnr.every(Number.isFinite)) return "…";
  const lost = psnr.map((score, index) => (whole[index] - score).toFixed(1));
  if (hidden === 0) {
    const [better, by] = psnr[0] > psnr[1] ? ["masked tokenizer", psnr[0] - psnr[1]] : ["plain autoencoder", psnr[1] - psnr[0]];
    return `Nothing hidden: the ${better} is ${by.toFixed(1)} dB sharper. Now hide something.`;
  }
  const ahead = psnr[0] - psnr[1];
  const better = ahead > 0 ? "the masked tokenizer" : "the plain autoencoder";
  const losses = `Hiding cost the masked one ${lost[0]} dB, the plain one ${lost[1]}.`;
  return `${percent(hidden)} hidden: ${better} is ${Math.abs(ahead).toFixed(1)} dB better. ${losses}`;
}

// A picture of one's own: chosen, dropped or pasted.
function ownPicture(model) {
  const input = make("input", { type: "file", accept: "image/*" });
  const message = make("span", { role: "status", class: "maetok-faint" });
  const box = make("label", { class: "maetok-own", tabindex: 0 }, make("b", {}, "+ your own"), make("span", {}, "choose, drop or paste"), input);
  const send = async (file) => {
    if (!file) return;
    const sent = await sendable(file, model.get("about").upload_limit);
    model.set({ upload: { ...sent, serial: model.get("upload").serial + 1 }, brushed: [] });
    model.save_changes();
  };
  input.addEventListener("change", () => {
    send(input.files[0]);
    input.value = "";
  });
  box.addEventListener("dragover", (event) => event.preventDefault());
  box.addEventListener("drop", (event) => {
    event.preventDefault();
    send(event.dataTransfer.files[0]);
  });
  // wherever on the page it is pasted, but for a cell that is being written in
  const paste = (event) => {
    if (!box.isConnected) document.removeEventListener("paste", paste);
    else if (event.clipboardData.files.length && !event.target.closest("[contenteditable=true], textarea")) send(event.clipboardData.files[0]);
  };
  document.addEventListener("paste", paste);
  model.on("change:message", () => (message.textContent = model.get("message")));
  message.textContent = model.get("message");
  return make("div", { class: "maetok-owner" }, box, message);
}

// The closed part: what the auxiliary decoders say at this mask. It is asked for while it is open.
function lookDeeper(model, about) {
  const pictures = make("div", { class: "maetok-deep" });
  const box = make("details", { class: "maetok-deeper" }, make("summary", {}, about.deeper_title), pictures);
  box.ask = () => {
    model.set("question", { open: box.open, step: model.get("step"), brushed: model.get("brushed") });
    model.save_changes();
  };
  box.addEventListener("toggle", () => {
    box.ask();
    if (box.open) setTimeout(() => box.scrollIntoView({ behavior: "smooth", block: "end" }), 400);
  });
  const show = async () => {
    const { titles, side, strip } = model.get("deeper");
    const all = await bitmapOf(strip);
    if (!all) return;
    const figures = titles.map((title, index) => {
      const picture = cut(all, index, side, { role: "img", "aria-label": title });
      return make("figure", {}, picture, make("figcaption", {}, title));
    });
    pictures.replaceChildren(...figures);
  };
  model.on("change:deeper", show);
  show();
  return box;
}

const page = { render: maskDemo };
export default page;
