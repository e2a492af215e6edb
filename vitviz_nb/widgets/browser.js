// The browser of an atlas: thumbnails of its neurons, and a dialog with one neuron and the images that activate it most.
// It runs in a notebook, where anywidget calls `render`, and in an exported page, which calls `openPage`. The model holds
// `page` (the atlas's tables), `layer`, `sort`, `concept` and `opened` ([layer, neuron]), and sends images by name.

const CIVIDIS = [[0, 34, 78], [26, 56, 111], [67, 78, 108], [97, 101, 111], [125, 124, 120], [155, 148, 118], [188, 174, 108],
  [222, 201, 88], [254, 232, 56]];  // evenly spaced samples of the color map that vv.top_images uses
const VERDICTS = { alive: "", weak: "A weak image: many reference images activate the neuron more.",
  dead: "A dead neuron: its activation does not vary over the reference images." };
const percent = value => `${value.toFixed(1)}\u00a0%`;
const most = ({ most: { count, concept } }, least) => count >= least ? `${count} × ${concept}` : "";
const ORDERS = {  // name: [label, comparison, what a thumbnail's caption adds]
  number: ["number", (a, b) => a.at - b.at, neuron => most(neuron, 2)],
  percentile: ["percentile", (a, b) => b.percentile - a.percentile, neuron => percent(neuron.percentile)],
  activation: ["activation", (a, b) => b.activation - a.activation, neuron => neuron.activation.toPrecision(3)],
  selectivity: ["selectivity", (a, b) => b.selectivity - a.selectivity, ({ selectivity, preferred }) =>
    `${selectivity.toFixed(1)} ${preferred}`],
  agreement: ["concept agreement", (a, b) => b.most.count - a.most.count, neuron => most(neuron, 1)],
};
let views = 0;

/** An element with properties and children. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** The neurons of an atlas as objects, in the order of its table, each with its most frequent concept. */
function neuronsOf({ neurons, concepts, shows }) {
  return neurons.neuron.map((_, at) => {
    const neuron = { at, most: { count: 0 } };
    for (const column in neurons) neuron[column] = neurons[column][at];
    neuron.concepts = neuron.top.map(image => concepts[shows[image]]);
    for (const concept of neuron.concepts) {
      const count = neuron.concepts.filter(other => other === concept).length;
      if (count > neuron.most.count) neuron.most = { concept, count };
    }
    return neuron;
  });
}

/** Neurons whose top images show a concept: by how many do, then by the first that does (as Atlas.search), then by `order`. */
function search(neurons, concepts, text, order) {
  const typed = text.toLowerCase(), exact = concepts.filter(concept => concept.toLowerCase() === typed);
  const wanted = new Set(exact.length ? exact : concepts.filter(concept => concept.toLowerCase().includes(typed)));
  const found = neurons.map(neuron => {
    const hits = neuron.concepts.map(concept => wanted.has(concept));
    return { neuron, count: hits.filter(Boolean).length, first: hits.indexOf(true) };
  });
  return found.filter(({ count }) => count)
    .sort((a, b) => b.count - a.count || a.first - b.first || order(a.neuron, b.neuron)).map(({ neuron }) => neuron);
}

/** A function from an image's name to a promise of its address, asked of the model once for each name. */
function imageLoader(model) {
  const asked = {};
  model.on("msg:custom", ({ image, url }, buffers) =>
    asked[image]?.resolve(url ?? URL.createObjectURL(new Blob(buffers.slice(0, 1), { type: "image/webp" }))));
  return name => {
    if (!asked[name]) {
      asked[name] = {};
      asked[name].address = new Promise(resolve => { asked[name].resolve = resolve; });
      model.send({ image: name });
    }
    return asked[name].address;
  };
}

