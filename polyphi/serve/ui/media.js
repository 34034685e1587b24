// Pictures and clips on their way in: files, and the microphone.

const WAV_RATE = 16_000; // Hz, what the model hears

// ---------------------------------------------------------------- files

/** What the bytes are; names and types that a system gives are not asked. */
function sniff(bytes) {
  const ascii = (from, to) => String.fromCharCode(...bytes.slice(from, to));
  if (bytes[0] === 0x89 && ascii(1, 4) === "PNG") return "image/png";
  if (bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff) return "image/jpeg";
  if (ascii(0, 4) === "GIF8") return "image/gif";
  if (ascii(0, 2) === "BM") return "image/bmp";
  if (ascii(0, 4) === "RIFF" && ascii(8, 12) === "WEBP") return "image/webp";
  if (ascii(0, 4) === "RIFF" && ascii(8, 12) === "WAVE") return "audio/wav";
  if (ascii(0, 4) === "fLaC") return "audio/flac";
  if (ascii(0, 4) === "OggS") return "audio/ogg";
  if (ascii(0, 3) === "ID3" || (bytes[0] === 0xff && (bytes[1] & 0xe6) === 0xe2)) return "audio/mpeg";
  return null;
}

/**
 * A file as `{kind, name, type, blob, width, height, seconds}`, checked against the server's limits; raises an Error
 * with one line for the reader. Sound that only the browser can read (m4a, webm) becomes WAV here.
 */
async function readFile(file, longest) {
  const name = file.name || "file";
  if (!file.size) throw new Error(`${name} is empty.`);
  const type = sniff(new Uint8Array(await file.slice(0, 16).arrayBuffer()));
  if (type?.startsWith("image/")) return readPicture(file, name, type);
  if (type) return readClip(file, name, type, longest);
  if (/^(?:audio|video)\//.test(file.type)) {
    if (file.size > props.limits.max_audio_bytes) throw tooBig(name, file.size, props.limits.max_audio_bytes);
    const samples = await decode(await file.arrayBuffer()).catch(() => null);
    if (samples) return readClip(wav(samples), name.replace(/\.\w+$/, "") + ".wav", "audio/wav", longest);
  }
  throw new Error(`${name} can't be read here: pictures are PNG, JPEG, WebP, GIF or BMP, clips WAV, FLAC, OGG or MP3.`);
}

function tooBig(name, size, limit) {
  return new Error(`${name} has ${megabytes(size)}; the server takes up to ${megabytes(limit)}.`);
}

async function readPicture(file, name, type) {
  if (!props.modalities.image) throw new Error(`${name}: this model sees no pictures.`);
  const { max_image_bytes: most, max_image_pixels: pixels } = props.limits;
  if (file.size > most) throw tooBig(name, file.size, most);
  const blob = new Blob([file], { type });
  const picture = new Image();
  picture.src = URL.createObjectURL(blob);
  try {
    await picture.decode();
  } catch {
    throw new Error(`${name} is damaged: it can't be shown.`);
  } finally {
    URL.revokeObjectURL(picture.src);
  }
  const { naturalWidth: width, naturalHeight: height } = picture;
  if (width * height > pixels) {
    throw new Error(
      `${name} has ${number.format(width * height)} pixels; the server takes up to ${number.format(pixels)}.`,
    );
  }
  return { kind: "image", name, type, blob, width, height };
}

async function readClip(file, name, type, longest) {
  if (!props.modalities.audio) throw new Error(`${name}: this model hears no sound.`);
  const { max_audio_bytes: most } = props.limits;
  if (file.size > most) throw tooBig(name, file.size, most);
  const blob = new Blob([file], { type });
  const seconds = await lengthOf(blob);
  if (seconds && seconds > longest)
    throw new Error(`${name} lasts ${clock(seconds)}; the server takes up to ${clock(longest)}.`);
  return { kind: "audio", name, type, blob, seconds };
}

/** Seconds of a clip; null where the browser can't tell. */
function lengthOf(blob) {
  return new Promise((resolve) => {
    const player = new Audio();
    const finish = (seconds) => {
      URL.revokeObjectURL(player.src);
      resolve(Number.isFinite(seconds) ? seconds : null);
    };
    player.preload = "metadata";
    player.onloadedmetadata = () => finish(player.duration);
    player.onerror = () => finish(NaN);
    player.src = URL.createObjectURL(blob);
  });
}

/** Any sound that the browser reads as mono samples at `WAV_RATE`. */
async function decode(bytes) {
  const sound = await new OfflineAudioContext(1, 1, WAV_RATE).decodeAudioData(bytes);
  const mono = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    const samples = sound.getChannelData(channel);
    for (let i = 0; i < mono.length; i++) mono[i] += samples[i] / sound.numberOfChannels;
  }
  return mono;
}

/** Mono samples in [-1, 1] as a 16-bit WAV file at `WAV_RATE`. */
function wav(samples) {
  const pcm = Int16Array.from(samples, (sample) => Math.round(Math.max(-1, Math.min(1, sample)) * 32767));
  // The format: PCM, one channel; samples and bytes a second; bytes and bits of a sample.
  const format = [Uint16Array.of(1, 1), Uint32Array.of(WAV_RATE, 2 * WAV_RATE), Uint16Array.of(2, 16)];
  const head = ["RIFF", Uint32Array.of(36 + pcm.byteLength), "WAVEfmt ", Uint32Array.of(16), ...format];
  return new Blob([...head, "data", Uint32Array.of(pcm.byteLength), pcm], { type: "audio/wav" });
}

