/** Files made by hand: a stereo WAV, and a ZIP archive whose entries are stored as they are. */

/** Returns a 16-bit stereo WAV of two lists of int16 frames; the shorter side ends in silence. */
export function stereoWav(left, right, rate) {
  const length = (frames) => frames.reduce((sum, frame) => sum + frame.length, 0);
  const samples = Math.max(length(left), length(right));
  const file = new Uint8Array(44 + 4 * samples);
  const view = new DataView(file.buffer);
  const ascii = (at, text) => file.set(new TextEncoder().encode(text), at);
  ascii(0, "RIFF");
  view.setUint32(4, 36 + 4 * samples, true);
  ascii(8, "WAVEfmt ");
  view.setUint32(16, 16, true); // bytes of this header
  view.setUint16(20, 1, true); // PCM
  view.setUint16(22, 2, true); // channels
  view.setUint32(24, rate, true);
  view.setUint32(28, 4 * rate, true); // bytes a second
  view.setUint16(32, 4, true); // bytes a sample of both
  view.setUint16(34, 16, true); // bits
  ascii(36, "data");
  view.setUint32(40, 4 * samples, true);
  const both = new Int16Array(file.buffer, 44);
  for (const [side, frames] of [left, right].entries()) {
    let at = side;
    for (const frame of frames) {
      for (const value of frame) {
        both[at] = value;
        at += 2;
      }
    }
  }
  return file;
}

/** Returns the parts of a ZIP archive of [{name, bytes}], for a Blob; `date` is that of every entry. */
export function zip(entries, date) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const { name, bytes } of entries) {
    const encoded = new TextEncoder().encode(name);
    const common = commonHeader(encoded, bytes, date);
    parts.push(record("PK\x03\x04", common, encoded), bytes);
    const where = new Uint8Array(14); // comment, disk, attributes: none
    new DataView(where.buffer).setUint32(10, offset, true);
    directory.push(record("PK\x01\x02\x14\x00", common, where, encoded));
    offset += 30 + encoded.length + bytes.length;
  }
  const size = directory.reduce((sum, entry) => sum + entry.length, 0);
  const end = new Uint8Array(18);
  const view = new DataView(end.buffer);
  view.setUint16(4, entries.length, true);
  view.setUint16(6, entries.length, true);
  view.setUint32(8, size, true);
  view.setUint32(12, offset, true);
  return [...parts, ...directory, record("PK\x05\x06", end)];
}

/** What the two headers of an entry share: version, flags, method, time, checksum, sizes, length of the name. */
function commonHeader(name, bytes, date) {
  const view = new DataView(new ArrayBuffer(26));
  view.setUint16(0, 20, true);
  view.setUint16(2, 0x0800, true); // names are UTF-8
  view.setUint16(6, (date.getHours() << 11) | (date.getMinutes() << 5) | (date.getSeconds() >> 1), true);
  view.setUint16(8, ((date.getFullYear() - 1980) << 9) | ((date.getMonth() + 1) << 5) | date.getDate(), true);
  view.setUint32(10, crc32(bytes), true);
  view.setUint32(14, bytes.length, true);
  view.setUint32(18, bytes.length, true);
  view.setUint16(22, name.length, true);
  return new Uint8Array(view.buffer);
}

function record(signature, ...parts) {
  return concat([Uint8Array.from(signature, (letter) => letter.charCodeAt(0)), ...parts]);
}

function concat(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

export function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ -1) >>> 0;
}
