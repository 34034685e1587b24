// Requests to the server that this page was loaded from, and to no other.

let props = null; // the response of GET /props: model, modalities, limits, defaults

class ServerError extends Error {
  constructor(status, error, retryAfter) {
    super(error?.message || `The server answered with status ${status}.`);
    this.status = status;
    this.param = typeof error?.param === "string" ? error.param : null;
    this.code = error?.code ?? null;
    this.retryAfter = retryAfter;
  }

  /** The lines shown for an error: the message, after the words for what it is about, and when to try again. */
  static lines(error, subject) {
    if (error instanceof ServerError) {
      const message = error.message.replace(/^messages\[\S*: /, ""); // the path, which `subject` replaces
      const lines = [subject ? `${subject[0].toUpperCase()}${subject.slice(1)}: ${message}` : message];
      if (error.retryAfter) lines.push(`Try again in ${error.retryAfter} s.`);
      return lines;
    }
    if (error instanceof TypeError) return ["The server can't be reached. Is it still running?"];
    return [error.message || "The page failed with an unknown error."];
  }
}

// ---------------------------------------------------------------- the key

const KEY = "polyphi.key";
let keyPrompt = null;

const apiKey = () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY);

/** Prompts for the key, once for all waiting requests; resolves with null when the user cancels. */
function askKey() {
  keyPrompt ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    $("key-wrong").hidden = apiKey() === null;
    $("key-input").value = "";
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        keyPrompt = null;
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
  return keyPrompt;
}

function forgetKey() {
  sessionStorage.removeItem(KEY);
  localStorage.removeItem(KEY);
}

// ---------------------------------------------------------------- requests

/** The response of a request with the body `json` or `form`; throws a `ServerError` unless the status is 2xx. */
async function request(path, { json, form, signal } = {}) {
  for (;;) {
    const key = apiKey();
    const headers = {};
    if (key) headers.Authorization = `Bearer ${key}`;
    if (json !== undefined) headers["Content-Type"] = "application/json";
    const body = form ?? (json === undefined ? undefined : JSON.stringify(json));
    const limit = props?.limits.max_body_bytes;
    if (limit && json !== undefined && body.length > limit) {
      throw new Error(
        `With its files this conversation has ${megabytes(body.length)}; the server accepts up to ${megabytes(limit)}.`,
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

/** The parsed events of a stream; null for "[DONE]". Characters split between network packets are decoded correctly. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += value ?? "";
      // A CR at the end may be the first half of a CR LF.
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
