// Input of pictures, audio and documents: from files and the microphone.

const WAV_RATE = 16_000; // Hz, the model's sample rate

// ---------------------------------------------------------------- files

/** The MIME type according to the bytes, null if unknown; the file's name and type are ignored. */
function sniff(bytes) {
  const ascii = (from, to) => String.fromCharCode(...bytes.slice(from, to));
  if (bytes[0] === 0x89 && ascii(1, 4) === "PNG") return "image/png";
  if (bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff) return "image/jpeg";
  if (ascii(0, 4) === "GIF8") return "image/gif";
  if (ascii(0, 2) === "BM") return "image/bmp";
  if (ascii(0, 4) === "II*\0" || ascii(0, 4) === "MM\0*") return "image/tiff";
  if (ascii(0, 5) === "%PDF-") return "application/pdf";
  if (ascii(0, 4) === "RIFF" && ascii(8, 12) === "WEBP") return "image/webp";
  if (ascii(0, 4) === "RIFF" && ascii(8, 12) === "WAVE") return "audio/wav";
  if (ascii(0, 4) === "fLaC") return "audio/flac";
  if (ascii(0, 4) === "OggS") return "audio/ogg";
  if (ascii(0, 3) === "ID3" || (bytes[0] === 0xff && (bytes[1] & 0xe6) === 0xe2)) return "audio/mpeg";
  if (ascii(0, 4) === "\x1aE\xdf\xa3") return "audio/webm";
  if (ascii(4, 8) === "ftyp") {
    const brands = ascii(8, bytes[3]); // the first box, whose size is in the first four bytes
    return /avi[fs]/.test(brands) ? "image/avif" : /hei[cmsx]|mif1/.test(brands) ? "image/heic" : "audio/mp4";
  }
  if (bytes[0] === 0xff && (bytes[1] & 0xf6) === 0xf0) return "audio/aac";
  if (ascii(0, 5) === "#!AMR") return "audio/amr";
  return null;
}

/** Names of files that are neither text nor PDF. */
const BINARY_NAME =
  /\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif|hei[cf]|wav|flac|ogg|opus|mp3|m4a|aac|amr|mp4|mpeg|webm|mkv|avi|zip|tar|t?gz|bz2|xz|zst|7z|rar)$/i;

/** Whether a file is text: UTF-8 without NUL. Most files of other formats are read up to the first 4 KB only. */
async function isText(file) {
  try {
    for (const end of [4096, Math.min(file.size, props.limits.max_document_bytes ?? 4096)]) {
      const bytes = await file.slice(0, end).arrayBuffer();
      const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes, { stream: end < file.size });
      if (text.includes("\0")) return false;
    }
    return true;
  } catch {
    return false;
  }
}

/**
 * A file as `{id, kind, name, type, blob, width, height, seconds}`, checked against the server's limits. Throws an
 * Error with a message for the user. Audio that the browser can decode and the server can't is converted to WAV.
 */
async function readFile(file, longest) {
  const name = file.name || "file";
  if (!file.size) throw new Error(`${name} is empty.`);
  const type = sniff(new Uint8Array(await file.slice(0, 256).arrayBuffer()));
  const isPdf = type === "application/pdf";
  if (isPdf || (await isText(file))) {
    if (BINARY_NAME.test(name))
      throw new Error(`${name} isn't what its name says: it contains ${isPdf ? "a PDF" : "text"}.`);
    return readDocument(file, name, isPdf ? type : "text/plain", isPdf ? "PDF files" : "text files");
  }
  if (type?.startsWith("image/")) return readImage(file, name, type);
  if (type && (props.containers || !CONTAINER_TYPES.includes(type))) return readAudio(file, name, type, longest);
  if (/^(?:audio|video)\//.test(file.type)) {
    if (file.size > props.limits.max_audio_bytes) throw tooLarge(name, file.size, props.limits.max_audio_bytes);
    const samples = await decode(await file.arrayBuffer()).catch(() => null);
    if (samples) return readAudio(wav(samples), name.replace(/\.\w+$/, "") + ".wav", "audio/wav", longest);
  }
  throw new Error(
    `${name} can't be read: use pictures (PNG, JPEG, WebP, GIF, BMP), audio (WAV, FLAC, OGG, MP3), PDF or UTF-8 text.`,
  );
}

function tooLarge(name, size, limit) {
  return new Error(`${name} has ${megabytes(size)}; the server accepts up to ${megabytes(limit)}.`);
}

