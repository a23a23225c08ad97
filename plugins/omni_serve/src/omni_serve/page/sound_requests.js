// Making sound: one request, answered when it is done.

/** Make the sound of one ask, and return it as the news of its card. */
export async function makeSound(api, ask, signal) {
  const begun = performance.now();
  const response = await api.send("/v1/audio/speech", { method: "POST", json: ask.settings, signal });
  const seed = Number(response.headers.get("x-omni-seed"));
  return { status: "done", blob: await response.blob(), seed, tookS: (performance.now() - begun) / 1000 };
}
