/** The transcript: turns of the assistant, its words tinted by gate activation, and what the user did. */

import { levelOf, MOST } from "./gate-scale.js";
import { PAUSE_SECONDS } from "./recording.js";
import { FRAME_SECONDS } from "./wire.js";

const NEAR = 60; // pixels from the end: then it follows what is added

export class Transcript {
  constructor(list, empty) {
    this.list = list;
    this.empty = empty;
    this.followed = true; // the end is in view, and stays so when words come or a keyboard opens
    list.addEventListener("scroll", () => {
      this.followed = list.scrollHeight - list.scrollTop - list.clientHeight < NEAR;
    });
    new ResizeObserver(() => this.follow()).observe(list);
    this.begin();
  }

  /** A new conversation; the ones before stay above it. */
  begin() {
    if (this.list.hasChildNodes()) this.note("A new conversation", 0);
    this.words = null; // of the open turn
    this.latest = 0;
    this.most = MOST; // activation at the strongest tint
  }

  /** A piece of the assistant's text. */
  say({ text, gate, level, frame, heard }) {
    if (!this.words || this.paused(frame)) this.words = this.turn("assistant", "Model", frame, true);
    this.latest = frame;
    const piece = document.createElement("span");
    piece.textContent = text.trimStart();
    const space = this.words.hasChildNodes() ? text.slice(0, text.length - piece.textContent.length) : "";
    piece.dataset.gate = level;
    piece.title = `gate activation ${gate === null ? `${level} of 10` : gate.toFixed(3)}${heard ? "" : "; not played"}`;
    piece.classList.toggle("unheard", !heard);
    this.words.append(space, piece);
    if (gate !== null) this.tint(piece, gate);
    this.follow();
  }

  /** Tints a word by its activation; one beyond the range widens it, and all words are tinted again. */
  tint(piece, gate) {
    piece.dataset.activation = gate;
    const wider = gate > this.most;
    this.most = Math.max(this.most, gate);
    for (const word of wider ? this.list.querySelectorAll("[data-activation]") : [piece]) {
      word.dataset.gate = levelOf(word.dataset.activation, this.most);
    }
  }

  /** Ends the open turn when the assistant has paused: only then a screen reader reads it. */
  tick(frame) {
    if (this.words && this.paused(frame)) this.close();
  }

  paused(frame) {
    return (frame - this.latest) * FRAME_SECONDS > PAUSE_SECONDS;
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
    this.list.append(item);
    this.follow();
    return words;
  }

  follow() {
    if (this.followed) this.list.scrollTop = this.list.scrollHeight;
  }
}
