// The transcription tab: transcripts with times, translations and subtitles.

let recording = null; // {name, blob, url, seconds}
let transcript = null; // the server's response, as transcriptOf returns it
let transcribing = null; // the AbortController of the running request

async function chooseRecording(file) {
  try {
    const loaded = await readFile(file, props.limits.max_recording_seconds);
    if (loaded.kind !== "audio") throw new Error(`${loaded.name} is no recording; choose an audio file.`);
    if (recording) URL.revokeObjectURL(recording.url);
    recording = { ...loaded, url: URL.createObjectURL(loaded.blob) };
    transcript = null;
    renderTranscribe();
    $("speech-start").focus();
  } catch (error) {
    toast(error.message);
  }
}

function renderTranscribe() {
  $("speech-none").hidden = Boolean(recording);
  $("speech-clip").hidden = !recording;
  $("speech-start").hidden = Boolean(transcribing);
  $("speech-start").disabled = !recording;
  $("speech-stop").hidden = !transcribing;
  $("speech-busy").hidden = !transcribing;
  $("speech-start-label").textContent = $("speech-to").value ? "Translate" : "Transcribe";
  $("speech-cot-row").hidden = !$("speech-to").value;
  if (recording) {
    $("speech-name").textContent = recording.seconds ? `${recording.name} · ${clock(recording.seconds)}` : recording.name;
    if ($("speech-player").src !== recording.url) $("speech-player").src = recording.url;
  }
  $("speech-result").hidden = !transcript;
  if (!transcript) return;
  const { lines, warnings } = transcript;
  $("speech-warnings").replaceChildren(...warnings.map((line) => h("p", { class: "note" }, line)));
  $("segments").replaceChildren(...lines.map(segmentElement));
  $("speech-text").hidden = lines.length > 0;
  $("speech-times").hidden = !lines.length;
  $("speech-text").textContent = transcript.text || "No speech was detected.";
}

function segmentElement({ start, end, text, translation }) {
  const player = $("speech-player");
  const onclick = () => {
    player.currentTime = start;
    player.play().catch(() => {});
  };
  const translationElement = translation && h("span", { class: "translation", dir: "auto" }, translation);
  const textElement = h("span", { class: "said", dir: "auto" }, text, translationElement);
  const label = `Play from ${clock(start)}: ${text}`;
  const attributes = { class: "segment", "data-start": start, "data-end": end, "aria-label": label, onclick };
  return h("li", null, h("button", attributes, h("span", { class: "time" }, clock(start)), textElement));
}

