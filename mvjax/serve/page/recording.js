/** What a conversation leaves behind: both sides' audio, the transcript, the images; and the file it is saved as. */

import { stereoWav, zip } from "./wav.js";
import { FRAME_SECONDS, SAMPLE_RATE } from "./wire.js";

export const PAUSE_SECONDS = 1.2; // without a word ends a turn
const MOST_FRAMES = 22500; // 30 minutes, 172 MB: of longer talks the last part is kept

export class Recording {
  constructor() {
    this.begun = new Date();
    this.model = null; // as the server's hello says
    this.user = []; // int16 frames
    this.assistant = []; // at the places of the user frames that they answer
    this.dropped = 0; // frames at the beginning that are no longer kept
    this.events = []; // {seconds, who, ...}
    this.images = []; // {name, bytes}
  }

  hear(pcm) {
    this.user.push(pcm);
    if (this.user.length <= MOST_FRAMES) return;
    const excess = MOST_FRAMES / 10;
    this.user.splice(0, excess);
    this.assistant.splice(0, excess);
    this.dropped += excess;
  }

  say(pcm, frame) {
    if (frame >= this.dropped) this.assistant[frame - this.dropped] = pcm;
  }

  note(frame, event) {
    this.events.push({ seconds: Math.round(1000 * frame * FRAME_SECONDS) / 1000, ...event });
  }

  show(frame, picture) {
    if (!picture) return this.note(frame, { who: "user", image: null });
    const name = `image-${this.images.length + 1}.${picture.type.split("/")[1].replace("jpeg", "jpg")}`;
    this.images.push({ name, bytes: new Uint8Array(picture.bytes) });
    this.note(frame, { who: "user", image: name });
  }

  /** The archive as a Blob: conversation.wav (left: the assistant, right: the user), transcript, images. */
  save() {
    const silence = new Int16Array(this.user[0]?.length ?? 0);
    const assistant = Array.from(this.user, (_, i) => this.assistant[i] ?? silence);
    const transcript = {
      model: this.model,
      begun: this.begun.toISOString(),
      audio_begins_at_seconds: this.dropped * FRAME_SECONDS,
      levels: "of gate activation, 0 to 10: round(10 * clip((gate - 0.005) / 0.016, 0, 1))",
      events: this.events,
    };
    const bytes = (text) => new TextEncoder().encode(text);
    const entries = [
      { name: "conversation.wav", bytes: stereoWav(assistant, this.user, SAMPLE_RATE) },
      { name: "transcript.json", bytes: bytes(`${JSON.stringify(transcript, null, 1)}\n`) },
      { name: "transcript.txt", bytes: bytes(plainText(this.events)) },
      ...this.images,
    ];
    return new Blob(zip(entries, this.begun), { type: "application/zip" });
  }

  get fileName() {
    return `conversation-${this.begun.toISOString().slice(0, 19).replaceAll(":", "-")}.zip`;
  }
}

/** A line for each turn: its time, who, and what; pieces of the assistant's text within a pause's time are joined. */
export function plainText(events) {
  const lines = [];
  let open = -Infinity; // seconds; of the turn that the next piece may go on
  for (const { seconds, who, text, level, ...rest } of events) {
    const spoken = level !== undefined;
    const what = text ?? ("image" in rest ? (`[shows ${rest.image ?? "no image"}]`) : "");
    if (spoken && seconds - open <= PAUSE_SECONDS) lines.push(lines.pop() + what);
    else lines.push(`${seconds.toFixed(2).padStart(8)} s  ${who}: ${what.trimStart()}`);
    open = spoken ? seconds : -Infinity;
  }
  return lines.map((line) => `${line}\n`).join("");
}
