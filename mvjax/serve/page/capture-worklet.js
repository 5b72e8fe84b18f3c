/** The microphone: resampled to 24 kHz and cut into frames of 80 ms, int16, with their loudness. */

import { Resampler } from "./resampler.js";
import { FRAME_SAMPLES, SAMPLE_RATE } from "./wire.js";

const QUANTUM = new Float32Array(128); // of silence: without a microphone the conversation's clock goes on

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, SAMPLE_RATE);
    this.frame = new Float32Array(FRAME_SAMPLES);
    this.filled = 0;
  }

  process([input]) {
    this.resampler.write(input[0] ?? QUANTUM);
    for (let count; (count = this.resampler.read(this.frame.subarray(this.filled))); ) {
      this.filled += count;
      if (this.filled === FRAME_SAMPLES) this.send();
    }
    return true;
  }

  send() {
    const pcm = new Int16Array(FRAME_SAMPLES);
    let energy = 0;
    for (let i = 0; i < FRAME_SAMPLES; i++) {
      const value = Math.max(-1, Math.min(1, this.frame[i]));
      pcm[i] = Math.round(32767 * value);
      energy += value * value;
    }
    this.filled = 0;
    this.port.postMessage({ pcm, level: Math.sqrt(energy / FRAME_SAMPLES) }, [pcm.buffer]);
  }
}

registerProcessor("capture", Capture);
