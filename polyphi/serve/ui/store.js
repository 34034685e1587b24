// What is kept in this browser (IndexedDB) and nowhere else: conversations, and the media in them.
//
// A conversation is a tree: `nodes[id] = {id, parent, role, text, media: [id], children: [id], chosen: id, ...}` under
// a node "root"; the path of chosen children is what is shown and sent.

const FILE_FORMAT = "polyphi-conversations";
const IMAGE_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const AUDIO_TYPES = ["audio/wav", "audio/flac", "audio/ogg", "audio/mpeg"];

let database = null;

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function openStore() {
  const opening = indexedDB.open("polyphi", 1);
  opening.onupgradeneeded = () => {
    opening.result.createObjectStore("conversations", { keyPath: "id" });
    opening.result.createObjectStore("media", { keyPath: "id" }).createIndex("conversation", "conversation");
  };
  database = await settled(opening);
}

/** Where the browser keeps nothing for this page (some private windows), it works all the same until it is closed. */
const kept = { conversations: new Map(), media: new Map() };

async function put(name, value) {
  kept[name].set(value.id, value);
  if (!database) return;
  const change = database.transaction(name, "readwrite");
  change.objectStore(name).put(value);
  await new Promise((resolve, reject) => {
    change.oncomplete = resolve;
    change.onabort = () => reject(change.error);
  });
}

async function loadConversations() {
  if (database) {
    kept.conversations.clear();
    for (const found of await settled(database.transaction("conversations").objectStore("conversations").getAll())) {
      kept.conversations.set(found.id, found);
    }
  }
  return [...kept.conversations.values()];
}

async function loadMedia(id) {
  if (kept.media.has(id)) return kept.media.get(id);
  const found = database && (await settled(database.transaction("media").objectStore("media").get(id)));
  if (found) kept.media.set(id, found);
  return found ?? null;
}

/** Forget a conversation and its media; returns them, so that it can be undone. */
async function removeConversation(conversation) {
  const media = [];
  for (const id of mediaIds(conversation)) {
    const found = await loadMedia(id);
    if (found) media.push(found);
  }
  kept.conversations.delete(conversation.id);
  for (const { id } of media) kept.media.delete(id);
  if (database) {
    const change = database.transaction(["conversations", "media"], "readwrite");
    change.objectStore("conversations").delete(conversation.id);
    for (const { id } of media) change.objectStore("media").delete(id);
  }
  return media;
}

const mediaIds = (conversation) => [...new Set(Object.values(conversation.nodes).flatMap((node) => node.media ?? []))];

// ---------------------------------------------------------------- the tree

function newConversation() {
  const now = Date.now();
  return {
    id: newId(),
    title: "",
    system: "",
    created: now,
    updated: now,
    nodes: { root: { id: "root", role: "root", children: [], chosen: null } },
  };
}

function addNode(conversation, parent, values) {
  const node = { id: newId(), parent, children: [], chosen: null, media: [], text: "", created: Date.now(), ...values };
  conversation.nodes[node.id] = node;
  conversation.nodes[parent].children.push(node.id);
  conversation.nodes[parent].chosen = node.id;
  return node;
}

/** The nodes that are shown, from the first message to the last; or those down to `last`. */
function pathOf(conversation, last = null) {
  const path = [];
  if (last) {
    for (let node = conversation.nodes[last]; node && node.role !== "root"; node = conversation.nodes[node.parent])
      path.unshift(node);
    return path;
  }
  for (let node = conversation.nodes.root; node.chosen;) {
    node = conversation.nodes[node.chosen];
    path.push(node);
  }
  return path;
}

/** Take a node and all that follows it out of the tree; a sibling takes its place. */
function removeNode(conversation, id) {
  const { parent } = conversation.nodes[id];
  const above = conversation.nodes[parent];
  const place = above.children.indexOf(id);
  above.children.splice(place, 1);
  if (above.chosen === id) above.chosen = above.children[Math.max(0, place - 1)] ?? null;
  const gone = [id];
  for (const next of gone) {
    gone.push(...conversation.nodes[next].children);
    delete conversation.nodes[next];
  }
}

