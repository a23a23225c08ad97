// How numbers and names are put into words.

export function seconds(value) {
  if (value < 1) return "less than a second";
  if (value < 90) return `${Math.round(value)} s`;
  if (value < 90 * 60) return `${Math.round(value / 60)} min`;
  return `${(value / 3600).toFixed(1)} h`;
}

/** How long something took: with more digits than a forecast deserves. */
export function took(value) {
  return value < 10 ? `${value.toFixed(1)}\u00a0s` : seconds(value);
}

export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

export function size({ width, height }) {
  return `${width} × ${height}`;
}

/** `max_sequence_length` → `Max sequence length`. */
export function ofKeyword(name) {
  const words = name.replaceAll("_", " ").trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** A number without the noise of binary fractions. */
export function plain(value) {
  return typeof value === "number" ? String(Number(value.toPrecision(12))) : String(value);
}

export function shortened(text, most) {
  return text.length <= most ? text : `${text.slice(0, most - 1).trimEnd()}…`;
}

const ENDINGS = {
  "image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "video/mp4": "mp4", "video/webm": "webm",
  "audio/wav": "wav", "audio/x-wav": "wav", "image/gif": "gif",
};

/** Such as `a-red-seven-seed-32.png`: what a file manager can show and sort. */
export function fileName(entry, mediaType) {
  const words = (entry.settings.prompt ?? "").toLowerCase().normalize("NFKD").replace(/[^\p{L}\p{N}]+/gu, "-");
  const stem = words.slice(0, 60).replace(/^-+|-+$/g, "") || "omni";
  const seed = entry.settings.seed === undefined ? "" : `-seed-${entry.settings.seed}`;
  return `${stem}${seed}.${ENDINGS[mediaType] ?? "bin"}`;
}

/** One line about settings, for summaries and cards. */
export function ofSettings(settings) {
  const said = [];
  if (settings.num_inference_steps !== undefined) said.push(count(settings.num_inference_steps, "step"));
  if (settings.guidance_scale !== undefined) said.push(`guidance ${plain(settings.guidance_scale)}`);
  if (settings.strength !== undefined) said.push(`strength ${plain(settings.strength)}`);
  if (settings.num_frames !== undefined) said.push(count(settings.num_frames, "frame"));
  return said.join(" · ");
}

export function ofKind(kind) {
  return { image: "picture", video: "video", audio: "sound" }[kind] ?? "result";
}
