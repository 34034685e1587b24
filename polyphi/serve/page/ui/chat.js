// The conversation: its messages on the page, the message box, and streamed answers.

let conversations = [];
let current = newConversation();
let attachments = []; // ids of the media of the message being written
let editing = null; // the id of the node that the text being written replaces
const running = new Map(); // conversation id -> {conversation, controller, node}
const mediaUrls = new WeakMap(); // media -> its blob: URL; both stay as long as the page
const CURRENT_KEY = "polyphi.current";
const ANOTHER_TEMPERATURE = 0.8; // of another answer where the settings would repeat the first one [ours]

async function save(conversation) {
  conversation.updated = Date.now();
  if (!conversations.includes(conversation)) conversations.unshift(conversation);
  try {
    await put("conversations", conversation);
  } catch {
    toast("The browser's storage is full: export this conversation, or delete others.");
  }
}

function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = Object.values(conversation.nodes).find((node) => node.role === "user");
  if (!first) return "New conversation";
  return first.text.trim().replace(/\s+/g, " ").slice(0, 80) || "Message without text";
}

// ---------------------------------------------------------------- opening

function openConversation(conversation) {
  current = conversation;
  localStorage.setItem(CURRENT_KEY, current.id);
  $("system").value = current.system;
  renderPresets();
  renderConversation();
  renderHistory();
  setDraft(draftOf(current));
  follow(true);
}

function startConversation() {
  showTab("chat");
  closeDrawer();
  if (pathOf(current).length) openConversation(newConversation());
  $("draft").focus();
}

function mediaUrl(media) {
  if (!mediaUrls.has(media)) mediaUrls.set(media, URL.createObjectURL(media.blob));
  return mediaUrls.get(media);
}

// ---------------------------------------------------------------- messages

function renderConversation() {
  const path = pathOf(current);
  $("empty").hidden = path.length > 0;
  $("log").replaceChildren(...path.map(messageElement));
  renderTitle();
  renderButtons();
}

function renderTitle() {
  const any = pathOf(current).length > 0;
  $("title").textContent = any ? titleOf(current) : "";
  $("title").hidden = !any || tab !== "chat";
  document.title = any ? `${titleOf(current)} · polyphi` : "polyphi";
}

function messageElement(node) {
  const own = node.role === "user";
  const body = own ? h("div", { class: "text", dir: "auto" }, node.text) : h("div", { class: "markdown", dir: "auto" });
  const element = h(
    "article",
    { class: `message ${node.role}`, "data-id": node.id, "aria-label": own ? "Your message" : "Answer" },
    node.media?.length ? h("div", { class: "media" }, node.media.map((id) => mediaElement(id))) : null,
    node.text || !own ? body : null,
  );
  if (!own) renderAnswer(element, node);
  element.append(footerElement(node));
  return element;
}

/** Renders the text of an answer and its note; called repeatedly while the answer grows. */
function renderAnswer(element, node) {
  const body = element.querySelector(".markdown");
  const busy = running.get(current.id)?.node === node;
  element.setAttribute("aria-busy", String(busy));
  if (node.reasoning) renderReasoning(body, node.reasoning);
  renderMarkdown(body, node.text, busy);
  body.classList.toggle("waiting", busy && !node.text);
  element.querySelector(":scope > .note")?.remove();
  const note = busy ? null : noteElement(node);
  if (note) body.after(note);
}

/** Shows the reasoning before the text of an answer, folded until the reader opens it. */
function renderReasoning(body, text) {
  let details = body.previousElementSibling;
  if (!details?.matches(".reasoning")) {
    const summary = h("summary", { onclick: () => (following = false) }, "Reasoning"); // it stays where it is
    details = h("details", { class: "reasoning" }, summary, h("div", { class: "text", dir: "auto" }));
    body.before(details);
  }
  details.lastElementChild.textContent = text;
}

function noteElement(node) {
  if (node.error) {
    return h(
      "div",
      { class: "note error", role: "alert" },
      node.error.map((line) => h("p", null, line)),
      h("button", { class: "plain", onclick: () => regenerate(node) }, "Try again"),
    );
  }
  const text = {
    stop: node.text ? null : "The model returned an empty answer.",
    length: "The answer reached its maximum length: continue it, or raise the limit in the settings.",
    stopped: node.text ? "Stopped." : "Stopped before the first word.",
    abort: "The server aborted this answer.",
    null: "The page was closed before this answer was complete.",
  }[node.end];
  return text ? h("p", { class: "note" }, text) : null;
}

