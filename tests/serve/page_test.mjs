// The page's functions that need no browser; `test_page.py` copies them beside this file and runs it by node.
import assert from "node:assert/strict";
import test from "node:test";

import { Connection } from "./connection.js";
import { Echo } from "./echo.js";
import { background, contrast, levelOf, LEVELS, lightness } from "./gate-scale.js";
import { Hush } from "./hush.js";
import { JitterBuffer, RULE } from "./jitter.js";
import { Latency, percentile } from "./latency.js";
import { Meter } from "./meter.js";
import { plainText, Recording } from "./recording.js";
import { Resampler } from "./resampler.js";
import { crc32, stereoWav, zip } from "./wav.js";
import * as wire from "./wire.js";

const RATE = 24000;
const sine = (hertz, rate, count) => Float32Array.from({ length: count }, (_, i) => Math.sin((2 * Math.PI * hertz * i) / rate));

function resample(input, from, to, block) {
  const resampler = new Resampler(from, to);
  const out = [];
  const piece = new Float32Array(1000);
  for (let at = 0; at < input.length; at += block) {
    resampler.write(input.subarray(at, at + block));
    for (let n; (n = resampler.read(piece)); ) out.push(...piece.subarray(0, n));
  }
  return out;
}

for (const [from, to] of [[48000, 24000], [44100, 24000], [24000, 48000], [24000, 44100], [16000, 24000], [24000, 24000]]) {
  test(`a tone survives ${from} -> ${to} Hz, in blocks of any size`, () => {
    const out = resample(sine(1000, from, from / 2), from, to, 128);
    assert.ok(Math.abs(out.length - to / 2) <= to / from + 40, `${out.length}`);
    const wanted = sine(1000, to, out.length);
    let worst = 0;
    for (let i = 100; i < out.length - 100; i++) worst = Math.max(worst, Math.abs(out[i] - wanted[i]));
    assert.ok(worst < 2e-3, `${worst}`);
    assert.deepEqual(out, resample(sine(1000, from, from / 2), from, to, 37).slice(0, out.length));
  });
}

test("what the lower rate cannot hold is gone, not folded", () => {
  const out = resample(sine(15000, 48000, 24000), 48000, 24000, 128);
  assert.ok(Math.max(...out.slice(200).map(Math.abs)) < 1e-3);
});

test("the resampler says how much it misses for an exact number of samples", () => {
  for (const to of [48000, 44100, 96000, 16000]) {
    const resampler = new Resampler(RATE, to);
    const out = new Float32Array(128);
    for (let i = 0; i < 500; i++) {
      resampler.write(new Float32Array(resampler.missing(128)));
      assert.equal(resampler.read(out), 128);
    }
  }
});

const FRAME = 1920;
const loud = () => new Float32Array(FRAME).fill(0.5);
const pull = (jitter, seconds) => {
  const out = new Float32Array(Math.round(seconds * RATE));
  for (let at = 0; at < out.length; at += 64) jitter.pull(out.subarray(at, at + 64));
  return out;
};
const steepest = (samples) => samples.reduce((most, value, i) => Math.max(most, i ? Math.abs(value - samples[i - 1]) : 0), 0);

test("playback begins 10 ms after the first frame, and fades in", () => {
  const jitter = new JitterBuffer(RATE);
  assert.ok(pull(jitter, 1).every((value) => value === 0));
  jitter.push(loud(), 0);
  const out = pull(jitter, 0.08);
  const first = out.findIndex((value) => value > 0) / RATE;
  assert.ok(first >= 0.005 && first <= 0.012, `${first}`);
  assert.ok(steepest(out) < 0.5 / (0.9 * RULE.fade * RATE));
  assert.deepEqual(jitter.last.frame, 0);
});

test("an underrun fades out and raises the target by 20 ms, to 240 at most", () => {
  const jitter = new JitterBuffer(RATE);
  const targets = [];
  for (let i = 0; i < 12; i++) {
    jitter.push(loud(), i);
    const out = pull(jitter, 0.5); // the next frame is late
    assert.ok(steepest(out) < 0.5 / (0.9 * RULE.fade * RATE));
    targets.push(Math.round((1000 * jitter.target) / RATE));
  }
  assert.deepEqual(targets, [110, 130, 150, 170, 190, 210, 230, 240, 240, 240, 240, 240]);
  assert.equal(jitter.underruns, 12);
});

test("frames in time play without a gap", () => {
  const jitter = new JitterBuffer(RATE);
  const out = [];
  for (let i = 0; i < 50; i++) {
    jitter.push(loud(), i);
    out.push(...pull(jitter, 0.08));
  }
  assert.equal(jitter.underruns, 0);
  assert.equal(jitter.dropped, 0);
  assert.ok(out.slice(0.03 * RATE).every((value) => Math.abs(value - 0.5) < 1e-6));
});

