/**
 * The color scale of gate activation: level 0 (the image played no part) to 10 (it played a great one).
 *
 * Upstream's levels span activations from 0.005 to 0.021. Models whose gates open wider are shown over their own
 * range: the span grows to the largest activation of the conversation.
 *
 * One hue, amber, mixed into the page in OKLab with even steps, so equal steps of the level look equal, and the
 * order is one of lightness and strength: it is read without telling colors apart.
 */

export const LEVELS = 11;

const ENDS = {
  light: ["#ffffff", "#f0a30a"], // under dark ink
  dark: ["#1b212b", "#8f5a00"], // under light ink
};

export const LEAST = 0.005;
export const MOST = 0.021;

/** Returns the level of an activation; `most` is the one at level 10. */
export function levelOf(activation, most = MOST) {
  return Math.round((LEVELS - 1) * Math.max(0, Math.min(1, (activation - LEAST) / (most - LEAST))));
}

/** Returns the background of a level, "#rrggbb"; `scheme`: light or dark. */
export function background(level, scheme) {
  const [from, to] = ENDS[scheme].map(toOklab);
  const share = Math.max(0, Math.min(level, LEVELS - 1)) / (LEVELS - 1);
  return fromOklab(from.map((value, i) => value + share * (to[i] - value)));
}

/** The contrast ratio of two colors "#rrggbb", as WCAG 2 defines it. */
export function contrast(a, b) {
  const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (high + 0.05) / (low + 0.05);
}

export function lightness(color) {
  return toOklab(color)[0];
}

function luminance(color) {
  const [r, g, b] = linear(color);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function linear(color) {
  return [1, 3, 5].map((at) => {
    const value = parseInt(color.slice(at, at + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
}

function toOklab(color) {
  const [r, g, b] = linear(color);
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function fromOklab([lightness, a, b]) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const rgb = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return `#${rgb.map(byte).join("")}`;
}

function byte(value) {
  const encoded = value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055;
  return Math.round(255 * Math.max(0, Math.min(1, encoded)))
    .toString(16)
    .padStart(2, "0");
}
