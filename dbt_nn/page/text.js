// The page of a text: what it shows is from text.py.

const places = data.tokens.length;
const state = {
  place: 0,
  head: 0,
  shading: "surprise",
  target: "logit",
  score: "induction_score",
  sort: false,
  all: false,
  layer: null,
};
const MAX_BITS = 12; // where the scale of surprise ends
const BARS = 16; // components and sources that are shown at first

// --- Texts -----------------------------------------------------------------------

/** A token's text, control characters as their pictures. */
function visible(piece) {
  return piece.replace(/[\u0000-\u001f\u007f]/g, (c) =>
    c === "\n" ? "\u23ce" : String.fromCodePoint(c === "\x7f" ? 0x2421 : 0x2400 + c.charCodeAt(0)),
  );
}

/**
 * Its elements: blanks at its ends are pale dots, and its direction is its own. A token
 * that is a part of a character has no text, and a pale mark.
 */
function pieceOf(piece) {
  const text = visible(piece);
  if (!text) return [make("span", { class: "blank" }, "\u2026")];
  const core = text.trim();
  const lead = core ? text.slice(0, text.indexOf(core)) : text;
  const tail = core ? text.slice(text.indexOf(core) + core.length) : "";
  const blank = (blanks) =>
    blanks ? make("span", { class: "blank", "aria-hidden": "true" }, "\u00b7".repeat(blanks.length)) : null;
  return [blank(lead), make("bdi", {}, core), blank(tail)].filter(Boolean);
}

/** Its text between quotes, for a sentence. */
const quote = (piece) => `\u2018${visible(piece)}\u2019`;

const percent = (share) => {
  const value = share * 100;
  return `${value >= 99.95 ? "100" : value >= 10 ? value.toFixed(0) : value.toFixed(1)}%`;
};
const fixed = (value, digits = 2) =>
  value === null || value === undefined ? "" : value.toFixed(digits).replace("-", "\u2212");
const signed = (value) => (value > 0 ? "+" : "") + fixed(value);

// --- Colours ---------------------------------------------------------------------

let scales = {};

/** Read the stops of the scales from the style, which has them for light and dark. */
function readScales() {
  const style = getComputedStyle(document.documentElement);
  scales = {};
  for (const name of ["amount", "surprise", "plus", "minus"])
    scales[name] = style
      .getPropertyValue(`--${name}`)
      .trim()
      .split(/\s+/)
      .map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  scales.ink = style.getPropertyValue("--ink").trim();
  scales.soft = style.getPropertyValue("--soft").trim();
}

