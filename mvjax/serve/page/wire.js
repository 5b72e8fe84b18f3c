/** The messages of /api/chat?audio=pcm: byte 0 is the kind, the rest is the payload. */

export const SAMPLE_RATE = 24000;
export const FRAME_SAMPLES = 1920;
export const FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE;

export const KIND = {
  handshake: 0,
  audio: 1, // int16 little-endian mono at 24 kHz
  text: 2,
  metadata: 4, // JSON
  error: 5,
  ping: 6,
  coloredText: 7, // a byte of gate activation, 0 to 10, then UTF-8
  image: 8, // an image file
  request: 9, // JSON
};

export function audio(pcm) {
  return message(KIND.audio, new Uint8Array(pcm.buffer, pcm.byteOffset, pcm.byteLength));
}

export function image(bytes) {
  return message(KIND.image, new Uint8Array(bytes));
}

export function request(name, fields = {}) {
  return message(KIND.request, new TextEncoder().encode(JSON.stringify({ request: name, ...fields })));
}

/** Returns {kind} of an incoming message with its payload: pcm, value, text, or text and color. */
export function decode(buffer) {
  const [kind] = new Uint8Array(buffer, 0, 1);
  const text = (start) => new TextDecoder().decode(new Uint8Array(buffer, start));
  switch (kind) {
    case KIND.audio:
      return { kind, pcm: new Int16Array(buffer.slice(1, 1 + 2 * Math.floor((buffer.byteLength - 1) / 2))) };
    case KIND.metadata:
      return { kind, value: JSON.parse(text(1)) };
    case KIND.coloredText:
      return { kind, color: new Uint8Array(buffer)[1], text: text(2) };
    case KIND.text:
    case KIND.error:
      return { kind, text: text(1) };
    default:
      return { kind };
  }
}

function message(kind, payload) {
  const bytes = new Uint8Array(1 + payload.length);
  bytes[0] = kind;
  bytes.set(payload, 1);
  return bytes;
}
