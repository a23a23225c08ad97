// Puts the page together: the server's state, the form, the gallery, and what their buttons do.

import { Api } from "./api.js";
import { showInTitle, showServer } from "./banner.js";
import { copy, curlOf } from "./copying.js";
import { announce, byId, isStill, toast } from "./dom.js";
import { Form } from "./form.js";
import { Gallery, invite } from "./gallery.js";
import { Jobs } from "./jobs.js";
import { askForKey } from "./keys.js";
import { Maker } from "./maker.js";
import { download, forgetMedia, mediaOf } from "./media.js";
import { pictureIn } from "./picture_control.js";
import { Server } from "./server.js";
import { Store } from "./store.js";
import { Tabs } from "./tabs.js";
import { Viewer } from "./viewer.js";
import { fileName, ofKind } from "./words.js";

const DRAFT = "omni-draft";
const WIDE = matchMedia("(min-width: 60rem)");
const IDEAS = {
  digits: ["a red seven", "a blue four on white", "a green nine", "a purple two on black"],
  image: ["a lighthouse at dusk, film grain", "a ceramic teapot shaped like a fox", "an overgrown greenhouse, morning light"],
  video: ["a paper boat on a stream", "clouds over a mountain ridge"],
  audio: ["rain on a tin roof", "a slow piano in a large hall"],
};

async function start() {
  const api = new Api(askForKey);
  let gallery = null;
  const server = new Server(api, () => (gallery?.active().length ?? 0) > 0);
  showServer(server);
  await server.ask();
  const about = await untilAnswered(server, () => api.get("/v1/omni/pipeline"));
  const form = new Form(about);
  describe(about);
  restoreDraft(form);

  const actions = {};
  gallery = new Gallery({ api, store: await Store.open(), actions, onChange: (active) => { showInTitle(active); server.askSoon(); } });
  const jobs = new Jobs({ api, gallery, server, kind: about.kind });
  const maker = new Maker({ api, server, gallery, jobs });
  maker.onRefused = (problem, ask) => form.complain(problem.message, problem.param ?? (problem.code === "missing_file" ? "image" : null));
  const viewer = new Viewer(api, actions, () => gallery.shown());
  const make = (ask) => { maker.make({ ...ask, kind: about.kind, model: about.model }); };
  Object.assign(actions, actionsOf({ api, form, gallery, maker, viewer, jobs, make }));

  const generate = () => {
    const ask = form.read();
    if (ask) make(ask);
  };
  connect({ form, gallery, maker, actions, generate });
  invite(form.control("prompt") ? ideasFor(about) : [], whereKept(about), async (prompt) => {
    form.control("prompt").write(prompt);
    generate();
  });
  const tabs = new Tabs(() => maker.runningIds);
  await jobs.look();
  await gallery.load(tabs, jobs);
  byId("generate").disabled = false;
  document.body.dataset.ready = "true";
}

/** Return the answer once the server gives one; how it is meanwhile, the banner says. */
async function untilAnswered(server, ask) {
  for (;;) {
    try {
      return await ask();
    } catch (problem) {
      if (problem.status === 404) throw problem;
      await new Promise((resolve) => server.addEventListener("change", resolve, { once: true }));
    }
  }
}

function describe(about) {
  byId("model").textContent = about.model;
  byId("model").title = [about.class_name, about.executor, about.device, about.dtype].join(" · ");
  byId("keys-hint").firstElementChild.textContent = /Mac|iP(hone|ad)/.test(navigator.platform) ? "⌘" : "Ctrl";
  byId("settings").open = WIDE.matches;
}

function whereKept({ kind, jobs_are_kept: areKept }) {
  const first = `Each ${ofKind(kind)} appears here as it is made`;
  if (kind === "image") return `${first}, and stays in this browser with its settings.`;
  return areKept ? `${first}, and goes on without this page.` : `${first}. The server keeps it until it ends: it has no --data-dir.`;
}

function ideasFor(about) {
  return about.model === "omni/digits" ? IDEAS.digits : IDEAS[about.kind];
}

function actionsOf({ api, form, gallery, maker, viewer, jobs, make }) {
  const toForm = () => {
    byId("form").scrollIntoView({ block: "start", behavior: isStill() ? "auto" : "smooth" });
    form.focus();
  };
  return {
    open: (entry) => viewer.open(entry),
    stop: (entry) => maker.stop(entry),
    tryNow: (entry) => maker.tryNow(entry),
    canEdit: () => form.takesPictures,
    download: (entry) => download(api, entry, fileName).catch((problem) => toast(`It cannot be downloaded: ${problem.message}`)),
    remove: (...entries) => gallery.remove(entries, (one) => one.jobId && jobs.delete(one)),
    again: (entry) => {
      gallery.forget(entry.id);
      if (entry.jobId) jobs.delete(entry);
      make({ settings: entry.settings, inputs: entry.inputs, n: 1 });
    },
    reuse: async (entry) => {
      await form.write(entry.settings, entry.inputs);
      toForm();
      announce("The form has the settings and the seed of this one.");
    },
    edit: async (entry) => {
      await form.control("image").write(entry.blob);
      toForm();
      announce("The picture is in the form.");
    },
    copySettings: (entry) => copied(JSON.stringify(entry.settings, null, 2), "Settings copied."),
    copyCurl: (entry) => copied(curlOf(entry, location.origin, api.hasKey), "Command copied."),
  };
}

async function copied(text, words) {
  try {
    await copy(text);
    toast(words, null, 3);
  } catch {
    toast("The browser does not allow copying here.");
  }
}

function connect({ form, gallery, maker, actions, generate }) {
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    generate();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    generate();
  });
  byId("form").addEventListener("input", () => saveDraft(form));
  byId("stop-all").addEventListener("click", () => gallery.active().forEach((entry) => maker.stop(entry)));
  byId("clear").addEventListener("click", () => actions.remove(...gallery.ended()));
  document.addEventListener("paste", (event) => {
    const picture = pictureIn(event.clipboardData);
    if (picture && form.takesPictures) form.control("image").write(picture);
  });
  // A picture that misses its place is not to replace the page.
  for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());
}

function saveDraft(form) {
  const values = {};
  for (const name of ["prompt", "negative_prompt"]) values[name] = form.control(name)?.input.value;
  sessionStorage.setItem(DRAFT, JSON.stringify(values));
}

function restoreDraft(form) {
  try {
    for (const [name, value] of Object.entries(JSON.parse(sessionStorage.getItem(DRAFT) ?? "{}"))) form.control(name)?.write(value);
  } catch { /* it was another page's */ }
}

start().catch((problem) => {
  byId("form-problem").textContent = `The page could not start: ${problem.message}`;
  byId("form-problem").hidden = false;
  console.error(problem);
});