/** An activation map, bytes from its least to its most: the address of a tiny colored image, and in words where it peaks. */
function drawMap(values, [rows, columns]) {
  const canvas = make("canvas", { width: columns, height: rows }), pixels = new ImageData(columns, rows);
  values.forEach((value, i) => {
    const step = value / 255 * (CIVIDIS.length - 1), low = Math.min(Math.floor(step), CIVIDIS.length - 2);
    const color = CIVIDIS[low].map((from, c) => from + (CIVIDIS[low + 1][c] - from) * (step - low));
    pixels.data.set([...color, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  const peak = values.indexOf(Math.max(...values)), third = (i, n, names) => names[Math.floor(3 * i / n)];
  const down = third(Math.floor(peak / columns), rows, ["top", "middle", "bottom"]);
  return [canvas.toDataURL(), `${down} ${third(peak % columns, columns, ["left", "center", "right"])}`];
}

function render({ model, el }) {
  const page = model.get("page"), all = neuronsOf(page), image = imageLoader(model), id = `vitviz-browser-${views += 1}`;
  let shown = [];  // neurons on the page, in their order

  function set(name, value) {
    model.set(name, value);
    model.save_changes();
  }

  /** An image whose address comes later. */
  function picture(name, alt) {
    const img = make("img", { alt, decoding: "async" });
    image(name).then(address => { img.src = address; });
    return img;
  }

  /** A neuron's picture, cut from its layer's sprite sheet. */
  function cut(neuron) {
    const at = neuron.row % page.sheet, left = at % page.columns * page.size, top = Math.floor(at / page.columns) * page.size;
    const img = picture(`sheet ${neuron.layer} ${Math.floor(neuron.row / page.sheet)}`,
      `Feature visualization of layer ${neuron.layer}, neuron ${neuron.neuron}`);
    return Object.assign(img, { className: "cut", style: `--size: ${page.size}; object-position: -${left}px -${top}px` });
  }

  // Controls
  const layers = make("fieldset", {}, make("legend", { textContent: "Layer" })), counts = {};
  for (const layer of [...page.layers, "all"]) {
    const input = make("input", { type: "radio", name: `${id}-layer`, value: layer, onchange: () => set("layer", layer) });
    counts[layer] = make("small");
    layers.append(make("label", {}, input, make("span", { textContent: layer }, counts[layer])));
  }
  const sort = make("select", { onchange: () => set("sort", sort.value) },
    ...page.orders.map(value => make("option", { value, textContent: ORDERS[value][0] })));
  const names = make("datalist", { id: `${id}-concepts` }, ...page.concepts.map(value => make("option", { value })));
  const concept = make("input", { type: "search", placeholder: page.example });
  concept.setAttribute("list", names.id);
  let pause;
  concept.oninput = () => {
    clearTimeout(pause);
    pause = setTimeout(() => set("concept", concept.value), 150);
  };
  const controls = make("div", { className: "controls" }, layers, make("label", {}, "Sort by ", sort));
  if (page.concepts.length) controls.append(make("label", {}, "Search a concept ", concept, names));
  const status = make("p", { className: "status", role: "status" });
  const grid = make("ul", { className: "grid", onkeydown: moveFocus });
  grid.style.setProperty("--side", page.size < 100 ? 80 : 126);

  // Thumbnails
  function draw() {
    const layer = model.get("layer"), [label, order, note] = ORDERS[model.get("sort")], text = model.get("concept").trim();
    const ties = order === ORDERS.number[1] ? ORDERS.percentile[1] : order;
    const found = text ? search(all, page.concepts, text, ties) : [...all].sort(order), everywhere = layer === "all";
    shown = found.filter(neuron => everywhere || neuron.layer === layer);
    for (const input of layers.querySelectorAll("input")) input.checked = input.value === String(layer);
    for (const key in counts)
      counts[key].textContent = text && found.filter(neuron => key === "all" || String(neuron.layer) === key).length;
    sort.value = model.get("sort");
    if (concept.value.trim() !== text) concept.value = text;
    const place = everywhere ? "all layers" : `layer ${layer}`, some = `${shown.length || "No"} neurons`;
    status.textContent = text ? `${some} of ${place} with “${text}” among the images that activate them most${shown.length ?
      ", best match first" : ""}.` : `${some} of ${place}, by ${label}.`;
    grid.replaceChildren(...shown.map((neuron, i) => {
      const number = make("b", { textContent: everywhere ? `${neuron.layer}:${neuron.neuron}` : neuron.neuron });
      const textContent = neuron.status === "alive" ? note(neuron) : neuron.status;
      const more = make("span", { className: neuron.status, textContent });
      return make("li", {}, make("button", { type: "button", tabIndex: i ? -1 : 0, onclick: () => open(neuron) },
        cut(neuron), make("span", { className: "caption" }, number, more)));
    }));
  }

  // One tab stop for the whole grid; arrow keys, Home and End move inside it.
  grid.addEventListener("focusin", ({ target }) => {
    for (const other of grid.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
    target.tabIndex = 0;
  });
  function moveFocus(event) {
    const buttons = [...grid.querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
    const row = buttons.filter(other => other.offsetTop === buttons[0].offsetTop).length, End = buttons.length - 1;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + row, ArrowUp: at - row, Home: 0, End };
    if (!(event.key in to)) return;
    buttons[to[event.key]]?.focus();
    event.preventDefault();
  }

  // One neuron
  const heading = make("h2", { id: `${id}-neuron`, ariaLive: "polite" }), body = make("div", { className: "body" });
  const [previous, next] = [[-1, "← Previous"], [1, "Next →"]].map(([by, textContent]) =>
    make("button", { type: "button", textContent, onclick: () => move(by), autofocus: by > 0 }));
  const close = make("button", { type: "button", textContent: "Close", onclick: () => dialog.close() });  // as Escape does
  const dialog = make("dialog", {}, make("header", {}, heading, previous, next, close), body);
  dialog.setAttribute("aria-labelledby", heading.id);
  dialog.onclick = event => event.target === dialog && dialog.close();  // the backdrop
  dialog.onkeydown = event => move({ ArrowLeft: -1, ArrowRight: 1 }[event.key]);
  dialog.onclose = () => {
    const button = grid.children[shown.indexOf(opened())]?.firstChild;
    set("opened", null);
    button?.focus();
  };

  function opened() {
    const [layer, number] = model.get("opened") ?? [];
    return all.find(neuron => neuron.layer === layer && neuron.neuron === number);
  }

  const open = neuron => neuron && set("opened", [neuron.layer, neuron.neuron]);
  const move = by => by && open(shown[shown.indexOf(opened()) + by]);

  function show() {
    const neuron = opened(), at = shown.indexOf(neuron);
    if (!neuron) return dialog.close();
    heading.textContent = `Layer ${neuron.layer}, neuron ${neuron.neuron}`;
    previous.ariaDisabled = String(!shown[at - 1]);  // not `disabled`, which would lose the focus
    next.ariaDisabled = String(!shown[at + 1]);
    const scores = [["Activation", neuron.activation.toPrecision(3)],
      ["Percentile", `above that of ${percent(neuron.percentile)} of ${page.reference}`],
      ["Rank", `${neuron.rank} among the layer's standardized activations`]];
    if (neuron.preferred)
      scores.push(["Selectivity", `${neuron.selectivity.toFixed(1)} standard deviations (${neuron.preferred})`]);
    const left = make("div", {}, cut(neuron), make("dl", {}, ...scores.flatMap(([term, value]) =>
      [make("dt", { textContent: term }), make("dd", { textContent: value })])),
    make("p", { className: neuron.status, textContent: VERDICTS[neuron.status] }));
    const maps = neuron.maps && Array.from(atob(neuron.maps), letter => letter.charCodeAt(0)), size = page.grids[neuron.layer];
    const top = make("ol", { className: maps ? "maps" : "" }, ...neuron.top.map((number, i) => {
      const images = make("span", { className: "pair" }, picture(`reference ${number}`, neuron.concepts[i]));
      if (maps) {
        const [address, peak] = drawMap(maps.slice(i * size[0] * size[1], (i + 1) * size[0] * size[1]), size);
        images.append(make("span", { className: "map", style: `background-image: url(${address})` },
          picture(`reference ${number}`, `Its activation map, largest at the ${peak}`)));
      }
      return make("li", {}, images, make("span", { className: "caption" }, make("b", { textContent: neuron.concepts[i] }),
        make("span", { textContent: neuron.values[i].toPrecision(3) })));
    }));
    const textContent = `${maps ? "Beside each image its activation map (yellow: most active). " : ""}${page.note}`;
    const title = make("h3", { textContent: "The images that activate it most" });
    body.replaceChildren(left, make("div", {}, title, top, make("p", { textContent })));
    if (!dialog.open) dialog.showModal();
  }

  el.classList.add("vitviz-browser");
  el.dataset.lmSuppressShortcuts = "true";  // else JupyterLab takes arrows and other keys for its own commands
  el.append(make("p", { className: "about", textContent: page.about }), controls, status, grid, dialog);
  const events = { "change:layer": draw, "change:sort": draw, "change:concept": draw, "change:opened": show };
  for (const event in events) model.on(event, events[event]);
  draw();
  if (model.get("opened")) show();
  return () => { for (const event in events) model.off(event, events[event]); };
}

/** Render a page without Python: `state` holds what the model would, and `images` their addresses by name. */
function openPage({ images, ...state }, el) {
  const listeners = {}, emit = (event, ...data) => (listeners[event] ?? []).forEach(listener => listener(...data));
  const model = {
    get: name => state[name],
    set: (name, value) => { state[name] = value; emit(`change:${name}`); },
    save_changes: () => history.replaceState(null, "", state.opened ? `#${state.opened.join(":")}` : "#"),
    on: (event, listener) => { (listeners[event] ??= []).push(listener); },
    send: ({ image }) => {
      const content = images[image].split(";base64,")[1];  // one copy in memory, however often a sheet is shown
      if (!content) return emit("msg:custom", { image, url: images[image] }, []);
      emit("msg:custom", { image }, [Uint8Array.from(atob(content), letter => letter.charCodeAt(0))]);
    },
  };
  const [, layer, neuron] = (location.hash.match(/^#(\d+):(\d+)$/) ?? []).map(Number);  // #5:203 opens neuron 203 of layer 5
  if (state.page.layers.includes(layer)) [state.layer, state.opened] = [layer, [layer, neuron]];
  render({ model, el });
}

export default { render };
