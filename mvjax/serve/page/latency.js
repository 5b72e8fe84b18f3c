/**
 * The latency meter: microphone time minus played time, and where it comes from.
 *
 * The n-th audio message after a handshake answers the n-th frame that was sent; or a later one, by as many as the
 * server dropped in between, of what it heard or of what it said. Both numbers follow from its status messages.
 */

import { FRAME_SECONDS } from "./wire.js";

const WINDOW = 750; // samples: a minute of frames

export class Latency {
  constructor() {
    this.captured = 0; // frames that the microphone gave
    this.capturedAt = 0; // when the latest one ended, in seconds
    this.total = []; // seconds; microphone time minus played time
    this.network = []; // seconds; from a frame sent to its answer received, less the server's share
    this.server = 0; // seconds; a frame's median from there to there, as the server says
    this.resumed = false;
    this.handshake();
    this.resumed = true;
  }

  /** A new socket: messages are counted from here. */
  handshake() {
    this.sent = []; // {frame, at}: the place among the captured, and when; from number `this.first` on
    this.first = 0;
    this.received = 0;
    this.dropped = 0; // frames without an answer to come, since the handshake
    this.before = this.resumed ? null : { frame: 0, skipped: 0 }; // the server's counts then
    this.base = this.captured; // the frame that would have been sent first, had none been held back
  }

  /** The microphone gave a frame; returns its number. */
  capture(now) {
    this.capturedAt = now;
    return this.captured++;
  }

  /** A frame was not sent: the line is stalled. */
  hold() {
    this.base++;
  }

  send(frame, now) {
    this.sent.push({ frame, at: now });
  }

  /** An audio message came; returns the number of the captured frame that it answers. */
  receive(now) {
    const place = this.received++ + this.dropped - this.first;
    const answered = this.sent[Math.min(place, this.sent.length - 1)];
    if (!answered) return Math.max(0, this.captured - 1);
    keep(this.network, Math.max(0, now - answered.at - this.server));
    if (place > WINDOW) this.first += this.sent.splice(0, place - 1).length;
    return answered.frame;
  }

  /** The server's own account, after the audio message of `frame` frames since the conversation began. */
  status({ frame, skipped, p50_ms }) {
    this.before ??= { frame: frame - this.received, skipped };
    const unsent = frame - this.before.frame - this.received;
    this.dropped = Math.max(0, unsent) + skipped - this.before.skipped;
    this.server = p50_ms / 1000;
  }

  /**
   * Sample `offset` of a frame's answer is heard now, after the device's own `output` seconds. Returns the microphone
   * time that it answers, in seconds of what was sent since the handshake.
   */
  played({ frame, offset }, now, { rate, output }) {
    const microphone = this.captured * FRAME_SECONDS + (now - this.capturedAt);
    const played = frame * FRAME_SECONDS + offset / rate;
    keep(this.total, microphone - played + output);
    return Math.max(0, played - this.base * FRAME_SECONDS);
  }
}

/** The value below which a share of the values lies, by the nearest rank; null of none. */
export function percentile(values, share) {
  if (!values.length) return null;
  const sorted = Float64Array.from(values).sort();
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))];
}

function keep(values, value) {
  values.push(value);
  if (values.length > WINDOW) values.shift();
}
