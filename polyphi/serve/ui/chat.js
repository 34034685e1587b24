// The conversation: its messages on the page, the message box, and streamed answers.

let conversations = [];
let current = newConversation();
let attachments = []; // media of the message being written
let editing = null; // the node that the message being written replaces
const drafts = new Map(); // conversation id -> its unsent message
const running = new Map(); // conversation id -> {controller, node}
const mediaUrls = new Map(); // media id -> its blob: URL, while the conversation is open
const CURRENT_KEY = "polyphi.current";

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
  drafts.set(current.id, { text: $("draft").value, attachments, editing });
  current = conversation;
  localStorage.setItem(CURRENT_KEY, current.id);
  const draft = drafts.get(current.id) ?? { text: "", attachments: [], editing: null };
  ({ attachments, editing } = draft);
  $("draft").value = draft.text;
  $("system").value = current.system;
  for (const url of mediaUrls.values()) URL.revokeObjectURL(url);
  mediaUrls.clear();
  renderConversation();
  renderHistory();
  renderDraft();
  $("messages").scrollTop = $("messages").scrollHeight;
}

function startConversation() {
  showTab("chat");
  closeDrawer();
  if (pathOf(current).length) openConversation(newConversation());
  $("draft").focus();
}

async function mediaUrl(id) {
  if (!mediaUrls.has(id)) {
    const media = await loadMedia(id);
    if (!media) return null;
    if (!mediaUrls.has(id)) mediaUrls.set(id, URL.createObjectURL(media.blob));
  }
  return mediaUrls.get(id);
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
    node.media?.length ? h("div", { class: "media" }, node.media.map(mediaElement)) : null,
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
    details = h("details", { class: "reasoning" }, h("summary", null, "Reasoning"), h("div", { class: "text", dir: "auto" }));
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
    length: "The answer reached its maximum length. You can raise the limit in the settings.",
    stopped: node.text ? "Stopped." : "Stopped before the first word.",
    abort: "The server aborted this answer.",
    null: "The page was closed before this answer was complete.",
  }[node.end];
  return text ? h("p", { class: "note" }, text) : null;
}

function mediaElement(id) {
  const holder = h("div", { class: "medium" });
  loadMedia(id).then(async (media) => {
    if (!media) return holder.replaceChildren(h("span", { class: "chip" }, "No longer stored"));
    const { kind, name, width, height } = media;
    const src = await mediaUrl(id);
    if (kind === "audio") {
      const player = h("audio", { controls: true, preload: "metadata", src, "aria-label": name });
      return holder.replaceChildren(h("span", { class: "name" }, name), player);
    }
    const attributes = { class: "thumb", "aria-label": `Show ${name} large`, onclick: () => enlarge(src, name) };
    holder.replaceChildren(h("button", attributes, h("img", { src, alt: name, width, height })));
  });
  return holder;
}

function enlarge(url, name) {
  $("picture-large").src = url;
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
    own && iconButton("edit", "Edit", () => startEditing(node), { disabled: busy }),
    (own ? !node.children.length : !node.error) &&
      iconButton("again", own ? "Answer this" : "Regenerate", retry, { disabled: busy }),
    iconButton("trash", "Delete this and what follows", () => deleteNode(node), { disabled: busy }),
    !own && node.stats && statsElement(node.stats),
  );
}