// ---------------------------------------------------------------- the microphone

/** Runs where sound is heard: blocks of 128 samples, gathered to messages of 1,024 (64 ms), which is often enough. */
const WORKLET = `registerProcessor("recorder", class extends AudioWorkletProcessor {
  filled = 0;
  block = new Float32Array(1024);

  process([[samples]]) {
    if (!samples) return true;
    this.block.set(samples, this.filled);
    this.filled += samples.length;
    if (this.filled === this.block.length) {
      this.port.postMessage(this.block);
      this.filled = 0;
    }
    return true;
  }
});`;

/** One recording: `start`, then `finish` for a WAV file or `cancel` for nothing. `onlevel(level, seconds)` is told on the way. */
class Recorder {
  chunks = [];
  samples = 0;

  constructor(onlevel, longest, onfull) {
    Object.assign(this, { onlevel, longest, onfull });
  }

  async start() {
    this.stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, noiseSuppression: true, autoGainControl: true },
    });
    try {
      this.context = new AudioContext({ sampleRate: WAV_RATE });
      this.source = this.context.createMediaStreamSource(this.stream);
    } catch {
      // Firefox joins no microphone to a context of another rate; the samples are brought to ours at the end.
      this.context?.close();
      this.context = new AudioContext();
      this.source = this.context.createMediaStreamSource(this.stream);
    }
    this.sink = await this.tap();
    this.source.connect(this.sink);
    // Nothing is heard of it: a gain of zero keeps the graph running without an echo.
    const silent = this.context.createGain();
    silent.gain.value = 0;
    this.sink.connect(silent).connect(this.context.destination);
    this.context.resume(); // not waited for: without a loudspeaker it may stay pending
  }

  async tap() {
    const module = URL.createObjectURL(new Blob([WORKLET], { type: "text/javascript" }));
    try {
      await this.context.audioWorklet.addModule(module);
      const node = new AudioWorkletNode(this.context, "recorder");
      node.port.onmessage = ({ data }) => this.take(data);
      return node;
    } catch {
      const node = this.context.createScriptProcessor(4096, 1, 1);
      node.onaudioprocess = ({ inputBuffer }) => this.take(inputBuffer.getChannelData(0).slice());
      return node;
    } finally {
      URL.revokeObjectURL(module);
    }
  }

  get seconds() {
    return this.samples / this.context.sampleRate;
  }

  take(chunk) {
    if (this.done) return;
    this.chunks.push(chunk);
    this.samples += chunk.length;
    let sum = 0;
    for (const sample of chunk) sum += sample * sample;
    // From -60 dB (0) to 0 dB (1), falling slowly so that the eye can follow.
    const loud = Math.max(0, 1 + Math.log10(Math.sqrt(sum / chunk.length) + 1e-9) / 3);
    this.level = Math.max(loud, (this.level ?? 0) * 0.8);
    this.onlevel(this.level, this.seconds);
    if (this.seconds >= this.longest) this.onfull();
  }

  cancel() {
    this.done = true;
    this.stream?.getTracks().forEach((track) => track.stop());
    this.source?.disconnect();
    this.sink?.disconnect();
    return this.context?.close();
  }

  async finish() {
    const rate = this.context.sampleRate;
    this.cancel();
    const samples = new Float32Array(await new Blob(this.chunks).arrayBuffer());
    if (rate === WAV_RATE || !samples.length) return wav(samples);
    const offline = new OfflineAudioContext(1, Math.ceil((samples.length * WAV_RATE) / rate), WAV_RATE);
    const buffer = offline.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(samples, 0);
    const source = offline.createBufferSource();
    source.buffer = buffer;
    source.connect(offline.destination);
    source.start();
    return wav((await offline.startRendering()).getChannelData(0));
  }
}

/**
 * Record into the panel `name` ("chat" or "speech": a meter, a timer, a stop and a cancel button); resolves with a WAV
 * file, or with null when the reader cancels or there is no microphone.
 */
async function record(name, longest) {
  const panel = $(`${name}-recording`);
  let settle;
  const decided = new Promise((resolve) => (settle = resolve));
  const recorder = new Recorder(
    (level, seconds) => {
      $(`${name}-level`).style.width = `${Math.round(100 * level)}%`;
      $(`${name}-timer`).textContent = clock(seconds);
    },
    longest,
    () => settle(true),
  );
  try {
    await recorder.start();
  } catch (error) {
    recorder.cancel();
    toast(
      error.name === "NotAllowedError"
        ? "The browser was not allowed to use the microphone."
        : "No microphone was found.",
    );
    return null;
  }
  $(`${name}-timer`).textContent = clock(0);
  panel.hidden = false;
  panel.closest(".recordable").classList.add("recording");
  $(`${name}-record-stop`).onclick = () => settle(true);
  $(`${name}-record-cancel`).onclick = () => settle(false);
  $(`${name}-record-stop`).focus();
  announce("Recording");
  const keep = await decided;
  panel.hidden = true;
  panel.closest(".recordable").classList.remove("recording");
  if (!keep || !recorder.samples) {
    recorder.cancel();
    if (keep) toast("The microphone gave no sound.");
    return null;
  }
  const time = new Date().toTimeString().slice(0, 5).replace(":", ".");
  return new File([await recorder.finish()], `Recording ${time}.wav`, { type: "audio/wav" });
}

const canRecord = () => Boolean(navigator.mediaDevices?.getUserMedia && window.AudioContext);