test("an overrun drops the oldest down to the target, without a click", () => {
  const jitter = new JitterBuffer(RATE);
  jitter.push(loud(), 0);
  pull(jitter, 0.04);
  const played = jitter.last.offset + 1;
  for (let i = 1; i < 10; i++) jitter.push(loud(), i); // nine at once
  assert.ok(jitter.queued <= jitter.target + RULE.slack * RATE);
  assert.equal(played + jitter.queued + jitter.dropped, 10 * FRAME);
  const out = pull(jitter, 0.05);
  assert.ok(Math.abs(out[0] - 0.5) < 0.01);
  assert.ok(steepest(out) < 0.5 / (0.9 * RULE.fade * RATE));
  assert.ok(jitter.last.frame >= 7, "the newest are kept");
});

test("flush is silence within 5 ms, and what comes next is heard", () => {
  const jitter = new JitterBuffer(RATE);
  jitter.push(loud(), 0);
  jitter.push(loud(), 1);
  pull(jitter, 0.04);
  assert.ok(jitter.flush() > FRAME);
  const out = pull(jitter, 0.1);
  assert.ok(steepest(out) < 0.5 / (0.9 * RULE.fade * RATE));
  assert.ok(out.slice(RULE.fade * RATE).every((value) => value === 0));
  assert.equal(jitter.underruns, 0);
  jitter.push(loud(), 2);
  assert.ok(Math.max(...pull(jitter, 0.05)) > 0.49);
});

test("after stop, speech is silent to its end, and the next is heard", () => {
  const hush = new Hush();
  const speech = new Int16Array(FRAME).fill(8000);
  const quiet = new Int16Array(FRAME).fill(20);
  assert.ok(hush.hears(speech));
  hush.begin();
  assert.deepEqual([speech, quiet, quiet, speech].map((pcm) => hush.hears(pcm)), [false, false, false, false]);
  for (let i = 0; i < 6; i++) assert.ok(!hush.hears(quiet));
  assert.ok(hush.hears(speech));
  hush.begin();
  for (let i = 0; i < 125; i++) assert.ok(!hush.hears(speech));
  assert.ok(hush.hears(speech), "after 10 s at the latest");
});

test("latency is microphone time minus played time, also after frames were dropped", () => {
  const latency = new Latency();
  for (let i = 0; i < 5; i++) latency.send(latency.capture(0.08 * (i + 1)), 0.08 * (i + 1));
  assert.equal(latency.receive(0.5), 0);
  assert.equal(latency.receive(0.5), 1);
  latency.status({ frame: 2, skipped: 2, p50_ms: 30 });
  assert.equal(latency.receive(0.5), 4, "two were skipped");
  assert.ok(Math.abs(latency.network.at(-1) - (0.1 - 0.03)) < 1e-9);
  const played = latency.played({ frame: 4, offset: 960 }, 0.6, { rate: RATE, output: 0.01 });
  assert.ok(Math.abs(played - 0.36) < 1e-9);
  assert.ok(Math.abs(latency.total.at(-1) - (0.6 - 0.36 + 0.01)) < 1e-9);
  latency.handshake(); // resumed, after 10 captured frames that were not sent
  for (let i = 5; i < 15; i++) latency.capture(0.08 * (i + 1)), latency.hold();
  latency.send(latency.capture(1.28), 1.28);
  assert.equal(latency.receive(1.3), 15);
  latency.status({ frame: 4, skipped: 2, p50_ms: 30 });
  latency.send(latency.capture(1.36), 1.36);
  assert.equal(latency.receive(1.4), 16);
  assert.ok(Math.abs(latency.played({ frame: 16, offset: 0 }, 1.5, { rate: RATE, output: 0 }) - 0.08) < 1e-9);
});

test("percentiles are of the nearest rank", () => {
  const values = Array.from({ length: 100 }, (_, i) => 100 - i);
  assert.deepEqual([0.5, 0.99, 1].map((share) => percentile(values, share)), [50, 99, 100]);
  assert.equal(percentile([], 0.5), null);
});

const INK = { light: "#1b2330", dark: "#e8ecf3" };
for (const scheme of ["light", "dark"]) {
  test(`the ${scheme} gate scale is even in lightness, in one order, and legible`, () => {
    const colors = Array.from({ length: LEVELS }, (_, level) => background(level, scheme));
    const steps = colors.slice(1).map((color, i) => lightness(color) - lightness(colors[i]));
    const mean = steps.reduce((a, b) => a + b) / steps.length;
    assert.ok(Math.abs(mean) > 0.015);
    assert.ok(steps.every((step) => Math.abs(step / mean - 1) < 0.35), `${steps}`);
    assert.ok(colors.every((color) => contrast(color, INK[scheme]) >= 4.5));
  });
}

