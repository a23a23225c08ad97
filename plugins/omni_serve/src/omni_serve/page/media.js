// Where the bytes of an entry are: in the browser, or on the server behind the key.

import { PATHS } from "./jobs.js";

/** Return the URL and the type of what an entry shows; the URL is made once. */
export async function mediaOf(api, entry) {
  entry.media ??= entry.blob ? ofBlob(entry.blob) : fromServer(api, `${PATHS[entry.kind]}/${entry.jobId}/content`);
  try {
    return await entry.media;
  } catch (error) {
    entry.media = null;  // so that it can be tried again
    throw error;
  }
}

/** Return the URL of a still picture of a video. */
export async function stillOf(api, entry) {
  return fromServer(api, `${PATHS.video}/${entry.jobId}/content?variant=thumbnail`);
}

export function forgetMedia(entry) {
  entry.media?.then(({ url }) => url.startsWith("blob:") && URL.revokeObjectURL(url)).catch(() => {});
  entry.media = null;
}

async function ofBlob(blob) {
  return { url: URL.createObjectURL(blob), type: blob.type };
}

async function fromServer(api, path) {
  // Elements cannot send the key; without one they may load it themselves, piece by piece.
  if (api.hasKey) return ofBlob(await (await api.send(path)).blob());
  const response = await api.send(path, { method: "HEAD" });
  return { url: path, type: (response.headers.get("content-type") ?? "").split(";")[0] };
}

/** Save the file of an entry under a name that says what it is. */
export async function download(api, entry, nameOf) {
  let { url, type } = await mediaOf(api, entry);
  // A name that the server sends would go before the link's.
  const isFromServer = !url.startsWith("blob:");
  if (isFromServer) url = URL.createObjectURL(await (await api.send(url)).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = nameOf(entry, type);
  link.click();
  if (isFromServer) setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
