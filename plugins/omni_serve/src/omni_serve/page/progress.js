// What a card says about a request that is not done: in words, and as a share.

import { count, seconds } from "./words.js";

/** Statuses in which something is still to come. */
export const ACTIVE = new Set(["waiting", "sending", "queued", "running", "busy"]);

/** Note when steps were done, for a guess of the page's own where the server has none. */
export function noteProgress(entry, news) {
  if (news.step === undefined || news.step === entry.step) return;
  const now = performance.now();
  if (news.step > 0 && entry.firstStepAt === undefined) Object.assign(entry, { firstStep: news.step, firstStepAt: now });
  entry.stepAt = now;
}

/** Return the share that is done, from 0 to 1; null if that is not known. */
export function shareOf(entry) {
  if (entry.status !== "running") return null;
  if (entry.jobId) return entry.progress / 100;
  return entry.numSteps ? entry.step / entry.numSteps : null;
}

/** Return one line about how far it is. */
export function saysOf(entry) {
  switch (entry.status) {
    case "waiting": return entry.ahead ? `Waits in this page, ${count(entry.ahead, "request")} before it` : "Waits in this page, next to go";
    case "sending": return "Sent to the server…";
    case "busy": return `The server is full. Trying again in ${Math.max(0, Math.ceil((entry.retryAt - Date.now()) / 1000))} s`;
    case "queued": return withTime(queueSays(entry), leftOf(entry), "done in");
    case "running": return withTime(stepSays(entry), leftOf(entry), "left", true);
    case "stopped": return entry.step ? `Stopped after step ${entry.step} of ${entry.numSteps}` : "Stopped";
    case "interrupted": return "The page was left while this was made, so the server stopped it.";
    case "failed": return entry.message ?? "It failed.";
    default: return "";
  }
}

function queueSays({ position }) {
  if (position === null || position === undefined) return "Waits for its turn";
  return position === 0 ? "Next in line" : `In line, ${position} before it`;
}

function stepSays(entry) {
  if (entry.jobId) return `${entry.progress} % done`;
  if (!entry.numSteps) return "Starting";
  return entry.step >= entry.numSteps ? "Finishing" : `Step ${entry.step} of ${entry.numSteps}`;
}

function withTime(text, left, words, isAfter = false) {
  if (left === null) return text;
  const time = left < 1 ? "" : seconds(left);
  if (!time) return text;
  return isAfter ? `${text} · about ${time} ${words}` : `${text} · ${words} about ${time}`;
}

/** Seconds left: the server's guess as time goes on, else by the pace so far. */
function leftOf(entry) {
  if (typeof entry.estimatedS === "number") return Math.max(0, entry.estimatedS - (Date.now() - entry.toldAt) / 1000);
  if (entry.jobId) return jobLeft(entry);
  const steps = entry.step - (entry.firstStep ?? 0);
  if (!(steps > 0)) return null;
  return ((entry.stepAt - entry.firstStepAt) / steps) * (entry.numSteps - entry.step) / 1000;
}

function jobLeft(entry) {
  if (!(entry.progress > entry.firstProgress)) return null;
  const perPercent = (entry.toldAt - entry.firstProgressAt) / (entry.progress - entry.firstProgress);
  return (perPercent * (100 - entry.progress)) / 1000;
}