// ---------------------------------------------------------------- files

function base64Of(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function exportText(conversations) {
  const media = [];
  for (const id of new Set(conversations.flatMap(mediaIds))) {
    const found = await loadMedia(id);
    if (found) {
      const { blob, ...rest } = found;
      media.push({ ...rest, data: await base64Of(blob) });
    }
  }
  return JSON.stringify({ format: FILE_FORMAT, version: 1, exported: new Date().toISOString(), conversations, media });
}

/**
 * Read an export. Files come from anywhere, so every field is made anew from what it should be, under new ids, and what
 * doesn't fit is left out; raises an Error with a line for the reader where nothing fits.
 */
async function importText(source) {
  let file;
  try {
    file = JSON.parse(source);
  } catch {
    throw new Error("That file holds no JSON.");
  }
  if (file?.format !== FILE_FORMAT || !Array.isArray(file.conversations)) {
    throw new Error("That file holds no conversations that were exported here.");
  }
  const text = (value) => (typeof value === "string" ? value : "");
  const count = (value) => (Number.isFinite(value) ? value : null);
  const list = (value) => (Array.isArray(value) ? value : []);

  const found = new Map();
  for (const one of list(file.media)) {
    const types = one?.kind === "image" ? IMAGE_TYPES : one?.kind === "audio" ? AUDIO_TYPES : [];
    if (!types.includes(one?.type) || typeof one.id !== "string") continue;
    let bytes;
    try {
      bytes = Uint8Array.from(atob(text(one.data)), (letter) => letter.charCodeAt(0));
    } catch {
      continue; // no base64
    }
    found.set(one.id, {
      id: newId(),
      kind: one.kind,
      name: text(one.name).slice(0, 300),
      type: one.type,
      seconds: count(one.seconds),
      width: count(one.width),
      height: count(one.height),
      blob: new Blob([bytes], { type: one.type }),
    });
  }

  const read = [];
  for (const old of file.conversations) {
    if (typeof old?.nodes !== "object" || !old.nodes?.root) continue;
    const fresh = newConversation();
    fresh.title = text(old.title).slice(0, 200);
    fresh.system = text(old.system);
    fresh.created = count(old.created) ?? fresh.created;
    fresh.updated = count(old.updated) ?? fresh.updated;
    const seen = new Set(["root"]);
    const walk = [["root", "root"]];
    for (const [from, to] of walk) {
      let chosen = null;
      for (const id of list(old.nodes[from].children)) {
        const node = typeof id === "string" && Object.hasOwn(old.nodes, id) ? old.nodes[id] : null;
        if (seen.has(id) || !["user", "assistant"].includes(node?.role)) continue;
        seen.add(id);
        const media = list(node.media).flatMap((one) => found.get(one) ?? []);
        for (const one of media) one.conversation = fresh.id;
        const error = node.error ? list(node.error).filter((line) => typeof line === "string") : null;
        const ending = { end: text(node.end) || null, stats: statsOf(node.stats), error };
        const made = addNode(fresh, to, {
          role: node.role,
          text: text(node.text),
          created: count(node.created) ?? Date.now(),
          media: media.map((one) => one.id),
          ...(node.role === "assistant" ? ending : {}),
        });
        if (id === old.nodes[from].chosen) chosen = made.id;
        walk.push([id, made.id]);
      }
      if (chosen) fresh.nodes[to].chosen = chosen;
    }
    read.push(fresh);
  }
  if (!read.length) throw new Error("That file holds no conversations.");
  for (const one of found.values()) if (one.conversation) await put("media", one);
  for (const one of read) await put("conversations", one);
  return read;
}

/** The figures of an answer, and nothing else that may stand in their place. */
function statsOf(value) {
  if (!value || typeof value !== "object") return null;
  const stats = {};
  for (const name of ["prompt", "completion", "image", "audio", "cached", "first", "rate", "seed"]) {
    if (Number.isFinite(value[name])) stats[name] = value[name];
  }
  if (typeof value.adapter === "string") stats.adapter = value.adapter.slice(0, 100);
  return stats;
}
