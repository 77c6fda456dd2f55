"use strict";
(async () => {
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const viewer = document.getElementById("viewer"), panels = document.getElementById("panels");
  const field = id => document.getElementById(id);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const FULL = 0, LOW = 1;  // panels that every slice has, in this order
  const MODES = ["image", "difference", "removed"];

  // ---- state ----
  const at = { case: 0, slice: 0, centre: data.windows[0][1], width: data.windows[0][2], mode: "image", body: false,
               layout: "all", first: Math.min(2, data.methods.length - 1), second: FULL, front: 0, playing: false,
               zoom: 1, x: 0.5, y: 0.5, aspect: 1, pixel: null };
  const slices = () => data.cases[at.case].slices;
  const slice = () => slices()[at.slice];
  const resetView = () => Object.assign(at, slice().view);

  // ---- pixels: see pack() and pack_bits() in ldct/reports/viewer.py ----
  const unpack = async text => {
    const packed = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const readHu = (bytes, width) => {
    const count = bytes.length / 2, hu = new Int16Array(count);
    for (let i = 0, value = 0; i < count; i++) {
      if (i % width === 0) value = 0;
      const step = bytes[i] | bytes[count + i] << 8;
      hu[i] = value = (value + ((step >>> 1) ^ -(step & 1))) << 16 >> 16;
    }
    return hu;
  };
  const cache = new Map();
  const pixels = slice => {
    if (!cache.has(slice)) {
      const images = slice.panels.map(async text => readHu(await unpack(text), slice.width));
      const body = unpack(slice.body).then(bytes => i => bytes[i >> 3] >> (7 - (i & 7)) & 1);
      cache.set(slice, Promise.all([Promise.all(images), body]));
    }
    return cache.get(slice);
  };

  // ---- what is shown ----
  const visible = () => at.layout === "all" ? data.methods.map((_, i) => i) : [at.front ? at.second : at.first];
  const part = slice => {  // of the slice, the same for all panels
    const w = slice.width / at.zoom, h = Math.min(w * at.aspect, slice.height);
    const x = clamp(at.x * slice.width - w / 2, 0, slice.width - w), y = clamp(at.y * slice.height - h / 2, 0, slice.height - h);
    at.x = (x + w / 2) / slice.width; at.y = (y + h / 2) / slice.height;
    return { x, y, w, h };
  };
  const value = (images, method, i) => at.mode === "image" ? images[method][i]
    : at.mode === "difference" ? images[method][i] - images[FULL][i] : images[LOW][i] - images[method][i];
  const caption = (images, body, method) => {
    if (at.pixel !== null) return `${value(images, method, at.pixel)} HU`;
    if (!at.body || method === FULL) return slice().notes[method];
    let sum = 0, count = 0;
    for (let i = 0; i < images[FULL].length; i++) if (body(i)) { sum += (images[method][i] - images[FULL][i]) ** 2; count++; }
    return count ? `RMSE in the body ${Math.sqrt(sum / count).toFixed(2)} HU` : "no body";
  };
  const figures = new Map();
  const figureOf = method => {
    if (!figures.has(method)) {
      const figure = document.createElement("figure");
      figure.innerHTML = '<canvas role="img"></canvas><figcaption><b></b><span></span></figcaption>';
      listen(figure.querySelector("canvas"));
      figures.set(method, figure);
    }
    return figures.get(method);
  };
  const hidden = document.createElement("canvas");
  const paint = async () => {
    const current = slice(), [images, body] = await pixels(current);
    if (current !== slice()) return;  // another slice was asked for meanwhile
    const shown = visible(), view = part(current), plain = at.mode === "image";
    const range = plain ? at.width : at.width / 2, low = plain ? at.centre - range / 2 : -range / 2;
    panels.classList.toggle("single", at.layout !== "all");
    panels.style.setProperty("--columns", shown.length <= 4 ? shown.length : shown.length <= 6 ? 3 : 4);
    panels.replaceChildren(...shown.map(figureOf));
    hidden.width = current.width; hidden.height = current.height;
    const ground = hidden.getContext("2d"), picture = ground.createImageData(current.width, current.height);
    const words = new Uint32Array(picture.data.buffer);
    for (const method of shown) {
      for (let i = 0; i < words.length; i++) {
        let grey = clamp(Math.round(255 * (value(images, method, i) - low) / range), 0, 255);
        if (at.body && !body(i)) grey >>= 3;
        words[i] = 0xff000000 | grey << 16 | grey << 8 | grey;
      }
      ground.putImageData(picture, 0, 0);
      const figure = figureOf(method), canvas = figure.querySelector("canvas"), context = canvas.getContext("2d");
      canvas.width = at.layout === "all" ? 768 : 1536;
      canvas.height = Math.round(canvas.width * view.h / view.w);
      context.imageSmoothingQuality = "high";
      context.drawImage(hidden, view.x, view.y, view.w, view.h, 0, 0, canvas.width, canvas.height);
      if (at.pixel !== null) mark(context, view, current.width);
      const name = data.methods[method], note = caption(images, body, method);
      figure.querySelector("b").textContent = name;
      figure.querySelector("span").textContent = note;
      canvas.setAttribute("aria-label", `${name}, slice ${current.key}, ${modeText()}, ${note}`);
    }
    tell(current);
  };
  const mark = (context, view, width) => {
    const scale = context.canvas.width / view.w, x = (at.pixel % width + 0.5 - view.x) * scale, y = (Math.floor(at.pixel / width) + 0.5 - view.y) * scale;
    context.strokeStyle = "#ffd24a"; context.lineWidth = context.canvas.width / 384;
    context.beginPath();
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) { context.moveTo(x + 8 * dx, y + 8 * dy); context.lineTo(x + 24 * dx, y + 24 * dy); }
    context.stroke();
  };
  const modeText = () => at.mode === "image" ? `window C${at.centre} W${at.width}`
    : at.mode === "difference" ? `difference to the full dose, ±${at.width / 4} HU` : `what was removed from the low dose, ±${at.width / 4} HU`;
  const press = (set, now) => [...field(set).children].forEach((button, i) => button.setAttribute("aria-pressed", i === now));
  const tell = current => {
    field("case").value = at.case;
    field("slice").max = slices().length - 1; field("slice").value = at.slice;
    field("slice").setAttribute("aria-valuetext", current.key);
    field("slice-name").textContent = `${current.key} (${current.number} of ${data.of})`;
    field("centre").value = at.centre; field("width").value = at.width; field("zoom").value = at.zoom;
    field("body").checked = at.body; field("first").value = at.first; field("second").value = at.second;
    field("pair").hidden = at.layout === "all";
    field("play").setAttribute("aria-pressed", at.playing);
    press("window-set", data.windows.findIndex(([, c, w]) => c === at.centre && w === at.width));
    press("mode-set", MODES.indexOf(at.mode)); press("layout-set", at.layout === "all" ? 0 : 1);
    field("shown").textContent = `${current.key}: ${modeText()}` + (at.layout === "all" ? "" : `; ${data.methods[visible()[0]]}`);
    viewer.dataset.ready = [at.case, at.slice, at.centre, at.width, at.mode, at.zoom.toFixed(2), at.layout, at.front, at.body].join(" ");
  };
  let waiting = false;
  const repaint = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; paint(); }); } };
  const change = values => { Object.assign(at, values); repaint(); };

  // ---- what a person does ----
  const go = (number, which = at.case) => {
    const other = which !== at.case;
    Object.assign(at, { case: which, slice: clamp(number, 0, data.cases[which].slices.length - 1), pixel: null });
    if (other) resetView();
    repaint();
  };
  const step = by => { const before = at.slice; go(at.slice + by); return at.slice !== before; };
  const zoomBy = factor => change({ zoom: clamp(at.zoom * factor, 1, 8) });
  const windowTo = (centre, width) => change({ centre: clamp(Math.round(centre), -1024, 3071), width: clamp(Math.round(width), 1, 4096) });
  const moveBy = (dx, dy) => change({ x: at.x + dx / at.zoom, y: at.y + dy / at.zoom });
  const swap = () => change({ front: 1 - at.front });
  let timer = 0;
  const play = on => {
    clearInterval(timer);
    at.playing = on && at.layout !== "all";
    if (at.playing) timer = setInterval(swap, 600);
    repaint();
  };
  const layout = name => { at.layout = name; play(false); };

  const listen = canvas => {
    const pixel = event => {
      const current = slice(), view = part(current), box = canvas.getBoundingClientRect();
      const x = Math.floor(view.x + view.w * (event.clientX - box.left) / box.width), y = Math.floor(view.y + view.h * (event.clientY - box.top) / box.height);
      return x >= 0 && y >= 0 && x < current.width && y < current.height ? y * current.width + x : null;
    };
    canvas.addEventListener("pointerdown", event => { canvas.setPointerCapture(event.pointerId); viewer.focus({ preventScroll: true }); });
    canvas.addEventListener("pointermove", event => {
      const box = canvas.getBoundingClientRect();
      if (event.buttons && (event.shiftKey || event.buttons & 6)) {
        moveBy(-event.movementX / box.width, -event.movementY * at.aspect * slice().width / slice().height / box.height);
      } else if (event.buttons) {  // up is brighter and right is flatter, as on a reading station
        const speed = Math.max(1, at.width / 400);
        windowTo(at.centre + speed * event.movementY, at.width + speed * event.movementX);
      }
      at.pixel = event.buttons ? null : pixel(event); repaint();
    });
    canvas.addEventListener("pointerleave", () => change({ pixel: null }));
    canvas.addEventListener("contextmenu", event => event.preventDefault());
    canvas.addEventListener("wheel", event => {
      if (event.ctrlKey || event.metaKey) { event.preventDefault(); zoomBy(event.deltaY < 0 ? 1.25 : 0.8); }
      else if (step(Math.sign(event.deltaY))) event.preventDefault();  // at the ends the page scrolls on
    }, { passive: false });
    canvas.addEventListener("dblclick", () => { resetView(); repaint(); });
  };
  const KEYS = {
    ArrowDown: () => step(1), ArrowUp: () => step(-1), ArrowRight: () => step(1), ArrowLeft: () => step(-1),
    PageDown: () => step(10), PageUp: () => step(-10), Home: () => go(0), End: () => go(1e9),
    n: () => go(0, (at.case + 1) % data.cases.length), p: () => go(0, (at.case + data.cases.length - 1) % data.cases.length),
    "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(0.8), 0: () => { resetView(); repaint(); },
    "[": () => windowTo(at.centre, at.width / 1.1), "]": () => windowTo(at.centre, at.width * 1.1),
    ",": () => windowTo(at.centre - at.width / 40, at.width), ".": () => windowTo(at.centre + at.width / 40, at.width),
    m: () => change({ mode: MODES[(MODES.indexOf(at.mode) + 1) % MODES.length] }), b: () => change({ body: !at.body }),
    f: () => layout(at.layout === "all" ? "two" : "all"), " ": () => at.layout === "all" || swap(), Enter: () => play(!at.playing),
  };
  const MOVES = { ArrowDown: [0, 0.05], ArrowUp: [0, -0.05], ArrowRight: [0.05, 0], ArrowLeft: [-0.05, 0] };
  viewer.addEventListener("keydown", event => {
    if (event.target !== viewer || event.ctrlKey || event.metaKey || event.altKey) return;  // fields and buttons have keys of their own
    const preset = data.windows[Number(event.key) - 1];
    if (event.shiftKey && MOVES[event.key]) moveBy(...MOVES[event.key]);
    else if (preset) windowTo(preset[1], preset[2]);
    else if (KEYS[event.key]) KEYS[event.key]();
    else return;
    event.preventDefault();
  });

  const buttons = (id, names, pick) => names.forEach((name, i) => {
    const button = document.createElement("button");
    button.textContent = name;
    button.addEventListener("click", () => pick(i));
    field(id).append(button);
  });
  const options = (id, names, pick) => {
    names.forEach((name, i) => field(id).append(new Option(name, i)));
    field(id).addEventListener("change", () => pick(Number(field(id).value)));
  };
  options("case", data.cases.map(c => c.name), i => go(0, i));
  field("slice").addEventListener("input", () => go(Number(field("slice").value)));
  buttons("window-set", data.windows.map(([name]) => name), i => windowTo(data.windows[i][1], data.windows[i][2]));
  for (const id of ["centre", "width"]) field(id).addEventListener("change", () => windowTo(Number(field("centre").value), Number(field("width").value)));
  buttons("mode-set", ["Image", "Difference", "Removed"], i => change({ mode: MODES[i] }));
  buttons("layout-set", ["All", "Two in turn"], i => layout(["all", "two"][i]));
  options("first", data.methods, i => change({ first: i, front: 0 }));
  options("second", data.methods, i => change({ second: i, front: 1 }));
  field("swap").addEventListener("click", swap);
  field("play").addEventListener("click", () => play(!at.playing));
  field("body").addEventListener("change", () => change({ body: field("body").checked }));
  field("zoom").addEventListener("input", () => change({ zoom: Number(field("zoom").value) }));
  field("reset").addEventListener("click", () => { resetView(); repaint(); });
  const find = key => { for (const [i, c] of data.cases.entries()) for (const [j, s] of c.slices.entries()) if (s.key === key) return [j, i]; };
  for (const button of document.querySelectorAll("button[data-slice]")) {
    if (!find(button.dataset.slice)) { button.disabled = true; button.title = "not among the slices on this page"; }
    button.addEventListener("click", () => { go(...find(button.dataset.slice)); viewer.scrollIntoView({ block: "start" }); viewer.focus({ preventScroll: true }); });
  }
  const start = document.querySelector("button[data-slice]:not([disabled])");
  if (start) [at.slice, at.case] = find(start.dataset.slice);
  resetView();
  await paint();
})();