function focusAction(id, label) {
  const foot = document.querySelector(`[data-id="${id}"] .foot`);
  (
    foot?.querySelector(`[aria-label="${label}"]:not(:disabled)`) ?? foot?.querySelector("button:not(:disabled)")
  )?.focus();
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

/** OpenAI's messages for a path of nodes; media as base64 before the text of their message. */
async function messagesOf(conversation, path) {
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  for (const node of path) {
    if (node.role === "assistant") {
      if (node.text) messages.push({ role: "assistant", content: node.text });
      continue;
    }
    const media = (await Promise.all((node.media ?? []).map(loadMedia))).filter(Boolean);
    messages.push({ role: "user", content: await contentOf(node.text, media) });
  }
  return messages;
}

async function contentOf(text, media) {
  if (!media.length) return text;
  const parts = await Promise.all(media.map(partOf));
  return text ? [...parts, { type: "text", text }] : parts;
}

async function partOf({ kind, type, blob }) {
  const data = await base64Of(blob);
  if (kind === "image") return { type: "image_url", image_url: { url: `data:${type};base64,${data}` } };
  return { type: "input_audio", input_audio: { data, format: type.slice(6).replace("mpeg", "mp3") } };
}

function regenerate(node) {
  if (running.has(current.id)) return;
  // An empty answer isn't kept as a version.
  if (!node.text && !node.children.length) removeNode(current, node.id);
  answer(current, node.parent);
}

async function answer(conversation, parent) {
  const node = addNode(conversation, parent, { role: "assistant", end: null, stats: null, error: null });
  const controller = new AbortController();
  running.set(conversation.id, { controller, node });
  const isShown = () => conversation === current;
  renderConversation();
  renderHistory();
  follow(true);
  announce("Answering");
  const startedAt = performance.now();
  const seed = sampling.seed ?? crypto.getRandomValues(new Uint32Array(1))[0] >>> 1;
  const timing = { first: null, last: null };
  let saved = startedAt;
  try {
    await save(conversation);
    const path = pathOf(conversation, parent);
    const { adapter, ...samplingFields } = sampling;
    const json = {
      model: props.model,
      messages: await messagesOf(conversation, path),
      stream: true,
      stream_options: { include_usage: true },
      ...samplingFields,
      seed,
      ...(adapter === undefined ? {} : { adapter }),
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
      if (event.usage) node.stats = { ...node.stats, ...usageOf(event.usage) };
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
    if (!controller.signal.aborted) node.error = ServerError.lines(error);
  }
  if (timing.first) {
    node.stats = { ...node.stats, seed, first: (timing.first - startedAt) / 1000 };
    // The time to the first token includes the prompt; the rate counts the other tokens.
    const seconds = (timing.last - timing.first) / 1000;
    if (node.stats.completion > 1 && seconds > 0) node.stats.rate = (node.stats.completion - 1) / seconds;
  }
  running.delete(conversation.id);
  await save(conversation);
  renderHistory();
  if (!isShown()) return;
  const focused = document.activeElement === $("stop");
  finishOnPage(node);
  if (focused) $("draft").focus();
  announce(node.error ? "No answer" : node.text ? `Answer: ${node.text.slice(0, 4000)}` : "Stopped");
}

function usageOf(usage) {
  const details = usage.prompt_tokens_details ?? {};
  return {
    prompt: usage.prompt_tokens,
    completion: usage.completion_tokens,
    image: details.image_tokens ?? 0,
    audio: details.audio_tokens ?? 0,
    cached: details.cached_tokens ?? 0,
  };
}

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
      follow(false);
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
  follow(false);
}

function stopAnswer() {
  running.get(current.id)?.controller.abort();
}

let following = true;

/** Scrolls to the end, unless the reader has scrolled away from it. */
function follow(always) {
  if (always) following = true;
  if (following) $("messages").scrollTop = $("messages").scrollHeight;
}

function listenScrolling() {
  $("messages").addEventListener("scroll", () => {
    const { scrollTop, scrollHeight, clientHeight } = $("messages");
    following = scrollHeight - scrollTop - clientHeight < 60;
    $("to-end").hidden = following;
  });
  $("to-end").addEventListener("click", () => follow(true));
  // The end stays visible when the message box grows or a phone's keyboard opens.
  new ResizeObserver(() => follow(false)).observe($("messages"));
}

// ---------------------------------------------------------------- the message box

function renderButtons() {
  const busy = running.has(current.id);
  $("stop").hidden = !busy;
  $("send").hidden = busy;
  $("send").disabled = !$("draft").value.trim() && !attachments.length;
  $("attach").hidden = !props.modalities.image && !props.modalities.audio;
  $("mic").hidden = !props.modalities.audio;
}

function renderDraft() {
  $("attachments").replaceChildren(...attachments.map(attachmentElement));
  $("attachments").hidden = !attachments.length;
  $("editing").hidden = !editing;
  for (const message of $("log").children) message.classList.toggle("editing", message.dataset.id === editing);
  grow();
  renderButtons();
  countSoon();
}

function attachmentElement(media) {
  const { kind, name, blob, seconds } = media;
  const remove = iconButton("close", `Remove ${name}`, () => {
    attachments = attachments.filter((other) => other !== media);
    renderDraft();
    $("draft").focus();
  });
  const src = (media.url ??= URL.createObjectURL(blob));
  const player = { controls: true, preload: "metadata", src, "aria-label": name };
  const preview = kind === "image" ? h("img", { src, alt: "" }) : h("audio", player);
  const label = kind === "audio" && seconds ? `${name} · ${clock(seconds)}` : name;
  return h("li", { class: kind }, preview, h("span", { class: "name", title: name }, label), remove);
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
      if (attachments.length >= props.limits.max_parts)
        throw new Error(`A message may contain up to ${props.limits.max_parts} pictures and audio files.`);
      attachments = [...attachments, await readFile(file, props.limits.max_audio_seconds)];
      announce(`${file.name} added`);
    } catch (error) {
      toast(error.message);
    }
    renderDraft();
  }
}

