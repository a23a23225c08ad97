// Asking for the API key.

import { el } from "./dom.js";

/** Return a promise of the key that the person enters; null if none. */
export function askForKey(refusal) {
  return new Promise((resolve) => {
    const input = el("input", { type: "password", id: "api-key", autocomplete: "off", spellcheck: "false",
      "aria-describedby": "api-key-says", required: true });
    const says = refusal ?? "The server was started with a key. This tab remembers it until it is closed.";
    const dialog = el("dialog", { class: "small", "aria-labelledby": "api-key-title" },
      el("form", { method: "dialog" },
        el("h2", { id: "api-key-title", text: "This server asks for a key" }),
        el("p", { id: "api-key-says", class: refusal ? "problem" : "hint", text: says }),
        el("label", { for: "api-key", text: "API key" }), input,
        el("div", { class: "row end" },
          el("button", { type: "button", class: "quiet", text: "Not now", on: { click: () => dialog.close() } }),
          el("button", { class: "primary", value: "ok", text: "Use this key" }))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "ok" ? input.value.trim() || null : null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