test("levels are upstream's, or over a wider range", () => {
  assert.deepEqual([0, 0.005, 0.013, 0.018, 0.021, 0.5].map((gate) => levelOf(gate)), [0, 0, 5, 8, 10, 10]);
  assert.deepEqual([0.005, 0.055, 0.105].map((gate) => levelOf(gate, 0.105)), [0, 5, 10]);
});

test("what was typed is not shown as the model's words, what it answers is", () => {
  const echo = new Echo();
  echo.expect("What colour is it?");
  const pieces = [" okay", " what", " col", "our", " is", " it", "?", " it", " is", " red"];
  assert.deepEqual(pieces.filter((piece) => !echo.takes(piece)), [" okay", " it", " is", " red"]);
});

test("messages are their kind and their payload", () => {
  const pcm = Int16Array.of(1, -2, 300);
  const message = wire.audio(pcm);
  assert.deepEqual([...message], [1, 1, 0, 254, 255, 44, 1]);
  assert.deepEqual(wire.decode(message.buffer), { kind: 1, pcm });
  const colored = Uint8Array.of(7, 9, ...new TextEncoder().encode(" grün"));
  assert.deepEqual(wire.decode(colored.buffer), { kind: 7, color: 9, text: " grün" });
  const request = wire.request("text", { text: "hi" });
  assert.equal(request[0], 9);
  assert.deepEqual(JSON.parse(new TextDecoder().decode(request.subarray(1))), { request: "text", text: "hi" });
  assert.deepEqual(wire.decode(Uint8Array.of(0, 0, 0).buffer), { kind: 0 });
});

test("the CRC is zip's", () => {
  assert.equal(crc32(new TextEncoder().encode("123456789")), 0xcbf43926);
});

test("a saved conversation is written for other programs to read", async () => {
  const { writeFile } = await import("node:fs/promises");
  const recording = new Recording();
  recording.show(0, { type: "image/png", bytes: Uint8Array.of(1, 2, 3).buffer });
  for (let i = 0; i < 3; i++) recording.hear(new Int16Array(FRAME).fill(100 + i));
  recording.say(new Int16Array(FRAME).fill(7), 1);
  for (const text of [" it", " is", " a", " se", "ven"]) recording.note(1, { who: "assistant", text, gate: 0.011, level: 4 });
  recording.note(2, { who: "user", text: "why" });
  assert.equal(plainText(recording.events), "    0.00 s  user: [shows image-1.png]\n    0.08 s  assistant: it is a seven\n    0.16 s  user: why\n");
  await writeFile(process.env.SAVED, Buffer.from(await recording.save().arrayBuffer()));
  assert.equal(stereoWav([], [], RATE).length, 44);
  assert.equal(zip([], new Date()).reduce((sum, part) => sum + part.length, 0), 22);
});

test("a conversation that goes on sends again what may have been lost with the line", (context) => {
  context.mock.timers.enable({ apis: ["setTimeout"] });
  const sockets = [];
  globalThis.WebSocket = class {
    static OPEN = 1;
    constructor() {
      Object.assign(this, { readyState: 1, sent: [] });
      sockets.push(this);
    }
    send(message) {
      this.sent.push(message);
    }
    close() {}
  };
  const on = { ready() {}, lost() {}, hello() {}, closed() {} };
  const made = { url: () => "ws://x", first: () => ["first"], again: () => ["again"], on };
  const connection = new Connection(made);
  sockets[0].onopen();
  connection.receive({ kind: wire.KIND.metadata, value: { type: "hello", resume: "token" } });
  connection.receive({ kind: wire.KIND.handshake });
  sockets[0].onclose({ code: 1006, reason: "" });
  context.mock.timers.tick(1000);
  sockets[1].onopen();
  connection.receive({ kind: wire.KIND.handshake });
  assert.deepEqual(sockets.map((socket) => socket.sent), [["first"], ["again"]]);
});

test("the meter says when the server takes longer than a frame lasts", () => {
  const node = { setAttribute() {} };
  const slow = { hidden: true };
  const meter = new Meter({ querySelector: () => node, querySelectorAll: () => [] }, slow);
  const seen = (status) => {
    meter.show({ latency: new Latency(), status, playback: null, stalled: 0 });
    return !slow.hidden;
  };
  assert.deepEqual([null, { p50_ms: 81 }, { p50_ms: 79 }, {}].map(seen), [false, true, false, false]);
});