/** A picture, a player or a chip for the medium `id`, in an element of its own that is filled when it is loaded. */
function mediaElement(id, tag = "div") {
  const holder = h(tag, { class: "medium" });
  const fill = (media) => {
    if (!media) return holder.prepend(h("span", { class: "chip" }, "No longer stored"));
    const { kind, name, width, height, seconds } = media;
    holder.classList.add(kind);
    if (kind === "file") return holder.prepend(chipElement(media));
    const src = mediaUrl(media);
    const label = h("span", { class: "name", title: name }, seconds ? `${name} · ${clock(seconds)}` : name);
    if (kind === "audio")
      return holder.prepend(h("audio", { controls: true, preload: "metadata", src, "aria-label": name }), label);
    const onerror = () => (picture.replaceWith(chipElement(media)), label.remove()); // the browser can't decode it
    const image = h("img", { src, alt: name, width: width || null, height: height || null, onerror });
    const onclick = () => enlarge(media, src);
    const picture = h("button", { class: "thumb", "aria-label": `Show ${name} large`, onclick }, image);
    holder.prepend(picture, label);
  };
  if (cache.media.has(id)) fill(cache.media.get(id)); // at once, so that a page rendered again keeps its place
  else loadMedia(id).then(fill);
  return holder;
}

function chipElement(media) {
  const { name, type, blob } = media;
  const label = h("span", { class: "name", title: name }, name);
  const parts = [icon("file"), label, h("span", { class: "size" }, megabytes(blob.size))];
  if (type !== "text/plain") return h("span", { class: "chip" }, parts);
  return h("button", { class: "chip", "aria-label": `Show ${name}`, onclick: () => enlarge(media) }, parts);
}

/** Shows a picture, or the beginning of a text. */
async function enlarge({ name, blob }, src) {
  $("picture-large").hidden = !src;
  $("text-large").hidden = Boolean(src);
  if (src) $("picture-large").src = src;
  else $("text-large").textContent = await blob.slice(0, 200_000).text();
  $("picture-large").alt = name;
  $("picture-name").textContent = name;
  $("picture-dialog").showModal();
}

function footerElement(node) {
  const siblings = current.nodes[node.parent].children;
  const index = siblings.indexOf(node.id);
  const switchVersion = (step) => {
    current.nodes[node.parent].chosen = siblings[index + step];
    save(current);
    renderConversation();
    focusAction(siblings[index + step], step < 0 ? "Earlier version" : "Later version");
  };
  const busy = running.has(current.id);
  const own = node.role === "user";
  const versions = h(
    "span",
    { class: "turn", role: "group", "aria-label": "Versions of this message" },
    iconButton("left", "Earlier version", () => switchVersion(-1), { disabled: busy || index === 0 }),
    h("span", { class: "place" }, `${index + 1}/${siblings.length}`),
    iconButton("right", "Later version", () => switchVersion(1), { disabled: busy || index === siblings.length - 1 }),
  );
  const retry = () => (own ? answer(current, node.id) : regenerate(node));
  return h(
    "footer",
    { class: "foot" },
    siblings.length > 1 && versions,
    node.text && iconButton("copy", "Copy", ({ currentTarget }) => copyText(node.text, currentTarget)),
    (own || node.text) && iconButton("edit", "Edit", () => startEditing(node), { disabled: busy }),
    !own && node.text && !node.children.length &&
      iconButton("continue", "Continue", () => generate(current, node), { disabled: busy }),
    (own ? !node.children.length : !node.error) &&
      iconButton("again", own ? "Answer this" : "Regenerate", retry, { disabled: busy }),
    iconButton("trash", "Delete this and what follows", () => deleteNode(node), { disabled: busy }),
    !own && node.stats && statsElement(node.stats),
  );
}

function focusAction(id, label) {
  const buttons = [...document.querySelectorAll(`[data-id="${id}"] .foot button:not(:disabled)`)];
  (buttons.find(({ ariaLabel }) => ariaLabel === label) ?? buttons[0])?.focus();
}

/** " (1,093 image, 25 audio)", or nothing. */
function mediaTokens(image, audio) {
  const parts = [image && `${number.format(image)} image`, audio && `${number.format(audio)} audio`].filter(Boolean);
  return parts.length ? ` (${parts.join(", ")})` : "";
}

