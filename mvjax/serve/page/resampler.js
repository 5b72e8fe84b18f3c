/**
 * Streaming sample rate conversion by a windowed sinc, for any two whole rates.
 *
 * Polyphase: output k lies at input position k * from / to, a whole number of input samples and one of `to / gcd`
 * fractions, each with its own taps. The cutoff is 0.94 of the lower Nyquist frequency, the window Kaiser's
 * (beta 8: -80 dB), every fraction's taps sum to one. The delay is `half` input samples, less than 1 ms.
 */

const CROSSINGS = 16; // zero crossings of the sinc on either side
const BETA = 8;
const ROLLOFF = 0.94;

export class Resampler {
  /** Rates in samples a second. */
  constructor(from, to) {
    const divisor = gcd(from, to);
    this.fractions = to / divisor;
    this.advance = from / divisor; // of a fraction, an output
    const cutoff = Math.min(1, to / from) * ROLLOFF;
    this.half = Math.ceil(CROSSINGS / cutoff);
    this.taps = Array.from({ length: this.fractions }, (_, fraction) =>
      taps(fraction / this.fractions, cutoff, this.half),
    );
    this.buffer = new Float32Array(4096);
    this.filled = this.half - 1; // silence before the first sample
    this.position = this.half - 1; // of the next output's whole part in `buffer`
    this.fraction = 0;
  }

  /** Takes input samples. */
  write(input) {
    const unused = this.position - this.half + 1; // samples no tap reaches any more
    if (this.filled + input.length > this.buffer.length) {
      const kept = this.buffer.subarray(unused, this.filled);
      const size = Math.max(this.buffer.length, 2 * (kept.length + input.length));
      const buffer = size === this.buffer.length ? this.buffer : new Float32Array(size);
      if (buffer === this.buffer) buffer.copyWithin(0, unused, this.filled);
      else buffer.set(kept);
      this.buffer = buffer;
      this.filled -= unused;
      this.position -= unused;
    }
    this.buffer.set(input, this.filled);
    this.filled += input.length;
  }

  /** Fills `out` from the front as far as the input goes; returns how many samples it wrote. */
  read(out) {
    let count = 0;
    for (; count < out.length && this.position + this.half < this.filled; count++) {
      const taps = this.taps[this.fraction];
      const first = this.position - this.half + 1;
      let sum = 0;
      for (let i = 0; i < taps.length; i++) sum += taps[i] * this.buffer[first + i];
      out[count] = sum;
      this.fraction += this.advance;
      this.position += Math.floor(this.fraction / this.fractions);
      this.fraction %= this.fractions;
    }
    return count;
  }

  /** How many input samples are missing before `read` can give `count` samples. */
  missing(count) {
    const last = this.position + Math.floor((this.fraction + (count - 1) * this.advance) / this.fractions);
    return Math.max(0, last + this.half + 1 - this.filled);
  }
}

function taps(fraction, cutoff, half) {
  const values = Float64Array.from({ length: 2 * half }, (_, i) => {
    const distance = i - half + 1 - fraction;
    return sinc(cutoff * distance) * kaiser(distance / half);
  });
  const sum = values.reduce((a, b) => a + b);
  return Float32Array.from(values, (value) => value / sum);
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

function kaiser(x) {
  return Math.abs(x) >= 1 ? 0 : bessel(BETA * Math.sqrt(1 - x * x)) / bessel(BETA);
}

/** The modified Bessel function of order zero, by its series. */
function bessel(x) {
  let sum = 1;
  for (let k = 1, term = 1; term > 1e-12 * sum; k++) sum += term *= (x / (2 * k)) ** 2;
  return sum;
}

function gcd(a, b) {
  return b === 0 ? a : gcd(b, a % b);
}
