/** The settings dialog: sampling, the microphone, the image's start; remembered in this browser. */

const KEY = "mvjax.settings";
const SWITCHES = { noise_suppression: false, echo_cancellation: true }; // as they are at first
const AT_THE_START = new Set(["xa_start"]); // the server takes it with the connection only

export class Settings {
  /** `onChange({sampling})` or `onChange({microphone})` says what a live conversation has to know. */
  constructor(dialog, onChange) {
    this.fields = [...dialog.querySelectorAll("input[type=number]")];
    this.switches = [...dialog.querySelectorAll("input[type=checkbox]")];
    this.defaults = {}; // the server's, once it told
    this.onChange = onChange;
    const saved = load();
    for (const field of this.fields) field.value = saved[field.name] ?? "";
    for (const one of this.switches) one.checked = saved[one.name] ?? SWITCHES[one.name];
    dialog.addEventListener("change", ({ target }) => this.changed(target));
    dialog.querySelector("[data-reset]").addEventListener("click", () => this.reset());
  }

  /** Names and values that differ from the server's choice, for the query of a new conversation. */
  get chosen() {
    const fields = this.fields.filter((field) => field.value !== "" && field.checkValidity());
    return Object.fromEntries(fields.map((field) => [field.name, field.value]));
  }

  /** Constraints of the microphone. */
  get microphone() {
    const { noise_suppression: noiseSuppression, echo_cancellation: echoCancellation } = this.switched;
    return { noiseSuppression, echoCancellation };
  }

  get switched() {
    return Object.fromEntries(this.switches.map(({ name, checked }) => [name, checked]));
  }

  /** The server tells its sampling: what was not chosen here is its default. */
  told(sampling = {}) {
    for (const field of this.fields) {
      if (field.value !== "" || !(field.name in sampling)) continue;
      this.defaults[field.name] = sampling[field.name];
      field.placeholder = sampling[field.name];
    }
  }

  changed(field) {
    if (this.switches.includes(field)) this.onChange({ microphone: this.microphone });
    else if (!field.reportValidity()) return;
    else this.tell([field]);
    this.save();
  }

  reset() {
    const changed = this.fields.filter((field) => field.value !== "");
    for (const field of changed) field.value = "";
    this.tell(changed);
    const turned = this.switches.filter(({ name, checked }) => checked !== SWITCHES[name]);
    for (const one of turned) one.checked = SWITCHES[one.name];
    if (turned.length) this.onChange({ microphone: this.microphone });
    this.save();
  }

  tell(fields) {
    const values = fields
      .filter(({ name }) => !AT_THE_START.has(name))
      .map(({ name, value }) => [name, value === "" ? this.defaults[name] : Number(value)])
      .filter(([, value]) => value !== undefined);
    if (values.length) this.onChange({ sampling: Object.fromEntries(values) });
  }

  save() {
    try {
      localStorage.setItem(KEY, JSON.stringify({ ...this.chosen, ...this.switched }));
    } catch {
      // private windows may have no storage: then the settings last as long as the page
    }
  }
}

function load() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}
