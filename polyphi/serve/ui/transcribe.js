// The tab that writes down what was said, with times, and translates it.

let clip = null; // {name, blob, url, seconds}
let transcript = null; // what the server answered
let transcribing = null; // the AbortController of the request under way

async function chooseClip(file) {
  try {
    const read = await readFile(file, props.limits.max_recording_seconds);
    if (read.kind !== "audio") throw new Error(`${read.name} is a picture; here a recording is wanted.`);
    if (clip) URL.revokeObjectURL(clip.url);
    clip = { ...read, url: URL.createObjectURL(read.blob) };
    transcript = null;
    renderTranscribe();
    $("speech-start").focus();
  } catch (error) {
    toast(error.message);
  }
}

function renderTranscribe() {
  $("speech-none").hidden = Boolean(clip);
  $("speech-clip").hidden = !clip;
  $("speech-start").hidden = Boolean(transcribing);
  $("speech-start").disabled = !clip;
  $("speech-stop").hidden = !transcribing;
  $("speech-busy").hidden = !transcribing;
  $("speech-start-label").textContent = $("speech-to").value ? "Translate" : "Transcribe";
  $("speech-cot-row").hidden = !$("speech-to").value;
  if (clip) {
    $("speech-name").textContent = clip.seconds ? `${clip.name} · ${clock(clip.seconds)}` : clip.name;
    if ($("speech-player").src !== clip.url) $("speech-player").src = clip.url;
  }
  $("speech-result").hidden = !transcript;
  if (!transcript) return;
  const { segments, warnings } = transcript;
  $("speech-warnings").replaceChildren(...warnings.map((line) => h("p", { class: "note" }, line)));
  $("segments").replaceChildren(...segments.map(segmentElement));
  $("speech-text").hidden = segments.length > 0;
  $("speech-text").textContent = transcript.text || "Nothing was said.";
}

function segmentElement({ start, end, text, translation }) {
  const play = () => {
    $("speech-player").currentTime = start;
    $("speech-player").play().catch(() => {});
  };
  const said = h("span", { class: "said", dir: "auto" }, text, translation && h("span", { class: "translation", dir: "auto" }, translation));
  return h("li", null, h("button", { type: "button", class: "segment", "data-start": start, "data-end": end, "aria-label": `Play from ${clock(start)}: ${text}`, onclick: play }, h("span", { class: "time" }, clock(start)), said));
}

async function transcribe() {
  if (!clip || transcribing) return;
  const to = $("speech-to").value;
  const cot = Boolean(to) && $("speech-cot").checked;
  const form = new FormData();
  form.append("file", clip.blob, clip.name);
  form.append("model", props.model);
  form.append("response_format", "verbose_json");
  form.append("timestamp_granularities[]", "segment");
  if (to) form.append("to_language", to);
  if (cot) form.append("cot", "true");
  transcribing = new AbortController();
  transcript = null;
  $("speech-error").hidden = true;
  const begun = performance.now();
  const tick = () => ($("speech-elapsed").textContent = clock((performance.now() - begun) / 1000));
  tick();
  const timer = setInterval(tick, 500);
  renderTranscribe();
  announce("Listening to the recording");
  try {
    const response = await request(to ? "/v1/audio/translations" : "/v1/audio/transcriptions", { form, signal: transcribing.signal });
    transcript = transcriptOf(await response.json());
    announce("The transcript is here");
  } catch (error) {
    if (!transcribing.signal.aborted) {
      $("speech-error").replaceChildren(...ServerError.lines(error).map((line) => h("p", null, line)));
      $("speech-error").hidden = false;
    }
  }
  clearInterval(timer);
  transcribing = null;
  renderTranscribe();
  (transcript ? $("speech-copy") : $("speech-start")).focus();
}

function transcriptOf(answer) {
  const segments = (answer.segments ?? []).map(({ start, end, text, translation }) => ({ start, end, text: String(text).trim(), translation: translation?.trim() || null }));
  return { text: (answer.text ?? "").trim(), segments, warnings: answer.warnings ?? [] };
}

// ---------------------------------------------------------------- files

/** Seconds as 00:01:02,345 (SubRip) or 00:01:02.345 (WebVTT). */
function stamp(seconds, mark) {
  const ms = Math.round(seconds * 1000);
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  return `${two(ms / 3_600_000)}:${two((ms / 60_000) % 60)}:${two((ms / 1000) % 60)}${mark}${String(ms % 1000).padStart(3, "0")}`;
}

/** One line or two of a subtitle; an arrow or an empty line within would end it. */
const cue = ({ text, translation }) => [text, translation].filter(Boolean).map((line) => line.replace(/\s+/g, " ").replaceAll("-->", "→")).join("\n");

function srt({ segments }) {
  return segments.map((one, i) => `${i + 1}\n${stamp(one.start, ",")} --> ${stamp(one.end, ",")}\n${cue(one)}\n`).join("\n");
}

function vtt({ segments }) {
  const safe = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return `WEBVTT\n\n${segments.map((one) => `${stamp(one.start, ".")} --> ${stamp(one.end, ".")}\n${safe(cue(one))}\n`).join("\n")}`;
}

function plainText({ text, segments }) {
  if (!segments.some(({ translation }) => translation)) return `${text}\n`;
  return segments.map((one) => `${cue(one)}\n`).join("\n");
}

function listenTranscribe() {
  const languages = Object.entries(props.languages ?? {}).sort(([, a], [, b]) => a.localeCompare(b));
  $("speech-to").replaceChildren(h("option", { value: "" }, "Keep the language"), ...languages.map(([code, name]) => h("option", { value: code }, name)));
  $("speech-to-row").hidden = !languages.length;
  $("speech-to").addEventListener("change", renderTranscribe);
  $("speech-pick").addEventListener("click", () => $("speech-file").click());
  $("speech-change").addEventListener("click", () => $("speech-file").click());
  $("speech-file").addEventListener("change", ({ target }) => {
    if (target.files[0]) chooseClip(target.files[0]);
    target.value = "";
  });
  for (const id of ["speech-record", "speech-record-again"]) {
    $(id).hidden = !canRecord();
    $(id).addEventListener("click", async () => {
      const file = await record("speech", props.limits.max_recording_seconds);
      if (file) await chooseClip(file);
    });
  }
  $("speech-start").addEventListener("click", transcribe);
  $("speech-stop").addEventListener("click", () => transcribing?.abort());
  $("speech-copy").addEventListener("click", ({ currentTarget }) => copyText(plainText(transcript), currentTarget));
  const name = () => clip.name.replace(/\.\w+$/, "");
  $("speech-srt").addEventListener("click", () => download(`${name()}.srt`, "application/x-subrip", srt(transcript)));
  $("speech-vtt").addEventListener("click", () => download(`${name()}.vtt`, "text/vtt", vtt(transcript)));
  $("speech-txt").addEventListener("click", () => download(`${name()}.txt`, "text/plain", plainText(transcript)));
  $("speech-player").addEventListener("timeupdate", ({ target }) => {
    for (const button of document.querySelectorAll(".segment")) {
      const now = target.currentTime >= Number(button.dataset.start) && target.currentTime < Number(button.dataset.end);
      button.classList.toggle("now", now);
    }
  });
}