/** [r, g, b] at a share from 0 to 1 of a scale. */
function mix(name, share) {
  const stops = scales[name];
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return stops[low].map((value, i) => Math.round(value + (stops[low + 1][i] - value) * (at - low)));
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((value) => {
    const v = value / 255;
    return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Colour an element; its text is black or white, whichever is easier to read. */
function paint(element, name, share) {
  const rgb = mix(name, share);
  element.style.backgroundColor = `rgb(${rgb})`;
  element.style.color = luminance(rgb) > 0.179 ? "#000" : "#fff";
}

/** Weights of attention: small ones differ visibly on the scale of their roots. */
const root = (weight) => Math.sqrt(Math.max(weight, 0));

/** A legend: what it measures, and a scale with numbers. */
function legend(id, text, steps) {
  const element = find(id);
  if (!element) return;
  const scale = make("span", { class: "scale" });
  for (const [label, name, share] of steps) {
    const step = make("span", {}, label);
    paint(step, name, share);
    scale.append(step);
  }
  element.replaceChildren(make("span", {}, text), scale);
}

// --- The text --------------------------------------------------------------------

const tokenElements = [];

function drawTokens() {
  const box = find("tokens");
  data.tokens.forEach((token, place) => {
    const element = make(
      "span",
      { class: "token" + (token.generated ? " generated" : ""), role: "option", "data-place": place },
      ...pieceOf(token.piece),
    );
    tokenElements.push(element);
    box.append(element);
    if (token.piece.includes("\n")) box.append(make("br"));
  });
  const last = data.tokens[places - 1];
  if (last.next !== null) {
    // the last token that was written: the network has not read it
    const element = make("span", { class: "token generated end", "data-end": "" }, ...pieceOf(last.next));
    tokenElements.push(element);
    box.append(element);
  }
  const line = (all) => {
    const top = all[0].offsetTop;
    const count = all.findIndex((element) => element.offsetTop > top);
    return count < 0 ? all.length : count;
  };
  arrows(box, "[data-place]", line, (element) => choose(Number(element.dataset.place)));
}

const bitsAt = (index) => (index < places ? data.tokens[index].bits : data.tokens[places - 1].nextBits);

function shadeTokens() {
  const owed = data.sources ? data.sources[state.target][state.place] : [];
  const most = Math.max(...owed.map(Math.abs), 1e-9);
  tokenElements.forEach((element, index) => {
    const bits = bitsAt(index);
    let said = "";
    if (state.shading === "surprise") {
      paint(element, "surprise", (bits ?? 0) / MAX_BITS);
      said = bits === null || bits === undefined ? "no bits" : `${fixed(bits, 1)} bits`;
    } else if (state.shading === "attention" && data.attention) {
      const weight = index <= state.place ? patternAt(state.head, state.place, index) : 0;
      paint(element, "amount", root(weight));
      said = `attention ${percent(weight)}`;
    } else {
      const value = owed[index] ?? 0;
      paint(element, value < 0 ? "minus" : "plus", Math.abs(value) / most);
      said = `${signed(value)} logit`;
    }
    element.title = said;
    if (index < places) {
      const token = data.tokens[index];
      const kind = token.generated ? "written" : "prompt";
      element.setAttribute("aria-label", `${visible(token.piece)}, place ${index}, ${kind}, ${said}`);
      element.setAttribute("aria-selected", String(index === state.place));
    }
    element.classList.toggle("came", index === state.place + 1);
  });
  rove(tokenElements.slice(0, places), tokenElements[state.place]);
  if (state.shading === "surprise")
    legend("text-legend", "bits", [0, 3, 6, 9, 12].map((bits) => [bits === 12 ? "12+" : bits, "surprise", bits / MAX_BITS]));
  else if (state.shading === "attention") legend("text-legend", "attention weight", weightSteps());
  else {
    const steps = [[-1, "minus"], [-0.5, "minus"], [0, "plus"], [0.5, "plus"], [1, "plus"]];
    legend("text-legend", "logit", steps.map(([share, name]) => [signed(share * most), name, Math.abs(share)]));
  }
}

const weightSteps = () => [0, 0.05, 0.2, 0.5, 1].map((weight) => [percent(weight).replace(".0", ""), "amount", root(weight)]);

function describePlace() {
  const token = data.tokens[state.place];
  const line = find("chosen");
  const parts = [`Place ${state.place}, after ${quote(token.piece)}`];
  if (data.lens) {
    const [[first, share]] = data.lens.top.at(-1)[state.place];
    parts.push(`the likeliest next token was ${quote(data.lens.pieces[first])} (${percent(share)})`);
  }
  if (token.next !== null) {
    const bits = bitsAt(state.place + 1);
    let came = `${quote(token.next)} came`;
    if (data.lens) came += `, number ${data.lens.rank.at(-1)[state.place]} in rank`;
    if (bits !== null && bits !== undefined) came += `, ${fixed(bits, 1)} bits`;
    parts.push(came);
  }
  line.textContent = parts.join("; ") + ".";
}

// --- The logit lens ----------------------------------------------------------------

/** Whether a guess is the token that came. */
const isRight = (lens, index, place) => lens.ids[index] === data.tokens[place].nextId;

function drawLens() {
  const { lens } = data;
  const grid = find("lens-grid");
  const head = make("tr", {}, make("td", {}, "after"));
  data.tokens.forEach((token, place) =>
    head.append(make("th", { scope: "col", "data-column": place }, ...pieceOf(token.piece))),
  );
  const body = make("tbody");
  lens.labels.forEach((label, i) => {
    const row = make("tr", { role: "row" }, make("th", { scope: "row", role: "rowheader" }, label));
    lens.top[i].forEach((top, place) => {
      const cell = make("td", { role: "gridcell", "data-column": place, tabindex: -1 });
      if (top) {
        const [index, share] = top[0];
        cell.append(...pieceOf(lens.pieces[index]));
        cell.dataset.share = share;
        cell.title = `${visible(lens.pieces[index])} ${percent(share)}, ${label}`;
        cell.setAttribute("aria-label", `${label}, place ${place}: ${visible(lens.pieces[index])} ${percent(share)}`);
        cell.classList.toggle("right", isRight(lens, index, place));
      }
      row.append(cell);
    });
    body.append(row);
  });
  grid.append(make("thead", {}, head), body);
  body.querySelector("td").tabIndex = 0;
  arrows(body, "td", () => places, (cell) => choose(Number(cell.dataset.column)));
  head.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-column]");
    if (cell) choose(Number(cell.dataset.column));
  });
}

