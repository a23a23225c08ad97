// Settings as text for elsewhere.

import { requestOf } from "./image_requests.js";
import { PATHS } from "./jobs.js";

/** Return the command that makes an entry again from a shell. */
export function curlOf(entry, origin, hasKey) {
  const lines = ["curl"];
  if (hasKey) lines.push(`-H "Authorization: Bearer $OMNI_API_KEY"`);
  const names = Object.keys(entry.inputs ?? {});
  const fields = entry.settings;
  const path = PATHS[entry.kind] ?? requestOf({ settings: {}, inputs: entry.inputs ?? {}, n: 1 }).path;
  if (names.length) {
    for (const [name, value] of Object.entries(fields)) lines.push(`-F ${quoted(`${name}=${typeof value === "object" ? JSON.stringify(value) : value}`)}`);
    for (const name of names) lines.push(`-F ${quoted(`${name}=@${name}.png`)}`);
  } else {
    lines.push(`-H 'content-type: application/json'`, `-d ${quoted(JSON.stringify(fields))}`);
  }
  lines.push(origin + path);
  return lines.join(" \\\n  ");
}

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** Put text on the clipboard, also where the page is not served securely. */
export async function copy(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.value = text;
  // Within an open dialog nothing outside it can be selected.
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
