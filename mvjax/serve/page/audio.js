/** Microphone and loudspeaker of this device, in one AudioContext. */

/** Why there is no microphone, in a sentence with a remedy. */
export class MicrophoneError extends Error {}

export class AudioDevice {
  /** Call it in a click: browsers (iOS most of all) let sound begin only then. */
  constructor({ onFrame, onReport, onMicrophoneLost }) {
    if (navigator.audioSession) navigator.audioSession.type = "play-and-record"; // iOS
    this.context = new AudioContext({ latencyHint: "interactive" });
    this.context.resume();
    Object.assign(this, { onFrame, onReport, onMicrophoneLost });
    this.muted = false;
    this.wake = () => this.context.state === "running" || this.context.resume();
    for (const event of ["pointerdown", "keydown", "visibilitychange"]) document.addEventListener(event, this.wake);
  }

  /** Loads the worklets; then frames of the microphone come to `onFrame`, silence until it is opened. */
  async open() {
    const { audioWorklet } = this.context;
    await Promise.all(
      ["capture", "playback"].map((name) => audioWorklet.addModule(new URL(`${name}-worklet.js`, import.meta.url))),
    );
    this.capture = new AudioWorkletNode(this.context, "capture", { channelCount: 1, channelCountMode: "explicit" });
    this.capture.port.onmessage = ({ data }) => this.onFrame(data);
    this.playback = new AudioWorkletNode(this.context, "playback", {
      numberOfInputs: 0,
      outputChannelCount: [1],
    });
    this.playback.port.onmessage = ({ data }) => this.onReport(data);
    this.capture.connect(this.context.destination); // it gives silence; unconnected it would stand still
    this.playback.connect(this.context.destination);
  }

  /** Opens the microphone, or opens it again with other constraints; MicrophoneError says why it cannot. */
  async openMicrophone(constraints) {
    const stream = await microphone(constraints);
    this.closeMicrophone();
    this.stream = stream;
    this.source = this.context.createMediaStreamSource(stream);
    this.source.connect(this.capture);
    const [track] = stream.getAudioTracks();
    track.enabled = !this.muted;
    track.onended = () => this.onMicrophoneLost();
  }

  closeMicrophone() {
    this.source?.disconnect();
    for (const track of this.stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    this.source = this.stream = null;
  }

  mute(muted) {
    this.muted = muted;
    for (const track of this.stream?.getAudioTracks() ?? []) track.enabled = !muted;
  }

  play(pcm, frame) {
    this.playback.port.postMessage({ pcm, frame });
  }

  flush() {
    this.playback.port.postMessage("flush");
  }

  /** Seconds from the worklet to the loudspeaker, where the browser knows them. */
  get outputSeconds() {
    return this.context.outputLatency || this.context.baseLatency || 0;
  }

  close() {
    for (const event of ["pointerdown", "keydown", "visibilitychange"]) document.removeEventListener(event, this.wake);
    this.closeMicrophone();
    this.context.close();
  }
}

async function microphone(constraints) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new MicrophoneError(
      "This browser gives the microphone to secure pages only: open the page as https:// or at localhost.",
    );
  }
  try {
    return await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, autoGainControl: true, ...constraints },
    });
  } catch (error) {
    throw new MicrophoneError(REASONS[error.name] ?? `The microphone cannot be opened: ${error.message}`);
  }
}

const REASONS = {
  NotAllowedError: "The microphone is not allowed: allow it in the address bar or the browser’s settings, then start again.",
  NotFoundError: "No microphone was found: plug one in, then start again.",
  NotReadableError: "Another program is using the microphone: close it, then start again.",
};