function paintLens() {
  for (const cell of find("lens-grid").querySelectorAll("td[data-share]")) paint(cell, "amount", Number(cell.dataset.share));
  legend("lens-legend", "probability of the likeliest token", [0, 0.25, 0.5, 0.75, 1].map((share) => [percent(share).replace(".0", ""), "amount", share]));
}

function showLens(moved) {
  const { lens } = data;
  const place = state.place;
  const grid = find("lens-grid");
  if (moved) {
    for (const cell of grid.querySelectorAll(".column")) cell.classList.remove("column");
    for (const cell of grid.querySelectorAll(`[data-column="${place}"]`)) cell.classList.add("column");
    // into view by its own scroll alone
    const cell = grid.querySelector(`th[data-column="${place}"]`);
    const box = grid.parentElement;
    const left = cell.offsetLeft - grid.querySelector("td").offsetWidth;
    if (left < box.scrollLeft) box.scrollLeft = left;
    else if (cell.offsetLeft + cell.offsetWidth > box.scrollLeft + box.clientWidth)
      box.scrollLeft = cell.offsetLeft + cell.offsetWidth - box.clientWidth;
  }
  const token = data.tokens[place];
  find("lens-place").replaceChildren("After ", quote(token.piece), token.next === null ? "" : `, where ${quote(token.next)} came`);
  const wide = Math.max(...lens.top.map((row) => (row[place] ?? []).length));
  const head = make("tr", {}, make("th", { scope: "col" }, "depth"));
  for (const [name, title] of [["rank", "rank of the token that came"], ["its p", "its probability"], ["KL", "distance to the answer, nats"]])
    head.append(make("th", { scope: "col", class: "number", title }, name));
  head.append(make("th", { scope: "col", colspan: wide }, "likeliest tokens, with their probabilities"));
  const body = make("tbody");
  lens.labels.forEach((label, i) => {
    const logprob = lens.logprob[i][place];
    const row = make(
      "tr",
      {},
      make("th", { scope: "row" }, label),
      make("td", { class: "number" }, String(lens.rank[i][place] ?? "")),
      make("td", { class: "number" }, logprob === null ? "" : percent(Math.exp(logprob))),
      make("td", { class: "number" }, fixed(lens.kl[i][place])),
    );
    for (const [index, share] of lens.top[i][place] ?? []) {
      const guess = make("span", { class: "guess" }, make("b", {}, percent(share)), ...pieceOf(lens.pieces[index]));
      guess.classList.toggle("right", isRight(lens, index, place));
      paint(guess, "amount", share);
      row.append(make("td", {}, guess));
    }
    body.append(row);
  });
  find("lens-table").replaceChildren(make("thead", {}, head), body);
}

// --- Attention ---------------------------------------------------------------------

const patterns = data.attention?.data ? Uint8Array.from(atob(data.attention.data), (c) => c.charCodeAt(0)) : null;
const triangle = (places * (places + 1)) / 2;

/** The weight with which a place looks at a key, from 0 to 1. */
const patternAt = (head, query, key) =>
  patterns ? patterns[head * triangle + (query * (query + 1)) / 2 + key] / 255 : 0;

const headName = (index) => `L${data.attention.heads[index][0]}H${data.attention.heads[index][1]}`;

const SCORES = {
  induction_score: ["induction", "looks at what came after an earlier copy of the token", 1],
  previous_token_score: ["previous token", "looks at the token before", 1],
  duplicate_token_score: ["duplicate token", "looks at an earlier copy of the token", 1],
  first_token_share: ["first token", "rests on the first token", 1],
  entropy: ["entropy, nats", "how widely it looks", null],
  mean_distance: ["distance, tokens", "how far it looks back", null],
};

