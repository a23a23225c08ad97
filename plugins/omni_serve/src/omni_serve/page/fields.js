// Which fields the form has: from what the pipeline says that it takes. Nothing here touches the page.

import { ofKeyword } from "./words.js";

// Known keywords, in the order in which they are shown. What has no default of the pipeline's own is left empty.
const KNOWN = [
  { name: "prompt", label: "Prompt", type: "long", section: "prompt", hint: "What should it make?" },
  { name: "image", label: "Picture to start from", type: "picture", section: "prompt" },
  { name: "negative_prompt", label: "Negative prompt", type: "text", section: "settings", hint: "What to steer away from" },
  { name: "width", label: "Width", type: "number", section: "size", min: 1 },
  { name: "height", label: "Height", type: "number", section: "size", min: 1 },
  { name: "num_frames", label: "Frames", type: "number", section: "settings", min: 1, step: 1 },
  { name: "fps", label: "Frames a second", type: "number", section: "settings", min: 1, max: 240, step: 1, own: "auto", of: "video" },
  { name: "num_inference_steps", label: "Steps", type: "number", section: "settings", min: 1, step: 1, slider: true,
    says: "slower, often cleaner" },
  { name: "guidance_scale", label: "Guidance", type: "number", section: "settings", min: 0, step: 0.1, slider: true,
    says: "how closely it follows the prompt" },
  { name: "strength", label: "Strength", type: "number", section: "settings", min: 0, max: 1, step: 0.01, slider: true,
    says: "how much of your picture may change" },
];
// What the server sets itself, or cannot be sent: see requests/making.py.
const NEVER = /^(generator|latents|output_type|return_dict|video|callback.*|.*_embeds?(_mask)?|.*embeds_mask|batch_size|num_(images|videos|waveforms)_per_prompt)$/;
const PICTURE = /(^|_)(image|mask)$/;
const MASKS = ["mask_image", "mask"];
const MOST_SEED = Number.MAX_SAFE_INTEGER;

/**
 * Return the fields for a pipeline.
 *
 * @param about What `GET /v1/omni/pipeline` says.
 * @returns fields (name, label, type, section, default, bounds), the names that can be added, and the mask's name.
 */
export function fieldsOf(about) {
  const takes = new Set(about.parameters.filter((name) => !NEVER.test(name)));
  const defaults = { ...about.own_defaults, ...about.defaults };
  const fields = [];
  const add = (field) => fields.push({ default: defaults[field.name] ?? null, ...field });
  const canResize = takes.has("image") && about.kind === "image";  // the server resizes what it is sent
  for (const known of KNOWN) {
    const isSide = known.section === "size";
    // The server takes the rate of any video: it writes the file.
    if (!takes.has(known.name) && !(isSide && canResize) && known.of !== about.kind) continue;
    add({ ...known, ...bounds(known, defaults[known.name], about) });
  }
  add({ name: "seed", label: "Seed", type: "seed", section: "settings", min: 0, max: MOST_SEED, step: 1,
    says: "the same seed gives the same again" });
  if (about.kind === "image" && about.limits.max_outputs > 1) {
    add({ name: "n", label: "How many", type: "count", section: "settings", min: 1, max: about.limits.max_outputs, step: 1, default: 1 });
  }
  const has = new Set(fields.map((field) => field.name));
  const mask = MASKS.find((name) => takes.has(name)) ?? null;
  const rest = [...takes].filter((name) => !has.has(name) && name !== mask);
  const addable = [];
  for (const name of rest) {
    const label = ofKeyword(name);
    const value = defaults[name];
    const section = about.required.includes(name) ? "prompt" : "more";
    if (PICTURE.test(name)) add({ name, label, type: "picture", section });
    // What is left empty is the pipeline's own: such a default is shown, and not sent.
    else if (typeof value === "number") add({ name, label, type: "number", section, step: "any", default: null, own: value });
    else if (section === "prompt" || value !== undefined) add({ name, label, type: "value", section });
    else addable.push(name);
  }
  return { fields, addable, mask: takes.has("image") ? mask : null, acceptsAny: about.accepts_any };
}

function bounds(field, value, about) {
  if (field.section === "size") return { step: about.size_multiple || 1 };
  const roomy = typeof value === "number" ? value * 2 : 0;
  if (field.name === "num_inference_steps") return { max: about.limits.max_steps, sliderMax: Math.max(50, roomy) };
  if (field.name === "guidance_scale") return { sliderMax: Math.max(15, Math.ceil(roomy)) };
  return {};
}

/** Return what the text of a field for any keyword stands for: JSON where it is JSON, but for prompts. */
export function valueOf(name, text) {
  const trimmed = text.trim();
  if (name.includes("prompt")) return text;
  let value = trimmed;
  try {
    value = JSON.parse(trimmed);
  } catch { /* it is words */ }
  // DiT's classes are a list, of which one request has one.
  return name === "class_labels" && !Array.isArray(value) ? [value] : value;
}

/** Return sides of about the default area for each shape, as multiples of what the pipeline asks for. */
export function shapes(width, height, multiple) {
  const side = Math.sqrt(width * height);
  const round = (value) => Math.max(multiple, Math.round(value / multiple) * multiple);
  const shape = (label, ratio) => ({ label, width: round(side * Math.sqrt(ratio)), height: round(side / Math.sqrt(ratio)) });
  const usual = [shape("Square", 1), shape("Portrait", 3 / 4), shape("Landscape", 4 / 3), shape("Wide", 16 / 9)];
  const isUsual = usual.some((one) => one.width === width && one.height === height);
  return isUsual ? usual : [{ label: "Standard", width, height }, ...usual];
}

/** What a keyword is called on the page. */
export function labelOf(name) {
  return KNOWN.find((field) => field.name === name)?.label ?? ofKeyword(name);
}
