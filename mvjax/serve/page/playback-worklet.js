/** The loudspeaker: frames at 24 kHz through the jitter buffer, resampled to the device's rate. */

import { JitterBuffer } from "./jitter.js";
import { Resampler } from "./resampler.js";
import { SAMPLE_RATE } from "./wire.js";

const REPORT_SECONDS = 0.08;

class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.jitter = new JitterBuffer(SAMPLE_RATE);
    this.resampler = new Resampler(SAMPLE_RATE, sampleRate);
    this.scratch = new Float32Array(1024);
    this.energy = 0;
    this.sinceReport = 0; // samples of the device
    this.port.onmessage = ({ data }) => {
      if (data === "flush") this.jitter.flush();
      else this.jitter.push(Float32Array.from(data.pcm, (value) => value / 32768), data.frame);
    };
  }

  process(_, [output]) {
    const out = output[0];
    const source = this.scratch.subarray(0, this.resampler.missing(out.length));
    this.jitter.pull(source);
    this.resampler.write(source);
    this.resampler.read(out);
    for (const value of out) this.energy += value * value;
    this.sinceReport += out.length;
    if (this.sinceReport >= REPORT_SECONDS * sampleRate) this.report();
    return true;
  }

  report() {
    const { last, playing, queued, target, underruns, dropped, rate } = this.jitter;
    this.port.postMessage({
      last,
      playing,
      queued: queued / rate,
      target: target / rate,
      underruns,
      dropped: dropped / rate,
      level: Math.sqrt(this.energy / this.sinceReport),
    });
    this.energy = this.sinceReport = 0;
  }
}

registerProcessor("playback", Playback);
