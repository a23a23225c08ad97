// Making pictures: one stream for each request, from which its cards are kept up to date.

import { Problem, problemFrom } from "./api.js";
import { eventsOf } from "./sse.js";

const MOST_PREVIEWS = 10;

/** Return the request of the API that an ask stands for: its path, and either JSON or a form. */
export function requestOf(ask, { stream = true } = {}) {
  const fields = { ...ask.settings };
  if (ask.n > 1) fields.n = ask.n;
  if (stream) Object.assign(fields, { stream: true, progress: true, partial_images: MOST_PREVIEWS });
  const files = Object.entries(ask.inputs);
  if (!files.length) return { path: "/v1/images/generations", json: fields };
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  for (const [name, blob] of files) form.append(name, blob, `${name}.${blob.type.split("/")[1] ?? "png"}`);
  return { path: "image" in ask.inputs ? "/v1/images/edits" : "/v1/images/generations", form, fields };
}

/**
 * Make the pictures of one ask, and tell of each as it goes.
 *
 * @param tell Called with the number of the picture and what is new about it.
 */
export async function makePictures(api, ask, signal, tell) {
  const { path, json, form } = requestOf(ask);
  const response = await api.send(path, { method: "POST", json, form, signal });
  let left = ask.n;
  try {
    for await (const event of eventsOf(response)) {
      if (event.error) throw problemFrom(event.error);
      const kind = event.type.split(".").pop();
      if (kind === "progress") tell(event.number, progressOf(event));
      else if (kind === "partial_image") tell(event.number, { preview: `data:${typeOf(event)};base64,${event.b64_json}`, previewStep: event.step });
      else if (kind === "completed") {
        left -= 1;
        tell(event.number, pictureOf(event));
      }
    }
  } catch (error) {
    if (error instanceof TypeError) throw lost();  // what a reader raises when the connection breaks
    throw error;
  }
  if (left > 0) throw lost();
}

function lost() {
  return new Problem("The connection to the server was lost, so that it stopped.", { code: "lost" });
}

function progressOf({ status, step, num_steps: numSteps, position, estimated_s: estimatedS }) {
  return { status: status === "queued" ? "queued" : "running", step, numSteps, position, estimatedS };
}

function pictureOf(event) {
  const bytes = Uint8Array.from(atob(event.b64_json), (letter) => letter.charCodeAt(0));
  const [width, height] = event.size.split("x").map(Number);
  return { status: "done", blob: new Blob([bytes], { type: typeOf(event) }), width, height, seed: event.seed, tookS: event.metrics.total_s };
}

const typeOf = (event) => `image/${event.output_format}`;
