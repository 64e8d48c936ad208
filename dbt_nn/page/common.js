"use strict";
// What every page has: elements, keys, light and dark. All that a page shows is in
// `data`; it is set as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);

// --- Elements ------------------------------------------------------------------

const find = (id) => document.getElementById(id);

/** An element with attributes and children; a text child stays text. */
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") Object.assign(element.style, value);
    else if (key === "class") element.className = value;
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Let the arrow keys move the focus between the parts of a container. */
function arrows(container, selector, columns, choose) {
  container.addEventListener("keydown", (event) => {
    const all = [...container.querySelectorAll(selector)];
    const at = all.indexOf(event.target.closest(selector));
    if (at < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const wide = columns(all);
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -wide, ArrowDown: wide };
    let to = null;
    if (event.key in step) to = at + step[event.key];
    else if (event.key === "Home") to = 0;
    else if (event.key === "End") to = all.length - 1;
    else if (event.key === "Enter" || event.key === " ") to = at;
    if (to === null) return;
    event.preventDefault();
    if (to < 0 || to >= all.length) return;
    focusOn(all, all[to]);
    choose(all[to]);
  });
  container.addEventListener("click", (event) => {
    const chosen = event.target.closest(selector);
    if (!chosen) return;
    choose(chosen);
  });
}

/** One part of a container is in the order of Tab. */
function rove(all, current) {
  for (const other of all) other.tabIndex = other === current ? 0 : -1;
}

function focusOn(all, current) {
  rove(all, current);
  current.focus();
}

/** A button that copies what an element says. */
function setUpCopying() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const source = find(button.dataset.copy);
    getSelection().selectAllChildren(source); // where the clipboard is closed
    navigator.clipboard?.writeText(source.textContent).catch(() => {});
    button.textContent = "Copied";
  });
}

// --- Light and dark --------------------------------------------------------------

let redrawn = () => {};

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  find("theme").setAttribute("aria-pressed", String(name === "dark"));
  redrawn();
}

/** As the system is, and as the button says; redraw is called after a change. */
function setUpTheme(redraw) {
  redrawn = redraw;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  find("theme").addEventListener("click", () =>
    setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"),
  );
}