function statsElement(stats) {
  const media = mediaTokens(stats.image, stats.audio);
  const parts = [
    stats.rate && `${stats.rate < 10 ? stats.rate.toFixed(1) : Math.round(stats.rate)} tokens/s`,
    stats.completion !== undefined && `${number.format(stats.completion)} out`,
    stats.prompt !== undefined && `${number.format(stats.prompt)} in${media}`,
    stats.adapter !== undefined && (stats.adapter ? `${stats.adapter} adapter` : "no adapter"),
    stats.temperature && `temperature ${stats.temperature}`,
  ].filter(Boolean);
  const more = [
    stats.first !== undefined && `first token after ${stats.first.toFixed(2)} s`,
    stats.cached && `${number.format(stats.cached)} prompt tokens cached`,
    stats.seed !== undefined && `seed ${stats.seed}`,
  ].filter(Boolean);
  return h("span", { class: "stats", title: more.join("\n") }, parts.join(" · "));
}

function deleteNode(node) {
  const before = structuredClone(current.nodes);
  const conversation = current;
  removeNode(current, node.id);
  save(current);
  renderConversation();
  renderHistory();
  toast("Deleted.", "Undo", () => {
    conversation.nodes = before;
    save(conversation);
    if (conversation === current) renderConversation();
  });
}

// ---------------------------------------------------------------- answering

/** The nodes that are sent for a path: first the instructions; an answer without text is left out. */
const sentNodes = (conversation, path) => [
  ...(conversation.system.trim() ? [{ role: "system", text: conversation.system }] : []),
  ...path.filter(({ role, text }) => role === "user" || text),
];

/** OpenAI's messages for a path of nodes; media as base64 before the text of their message. */
const messagesOf = (conversation, path) =>
  Promise.all(sentNodes(conversation, path).map(async (node) => ({ role: node.role, content: await contentOf(node) })));

async function contentOf(node) {
  const parts = await Promise.all((await loadAll(node.media ?? [])).map(partOf));
  if (!parts.length) return node.text;
  return node.text ? [...parts, { type: "text", text: node.text }] : parts;
}

async function partOf({ kind, name, type, blob }) {
  const data = await base64Of(blob);
  const url = `data:${type};base64,${data}`;
  if (kind === "image") return { type: "image_url", image_url: { url } };
  if (kind === "file") return { type: "file", file: { filename: name, file_data: url } };
  return { type: "input_audio", input_audio: { data, format: type.slice(6).replace("mpeg", "mp3") } };
}

const ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split(" ");
const NOUNS = { image: "picture", audio: "recording", file: "file" };

/** What an error's `param` is about, in the user's words; null where the message alone says it. */
async function subjectOf(param, conversation, path) {
  const setting = SAMPLING.find(({ name }) => name === param);
  if (setting) return `${setting.label} in the settings`;
  const [, message, part] = /^messages\[(\d+)\](?:\.content\[(\d+)\])?/.exec(param) ?? [];
  const sent = sentNodes(conversation, path);
  const node = sent[message];
  if (!node) return null;
  if (node.role === "system") return "the instructions in the settings";
  const turn = sent.slice(0, Number(message) + 1).filter(({ role }) => role === "user").length;
  const own = turn <= ORDINALS.length ? `your ${ORDINALS[turn - 1]} message` : `your message ${turn}`;
  if (node.role === "assistant") return `the answer to ${own}`;
  const media = (await loadAll(node.media))[part];
  return media ? `the ${NOUNS[media.kind]} ${media.name} in ${own}` : own;
}

/** The sampling of a request. `another` answer to a message is sampled with another seed: it isn't the first one again. */
function samplingOf(conversation, node, another) {
  const seed = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
  const fields = { seed, ...sampling };
  const siblings = conversation.nodes[node.parent].children.map((id) => conversation.nodes[id]);
  const earlier = siblings.slice(0, siblings.indexOf(node));
  if (!another && !earlier.some(({ text, end }) => text && end !== "error")) return fields;
  const greedy = !((fields.temperature ?? props.sampling?.temperature) > 0);
  return { ...fields, seed, ...(greedy && { temperature: ANOTHER_TEMPERATURE }) };
}

function regenerate(node) {
  if (running.has(current.id)) return;
  if (node.text && (sampling.top_k ?? props.sampling?.top_k) === 1)
    return toast("With a top k of 1 in the settings, every answer is the same.");
  // An empty answer isn't kept as a version.
  if (!node.text && !node.children.length) removeNode(current, node.id);
  answer(current, node.parent, node.end === "stop");
}

