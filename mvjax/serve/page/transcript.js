/** The transcript: turns of the assistant, its words tinted by gate activation, and what the user did. */

import { FRAME_SECONDS } from "./wire.js";

const PAUSE_FRAMES = 15; // 1.2 s without a word end a turn
const NEAR = 60; // pixels from the end: then it follows what is added

export class Transcript {
  constructor(list, empty) {
    this.list = list;
    this.empty = empty;
    this.clear();
  }

  clear() {
    this.list.replaceChildren();
    this.empty.hidden = false;
    this.words = null; // of the open turn
    this.latest = 0;
  }

  /** A piece of the assistant's text. */
  say({ text, level, frame, heard }) {
    if (!this.words || frame - this.latest > PAUSE_FRAMES) this.words = this.turn("assistant", "Model", frame, true);
    this.latest = frame;
    const piece = document.createElement("span");
    piece.textContent = text.trimStart();
    const space = this.words.hasChildNodes() ? text.slice(0, text.length - piece.textContent.length) : "";
    piece.dataset.gate = level;
    piece.title = `gate activation ${level} of 10${heard ? "" : "; not played"}`;
    piece.classList.toggle("unheard", !heard);
    this.follow(() => this.words.append(space, piece));
  }

  /** Ends the open turn when the assistant has paused: only then a screen reader reads it. */
  tick(frame) {
    if (this.words && frame - this.latest > PAUSE_FRAMES) this.close();
  }

  ask(text, frame) {
    this.close();
    this.turn("user", "You typed", frame, false).textContent = text;
  }

  note(text, frame, url = null) {
    this.close();
    const words = this.turn("note", "", frame, false);
    words.textContent = text;
    if (url) {
      const image = document.createElement("img");
      image.src = url;
      image.alt = "";
      words.prepend(image);
    }
  }

  close() {
    this.words?.closest("li").setAttribute("aria-busy", "false");
    this.words = null;
  }

  turn(kind, who, frame, busy) {
    this.close();
    const item = document.createElement("li");
    item.className = kind;
    item.setAttribute("aria-busy", busy);
    const head = document.createElement("span");
    head.className = "who";
    const time = document.createElement("time");
    const seconds = Math.max(0, Math.floor(frame * FRAME_SECONDS));
    time.textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
    head.append(who, who ? " " : "", time);
    const words = document.createElement("p");
    item.append(head, words);
    this.empty.hidden = true;
    this.follow(() => this.list.append(item));
    return words;
  }

  follow(change) {
    const { list } = this;
    const followed = list.scrollHeight - list.scrollTop - list.clientHeight < NEAR;
    change();
    if (followed) list.scrollTop = list.scrollHeight;
  }
}
