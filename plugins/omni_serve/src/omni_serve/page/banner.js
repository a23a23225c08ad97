// What the header and the banner say about the server.

import { announce, byId, el, setText, toast } from "./dom.js";
import { count } from "./words.js";

/** Show the server's state, as it changes. */
export function showServer(server) {
  const draw = () => {
    setText(byId("pill-text"), pillText(server.state));
    byId("pill").dataset.state = pillState(server.state);
  };
  server.addEventListener("change", ({ detail: { before, now } }) => {
    draw();
    if (before.kind !== now.kind) showBanner(server, now.kind);
    if (before.kind === "gone" && now.kind !== "gone") announce("The server is back.");
  });
  setInterval(() => {  // the seconds until the next attempt
    const left = byId("banner-left");
    if (left && server.state.retryAt) {
      left.textContent = `Trying again in ${Math.max(0, Math.ceil((server.state.retryAt - Date.now()) / 1000))} s.`;
    }
  }, 500);
  draw();
}

function pillState({ kind, running, waiting }) {
  return kind === "ready" && running + waiting > 0 ? "busy" : kind;
}

function pillText({ kind, running, waiting }) {
  if (kind === "starting") return "Connecting…";
  if (kind === "gone") return "Not reachable";
  if (kind === "asleep") return waiting ? `Asleep, ${waiting} waiting` : "Asleep";
  if (kind === "ending") return "Shutting down";
  if (kind === "locked") return "Needs a key";
  if (!running && !waiting) return "Ready";
  return waiting ? `${running} running, ${waiting} waiting` : `${running} running`;
}

function showBanner(server, kind) {
  const banner = byId("banner");
  banner.hidden = !["gone", "asleep", "ending", "locked"].includes(kind);
  banner.dataset.state = kind;
  banner.replaceChildren();
  if (kind === "gone") {
    banner.append(
      // The seconds are not read out: they would be, every second.
      el("p", {}, el("strong", { text: "The server is gone." }), " It has ended, or the network is down. Your gallery and your settings are kept. ",
        el("span", { id: "banner-left", "aria-hidden": "true" })),
      el("button", { type: "button", class: "quiet", text: "Try now", on: { click: () => server.ask() } }));
  } else if (kind === "asleep") {
    const wake = el("button", { type: "button", class: "quiet", text: "Wake it up" });
    wake.addEventListener("click", async () => {
      wake.disabled = true;
      wake.textContent = "Waking…";
      try {
        await server.wake();
      } catch (problem) {
        toast(`It does not wake up: ${problem.message}`);
        wake.disabled = false;
        wake.textContent = "Wake it up";
      }
    });
    banner.append(
      el("p", {}, el("strong", { text: "The model is asleep." }), " It has freed its memory. What you ask for waits until it is woken."), wake);
  } else if (kind === "ending") {
    banner.append(el("p", {}, el("strong", { text: "The server is shutting down." }), " It finishes what it has begun, and takes nothing new."));
  } else if (kind === "locked") {
    banner.append(el("p", {}, el("strong", { text: "The server asks for a key." }), " Without one, nothing can be made."),
      el("button", { type: "button", class: "quiet", text: "Enter the key", on: { click: () => server.ask() } }));
  }
}

/** The page's title tells what runs, for those who look at other tabs meanwhile. */
export function showInTitle(running) {
  document.title = running ? `${count(running, "running", "running")} · omni` : "omni";
}
