// The data stored in this browser (IndexedDB) and nowhere else: conversations and their media.
//
// A conversation is a tree: `nodes[id] = {id, parent, role, text, media: [id], children: [id], chosen: id, ...}` under
// a node "root"; the path of chosen children is shown and sent.

const FILE_FORMAT = "polyphi-conversations";
const IMAGE_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]; // every server and browser
const CONTAINER_TYPES = ["audio/webm", "audio/mp4", "audio/aac", "audio/amr"]; // accepted with `props.containers`
const TYPES = {
  image: [...IMAGE_TYPES, "image/avif", "image/heic", "image/tiff"], // the last ones: if in `props.image_formats`
  audio: ["audio/wav", "audio/flac", "audio/ogg", "audio/mpeg", ...CONTAINER_TYPES],
  file: ["application/pdf", "text/plain"],
};

let database = null;

function requestResult(request) {
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
  database = await requestResult(opening);
}

/** In-memory copy: without IndexedDB (some private windows) the page works until it is closed. */
const cache = { conversations: new Map(), media: new Map() };

async function put(name, value) {
  cache[name].set(value.id, value);
  if (!database) return;
  const transaction = database.transaction(name, "readwrite");
  transaction.objectStore(name).put(value);
  transaction.commit(); // now, so that a page that is left at once keeps it
  await new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });
}

async function loadConversations() {
  if (database) {
    cache.conversations.clear();
    const stored = database.transaction("conversations").objectStore("conversations").getAll();
    for (const conversation of await requestResult(stored)) cache.conversations.set(conversation.id, conversation);
  }
  return [...cache.conversations.values()];
}

async function loadMedia(id) {
  if (cache.media.has(id)) return cache.media.get(id);
  const media = database && (await requestResult(database.transaction("media").objectStore("media").get(id)));
  if (media) cache.media.set(id, media);
  return media ?? null;
}

/** The media with these ids that are stored. */
const loadAll = async (ids) => (await Promise.all(ids.map(loadMedia))).filter(Boolean);

function remove(name, ids) {
  for (const id of ids) cache[name].delete(id);
  const store = database?.transaction(name, "readwrite").objectStore(name);
  for (const id of ids) store?.delete(id);
}

/** The JSON value in localStorage under `key`; null where there is none or it is invalid. */
function storedValue(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

function storeValue(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // The storage is full: the value lasts until the page is closed.
  }
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

/** The nodes of the visible path, from the first message to the last; or the path to the node `last`. */
function pathOf(conversation, last = null) {
  let node = conversation.nodes[last ?? "root"];
  while (!last && node.chosen) node = conversation.nodes[node.chosen];
  const path = [];
  for (; node && node.role !== "root"; node = conversation.nodes[node.parent]) path.unshift(node);
  return path;
}

/** Removes a node and its descendants; a sibling becomes the chosen child. */
function removeNode(conversation, id) {
  const { parent } = conversation.nodes[id];
  const parentNode = conversation.nodes[parent];
  const index = parentNode.children.indexOf(id);
  parentNode.children.splice(index, 1);
  if (parentNode.chosen === id) parentNode.chosen = parentNode.children[Math.max(0, index - 1)] ?? null;
  const removed = [id];
  for (const next of removed) {
    removed.push(...conversation.nodes[next].children);
    delete conversation.nodes[next];
  }
}

// ---------------------------------------------------------------- files

const base64Of = async (blob) => new Uint8Array(await blob.arrayBuffer()).toBase64();

async function exportText(conversations) {
  const entries = await loadAll([...new Set(conversations.flatMap(mediaIds))]);
  const withData = async ({ blob, ...fields }) => ({ ...fields, data: await base64Of(blob) });
  const media = await Promise.all(entries.map(withData));
  return JSON.stringify({ format: FILE_FORMAT, version: 1, exported: new Date().toISOString(), conversations, media });
}

/** Whether a file is an export, by its beginning. */
const isExport = async (file) => /^\s*\{\s*"format":\s*"polyphi-conversations"/.test(await file.slice(0, 200).text());

/**
 * Imports an exported file and returns its conversations. Files are untrusted: every field is checked and copied under
 * new ids, and invalid ones are dropped. Throws an Error with a message for the user where nothing is valid.
 */
async function importText(source) {
  let file;
  try {
    file = JSON.parse(source);
  } catch {
    throw new Error("That file contains no JSON.");
  }
  if (file?.format !== FILE_FORMAT || !Array.isArray(file.conversations)) {
    throw new Error("That file contains no exported polyphi conversations.");
  }
  const text = (value) => (typeof value === "string" ? value : "");
  const count = (value) => (Number.isFinite(value) ? value : null);
  const list = (value) => (Array.isArray(value) ? value : []);

  const mediaById = new Map();
  for (const one of list(file.media)) {
    const types = Object.hasOwn(TYPES, one?.kind) ? TYPES[one.kind] : [];
    if (!types.includes(one?.type) || typeof one.id !== "string") continue;
    let bytes;
    try {
      bytes = Uint8Array.fromBase64(text(one.data));
    } catch {
      continue; // invalid base64
    }
    mediaById.set(one.id, {
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

  const imported = [];
  for (const old of file.conversations) {
    if (typeof old?.nodes !== "object" || !old.nodes?.root) continue;
    const fresh = newConversation();
    fresh.title = text(old.title).slice(0, 200);
    fresh.system = text(old.system);
    fresh.created = count(old.created) ?? fresh.created;
    fresh.updated = count(old.updated) ?? fresh.updated;
    const visited = new Set(["root"]);
    const walk = [["root", "root"]];
    for (const [from, to] of walk) {
      let chosen = null;
      for (const id of list(old.nodes[from].children)) {
        const node = typeof id === "string" && Object.hasOwn(old.nodes, id) ? old.nodes[id] : null;
        if (visited.has(id) || !["user", "assistant"].includes(node?.role)) continue;
        visited.add(id);
        const media = list(node.media).flatMap((one) => mediaById.get(one) ?? []);
        for (const one of media) one.conversation = fresh.id;
        const error = node.error ? list(node.error).filter((line) => typeof line === "string") : null;
        const ending = { end: text(node.end) || null, stats: statsOf(node.stats), error };
        if (text(node.reasoning)) ending.reasoning = node.reasoning;
        const added = addNode(fresh, to, {
          role: node.role,
          text: text(node.text),
          created: count(node.created) ?? Date.now(),
          media: media.map((one) => one.id),
          ...(node.role === "assistant" ? ending : {}),
        });
        if (id === old.nodes[from].chosen) chosen = added.id;
        walk.push([id, added.id]);
      }
      if (chosen) fresh.nodes[to].chosen = chosen;
    }
    imported.push(fresh);
  }
  if (!imported.length) throw new Error("That file contains no conversations.");
  for (const one of mediaById.values()) if (one.conversation) await put("media", one);
  for (const one of imported) await put("conversations", one);
  return imported;
}

/** The valid statistics of an answer; other fields are dropped. */
function statsOf(value) {
  if (!value || typeof value !== "object") return null;
  const stats = {};
  for (const name of ["prompt", "completion", "image", "audio", "cached", "first", "rate", "seed", "temperature"])
    if (Number.isFinite(value[name])) stats[name] = value[name];
  if (typeof value.adapter === "string") stats.adapter = value.adapter.slice(0, 100);
  return stats;
}