function answer(conversation, parent, another = false) {
  return generate(conversation, addNode(conversation, parent, { role: "assistant" }), another);
}

/** Generates the text of an answer; one that has text is continued. */
async function generate(conversation, node, another) {
  const before = { text: node.text, tokens: node.stats?.completion ?? 0 };
  let tokens = 0;
  Object.assign(node, { end: null, error: null });
  const controller = new AbortController();
  running.set(conversation.id, { conversation, controller, node });
  const isShown = () => conversation === current;
  renderConversation();
  follow(true);
  announce("Answering");
  const startedAt = performance.now();
  const fields = samplingOf(conversation, node, another);
  const path = pathOf(conversation, node.id);
  const timing = { first: null, last: null };
  let saved = startedAt;
  try {
    await save(conversation);
    renderHistory();
    const json = {
      model: model ?? props.model,
      messages: await messagesOf(conversation, path),
      stream: true,
      stream_options: { include_usage: true },
      ...fields,
      adapter, // left out where it is undefined
      ...(before.text && { continue_final_message: true, add_generation_prompt: false }),
    };
    controller.signal.throwIfAborted();
    const response = await request("/v1/chat/completions", { json, signal: controller.signal });
    let complete = false;
    for await (const event of events(response)) {
      if (event === null) {
        complete = true;
        break;
      }
      if (event.error) throw new ServerError(500, event.error);
      if (event.usage) {
        tokens = event.usage.completion_tokens;
        node.stats = { ...node.stats, ...usageOf(event.usage), completion: before.tokens + tokens };
      }
      if (event.adapter !== undefined) node.stats = { ...node.stats, adapter: event.adapter ?? "" };
      const choice = event.choices?.[0];
      if (choice?.finish_reason) node.end = choice.finish_reason;
      const { content, reasoning_content: reasoning } = choice?.delta ?? {};
      if (!content && !reasoning) continue;
      timing.last = performance.now();
      timing.first ??= timing.last;
      if (reasoning) node.reasoning = (node.reasoning ?? "") + reasoning;
      node.text += content ?? "";
      if (isShown()) paint(node);
      if (timing.last - saved > 1500) {
        saved = timing.last;
        save(conversation);
      }
    }
    if (!complete) throw new Error("The answer is incomplete: the connection to the server was lost.");
    node.end ??= "stop";
  } catch (error) {
    node.end = controller.signal.aborted ? "stopped" : "error";
    if (!controller.signal.aborted)
      node.error = ServerError.lines(error, await subjectOf(error.param, conversation, path));
  }
  if (timing.first) {
    const { seed, temperature = props.sampling?.temperature } = fields;
    node.stats = { ...node.stats, seed, temperature, first: (timing.first - startedAt) / 1000 };
    // The time to the first token includes the prompt; the rate counts the other tokens.
    const seconds = (timing.last - timing.first) / 1000;
    if (tokens > 1 && seconds > 0) node.stats.rate = (tokens - 1) / seconds;
  }
  if (before.text && node.text === before.text && node.end === "stop") toast("The model adds nothing to this answer.");
  running.delete(conversation.id);
  if (conversations.includes(conversation)) await save(conversation); // it may have been deleted
  renderHistory();
  if (!isShown()) return;
  const focused = document.activeElement === $("stop");
  finishOnPage(node);
  if (focused) $("draft").focus();
  announce(node.error ? "No answer" : node.text ? `Answer: ${node.text.slice(0, 4000)}` : "Stopped");
}

const usageOf = ({ prompt_tokens: prompt, prompt_tokens_details: details }) => ({
  prompt,
  image: details?.image_tokens ?? 0,
  audio: details?.audio_tokens ?? 0,
  cached: details?.cached_tokens ?? 0,
});

let paintTimer = 0;
let paintMs = 0; // ms that the last rendering took

/** Schedules the rendering of a growing answer: once per frame, or less often where rendering is slow. */
function paint(node) {
  if (paintTimer) return;
  paintTimer = setTimeout(
    () => {
      paintTimer = 0;
      const element = document.querySelector(`[data-id="${node.id}"]`);
      if (!element || running.get(current.id)?.node !== node) return;
      const startedAt = performance.now();
      renderAnswer(element, node);
      paintMs = performance.now() - startedAt;
    },
    Math.min(1000, 16 + 4 * paintMs),
  );
}

function finishOnPage(node) {
  const element = document.querySelector(`[data-id="${node.id}"]`);
  if (!element) return renderConversation();
  renderAnswer(element, node);
  for (const other of $("log").children)
    other.querySelector(".foot").replaceWith(footerElement(current.nodes[other.dataset.id]));
  renderButtons();
}