/** A score of a head by its layer and number. */
function scoreOf(name, index) {
  if (!data.scores) return null;
  const [layer, head] = data.attention.heads[index];
  const at = data.scores.heads.findIndex(([l, h]) => l === layer && h === head);
  return at < 0 ? null : data.scores[name][at];
}

/** A head's pattern, a pixel a weight. */
function drawPixels(canvas, head) {
  canvas.width = canvas.height = places;
  const context = canvas.getContext("2d");
  const image = context.createImageData(places, places);
  const table = Array.from({ length: 256 }, (_, level) => mix("amount", root(level / 255)));
  let from = head * triangle;
  for (let query = 0; query < places; query++)
    for (let key = 0; key <= query; key++) {
      const at = (query * places + key) * 4;
      image.data.set(table[patterns[from++]], at);
      image.data[at + 3] = 255;
    }
  context.putImageData(image, 0, 0);
}

function drawHeads() {
  const box = find("heads");
  const { heads } = data.attention;
  const layers = [...new Set(heads.map(([layer]) => layer))];
  const numbers = [...new Set(heads.map(([, head]) => head))].sort((a, b) => a - b);
  // the longer side lies where there is room
  const across = layers.length > numbers.length && window.innerWidth > 832;
  let order = heads.map((_, index) => index);
  const value = (index) => scoreOf(state.score, index) ?? -Infinity;
  if (state.sort) order.sort((a, b) => value(b) - value(a));
  else if (across) order.sort((a, b) => heads[a][1] - heads[b][1] || heads[a][0] - heads[b][0]);
  const top = SCORES[state.score][2] ?? Math.max(...order.map(value), 1e-9);
  const ends = across ? layers : numbers;
  const columns = state.sort ? Math.min(Math.max(ends.length, 6), 12) : ends.length;
  box.style.gridTemplateColumns = (state.sort ? "" : "max-content ") + `repeat(${columns}, minmax(1.6rem, 4.6rem))`;
  box.replaceChildren();
  const note = (text, place) => box.append(make("span", { class: "layer", "aria-hidden": "true", style: place }, text));
  if (!state.sort) ends.forEach((end, i) => note(`${across ? "L" : "H"}${end}`, { gridColumn: i + 2, textAlign: "center" }));
  let last = null;
  for (const index of order) {
    const line = heads[index][across ? 1 : 0];
    if (!state.sort && line !== last) {
      note(`${across ? "H" : "L"}${line}`, { gridColumn: 1 });
      last = line;
    }
    const score = scoreOf(state.score, index);
    const share = score === null ? 0 : Math.min(Math.max(score / top, 0), 1);
    const canvas = make("canvas", { "aria-hidden": "true" });
    drawPixels(canvas, index);
    const text = (state.sort ? headName(index) + " " : "") + fixed(score);
    const element = make(
      "span",
      {
        class: "head",
        role: "option",
        "data-head": index,
        "aria-label": `${headName(index)}, ${SCORES[state.score][0]} ${score === null ? "none" : fixed(score)}`,
      },
      canvas,
      make("span", { class: "mark" }, make("i", { style: { width: `${share * 100}%` } })),
      make("small", {}, text || "\u00a0"),
    );
    box.append(element);
  }
  box.dataset.columns = columns;
  markHead();
}

function markHead() {
  const all = [...find("heads").querySelectorAll(".head")];
  for (const element of all) element.setAttribute("aria-selected", String(Number(element.dataset.head) === state.head));
  rove(all, all.find((element) => Number(element.dataset.head) === state.head));
}

