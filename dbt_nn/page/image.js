// The page of images: what it shows is from image.py.

const state = { image: 0, step: 0, layer: 0 };

const share = (value) => `${(value * 100).toFixed(1)}%`;
const image = () => data.images[state.image];

/** Part of a layer's name after the network's. */
const short = (name) => (name.startsWith(`${data.network}_`) ? name.slice(data.network.length + 1) : name);

/** A picture of pixels; those that are missing are an empty box. */
function pixels(source, text) {
  if (!source) return make("span", { class: "pixels none" }, "\u2013");
  return make("img", { class: "pixels", src: source, alt: text });
}

function setPicture(id, source, text) {
  const picture = find(id);
  picture.hidden = !source;
  if (source) picture.src = source;
  picture.alt = text;
}

// --- Steps -------------------------------------------------------------------------

function drawStrip() {
  const { steps, samples, predictions } = image();
  const name = (text) => make("th", { scope: "row" }, text);
  find("strip-names").replaceChildren(name("step"));
  find("strip-samples").replaceChildren(name("sample"));
  find("strip-predictions").replaceChildren(name("x0"));
  steps.forEach((step, i) => {
    const button = make("button", { type: "button", "data-step": i }, String(step));
    find("strip-names").append(make("th", { scope: "col" }, button));
    find("strip-samples").append(make("td", { "data-step": i }, pixels(samples[i], `sample of step ${step}`)));
    find("strip-predictions").append(make("td", { "data-step": i }, pixels(predictions[i], `x0 of step ${step}`)));
  });
  const slider = find("step");
  slider.max = steps.length - 1;
}

function showStep() {
  const { steps, samples, predictions, last } = image();
  const step = steps[state.step];
  find("step").value = state.step;
  const text = `${step} of ${last}`;
  find("step-name").textContent = text;
  find("step").setAttribute("aria-valuetext", text);
  setPicture("sample", samples[state.step], `Sample after step ${step}`);
  // the last sample is the picture: nothing is predicted from it
  setPicture("prediction", predictions[state.step] ?? samples[state.step], `Predicted picture at step ${step}`);
  for (const element of document.querySelectorAll("[data-step]"))
    element.classList.toggle("now", Number(element.dataset.step) === state.step);
}

// --- Layers ------------------------------------------------------------------------

function drawLayers() {
  const box = find("gallery");
  if (!box) return;
  box.replaceChildren();
  data.layers.forEach((layer, i) => {
    const found = layer.images[state.image];
    box.append(
      make(
        "span",
        { class: "tile", role: "option", "data-layer": i, "aria-label": short(layer.name) },
        pixels(found?.together, ""),
        make("small", {}, short(layer.name).replaceAll("_", "_\u200b")),
      ),
    );
  });
  showLayer();
}

function showLayer() {
  const box = find("gallery");
  if (!box) return;
  const all = [...box.querySelectorAll(".tile")];
  all.forEach((element, i) => element.setAttribute("aria-selected", String(i === state.layer)));
  rove(all, all[state.layer]);
  const layer = data.layers[state.layer];
  const found = layer.images[state.image];
  find("layer-name").textContent = layer.name;
  const parts = find("parts");
  parts.replaceChildren();
  if (!found) return;
  found.parts.forEach((source, i) =>
    parts.append(
      make(
        "figure",
        {},
        pixels(source, `component ${i + 1} of ${layer.name}`),
        make("figcaption", {}, `component ${i + 1}: ${share(found.explained[i])}`),
      ),
    ),
  );
  find("layer-size").textContent = `${found.size[0]} x ${found.size[1]} places. Middle grey is 0.`;
}

// --- Attention ---------------------------------------------------------------------

function drawMaps() {
  const box = find("maps");
  if (!box) return;
  box.replaceChildren();
  let row = null;
  let last = null;
  for (const { name, head, images } of data.attention) {
    const found = images[state.image];
    if (!found) continue;
    if (name !== last) {
      row = make("div", { class: "maps" });
      box.append(make("h3", { class: "mono" }, short(name)), row);
      last = name;
    }
    const [y, x] = found.place;
    const [height, width] = found.size;
    const frame = make("i", {
      class: "frame",
      style: {
        left: `${(x / width) * 100}%`,
        top: `${(y / height) * 100}%`,
        width: `${100 / width}%`,
        height: `${100 / height}%`,
      },
    });
    const text = `H${head}: ${share(found.most)}`;
    const map = make("div", { class: "map" }, pixels(found.map, `${short(name)}, head ${head}`), frame);
    row.append(make("figure", {}, map, make("figcaption", {}, text)));
  }
  const place = data.attention[0].images[state.image]?.place;
  if (place) find("looks-place").textContent = "The weights of the framed place, in each layer and head, at the last step.";
}

// --- The page ----------------------------------------------------------------------

function show() {
  state.step = Math.min(state.step, image().steps.length - 1);
  drawStrip();
  showStep();
  drawLayers();
  drawMaps();
}

function setUp() {
  setUpTheme(() => {});
  setUpCopying();
  const select = find("image");
  if (select) {
    data.images.forEach(({ id }, i) => select.append(make("option", { value: i }, String(id))));
    select.addEventListener("change", () => {
      state.image = Number(select.value);
      show();
    });
  }
  find("step").addEventListener("input", (event) => {
    state.step = Number(event.target.value);
    showStep();
  });
  document.querySelector(".strip").addEventListener("click", (event) => {
    const cell = event.target.closest("[data-step]");
    if (!cell) return;
    state.step = Number(cell.dataset.step);
    showStep();
  });
  const gallery = find("gallery");
  if (gallery) {
    const wide = (all) => {
      const top = all[0].offsetTop;
      const count = all.findIndex((element) => element.offsetTop > top);
      return count < 0 ? all.length : count;
    };
    arrows(gallery, ".tile", wide, (element) => {
      state.layer = Number(element.dataset.layer);
      showLayer();
    });
  }
  // in the middle of the way both pictures say something
  state.step = Math.floor(image().steps.length / 2);
  show();
}

setUp();
