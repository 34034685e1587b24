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
  const { lines, warnings } = transcript;
  $("speech-warnings").replaceChildren(...warnings.map((line) => h("p", { class: "note" }, line)));
  $("segments").replaceChildren(...lines.map(segmentElement));
  $("speech-text").hidden = lines.length > 0;
  $("speech-times").hidden = !lines.length;
  $("speech-text").textContent = transcript.text || "Nothing was said.";
}

function segmentElement({ start, end, text, translation }) {
  const player = $("speech-player");
  const onclick = () => {
    player.currentTime = start;
    player.play().catch(() => {});
  };
  const below = translation && h("span", { class: "translation", dir: "auto" }, translation);
  const said = h("span", { class: "said", dir: "auto" }, text, below);
  const label = `Play from ${clock(start)}: ${text}`;
  const attributes = { class: "segment", "data-start": start, "data-end": end, "aria-label": label, onclick };
  return h("li", null, h("button", attributes, h("span", { class: "time" }, clock(start)), said));
}

async function transcribe() {
  if (!clip || transcribing) return;
  const to = $("speech-to").value;
  const cot = Boolean(to) && $("speech-cot").checked;
  const form = new FormData();
  form.append("file", clip.blob, clip.name);
  form.append("model", props.model);
  form.append("response_format", "verbose_json");
  form.append("chunking_strategy", "auto"); // pieces of up to 30 s: their times are those of the sound
  if (to) form.append("to_language", to);
  else for (const part of ["segment", "word"]) form.append("timestamp_granularities[]", part);
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
    const response = await request(to ? "/v1/audio/translations" : "/v1/audio/transcriptions", {
      form,
      signal: transcribing.signal,
    });
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

/**
 * What the server answered, as lines with times. It hears pieces of up to 30 s; their sentences are what one looks for,
 * so a piece is cut into them. Where a piece has both transcript and translation it stays whole on the page, since
 * sentences of two languages don't pair; its subtitles are those of the translation.
 */
function transcriptOf(answer) {
  const words = answer.words ?? [];
  const pieces = (answer.segments ?? []).map(({ start, end, text, transcript: said }) => ({
    start,
    end,
    text: String(text).trim(),
    said: said?.trim() || null,
  }));
  const cues = pieces.flatMap((piece) =>
    sentencesOf(
      piece,
      words.filter((word) => word.start >= piece.start && word.end <= piece.end),
    ),
  );
  const both = pieces.some(({ said }) => said);
  const lines = both
    ? pieces.map(({ start, end, text, said }) => ({ start, end, text: said ?? text, translation: said ? text : null }))
    : cues;
  return { text: (answer.text ?? "").trim(), lines, cues, warnings: answer.warnings ?? [] };
}

const CUE = { letters: 84, seconds: 7 }; // two lines of subtitles, as broadcasters have them
const LETTER = "\\p{sc=Han}\\p{sc=Hiragana}\\p{sc=Katakana}\\p{sc=Thai}";
const TOKEN = new RegExp(`[${LETTER}]|[^\\s${LETTER}]+`, "gu"); // a word, or a letter where no spaces are written
const SENTENCE_END = /[.!?…。！？]["'”’»)\]]*$/;

/** The sentences of a piece (parts of them, where they are long), timed by the server's words, else by their letters. */
function sentencesOf({ start, end, text }, words) {
  const tokens = timedTokens(text, words) ?? byLetters(text, start, end);
  const found = [];
  let from = 0;
  tokens.forEach((token, i) => {
    const next = tokens[i + 1];
    const long = next && (next.to - tokens[from].at > CUE.letters || next.end - tokens[from].start > CUE.seconds);
    if (next && !long && !SENTENCE_END.test(text.slice(token.at, token.to))) return;
    found.push({ start: tokens[from].start, end: token.end, text: text.slice(tokens[from].at, token.to) });
    from = i + 1;
  });
  return found;
}

/** Where each word stands in the text, `at` to `to`, with its times; null where the words aren't those of the text. */
function timedTokens(text, words) {
  const tokens = [];
  let at = 0;
  for (const { word, start, end } of words) {
    const found = text.indexOf(word, at);
    if (found < 0 || text.slice(at, found).trim()) return null;
    at = found + word.length;
    tokens.push({ at: found, to: at, start, end });
  }
  return words.length && !text.slice(at).trim() ? tokens : null;
}

function byLetters(text, start, end) {
  const tokens = [...text.matchAll(TOKEN)];
  const all = tokens.reduce((sum, [token]) => sum + token.length, 0);
  let before = 0;
  return tokens.map(({ 0: token, index }) => {
    const time = (letters) => start + ((end - start) * letters) / all;
    before += token.length;
    return { at: index, to: index + token.length, start: time(before - token.length), end: time(before) };
  });
}

// ---------------------------------------------------------------- files

/** Seconds as 00:01:02,345 (SubRip) or 00:01:02.345 (WebVTT). */
function stamp(seconds, mark) {
  const ms = Math.round(seconds * 1000);
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  return `${two(ms / 3_600_000)}:${two((ms / 60_000) % 60)}:${two((ms / 1000) % 60)}${mark}${String(ms % 1000).padStart(3, "0")}`;
}

/** A cue on one line or two; an arrow within would be read as times. */
function onScreen(text) {
  const line = text.replace(/\s+/g, " ").replace(/-{2,}>/g, "→");
  const middle = line.length > CUE.letters / 2 ? line.lastIndexOf(" ", CUE.letters / 2) : -1;
  return middle > 0 ? `${line.slice(0, middle)}\n${line.slice(middle + 1)}` : line;
}

function srt({ cues }) {
  return cues
    .map(({ start, end, text }, i) => `${i + 1}\n${stamp(start, ",")} --> ${stamp(end, ",")}\n${onScreen(text)}\n`)
    .join("\n");
}

function vtt({ cues }) {
  const safe = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  return `WEBVTT\n\n${cues.map(({ start, end, text }) => `${stamp(start, ".")} --> ${stamp(end, ".")}\n${safe(onScreen(text))}\n`).join("\n")}`;
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
