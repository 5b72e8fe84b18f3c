/** Keeps the screen on while a conversation lasts, where the browser can. */

export class Awake {
  constructor() {
    this.wanted = false;
    document.addEventListener("visibilitychange", () => this.ask()); // a hidden page loses its lock
  }

  set(wanted) {
    this.wanted = wanted;
    if (wanted) return this.ask();
    this.lock?.release();
    this.lock = null;
  }

  async ask() {
    if (!this.wanted || document.hidden || !navigator.wakeLock) return;
    try {
      this.lock = await navigator.wakeLock.request("screen");
    } catch {
      // a low battery may refuse: the conversation goes on
    }
  }
}