const stopAnswer = () => running.get(current.id)?.controller.abort();

let following = true;
let lastScrollTop = 0;

/** Scrolls to the end, unless the reader has scrolled away from it. */
function follow(always) {
  if (always) [following, lastScrollTop] = [true, 0];
  if (following) $("messages").scrollTop = $("messages").scrollHeight;
}

function listenScrolling() {
  $("messages").addEventListener("scroll", () => {
    const { scrollTop, scrollHeight, clientHeight } = $("messages");
    const atEnd = scrollHeight - scrollTop - clientHeight < 60;
    following = atEnd || (following && scrollTop >= lastScrollTop); // only a reader scrolls up
    lastScrollTop = scrollTop;
    $("to-end").hidden = following;
  });
  $("to-end").addEventListener("click", () => follow(true));
  // The end stays visible when an answer grows, a picture loads, the message box grows or a phone's keyboard opens.
  const observer = new ResizeObserver(() => follow(false));
  for (const id of ["messages", "log"]) observer.observe($(id));
}

// ---------------------------------------------------------------- the message box

function renderButtons() {
  const busy = running.has(current.id);
  $("stop").hidden = !busy;
  $("send").hidden = busy;
  $("send").disabled = !$("draft").value.trim() && !attachments.length;
  const { image, audio } = props.modalities;
  $("attach").hidden = editsAnswer() || (!image && !audio && props.documents === undefined);
  $("mic").hidden = editsAnswer() || !audio;
}

const editsAnswer = () => current.nodes[editing]?.role === "assistant";

function renderDraft() {
  $("attachments").replaceChildren(...attachments.map(attachmentElement));
  $("attachments").hidden = !attachments.length;
  $("editing").hidden = !editing;
  $("editing-what").textContent = editsAnswer()
    ? "Editing the answer: your text becomes a new version."
    : "Editing: your message becomes a new version.";
  for (const message of $("log").children) message.classList.toggle("editing", message.dataset.id === editing);
  grow();
  renderButtons();
  countSoon();
}

function attachmentElement(id) {
  const element = mediaElement(id, "li");
  const onclick = () => {
    replaceDraft({ text: $("draft").value, media: attachments.filter((other) => other !== id), editing });
    $("draft").focus();
  };
  loadMedia(id).then((media) => element.append(iconButton("close", `Remove ${media?.name ?? "this file"}`, onclick)));
  return element;
}

