// Talking to the server that this page came from, and to no other.

let props = null; // what GET /props told: the model, what it can see and hear, limits, defaults

class ServerError extends Error {
  constructor(status, error, retryAfter) {
    super(error?.message || `The server answered with status ${status}.`);
    this.status = status;
    this.param = typeof error?.param === "string" ? error.param : null;
    this.code = error?.code ?? null;
    this.retryAfter = retryAfter;
  }

  /** In words for the reader: the message, the part of the request that it is about, when to come again. */
  static lines(error) {
    if (error instanceof ServerError) {
      const lines = [error.message];
      if (error.param) lines.push(`About: ${error.param}`);
      if (error.retryAfter) lines.push(`Try again in ${error.retryAfter} s.`);
      return lines;
    }
    if (error instanceof TypeError) return ["The server can't be reached. Is it still running?"];
    return [error.message || "Something went wrong in the page."];
  }
}

// ---------------------------------------------------------------- the key

const KEY = "polyphi.key";
let asking = null;

const apiKey = () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);

/** Ask for the key once, however many requests wait for it; null when the reader doesn't give one. */
function askKey() {
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("key-wrong").hidden = apiKey() === null;
    $("key-input").value = "";
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        asking = null;
        const key = $("key-input").value.trim();
        $("key-input").value = "";
        if (dialog.returnValue !== "ok" || !key) return resolve(null);
        forgetKey();
        ($("key-remember").checked ? localStorage : sessionStorage).setItem(KEY, key);
        resolve(key);
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

function forgetKey() {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
}

// ---------------------------------------------------------------- requests

/** A response whose status is good; anything else is thrown as a `ServerError`. `json` or `form` is what is sent. */
async function request(path, { json, form, signal } = {}) {
  for (;;) {
    const key = apiKey();
    const headers = {};
    if (key) headers.Authorization = `Bearer ${key}`;
    if (json !== undefined) headers["Content-Type"] = "application/json";
    const body = form ?? (json === undefined ? undefined : JSON.stringify(json));
    const most = props?.limits.max_body_bytes;
    if (most && json !== undefined && body.length > most) {
      throw new Error(
        `With its pictures and clips this conversation has ${megabytes(body.length)}; the server takes up to ${megabytes(most)}.`,
      );
    }
    const response = await fetch(path, {
      method: json === undefined && !form ? "GET" : "POST",
      headers,
      signal,
      body,
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
    if (response.ok) return response;
    if (response.status === 401 && (apiKey() !== key || (await askKey()))) continue;
    const error = (await response.json().catch(() => null))?.error ?? null;
    throw new ServerError(response.status, error, Number(response.headers.get("Retry-After")) || null);
  }
}

/** The events of a stream, each parsed; "[DONE]" comes as null. Letters cut in two by the network are kept whole. */
async function* events(response) {
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      // A CR at the very end may be half of a CR LF.
      const lines = rest.split(/\r\n|\n|\r(?=[^])/);
      rest = done ? "" : lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        yield data === "[DONE]" ? null : JSON.parse(data);
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