function readDocument(file, name, type, label) {
  // A server that converts no PDF has `documents: false`; an older one, which reads no text either, has none.
  if (!props.documents && (type === "application/pdf" || props.documents === undefined))
    throw new Error(`${name}: this server doesn't read ${label}.`);
  const { max_document_bytes: maxBytes } = props.limits;
  if (file.size > maxBytes) throw tooLarge(name, file.size, maxBytes);
  return { id: newId(), kind: "file", name, type, blob: new Blob([file], { type }) };
}

async function readImage(file, name, type) {
  if (!props.modalities.image) throw new Error(`${name}: this model doesn't support pictures.`);
  const common = IMAGE_TYPES.includes(type);
  if (!common && !props.image_formats?.includes(type))
    throw new Error(`${name}: this server doesn't read ${type.slice(6).toUpperCase()} pictures; save it as JPEG or PNG.`);
  const { max_image_bytes: maxBytes, max_image_pixels: maxPixels } = props.limits;
  if (file.size > maxBytes) throw tooLarge(name, file.size, maxBytes);
  const blob = new Blob([file], { type });
  const bitmap = await createImageBitmap(blob).catch(() => null);
  if (!bitmap && common) throw new Error(`${name} is damaged: it can't be decoded.`);
  const { width, height } = bitmap ?? { width: null, height: null }; // the server may decode what this browser doesn't
  bitmap?.close();
  if (width * height > maxPixels) {
    throw new Error(
      `${name} has ${number.format(width * height)} pixels; the server accepts up to ${number.format(maxPixels)}.`,
    );
  }
  return { id: newId(), kind: "image", name, type, blob, width, height };
}

async function readAudio(file, name, type, longest) {
  if (!props.modalities.audio) throw new Error(`${name}: this model doesn't support audio.`);
  const { max_audio_bytes: maxBytes } = props.limits;
  if (file.size > maxBytes) throw tooLarge(name, file.size, maxBytes);
  const blob = new Blob([file], { type });
  const seconds = file.seconds ?? (await lengthOf(blob)); // what a browser records doesn't say how long it is
  if (seconds && seconds > longest)
    throw new Error(`${name} lasts ${clock(seconds)}; the server accepts up to ${clock(longest)}.`);
  return { id: newId(), kind: "audio", name, type, blob, seconds };
}

/** The duration of an audio blob in seconds; null where it is unknown. */
async function lengthOf(blob) {
  const player = new Audio();
  const ready = new Promise((resolve) => (player.onloadedmetadata = player.onerror = resolve));
  player.preload = "metadata";
  player.src = URL.createObjectURL(blob);
  await ready;
  URL.revokeObjectURL(player.src);
  return Number.isFinite(player.duration) ? player.duration : null;
}

/** Mono samples at `WAV_RATE` of any audio that the browser can decode. */
async function decode(bytes) {
  const sound = await new OfflineAudioContext(1, 1, WAV_RATE).decodeAudioData(bytes);
  const mono = new Float32Array(sound.length);
  for (let channel = 0; channel < sound.numberOfChannels; channel++) {
    const samples = sound.getChannelData(channel);
    for (let i = 0; i < mono.length; i++) mono[i] += samples[i] / sound.numberOfChannels;
  }
  return mono;
}

/** Samples in [-1, 1] as 16-bit integers. */
function pcm16(samples) {
  return Int16Array.from(samples, (sample) => Math.round(Math.max(-1, Math.min(1, sample)) * 32767));
}

/** Mono samples in [-1, 1] as a 16-bit WAV file at `WAV_RATE`. */
function wav(samples) {
  const pcm = pcm16(samples);
  // The format: PCM, one channel; samples and bytes per second; bytes and bits per sample.
  const format = [Uint16Array.of(1, 1), Uint32Array.of(WAV_RATE, 2 * WAV_RATE), Uint16Array.of(2, 16)];
  const head = ["RIFF", Uint32Array.of(36 + pcm.byteLength), "WAVEfmt ", Uint32Array.of(16), ...format];
  return new Blob([...head, "data", Uint32Array.of(pcm.byteLength), pcm], { type: "audio/wav" });
}

// ---------------------------------------------------------------- the microphone

/** The audio worklet: collects blocks of 128 samples into messages of 1,024 (64 ms). */
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

/**
 * The microphone from `start` to `stop`. Calls `onchunk(samples, level)` with mono samples at `rate`, 1,024 or so at a
 * time, and with a level from 0 (-60 dB) to 1 for a meter. A browser may have another `rate` than the requested one.
 */
class Microphone {
  level = 0;

