// The live tab: captions of what the microphone hears, by a WebSocket to the server.

const LIVE_RATE = 24_000; // Hz, the rate of the server's sessions
const LIVE_UNSENT = 1 << 20; // bytes that may wait for a slow connection
let live = null; // the running LiveSession

/** Converts samples at one rate to `LIVE_RATE`, chunk by chunk: each output sample is the mean of the input around it. */
class RateConverter {
  rest = new Float32Array(0);
  position = 0; // of the next output sample in `rest`, in input samples

  constructor(rate) {
    this.step = rate / LIVE_RATE;
  }

  convert(chunk) {
    if (this.step === 1) return chunk;
    const input = new Float32Array(this.rest.length + chunk.length);
    input.set(this.rest);
    input.set(chunk, this.rest.length);
    const width = Math.max(1, Math.round(this.step));
    const output = [];
    for (; this.position + width <= input.length; this.position += this.step) {
      const from = Math.floor(this.position);
      let sum = 0;
      for (let i = from; i < from + width; i++) sum += input[i];
      output.push(sum / width);
    }
    const used = Math.min(Math.floor(this.position), input.length);
    this.rest = input.slice(used);
    this.position -= used;
    return Float32Array.from(output);
  }
}

/** One session: `start`, then `finish`, or `end` to leave at once. */
class LiveSession {
  captions = new Map(); // item id -> paragraph
  open = null; // the item that is being spoken
  pending = new Set(); // items without a final text
  samples = 0;

  async start() {
    this.microphone = new Microphone(LIVE_RATE, (chunk, level) => this.take(chunk, level));
    try {
      await this.microphone.start();
    } catch (error) {
      throw new Error(Microphone.problem(error));
    }
    if (this.ended) return; // stopped while the browser asked for permission
    this.converter = new RateConverter(this.microphone.rate);
    await this.connect();
  }

  connect() {
    const url = new URL("/v1/realtime", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    url.searchParams.set("intent", "transcription");
    url.searchParams.set("model", props.model);
    const key = apiKey();
    // Pages can't set headers of a WebSocket: the key is sent as a subprotocol.
    const protocols = ["realtime", ...(key ? [`openai-insecure-api-key.${key}`] : [])];
    try {
      this.socket = new WebSocket(url, protocols);
    } catch {
      throw new Error("The API key has characters that can't be sent for live captions.");
    }
    return new Promise((resolve, reject) => {
      this.socket.onopen = resolve;
      this.socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
      this.socket.onclose = () => {
        reject(new Error("The server accepts no live session: it may be busy, or need another API key."));
        this.closed();
      };
    });
  }

  send(event) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(event));
  }

  take(chunk, level) {
    $("live-level").style.width = `${Math.round(100 * level)}%`;
    if (this.socket?.readyState !== WebSocket.OPEN || this.finishing) return;
    const samples = pcm16(this.converter.convert(chunk));
    this.samples += samples.length;
    $("live-timer").textContent = clock(this.samples / LIVE_RATE);
    this.send({ type: "input_audio_buffer.append", audio: new Uint8Array(samples.buffer).toBase64() });
    if (this.socket.bufferedAmount > LIVE_UNSENT) {
      showLiveError("The connection to the server is too slow for live captions.");
      this.end();
    }
  }

  receive(event) {
    const id = event.item_id;
    switch (event.type) {
      case "input_audio_buffer.speech_started":
        this.open = id;
        this.pending.add(id);
        this.captions.set(id, h("p", { class: "caption open", dir: "auto" }));
        $("live-captions").append(this.captions.get(id));
        break;
      case "input_audio_buffer.committed":
        if (this.open === id) this.open = null;
        break;
      case "conversation.item.input_audio_transcription.delta":
        this.captions.get(id)?.append(event.delta);
        break;
      case "conversation.item.input_audio_transcription.completed":
        this.settle(id, event.transcript);
        break;
      case "conversation.item.input_audio_transcription.failed":
        this.settle(id, "");
        showLiveError(event.error.message);
        break;
      case "error":
        showLiveError(event.error.message);
    }
    renderLive();
  }

  /** Replaces the caption of an item by its final text. */
  settle(id, text) {
    const caption = this.captions.get(id);
    caption?.classList.remove("open");
    if (text) caption?.replaceChildren(text);
    else caption?.remove();
    this.pending.delete(id);
    if (this.finishing && !this.pending.size) this.end();
  }

  /** Ends the recording; the session ends when all of it has a text. */
  finish() {
    this.finishing = true;
    this.microphone.stop();
    if (this.open) this.send({ type: "input_audio_buffer.commit" });
    if (!this.pending.size) this.end();
    renderLive();
  }

  closed() {
    if (!this.finishing && !this.ended && $("live-error").hidden) showLiveError("The server ended the session.");
    this.end();
  }

  end() {
    if (this.ended) return;
    this.ended = true;
    this.microphone.stop();
    this.socket?.close();
    for (const id of this.pending) this.captions.get(id)?.classList.remove("open");
    if (live === this) live = null;
    renderLive();
  }
}

function showLiveError(text) {
  $("live-error").textContent = text;
  $("live-error").hidden = false;
}

function renderLive() {
  const finishing = Boolean(live?.finishing);
  $("live-start").hidden = Boolean(live);
  $("live-stop").hidden = !live;
  $("live-stop").disabled = finishing;
  $("live-stop").textContent = finishing ? "Finishing" : "Stop";
  $("live-busy").hidden = !live || finishing;
  if (!live) $("live-level").style.width = "0";
  const any = $("live-captions").children.length > 0;
  $("live-none").hidden = any;
  $("live-copy").hidden = !any;
  $("live-clear").hidden = !any || Boolean(live);
}

async function startLive() {
  if (live) return;
  $("live-error").hidden = true;
  $("live-timer").textContent = clock(0);
  live = new LiveSession();
  const session = live;
  renderLive();
  try {
    await session.start();
    $("live-stop").focus();
  } catch (error) {
    if (!session.finishing) showLiveError(error.message);
    session.end();
  }
}

const liveText = () => [...$("live-captions").children].map((caption) => caption.textContent).join("\n");

function listenLive() {
  $("live-start").disabled = !canRecord();
  if (!canRecord()) $("live-none").textContent = "Recording needs https, or the server on this machine.";
  $("live-start").addEventListener("click", startLive);
  $("live-stop").addEventListener("click", () => live?.finish());
  $("live-copy").addEventListener("click", ({ currentTarget }) => copyText(`${liveText()}\n`, currentTarget));
  $("live-clear").addEventListener("click", () => {
    $("live-captions").replaceChildren();
    renderLive();
    $("live-start").focus();
  });
}
