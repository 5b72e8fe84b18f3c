/**
 * The jitter buffer: what is played when, of audio that arrives in frames and sometimes late.
 *
 * The rule, so that lag never accumulates:
 *   - playback begins once 80 ms are queued and 10 ms more have passed: the target is 90 ms;
 *   - underrun (the queue is empty): fade out; the target grows by 20 ms, to 240 ms at most; begin again;
 *   - overrun (more than the target and a frame of 80 ms): the oldest audio is dropped down to the target, the
 *     two sides of the cut crossfaded;
 *   - `flush` drops everything at once, after a fade out.
 * Fades last 5 ms.
 */

export const RULE = { begin: 0.08, extra: 0.01, step: 0.02, most: 0.24, slack: 0.08, fade: 0.005 }; // seconds

export class JitterBuffer {
  /** `rate` in samples a second. */
  constructor(rate, rule = RULE) {
    const samples = (seconds) => Math.round(seconds * rate);
    this.rate = rate;
    this.begin = samples(rule.begin);
    this.extra = samples(rule.extra);
    this.step = samples(rule.step);
    this.most = samples(rule.most);
    this.slack = samples(rule.slack);
    this.fade = samples(rule.fade);
    this.chunks = []; // {samples, frame}, oldest first
    this.read = 0; // samples of chunks[0] that are played
    this.queued = 0; // samples
    this.wait = this.extra; // samples of silence until playback begins
    this.playing = false;
    this.gain = 0;
    this.tail = new Float32Array(0); // what was cut off, to fade out
    this.last = null; // {frame, offset} of the latest sample played
    this.underruns = 0;
    this.dropped = 0; // samples, by overrun
  }

  /** Samples that playback aims to have queued just after a frame came. */
  get target() {
    return this.begin + this.extra;
  }

  /** Queues samples, whose place in the conversation is named by `frame`. */
  push(samples, frame) {
    this.chunks.push({ samples, frame });
    this.queued += samples.length;
    if (this.queued > this.target + this.slack) {
      const surplus = this.queued - this.target;
      if (this.playing) this.cut();
      this.discard(surplus);
      this.dropped += surplus;
    }
  }

  /** Drops what is queued; returns how many samples that were. */
  flush() {
    const dropped = this.queued;
    if (this.playing) this.cut();
    this.discard(dropped);
    this.rest();
    return dropped;
  }

  /** Fills `out` with what is heard next. */
  pull(out) {
    out.fill(0);
    if (!this.playing && this.queued >= this.begin) {
      this.wait -= out.length;
      this.playing = this.wait <= 0;
    }
    if (this.playing) this.play(out);
    const faded = Math.min(this.tail.length, out.length);
    for (let i = 0; i < faded; i++) out[i] += this.tail[i];
    this.tail = this.tail.subarray(faded);
  }

  play(out) {
    for (let i = 0; i < out.length; i++) {
      if (this.queued === 0) {
        this.underruns++;
        this.extra = Math.min(this.extra + this.step, this.most - this.begin);
        this.rest();
        return;
      }
      const { samples, frame } = this.chunks[0];
      this.gain = Math.min(this.gain + 1 / this.fade, this.queued / this.fade, 1);
      out[i] += this.gain * samples[this.read];
      this.last = { frame, offset: this.read };
      this.discard(1);
    }
  }

  /** Keeps the next samples as a tail that fades out, over which what follows fades in. */
  cut() {
    const tail = new Float32Array(this.fade);
    tail.set(this.tail); // of a cut just before
    const count = Math.min(this.fade, this.queued);
    for (let i = 0, at = this.read, chunk = 0; i < count; i++, at++) {
      if (at === this.chunks[chunk].samples.length) [at, chunk] = [0, chunk + 1];
      tail[i] += this.gain * (1 - (i + 1) / this.fade) * this.chunks[chunk].samples[at];
    }
    this.tail = tail;
    this.gain = 0;
  }

  discard(count) {
    this.queued -= count;
    this.read += count;
    while (this.chunks.length && this.read >= this.chunks[0].samples.length) {
      this.read -= this.chunks.shift().samples.length;
    }
  }

  rest() {
    this.playing = false;
    this.gain = 0;
    this.wait = this.extra;
  }
}