  constructor(rate, onchunk) {
    Object.assign(this, { requested: rate, onchunk });
  }

  get rate() {
    return this.context.sampleRate;
  }

  async start() {
    this.stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, noiseSuppression: true, autoGainControl: true },
    });
    if (this.stopped) return this.release();
    try {
      this.context = new AudioContext({ sampleRate: this.requested });
      this.source = this.context.createMediaStreamSource(this.stream);
    } catch {
      // Firefox connects no microphone to a context with another rate.
      this.context?.close();
      this.context = new AudioContext();
      this.source = this.context.createMediaStreamSource(this.stream);
    }
    this.sink = await this.tap();
    this.source.connect(this.sink);
    // A gain of zero keeps the graph running without an echo.
    const silent = this.context.createGain();
    silent.gain.value = 0;
    this.sink.connect(silent).connect(this.context.destination);
    this.context.resume(); // not awaited: without a loudspeaker it may stay pending
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

  take(chunk) {
    if (this.stopped) return;
    let sum = 0;
    for (const sample of chunk) sum += sample * sample;
    const loud = Math.max(0, 1 + Math.log10(Math.sqrt(sum / chunk.length) + 1e-9) / 3);
    this.level = Math.max(loud, this.level * 0.8); // the meter falls slowly
    this.onchunk(chunk, this.level);
  }

  stop() {
    if (this.stopped) return;
    this.stopped = true;
    this.release();
  }

  release() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.source?.disconnect();
    this.sink?.disconnect();
    this.context?.close();
  }

  /** A message for the user about an error of `start`. */
  static problem(error) {
    return error.name === "NotAllowedError"
      ? "The browser has no permission to use the microphone."
      : "No microphone was found.";
  }
}

/** One recording: `start`, then `finish` for a file or `cancel` to discard it. Calls `onlevel(level, seconds)`. */
class Recorder {
  chunks = [];
  seconds = 0;

  constructor(onlevel, longest, onfull) {
    this.microphone = new Microphone(WAV_RATE, (chunk, level) => {
      this.seconds += chunk.length / this.microphone.rate;
      onlevel(level, this.seconds);
      if (this.seconds >= longest) onfull();
    });
  }

  async start() {
    await this.microphone.start();
    this.recorder = new MediaRecorder(this.microphone.stream);
    this.recorder.ondataavailable = ({ data }) => this.chunks.push(data);
    this.recorder.start();
  }

  cancel() {
    this.microphone.stop();
  }

  /** The recording in the browser's format: WebM, MP4 or OGG. */
  async finish(name) {
    const stopped = new Promise((resolve) => (this.recorder.onstop = resolve));
    this.recorder.stop();
    await stopped;
    this.cancel();
    const type = this.recorder.mimeType.split(";")[0];
    const file = new File(this.chunks, `${name}.${type.slice(6)}`, { type });
    return Object.assign(file, { seconds: this.seconds });
  }
}

/**
 * Records with the panel `name` ("chat" or "speech": a meter, a timer, a stop and a cancel button). Resolves with a
 * file, or with null when the user cancels or there is no microphone.
 */
async function record(name, longest) {
  const panel = $(`${name}-recording`);
  const { promise: decision, resolve: resolveDecision } = Promise.withResolvers();
  const recorder = new Recorder(
    (level, seconds) => {
      $(`${name}-level`).style.width = `${Math.round(100 * level)}%`;
      $(`${name}-timer`).textContent = clock(seconds);
    },
    longest,
    () => resolveDecision(true),
  );
  try {
    await recorder.start();
  } catch (error) {
    recorder.cancel();
    toast(Microphone.problem(error));
    return null;
  }
  $(`${name}-timer`).textContent = clock(0);
  panel.hidden = false;
  panel.closest(".recordable").classList.add("recording");
  $(`${name}-record-stop`).onclick = () => resolveDecision(true);
  $(`${name}-record-cancel`).onclick = () => resolveDecision(false);
  $(`${name}-record-stop`).focus();
  announce("Recording");
  const accepted = await decision;
  panel.hidden = true;
  panel.closest(".recordable").classList.remove("recording");
  if (!accepted) {
    recorder.cancel();
    return null;
  }
  const time = new Date().toTimeString().slice(0, 5).replace(":", ".");
  const file = await recorder.finish(`Recording ${time}`);
  if (file.size) return file;
  toast("The microphone recorded no sound.");
  return null;
}

const canRecord = () => Boolean(navigator.mediaDevices?.getUserMedia && window.MediaRecorder);
