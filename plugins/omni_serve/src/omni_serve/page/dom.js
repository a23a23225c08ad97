// Making elements. Text from the server becomes text nodes only: nothing here takes HTML.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Return an element. Properties are attributes, but for `text`, `class`, `on` (listeners by event) and `props` (what is
 * set on the object itself). false, null and undefined leave an attribute out.
 */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "props") Object.assign(element, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Return a button with a picture on it. Without visible words its name is told by label and tooltip. */
export function iconButton(name, label, onClick, { words = false, className = "tool" } = {}) {
  const named = words ? {} : { "aria-label": label, title: label };
  return el("button", { type: "button", class: className, ...named, on: { click: onClick } },
    icon(name), words ? el("span", { text: label }) : null);
}

export const byId = (id) => document.getElementById(id);

/** Set text only where it changes, so that screen readers and selections are left alone. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

let announcements = 0;

/** Tell those who do not see the page, once what is being said has been said. */
export function announce(text) {
  // The same words twice are no change, and would not be read again.
  setText(byId("live"), text + (announcements++ % 2 ? "\u00a0" : ""));
}

/** Show a short message for a while, with something that can be done about it. */
export function toast(text, action = null, seconds = 7) {
  const close = () => {
    clearTimeout(timer);
    box.remove();
  };
  const box = el("div", { class: "toast" }, el("span", { text }),
    action && el("button", { type: "button", class: "quiet", text: action.label, on: { click: () => { close(); action.run(); } } }));
  const timer = setTimeout(() => { close(); action?.otherwise?.(); }, seconds * 1000);
  byId("toasts").append(box);
  announce(text);
}

export const isStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
