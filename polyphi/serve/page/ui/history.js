// The list of conversations: search, rename, delete, export, import.

function renderHistory() {
  const query = $("search").value.trim().toLowerCase();
  const matching = conversations
    .filter((conversation) => conversation.nodes.root.children.length)
    .filter((conversation) => !query || matches(conversation, query))
    .sort((a, b) => b.updated - a.updated);
  const groups = Map.groupBy(matching, ({ updated }) => dayOf(updated));
  $("history").replaceChildren(
    ...[...groups].flatMap(([age, group]) => [h("h3", null, age), h("ul", null, group.map(historyItem))]),
  );
  $("history-none").hidden = matching.length > 0;
  $("history-none").textContent = query ? "No matches." : "Conversations stay in this browser and appear here.";
  $("export").disabled = !conversations.length;
}

function matches(conversation, query) {
  return (
    titleOf(conversation).toLowerCase().includes(query) ||
    Object.values(conversation.nodes).some(({ text }) => text?.toLowerCase().includes(query))
  );
}

function dayOf(time) {
  const days = Math.floor((new Date().setHours(0, 0, 0, 0) - new Date(time).setHours(0, 0, 0, 0)) / 86_400_000 + 0.5);
  return days <= 0 ? "Today" : days === 1 ? "Yesterday" : days < 7 ? "This week" : "Earlier";
}

function historyItem(conversation) {
  const title = titleOf(conversation);
  const isCurrent = conversation === current;
  const onclick = () => (showTab("chat"), openConversation(conversation), closeDrawer());
  const open = h(
    "button",
    { class: "open", title, "aria-current": isCurrent ? "true" : null, onclick },
    running.has(conversation.id) && h("span", { class: "pulse", role: "img", "aria-label": "answering" }),
    h("span", { class: "name" }, title),
  );
  const actions = h(
    "span",
    { class: "acts" },
    iconButton("edit", `Rename ${title}`, () => rename(item, conversation)),
    iconButton("download", `Export ${title}`, () => exportConversations([conversation])),
    iconButton("file", `Save ${title} as Markdown`, () => exportMarkdown(conversation)),
    iconButton("trash", `Delete ${title}`, () => removeWithUndo(conversation)),
  );
  const item = h("li", { class: isCurrent ? "item current" : "item" }, open, actions);
  return item;
}

function rename(item, conversation) {
  const field = h("input", { type: "text", value: titleOf(conversation), "aria-label": "New name", maxlength: 200 });
  let finished = false;
  const finish = async (accept) => {
    if (finished) return;
    finished = true;
    if (accept && field.value.trim()) {
      conversation.title = field.value.trim();
      await put("conversations", conversation);
    }
    renderHistory();
    if (conversation === current) renderConversation();
    document.querySelector("#history .current .open")?.focus();
  };
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") finish(true);
    if (event.key === "Escape") {
      event.stopPropagation();
      finish(false);
    }
  });
  field.addEventListener("blur", () => finish(true));
  item.replaceChildren(field);
  field.select();
  field.focus();
}

async function removeWithUndo(conversation) {
  running.get(conversation.id)?.controller.abort();
  conversations = conversations.filter((other) => other !== conversation);
  if (conversation === current) openConversation(newConversation());
  renderHistory();
  const draft = draftOf(conversation);
  const media = await loadAll([...mediaIds(conversation), ...draft.media]);
  saveDraft(conversation, NO_DRAFT);
  remove("conversations", [conversation.id]);
  remove("media", media.map(({ id }) => id));
  toast("Conversation deleted.", "Undo", async () => {
    for (const one of media) await put("media", one);
    await put("conversations", conversation);
    saveDraft(conversation, draft);
    conversations.push(conversation);
    openConversation(conversation);
  });
}

async function exportConversations(selected) {
  const day = new Date().toISOString().slice(0, 10);
  download(`polyphi-${day}.json`, "application/json", await exportText(selected));
}

/** Downloads what is shown of a conversation: its title, instructions and messages, with the names of their files. */
async function exportMarkdown(conversation) {
  const title = titleOf(conversation);
  const paragraphs = [`# ${title}`];
  for (const node of sentNodes(conversation, pathOf(conversation))) {
    paragraphs.push(`## ${{ system: "Instructions", user: "You", assistant: "Answer" }[node.role]}`);
    for (const { name } of await loadAll(node.media ?? [])) paragraphs.push(`Attached: \`${name.replaceAll("`", "'")}\``);
    if (node.text) paragraphs.push(node.text.trim());
  }
  const name = title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60);
  download(`${name}.md`, "text/markdown", `${paragraphs.join("\n\n")}\n`);
}

async function importFile(file) {
  try {
    const imported = await importText(await file.text());
    conversations.push(...imported);
    renderHistory();
    toast(imported.length === 1 ? "One conversation imported." : `${imported.length} conversations imported.`);
    showTab("chat");
    openConversation(imported[0]);
  } catch (error) {
    toast(error.message);
  }
}

function listenHistory() {
  $("search").addEventListener("input", renderHistory);
  $("new").addEventListener("click", startConversation);
  $("export").addEventListener("click", () =>
    exportConversations(conversations.filter((one) => one.nodes.root.children.length)),
  );
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", ({ target }) => {
    if (target.files[0]) importFile(target.files[0]);
    target.value = "";
  });
}
