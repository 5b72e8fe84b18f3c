/** One conversation: the microphone to the server, its answers to the loudspeaker, and the account of both. */

import { AudioDevice, MicrophoneError } from "./audio.js";
import { Connection } from "./connection.js";
import { Echo } from "./echo.js";
import { levelOf } from "./gate-scale.js";
import { Hush } from "./hush.js";
import { Latency } from "./latency.js";
import { Recording } from "./recording.js";
import * as wire from "./wire.js";

const SILENCE = new Int16Array(wire.FRAME_SAMPLES);
const REPORTS_A_PLAYED = 12; // the server hears about once a second what is played
const IMAGE_SECONDS = 2.1; // between two images: the server takes one in 2 s

const now = () => performance.now() / 1000;

export class Conversation {
  /**
   * `url(resume)` names the endpoint, `picture` is what is seen first or null, `microphone` its constraints. `on` has a function for each event:
   * state(name, detail), hello(hello), trouble(text), microphone(reason), text({text, gate, level, frame, heard}),
   * levels({user, assistant}), meter(). `gate` is the activation, null where the server gives its level alone.
   */
  constructor({ url, picture, microphone, on }) {
    Object.assign(this, { url, picture, microphone, on });
    this.latency = new Latency();
    this.recording = new Recording();
    this.hush = new Hush();
    this.echo = new Echo();
    this.gate = null; // of the text that comes next
    this.hello = null;
    this.status = null; // the server's latest
    this.playback = null; // the worklet's latest report
    this.stalled = 0; // microphone frames not sent, because the line was stalled or lost
    this.live = false;
    this.over = false;
    this.reports = 0;
    this.frame = 0; // captured frame that the newest answer belongs to
    this.audio = new AudioDevice({
      onFrame: (frame) => this.heard(frame),
      onReport: (report) => this.played(report),
      onMicrophoneLost: () => this.on.microphone("The microphone was unplugged or taken away: end and start again."),
    });
  }

  async begin() {
    this.on.state("starting");
    await this.audio.open();
    await this.openMicrophone();
    if (this.over) return;
    this.connection = new Connection({
      url: this.url,
      first: () => [this.seen()],
      again: () => [this.seen(), ...(this.sampling ? [wire.request("settings", this.sampling)] : [])],
      on: {
        queue: (queue) => this.on.state("queued", queue),
        hello: (hello) => {
          this.hello = hello;
          this.recording.model = hello.model;
          this.on.hello(hello);
        },
        ready: () => this.ready(),
        audio: (pcm) => this.answered(pcm),
        gate: ({ value }) => (this.gate = value),
        text: (text, level) => this.said(text, level),
        status: (status) => {
          this.status = status;
          this.latency.status(status);
        },
        trouble: (text) => this.on.trouble(text),
        lost: () => this.on.state("lost"),
        closed: ({ error }) => this.end(error),
      },
    });
  }

  async openMicrophone() {
    try {
      await this.audio.openMicrophone(this.microphone);
    } catch (error) {
      if (!(error instanceof MicrophoneError)) throw error;
      this.on.microphone(error.message);
    }
  }

  ready() {
    this.latency.handshake();
    const begins = !this.live;
    if (begins) this.recording.show(0, this.picture);
    this.live = true;
    this.on.state("live", { begins });
  }

  heard({ pcm, level }) {
    if (!this.live) return this.on.levels({ user: level });
    const frame = this.latency.capture(now());
    this.recording.hear(pcm);
    if (this.connection.sendAudio(pcm)) this.latency.send(frame, now());
    else {
      this.latency.hold();
      this.stalled++;
    }
    this.on.levels({ user: level });
  }

  answered(pcm) {
    this.frame = this.latency.receive(now());
    this.recording.say(pcm, this.frame);
    this.audible = this.hush.hears(pcm);
    this.audio.play(this.audible ? pcm : SILENCE, this.frame);
  }

  said(text, level) {
    const { gate, frame } = this;
    this.gate = null;
    if (this.echo.takes(text)) return;
    const heard = this.audible ?? true;
    this.recording.note(frame, { who: "assistant", text, gate, level, ...(heard ? {} : { heard }) });
    this.on.text({ text, gate, level: gate === null ? level : levelOf(gate), frame, heard });
  }

  played(report) {
    this.playback = report;
    this.on.levels({ assistant: report.level });
    if (!report.playing || !report.last || !this.live) return;
    const micTime = this.latency.played(report.last, now(), {
      rate: wire.SAMPLE_RATE,
      output: this.audio.outputSeconds,
    });
    if (++this.reports % REPORTS_A_PLAYED === 0) {
      this.connection.send(wire.request("played", { mic_time: micTime }));
      this.on.meter();
    }
  }

  /** Silences what is being said, here and on the server. */
  stop() {
    this.hush.begin();
    this.audio.flush();
    this.connection?.send(wire.request("stop"));
  }

  mute(muted) {
    this.audio.mute(muted);
  }

  async setMicrophone(microphone) {
    this.microphone = microphone;
    if (this.audio.stream) await this.openMicrophone();
  }

  /** Shows another image from now on, or none. */
  show(picture) {
    this.picture = picture;
    if (this.live) this.recording.show(this.latency.captured, picture);
    clearTimeout(this.showing);
    const wait = Math.max(0, (this.shownAt ?? -IMAGE_SECONDS) + IMAGE_SECONDS - now());
    this.showing = setTimeout(() => {
      this.shownAt = now();
      this.connection?.send(this.seen());
    }, 1000 * wait);
  }

  /** The message that says what is to be seen. */
  seen() {
    return this.picture ? wire.image(this.picture.bytes) : wire.request("no_image");
  }

  ask(text) {
    this.echo.expect(text);
    this.connection.send(wire.request("text", { text }));
    this.recording.note(this.latency.captured, { who: "user", text });
  }

  set(sampling) {
    this.sampling = sampling;
    if (this.live) this.connection.send(wire.request("settings", sampling));
  }

  /** Ends it; `error` says what went wrong, null if nothing did. */
  end(error = null) {
    if (this.over) return;
    this.over = true;
    this.live = false;
    clearTimeout(this.showing);
    this.connection?.close();
    this.audio.close();
    this.on.state("ended", error);
  }
}