function startEditing(node) {
  editing = node.id;
  $("draft").value = node.text;
  Promise.all(node.media.map(loadMedia)).then((media) => {
    attachments = media.filter(Boolean).map(({ url, ...one }) => one);
    renderDraft();
    $("draft").focus();
  });
}

function cancelEditing() {
  editing = null;
  attachments = [];
  $("draft").value = "";
  renderDraft();
}

async function send() {
  const text = $("draft").value.trim();
  if ((!text && !attachments.length) || running.has(current.id)) return;
  const conversation = current;
  const parent =
    editing && conversation.nodes[editing]
      ? conversation.nodes[editing].parent
      : (pathOf(conversation).at(-1)?.id ?? "root");
  const media = attachments.map(({ url, ...one }) => ({
    ...one,
    id: one.id ?? newId(),
    conversation: conversation.id,
  }));
  for (const { url } of attachments) URL.revokeObjectURL(url);
  // A conversation without text gets the name of its first file.
  if (!text && parent === "root" && !conversation.title) conversation.title = media[0].name.replace(/\.\w+$/, "");
  editing = null;
  attachments = [];
  $("draft").value = "";
  const node = addNode(conversation, parent, { role: "user", text, media: media.map(({ id }) => id) });
  try {
    for (const one of media) await put("media", one);
  } catch {
    toast("The browser's storage is full: this file is sent, but it will be missing after a reload.");
  }
  renderDraft();
  await answer(conversation, node.id);
}

// ---------------------------------------------------------------- counting

let countTimer = 0;
let counting = null;
let cachedCount = { key: null, tokens: null }; // the count of the part that doesn't change while the user types

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
  const path = editing ? pathOf(current, current.nodes[editing].parent) : pathOf(current);
  const tokenize = async (json) => (await request("/tokenize", { json, signal })).json();
  try {
    let result;
    const messages = await messagesOf(current, path);
    if (!attachments.length && !path.some(({ media }) => media?.length)) {
      result = await tokenize({ messages: [...messages, { role: "user", content: text }] });
    } else {
      const key = JSON.stringify([
        current.id,
        current.system,
        path.map(({ id }) => id),
        attachments.map(({ url }) => url),
      ]);
      if (cachedCount.key !== key) {
        const last = attachments.length ? [{ role: "user", content: await contentOf("", attachments) }] : [];
        cachedCount = { key, tokens: await tokenize({ messages: [...messages, ...last] }) };
      }
      result = { ...cachedCount.tokens };
      if (text) result.count += (await tokenize({ prompt: text })).count;
    }
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
    if (!signal.aborted) $("count").textContent = error instanceof ServerError ? error.message : "";
  }
}

function listenDraft() {
  const box = $("draft");
  box.addEventListener("input", () => (grow(), renderButtons(), countSoon()));
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
  $("system").addEventListener("input", ({ target }) => {
    current.system = target.value;
    if (pathOf(current).length) save(current);
    countSoon();
  });
}