/** The chosen head's pattern, large, with tokens at its sides where there is room. */
function showHead() {
  const name = headName(state.head);
  find("head-title").textContent = `${name}: from each token (row) to those it looks at`;
  const canvas = find("pattern");
  const width = canvas.clientWidth || 360;
  const ratio = window.devicePixelRatio || 1;
  const labelled = places <= 40;
  const margin = labelled ? 76 : 12;
  const cell = Math.max((width - margin - 2) / places, 1);
  const height = margin + cell * places + 2;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  canvas.style.height = `${height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const pixels = document.createElement("canvas");
  drawPixels(pixels, state.head);
  context.imageSmoothingEnabled = false;
  context.drawImage(pixels, margin, margin, cell * places, cell * places);
  context.strokeStyle = scales.soft;
  context.lineWidth = 0.5;
  context.beginPath();
  context.moveTo(margin, margin);
  context.lineTo(margin, margin + cell * places);
  context.lineTo(margin + cell * places, margin + cell * places);
  for (let i = 0; i < places; i++) {
    context.lineTo(margin + cell * (places - i), margin + cell * (places - i - 1));
    context.lineTo(margin + cell * (places - i - 1), margin + cell * (places - i - 1));
  }
  context.stroke();
  context.strokeStyle = scales.ink;
  context.lineWidth = 2;
  context.strokeRect(margin, margin + cell * state.place, cell * (state.place + 1), cell);
  if (labelled) {
    const size = Math.min(Math.max(cell * 0.85, 7), 12);
    context.font = `${size}px monospace`;
    context.textBaseline = "middle";
    for (let i = 0; i < places; i++) {
      const text = visible(data.tokens[i].piece).replace(/^ +| +$/g, (blanks) => "\u00b7".repeat(blanks.length));
      context.fillStyle = i === state.place ? scales.ink : scales.soft;
      context.textAlign = "right";
      context.fillText(text, margin - 5, margin + cell * (i + 0.5), margin - 7);
      context.save();
      context.translate(margin + cell * (i + 0.5), margin + cell * i - 4);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(text, 0, 0, margin - 7);
      context.restore();
    }
  }
  canvas.dataset.margin = margin;
  canvas.dataset.cell = cell;
  canvas.setAttribute("aria-label", `Attention pattern of ${name}; the table below has the chosen place in numbers`);
  find("pattern-hint").textContent = "Click on a row to choose its token.";
  legend("attention-legend", "attention weight", weightSteps());

  const looks = [];
  for (let key = 0; key <= state.place; key++) looks.push([key, patternAt(state.head, state.place, key)]);
  looks.sort((a, b) => b[1] - a[1]);
  const table = find("looks");
  table.replaceChildren(make("caption", { class: "sr" }, `Where ${name} looks from place ${state.place}`));
  for (const [key, weight] of looks.slice(0, 8)) {
    const bar = make("i", { class: "plus", style: { left: "0", width: `${weight * 100}%` } });
    table.append(barRow(placeName(key), percent(weight), make("div", { class: "track" }, bar)));
  }
  const list = find("head-scores");
  list.replaceChildren();
  for (const [key, [label, title]] of Object.entries(SCORES)) {
    const score = scoreOf(key, state.head);
    if (score !== null) list.append(make("div", { title }, make("dt", {}, label), make("dd", {}, fixed(score))));
  }
}

/** The row and column of the large pattern under a pointer, or null. */
function patternPlace(event) {
  const canvas = find("pattern");
  const box = canvas.getBoundingClientRect();
  const margin = Number(canvas.dataset.margin);
  const cell = Number(canvas.dataset.cell);
  const key = Math.floor((event.clientX - box.left - margin) / cell);
  const query = Math.floor((event.clientY - box.top - margin) / cell);
  return query >= 0 && query < places && key < places ? [query, key] : null;
}

function setUpAttention() {
  const select = find("score");
  for (const [key, [label, title]] of Object.entries(SCORES))
    if (data.scores && data.scores[key].some((value) => value !== null)) select.append(make("option", { value: key, title }, label));
  if (!select.options.length) select.append(make("option", { value: state.score }, "none"));
  state.score = select.value;
  // begin with a head that does something
  const scores = data.attention.heads.map((_, index) => scoreOf(state.score, index) ?? 0);
  state.head = scores.indexOf(Math.max(...scores));
  select.addEventListener("change", () => {
    state.score = select.value;
    drawHeads();
  });
  find("sort").addEventListener("change", (event) => {
    state.sort = event.target.checked;
    drawHeads();
  });
  arrows(
    find("heads"),
    ".head",
    () => Number(find("heads").dataset.columns),
    (element) => {
      state.head = Number(element.dataset.head);
      markHead();
      showHead();
      shadeBy("attention");
    },
  );
  const canvas = find("pattern");
  canvas.addEventListener("mousemove", (event) => {
    const at = patternPlace(event);
    if (at && at[1] >= 0 && at[1] <= at[0])
      find("pattern-hint").textContent = `${placeName(at[0])} looks at ${placeName(at[1])}: ${percent(patternAt(state.head, ...at))}`;
  });
  canvas.addEventListener("click", (event) => {
    const at = patternPlace(event);
    if (at) choose(at[0]);
  });
}

// --- Attribution ---------------------------------------------------------------------

/** A place by its token and number. */
const placeName = (place) => `${visible(data.tokens[place].piece).replace(/^ +| +$/g, (b) => "\u00b7".repeat(b.length))} ${place}`;

function barRow(name, number, bar, rest = false) {
  return make(
    "tr",
    rest ? { class: "rest" } : {},
    make("th", { scope: "row" }, make("bdi", {}, name)),
    make("td", { class: "number" }, number),
    make("td", {}, bar),
  );
}

/** A bar to the right of zero for plus and to its left for minus. */
function signedBar(value, least, most) {
  const zero = (-least / (most - least)) * 100;
  const share = (Math.abs(value) / (most - least)) * 100;
  const place = value < 0 ? { right: `${100 - zero}%` } : { left: `${zero}%` };
  const bar = make("i", { class: value < 0 ? "minus" : "plus", style: { ...place, width: `${share}%` } });
  return make("div", { class: "track" }, bar, make("span", { class: "zero", style: { left: `${zero}%` } }));
}

/** Rows of bars: the largest ones and the sum of the others, or all in their order. */
function fillBars(id, rows, all) {
  let shown = rows.map(([name, value]) => [name, value, false]);
  if (!all) shown.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  if (!all && rows.length > BARS) {
    const rest = shown.splice(BARS - 1);
    shown.push([`${rest.length} others`, rest.reduce((total, [, value]) => total + value, 0), true]);
  }
  const values = shown.map(([, value]) => value);
  const [least, most] = [Math.min(0, ...values), Math.max(1e-9, ...values)];
  find(id).replaceChildren(
    ...shown.map(([name, value, rest]) => barRow(name, signed(value), signedBar(value, least, most), rest)),
  );
}

function showAttribution() {
  const token = data.tokens[state.place];
  const sum = find("attribution-sum");
  if (!sum) return;
  legend("attribution-legend", "logits", [["against", "minus", 0.7], ["0", "plus", 0], ["for", "plus", 0.7]]);
  const values = data.attribution?.[state.target].map((row) => row[state.place]);
  if (token.next === null || (values && values[0] === null)) {
    sum.textContent = "No token came after this place.";
    for (const id of ["components", "sources"]) find(id)?.replaceChildren();
    return;
  }
  if (values) {
    const total = values.reduce((a, b) => a + b, 0);
    let text = `All together give ${quote(token.next)} the logit ${fixed(total)}.`;
    if (state.target === "difference") {
      const other = data.lens?.top.at(-1)[state.place].find(([index]) => !isRight(data.lens, index, state.place));
      const name = other ? quote(data.lens.pieces[other[0]]) : "the likeliest other token";
      text = `All together put ${quote(token.next)} ${fixed(Math.abs(total))} logits ${total < 0 ? "behind" : "before"} ${name}.`;
    }
    sum.textContent = text;
    fillBars("components", values.map((value, i) => [data.attribution.labels[i], value]), state.all);
  }
  if (data.sources) fillBars("sources", data.sources[state.target][state.place].map((value, place) => [placeName(place), value]), false);
}

// --- The network's layers ------------------------------------------------------------

const layerElements = [];

function drawLayers() {
  const blocks = new Map();
  data.norms.layers.forEach(([name, part], index) => {
    if (!blocks.has(part)) blocks.set(part, []);
    blocks.get(part).push([name, index]);
  });
  for (const [part, layers] of blocks) {
    const row = make("div", { class: "block", role: "group", "aria-label": part }, make("span", { "aria-hidden": "true" }, part));
    for (const [name, index] of layers) {
      const block = part.replaceAll(".", "_");
      const short = name.startsWith(`${data.network}_`) ? name.slice(data.network.length + 1) : name;
      const text = short.startsWith(`${block}_`) ? short.slice(block.length + 1) : short;
      const element = make("button", { type: "button", class: "layer-box", "data-layer": index, "aria-pressed": "false" }, text, make("b"));
      layerElements[index] = element;
      row.append(element);
    }
    find("layers").append(row);
  }
  find("layers").addEventListener("click", (event) => {
    const element = event.target.closest("[data-layer]");
    if (!element) return;
    state.layer = Number(element.dataset.layer);
    showLayers();
  });
}

function showLayers() {
  const all = data.norms.values.flat().filter((value) => value > 0);
  const low = Math.log(Math.min(...all));
  const high = Math.log(Math.max(...all));
  const share = (norm) => (norm > 0 && high > low ? (Math.log(norm) - low) / (high - low) : 0);
  layerElements.forEach((element, index) => {
    const norm = data.norms.values[index][state.place];
    element.querySelector("b").textContent = fixed(norm, norm >= 100 ? 0 : norm >= 10 ? 1 : 2);
    element.setAttribute("aria-pressed", String(index === state.layer));
    paint(element, "amount", share(norm) * 0.85 + 0.05);
  });
  const steps = [0, 1 / 3, 2 / 3, 1].map((at) => {
    const norm = Math.exp(low + (high - low) * at);
    return [fixed(norm, norm >= 100 ? 0 : 1), "amount", at * 0.85 + 0.05];
  });
  legend("map-legend", "L2 norm of the activation at the chosen place, logarithmic", steps);
  if (state.layer === null) return;
  const [name, part] = data.norms.layers[state.layer];
  find("layer-line").replaceChildren(
    "dbt model ",
    make("code", { id: "layer-name" }, name),
    " ",
    make("button", { type: "button", class: "copy", "data-copy": "layer-name" }, "Copy"),
    ` of ${part}, norm ${fixed(data.norms.values[state.layer][state.place])} at place ${state.place}.`,
  );
}

// --- The page ------------------------------------------------------------------------

function choose(place) {
  state.place = place;
  show(true);
}

function shadeBy(name) {
  state.shading = name;
  const input = document.querySelector(`input[name=shading][value=${name}]`);
  if (input) input.checked = true;
  shadeTokens();
}

/** Show the chosen place in every panel. */
function show(moved) {
  shadeTokens();
  describePlace();
  if (data.lens) showLens(moved);
  if (patterns) showHead();
  showAttribution();
  if (data.norms) showLayers();
  const element = tokenElements[state.place];
  const box = find("tokens");
  if (element.offsetTop < box.scrollTop || element.offsetTop + element.offsetHeight > box.scrollTop + box.clientHeight)
    box.scrollTop = element.offsetTop - box.clientHeight / 2;
}

/** Draw all that is coloured anew. */
function redraw() {
  readScales();
  if (!tokenElements.length) return;
  if (data.lens) paintLens();
  if (patterns) drawHeads();
  show(false);
}

function setUp() {
  setUpTheme(redraw);
  drawTokens();
  if (data.lens) {
    drawLens();
    paintLens();
  }
  if (patterns) {
    setUpAttention();
    drawHeads();
  } else document.querySelector("input[value=attention]").parentElement.remove();
  if (!data.sources) document.querySelector("input[value=sources]").parentElement.remove();
  if (data.norms) drawLayers();
  for (const input of document.querySelectorAll("input[name=shading]"))
    input.addEventListener("change", () => shadeBy(input.value));
  for (const input of document.querySelectorAll("input[name=target]"))
    input.addEventListener("change", () => {
      state.target = input.value;
      showAttribution();
      shadeTokens();
    });
  find("all-components")?.addEventListener("click", (event) => {
    state.all = !state.all;
    event.currentTarget.setAttribute("aria-pressed", String(state.all));
    showAttribution();
  });
  setUpCopying();
  let timer = 0;
  window.addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (!patterns) return;
      drawHeads();
      showHead();
    }, 100);
  });
  // the last token of the prompt, where the network begins to write
  const written = data.tokens.findIndex((token) => token.generated);
  choose(Math.max((written < 0 ? places : written) - 1, 0));
}

setUp();
