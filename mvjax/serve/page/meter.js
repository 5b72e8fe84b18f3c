/** The latency meter as it is seen: numbers and a line of the last minute. */

import { percentile } from "./latency.js";
import { FRAME_SECONDS } from "./wire.js";

const SHOWN = 480; // ms, the top of the plot unless a value is higher
const POINTS = 120;

export class Meter {
  constructor(root, slow) {
    this.root = root;
    this.slow = slow; // what is said while the server cannot keep up
    this.line = root.querySelector("polyline");
    this.plot = root.querySelector("svg");
  }

  /** Shows what a conversation measured. */
  show({ latency, status, playback, stalled }) {
    const ms = (seconds) => (seconds === null ? "–" : `${Math.round(1000 * seconds)}`);
    const p50 = percentile(latency.total, 0.5);
    const p99 = percentile(latency.total, 0.99);
    this.put("now", ms(latency.total.at(-1) ?? null));
    this.put("p50", ms(p50));
    this.put("p99", ms(p99));
    this.put("network", ms(percentile(latency.network, 0.5)));
    this.put("server", status ? ms(latency.server) : "–");
    this.put("server-p99", status?.p99_ms === undefined ? "–" : Math.round(status.p99_ms));
    this.put("playback", ms(playback?.queued ?? null));
    this.put("missed", status?.missed ?? 0);
    this.put("underruns", playback?.underruns ?? 0);
    const frames = Math.round((playback?.dropped ?? 0) / 0.08);
    this.put("skipped", (status?.skipped ?? 0) + frames + stalled);
    this.slow.hidden = !(status?.p50_ms > 1000 * FRAME_SECONDS);
    this.draw(latency.total);
    this.plot.setAttribute("aria-label", `Latency of the last minute: median ${ms(p50)}, p99 ${ms(p99)} ms`);
  }

  put(name, value) {
    for (const place of this.root.querySelectorAll(`[data-meter="${name}"]`)) place.textContent = value;
  }

  draw(seconds) {
    const stride = Math.max(1, Math.ceil(seconds.length / POINTS));
    const values = [];
    for (let i = 0; i < seconds.length; i += stride) values.push(1000 * Math.max(...seconds.slice(i, i + stride)));
    const top = Math.max(SHOWN, ...values);
    const points = values.map((value, i) => `${((100 * i) / Math.max(1, values.length - 1)).toFixed(1)},${(40 - (38 * value) / top).toFixed(1)}`);
    this.line.setAttribute("points", points.join(" "));
  }
}
