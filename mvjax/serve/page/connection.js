/** One conversation's socket: opens, says hello, counts frames, and comes back when the line was lost. */

import * as wire from "./wire.js";

const RESUME_SECONDS = 30; // as long as the server keeps a lost session
const SILENT_SECONDS = 10; // a server that lives says something every 4 s
const ABNORMAL = 1006; // close code of a line that broke
const STALLED_BYTES = 6 * 2 * wire.FRAME_SAMPLES; // more than 0.5 s unsent: microphone frames are dropped

export class Connection {
  /**
   * `url(resume)` names the endpoint; `first()` returns the messages of a new conversation that come before audio,
   * `again()` those of one that goes on: what was sent last may have been lost with the line.
   * `on` has a function for each event: queue, hello, ready, audio, text, gate, status, trouble, lost, closed({error}).
   */
  constructor({ url, first, again, on }) {
    Object.assign(this, { url, first, again, on });
    this.resume = null; // token
    this.ready = false;
    this.done = false;
    this.trouble = null; // what the server last said was wrong
    this.lostAt = null; // seconds
    this.open();
  }

  send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(message);
  }

  /** Sends a frame of audio unless the line is stalled; returns whether it did. */
  sendAudio(pcm) {
    if (this.ready && performance.now() / 1000 - this.heardAt > SILENT_SECONDS) this.giveUp();
    if (!this.ready || this.socket.bufferedAmount > STALLED_BYTES) return false;
    this.send(wire.audio(pcm));
    return true;
  }

  close() {
    this.done = true;
    clearTimeout(this.retry);
    this.socket.close(1000);
  }

  open() {
    const resume = this.resume;
    const socket = new WebSocket(this.url(resume));
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      if (!resume) for (const message of this.first()) this.send(message);
    };
    socket.onmessage = ({ data }) => {
      if (data instanceof ArrayBuffer && data.byteLength) this.receive(wire.decode(data));
    };
    socket.onclose = ({ code, reason }) => {
      if (!this.done) this.closed(code, reason);
    };
  }

  /** Takes the line for broken: the browser itself may notice minutes later. */
  giveUp() {
    this.socket.onclose = this.socket.onmessage = null;
    this.socket.close();
    this.closed(ABNORMAL, "");
  }

  receive(message) {
    this.heardAt = performance.now() / 1000;
    switch (message.kind) {
      case wire.KIND.handshake:
        this.ready = true;
        if (this.lostAt !== null) for (const message of this.again()) this.send(message);
        this.lostAt = null;
        return this.on.ready();
      case wire.KIND.audio:
        return this.on.audio(message.pcm);
      case wire.KIND.text:
      case wire.KIND.coloredText:
        return this.on.text(message.text, message.color ?? 0);
      case wire.KIND.error:
        this.trouble = message.text;
        return this.lostAt === null && this.on.trouble(message.text);
      case wire.KIND.metadata:
        return this.metadata(message.value);
    }
  }

  metadata(value) {
    if (value.type === "hello") this.resume = value.resume ?? null;
    if (["queue", "hello", "status", "gate"].includes(value.type)) this.on[value.type](value);
  }

  async closed(code, reason) {
    const why = reason || this.trouble;
    if (this.ready && code === ABNORMAL && this.resume) this.lostAt = performance.now() / 1000;
    const begun = this.ready;
    this.ready = false;
    if (this.lostAt === null) return this.end(why || (begun ? null : await this.diagnose()));
    const waited = performance.now() / 1000 - this.lostAt;
    if (waited > RESUME_SECONDS) return this.end(why || "The connection was lost for more than 30 seconds.");
    this.trouble = null; // the server may need a while to see that the old socket is gone
    this.on.lost();
    this.retry = setTimeout(() => this.open(), Math.min(4, 0.5 + waited / 2) * 1000);
  }

  end(error) {
    this.done = true;
    this.on.closed({ error });
  }

  /** A refused WebSocket does not say why; the same address without the upgrade does. */
  async diagnose() {
    try {
      const response = await fetch(this.url(null).replace(/^ws/, "http"));
      if (response.status === 401) return { token: true };
      if (response.status === 400) return "The connection was closed before the conversation began: try again.";
      return `The server answered ${response.status}: ${(await response.text()).slice(0, 300)}`;
    } catch {
      return "The server cannot be reached. Is it running, and is this address still right?";
    }
  }
}
