/** After "stop": what the assistant was saying is not played to its end, but what it says next is. */

const QUIET = 0.01; // RMS, of full scale 1
const PAUSE_FRAMES = 6; // 0.5 s of quiet end what was being said
const MOST_FRAMES = 125; // 10 s

export class Hush {
  constructor() {
    this.left = 0; // frames until the patience is over; 0: everything is heard
    this.quiet = 0; // frames
  }

  begin() {
    this.left = MOST_FRAMES;
    this.quiet = 0;
  }

  /** Takes the next int16 frame; returns whether it is heard. */
  hears(pcm) {
    if (!this.left) return true;
    this.quiet = loudness(pcm) < QUIET ? this.quiet + 1 : 0;
    this.left = this.quiet >= PAUSE_FRAMES ? 0 : this.left - 1;
    return false;
  }
}

/** RMS of int16 samples, of full scale 1. */
export function loudness(pcm) {
  let energy = 0;
  for (const value of pcm) energy += value * value;
  return Math.sqrt(energy / Math.max(1, pcm.length)) / 32768;
}