async function transcribe() {
  if (!recording || transcribing) return;
  const to = $("speech-to").value;
  const cot = Boolean(to) && $("speech-cot").checked;
  const form = new FormData();
  form.append("file", recording.blob, recording.name);
  form.append("model", props.model);
  form.append("response_format", "verbose_json");
  form.append("chunking_strategy", "auto"); // segments of up to 30 s, with times from the audio
  if (to) form.append("to_language", to);
  else for (const part of ["segment", "word"]) form.append("timestamp_granularities[]", part);
  if (cot) form.append("cot", "true");
  transcribing = new AbortController();
  transcript = null;
  $("speech-error").hidden = true;
  const startedAt = performance.now();
  const tick = () => ($("speech-elapsed").textContent = clock((performance.now() - startedAt) / 1000));
  tick();
  const timer = setInterval(tick, 500);
  renderTranscribe();
  announce("Transcribing the recording");
  try {
    const response = await request(to ? "/v1/audio/translations" : "/v1/audio/transcriptions", {
      form,
      signal: transcribing.signal,
    });
    transcript = transcriptOf(await response.json());
    announce("The transcript is ready");
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

/**
 * The server's response as lines with times. The server returns segments of up to 30 s, which are split into sentences.
 * A segment with both transcript and translation stays whole on the page, since sentences of two languages don't pair;
 * its subtitles show the translation.
 */
function transcriptOf(answer) {
  const words = answer.words ?? [];
  const pieces = (answer.segments ?? []).map(({ start, end, text, transcript: original }) => ({
    start,
    end,
    text: String(text).trim(),
    original: original?.trim() || null,
  }));
  const cues = pieces.flatMap((piece) =>
    sentencesOf(
      piece,
      words.filter((word) => word.start >= piece.start && word.end <= piece.end),
    ),
  );
  const both = pieces.some(({ original }) => original);
  const lines = both
    ? pieces.map(({ start, end, text, original }) => {
        return { start, end, text: original ?? text, translation: original ? text : null };
      })
    : cues;
  return { text: (answer.text ?? "").trim(), lines, cues, warnings: answer.warnings ?? [] };
}

const CUE = { characters: 84, seconds: 7 }; // two lines of subtitles, as broadcasters use
const UNSPACED = "\\p{sc=Han}\\p{sc=Hiragana}\\p{sc=Katakana}\\p{sc=Thai}";
const TOKEN = new RegExp(`[${UNSPACED}]|[^\\s${UNSPACED}]+`, "gu"); // a word, or a character in scripts without spaces
const SENTENCE_END = /[.!?…。！？]["'”’»)\]]*$/;

/** The sentences of a segment (long ones in parts), timed by the server's words, or else by character count. */
function sentencesOf({ start, end, text }, words) {
  const tokens = timedTokens(text, words) ?? timedByCharacters(text, start, end);
  const sentences = [];
  let from = 0;
  tokens.forEach((token, i) => {
    const next = tokens[i + 1];
    const long = next && (next.to - tokens[from].at > CUE.characters || next.end - tokens[from].start > CUE.seconds);
    if (next && !long && !SENTENCE_END.test(text.slice(token.at, token.to))) return;
    sentences.push({ start: tokens[from].start, end: token.end, text: text.slice(tokens[from].at, token.to) });
    from = i + 1;
  });
  return sentences;
}

/** The position of each word in the text, `at` to `to`, with its times; null if the words don't match the text. */
function timedTokens(text, words) {
  const tokens = [];
  let at = 0;
  for (const { word, start, end } of words) {
    const index = text.indexOf(word, at);
    if (index < 0 || text.slice(at, index).trim()) return null;
    at = index + word.length;
    tokens.push({ at: index, to: at, start, end });
  }
  return words.length && !text.slice(at).trim() ? tokens : null;
}

function timedByCharacters(text, start, end) {
  const tokens = [...text.matchAll(TOKEN)];
  const total = tokens.reduce((sum, [token]) => sum + token.length, 0);
  let position = 0;
  return tokens.map(({ 0: token, index }) => {
    const time = (count) => start + ((end - start) * count) / total;
    position += token.length;
    return { at: index, to: index + token.length, start: time(position - token.length), end: time(position) };
  });
}

// ---------------------------------------------------------------- files

/** Seconds as 00:01:02,345 (SubRip) or 00:01:02.345 (WebVTT). */
function timestamp(seconds, separator) {
  const ms = Math.round(seconds * 1000);
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  return `${two(ms / 3_600_000)}:${two((ms / 60_000) % 60)}:${two((ms / 1000) % 60)}${separator}${String(ms % 1000).padStart(3, "0")}`;
}

/** A cue on one or two lines; an arrow inside would be parsed as times. */
function cueText(text) {
  const line = text.replace(/\s+/g, " ").replace(/-{2,}>/g, "→");
  const middle = line.length > CUE.characters / 2 ? line.lastIndexOf(" ", CUE.characters / 2) : -1;
  return middle > 0 ? `${line.slice(0, middle)}\n${line.slice(middle + 1)}` : line;
}

function srt({ cues }) {
  return cues
    .map(({ start, end, text }, i) => `${i + 1}\n${timestamp(start, ",")} --> ${timestamp(end, ",")}\n${cueText(text)}\n`)
    .join("\n");
}

function vtt({ cues }) {
  const safe = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return `WEBVTT\n\n${cues.map(({ start, end, text }) => `${timestamp(start, ".")} --> ${timestamp(end, ".")}\n${safe(cueText(text))}\n`).join("\n")}`;
}

function plainText({ text, lines }) {
  if (!lines.some(({ translation }) => translation)) return `${text}\n`;
  return lines.map((line) => `${line.text}\n${line.translation}\n`).join("\n");
}

function listenTranscribe() {
  const languages = Object.entries(props.languages ?? {}).sort(([, a], [, b]) => a.localeCompare(b));
  $("speech-to").replaceChildren(
    h("option", { value: "" }, "Keep the language"),
    ...languages.map(([code, name]) => h("option", { value: code }, name)),
  );
  $("speech-to-row").hidden = !languages.length;
  $("speech-to").addEventListener("change", renderTranscribe);
  $("speech-pick").addEventListener("click", () => $("speech-file").click());
  $("speech-change").addEventListener("click", () => $("speech-file").click());
  $("speech-file").addEventListener("change", ({ target }) => {
    if (target.files[0]) chooseRecording(target.files[0]);
    target.value = "";
  });
  for (const id of ["speech-record", "speech-record-again"]) {
    $(id).hidden = !canRecord();
    $(id).addEventListener("click", async () => {
      const file = await record("speech", props.limits.max_recording_seconds);
      if (file) await chooseRecording(file);
    });
  }
  $("speech-start").addEventListener("click", transcribe);
  $("speech-stop").addEventListener("click", () => transcribing?.abort());
  $("speech-copy").addEventListener("click", ({ currentTarget }) => copyText(plainText(transcript), currentTarget));
  const name = () => recording.name.replace(/\.\w+$/, "");
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