/** Sets the height of the box to that of its text, up to the maximum in the style sheet. */
function grow() {
  const box = $("draft");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

async function attach(files) {
  for (const file of files) {
    try {
      if (editsAnswer()) throw new Error("An answer has no files: finish or cancel its edit first.");
      if (attachments.length >= props.limits.max_parts)
        throw new Error(`A message may contain up to ${props.limits.max_parts} files.`);
      const media = await readFile(file, props.limits.max_audio_seconds);
      await put("media", media).catch(() =>
        toast("The browser's storage is full: this file can be sent, but it will be missing after a reload."),
      );
      setDraft({ text: $("draft").value, media: [...attachments, media.id], editing });
      announce(`${file.name} added`);
    } catch (error) {
      toast(error.message);
    }
  }
}

function startEditing(node) {
  replaceDraft({ text: node.text, media: node.media, editing: node.id });
  $("draft").focus();
}

const cancelEditing = () => replaceDraft(NO_DRAFT);

async function send() {
  const text = $("draft").value.trim();
  if ((!text && !attachments.length) || running.has(current.id)) return;
  const conversation = current;
  const parent = conversation.nodes[editing]?.parent ?? pathOf(conversation).at(-1)?.id ?? "root";
  // A conversation without text gets the name of its first file.
  if (!text && parent === "root" && !conversation.title)
    conversation.title = cache.media.get(attachments[0])?.name.replace(/\.\w+$/, "") ?? "";
  const role = editsAnswer() ? "assistant" : "user";
  const node = { role, text, media: attachments, ...(role === "assistant" && { end: "stop" }) };
  setDraft(NO_DRAFT);
  const { id } = addNode(conversation, parent, node);
  if (role === "user") return answer(conversation, id);
  renderConversation();
  await save(conversation);
  renderHistory();
}

// ---------------------------------------------------------------- drafts

const NO_DRAFT = { text: "", media: [], editing: null };
const drafts = new Map(); // copies of the stored ones: all there is where the storage is full

/** The key of a conversation's draft; those without a message share one, as each page load begins a new one. */
const draftKey = ({ id, nodes }) => `polyphi.draft.${nodes.root.children.length ? id : "new"}`;

/** The unsent message of a conversation: `{text, media: [id], editing: id or null}`. */
function draftOf(conversation) {
  const key = draftKey(conversation);
  const { text, media, editing } = drafts.get(key) ?? storedValue(key) ?? NO_DRAFT;
  return {
    text: String(text ?? ""),
    media: [media ?? []].flat().map(String),
    editing: Object.hasOwn(conversation.nodes, editing) ? editing : null,
  };
}

/** Stores a draft; an empty one is deleted. */
function saveDraft(conversation, draft) {
  const key = draftKey(conversation);
  drafts.set(key, draft);
  localStorage.removeItem(key);
  if (draft.text || draft.media.length || draft.editing) storeValue(key, draft);
}

/** Shows and stores a draft of the open conversation. */
function setDraft(draft) {
  saveDraft(current, draft);
  ({ media: attachments, editing } = draft);
  $("draft").value = draft.text;
  renderDraft();
}

/** The same, and deletes the media of the draft before that are in no message. */
function replaceDraft(draft) {
  const used = [...draft.media, ...mediaIds(current)];
  remove("media", attachments.filter((id) => !used.includes(id)));
  setDraft(draft);
}

// ---------------------------------------------------------------- counting

let countTimer = 0;
let counting = null;
let cachedCount = { key: null, tokens: null }; // the count of what doesn't change while the user types

function countSoon() {
  clearTimeout(countTimer);
  counting?.abort();
  if (!$("draft").value.trim() && !attachments.length) {
    $("count").textContent = "";
    return;
  }
  countTimer = setTimeout(count, 350);
}

/** Shows the tokens of the unsent message with all messages before it. Media are sent once, not for each keystroke. */
async function count() {
  counting = new AbortController();
  const { signal } = counting;
  const text = $("draft").value.trim();
  const path = pathOf(current, current.nodes[editing]?.parent);
  const nodes = [...path, { role: "user", text: "", media: attachments }];
  const tokenize = async (json) => (await request("/tokenize", { json, signal })).json();
  try {
    const texts = path.map(({ id, text }) => [id, text.length]);
    const key = JSON.stringify([current.id, current.system, texts, attachments]);
    if (cachedCount.key !== key)
      cachedCount = { key, tokens: await tokenize({ messages: await messagesOf(current, nodes) }) };
    const result = { ...cachedCount.tokens };
    if (text) result.count += (await tokenize({ prompt: text })).count;
    const limit = result.max_model_len;
    const over = result.count >= limit;
    $("count").classList.toggle("over", over);
    $("count").textContent = over
      ? `${number.format(result.count)} tokens: more than the model's ${number.format(limit)}`
      : `${number.format(result.count)} tokens`;
    const media = mediaTokens(result.image_tokens, result.audio_tokens);
    if (!over) $("count").append(h("span", { class: "of" }, media));
    $("count").title = `Of the whole conversation with this message; the model reads up to ${number.format(limit)}.`;
  } catch (error) {
    const subject = await subjectOf(error.param, current, nodes);
    const [line] = error instanceof ServerError ? ServerError.lines(error, subject) : [""];
    if (!signal.aborted) $("count").textContent = line;
  }
}

function listenDraft() {
  const box = $("draft");
  box.addEventListener("input", () => {
    saveDraft(current, { text: box.value, media: attachments, editing });
    grow();
    renderButtons();
    countSoon();
  });
  box.addEventListener("keydown", (event) => {
    // On a touch keyboard Enter inserts a new line.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
    event.preventDefault();
    send();
  });
  box.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    attach(event.clipboardData.files);
  });
  $("send").addEventListener("click", send);
  $("stop").addEventListener("click", stopAnswer);
  $("attach").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", ({ target }) => {
    attach([...target.files]);
    target.value = "";
  });
  $("editing-cancel").addEventListener("click", cancelEditing);
  $("mic").addEventListener("click", async () => {
    const file = await record("chat", props.limits.max_audio_seconds);
    if (file) await attach([file]);
    $("draft").focus();
  });
  $("system").addEventListener("input", ({ target }) => setInstructions(target.value));
}

function setInstructions(text) {
  current.system = $("system").value = text;
  if (pathOf(current).length) save(current);
  renderPresets();
  countSoon();
}
