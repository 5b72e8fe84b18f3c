/** The page: what a person presses, and what they see of the conversation. */

import { Awake } from "./awake.js";
import { Conversation } from "./conversation.js";
import { background, LEVELS } from "./gate-scale.js";
import { Meter } from "./meter.js";
import * as pictures from "./pictures.js";
import { Settings } from "./settings.js";
import { Transcript } from "./transcript.js";

const $ = (id) => document.getElementById(id);
const root = document.documentElement;

const transcript = new Transcript($("turns"), $("empty"));
const meter = new Meter($("meter"), $("slow"));
const awake = new Awake();
const settings = new Settings($("settings"), (change) => {
  if (change.sampling) conversation?.set(change.sampling);
  else conversation?.setMicrophone(change.microphone);
});

let conversation = null;
let latest = null; // the conversation that can be saved
let picture = null;
let muted = false;
let token = takeToken();

const STATES = {
  idle: "Ready",
  starting: "Connecting…",
  queued: "Waiting",
  live: "Live",
  lost: "Reconnecting…",
  ended: "Ended",
};

function setState(name, detail = null) {
  root.dataset.state = name;
  const running = !["idle", "ended"].includes(name);
  $("status").textContent = name === "queued" ? `Place ${detail.position} in the queue` : STATES[name];
  $("start-label").textContent = running ? "End" : "Start";
  for (const id of ["mute", "stop"]) $(id).disabled = !running;
  $("question").disabled = $("ask").disabled = name !== "live";
  $("question").placeholder = name === "live" ? "Or type a question" : "Start, then talk or type";
  $("save").disabled = !latest?.recording.user.length;
  awake.set(running);
}

function showAlert(message) {
  $("alert").hidden = !message;
  $("alert-text").textContent = message ?? "";
}

function endpoint(resume) {
  const url = new URL("api/chat", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const query = { audio: "pcm", ...settings.chosen, ...(token && { token }), ...(resume && { resume }) };
  url.search = new URLSearchParams(query);
  return url.href;
}

async function start() {
  if (!isSecureContext) {
    return showAlert("Browsers give the microphone to secure pages only: open this page as https:// or at localhost.");
  }
  showAlert(null);
  transcript.begin();
  const talk = new Conversation({
    url: endpoint,
    picture,
    microphone: settings.microphone,
    on: {
      state: (name, detail) => changed(talk, name, detail),
      hello: (hello) => {
        $("model").textContent = hello.model ?? "";
        settings.told(hello.sampling);
      },
      trouble: showAlert,
      microphone: (reason) => showAlert(`${reason} Meanwhile you can type.`),
      text: (piece) => transcript.say(piece),
      levels: showLevels,
      meter: () => {
        meter.show(talk);
        transcript.tick(talk.frame);
        $("save").disabled = false;
      },
    },
  });
  conversation = latest = talk;
  talk.mute(muted);
  try {
    await talk.begin();
  } catch (error) {
    talk.end(`The sound cannot be set up: ${error.message} If the server has stopped, start it and reload this page.`);
  }
}

function changed(talk, name, detail) {
  if (name === "live" && detail.begins) {
    transcript.note(picture ? "You show an image" : "You show no image", 0, picture?.url);
  }
  if (name === "ended") {
    conversation = null;
    transcript.close();
    showLevels({ user: 0, assistant: 0 });
    meter.show(talk);
    if (detail?.token) $("token").showModal();
    else if (detail) showAlert(detail);
  }
  setState(name, detail);
}

function showLevels({ user, assistant }) {
  const shown = (level) => Math.min(1, Math.sqrt(level) * 1.6).toFixed(3); // quiet speech is seen, too
  if (user !== undefined) root.style.setProperty("--user-level", shown(muted ? 0 : user));
  if (assistant !== undefined) root.style.setProperty("--assistant-level", shown(assistant));
}

async function give(file) {
  try {
    const next = await pictures.read(file);
    show(next);
    showAlert(null);
  } catch (error) {
    showAlert(error.message);
  }
}

function show(next) {
  const old = picture;
  picture = next;
  $("preview").hidden = $("remove").hidden = !next;
  $("no-image").hidden = Boolean(next);
  $("preview").src = next?.url ?? "";
  $("preview").classList.toggle("small", Boolean(next) && Math.max(next.width, next.height) < 200);
  if (conversation?.live) {
    transcript.note(next ? "You show another image" : "You remove the image", conversation.latency.captured, next?.url);
  } else if (old) URL.revokeObjectURL(old.url);
  conversation?.show(next);
}

function ask(event) {
  event.preventDefault();
  const text = $("question").value.trim();
  if (!text || !conversation?.live) return;
  conversation.ask(text);
  transcript.ask(text, conversation.latency.captured);
  $("question").value = "";
}

function mute() {
  muted = !muted;
  conversation?.mute(muted);
  $("mute").setAttribute("aria-pressed", muted);
  $("mute-label").textContent = muted ? "Unmute" : "Mute";
  if (muted) showLevels({ user: 0 });
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(latest.recording.save());
  link.download = latest.recording.fileName;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The token of the address, which is taken out of it: addresses are copied and photographed. */
function takeToken() {
  const url = new URL(location.href);
  const given = url.searchParams.get("token");
  if (given) {
    sessionStorage.setItem("mvjax.token", given);
    url.searchParams.delete("token");
    history.replaceState(null, "", url);
  }
  return sessionStorage.getItem("mvjax.token");
}

function paintScale() {
  const scheme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  for (let level = 0; level < LEVELS; level++) root.style.setProperty(`--gate-${level}`, background(level, scheme));
}

$("start").addEventListener("click", () => (conversation ? conversation.end() : start()));
$("mute").addEventListener("click", mute);
$("stop").addEventListener("click", () => conversation?.stop());
$("save").addEventListener("click", save);
$("remove").addEventListener("click", () => {
  show(null);
  $("choose").focus();
});
$("ask-form").addEventListener("submit", ask);
$("alert-close").addEventListener("click", () => showAlert(null));
$("open-settings").addEventListener("click", () => $("settings").showModal());
$("token").addEventListener("close", () => {
  if ($("token").returnValue !== "ok") return;
  token = $("token-value").value.trim();
  sessionStorage.setItem("mvjax.token", token);
  start();
});
for (const [button, input] of [["choose", "file"], ["photograph", "camera"]]) {
  $(button).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", () => {
    if ($(input).files.length) give($(input).files[0]);
    $(input).value = "";
  });
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && conversation && !document.querySelector("dialog[open]")) conversation.stop();
});
document.addEventListener("paste", ({ clipboardData }) => {
  const file = pictures.among(clipboardData);
  if (file) give(file);
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  root.dataset.dragging = "";
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) delete root.dataset.dragging;
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  delete root.dataset.dragging;
  const file = pictures.among(event.dataTransfer);
  if (file) give(file);
  else showAlert("What was dropped is not an image.");
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paintScale);
matchMedia("(min-width: 48rem)").addEventListener("change", ({ matches }) => ($("meter").open = matches));
$("meter").open = matchMedia("(min-width: 48rem)").matches;
window.addEventListener("pagehide", () => conversation?.end());
paintScale();
setState("idle");
