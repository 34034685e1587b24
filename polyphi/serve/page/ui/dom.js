// Helpers to build elements. Text is only set as text: nothing in this page parses HTML.

const $ = (id) => document.getElementById(id);

function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  if (tag === "button") element.type = "button"; // the default type would submit a form
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

function iconButton(name, label, onclick, extra) {
  return h("button", { class: "tool", "aria-label": label, title: label, onclick, ...extra }, icon(name));
}

/** Announces a text to screen readers only. */
function announce(text) {
  $("announcer").textContent = text;
}

let toastTimer = 0;

/** Shows a message at the bottom of the page for a few seconds, with an optional action button. */
function toast(text, action, onaction) {
  const button = action && h("button", { class: "link", onclick: () => (hideToast(), onaction()) }, action);
  $("toast").replaceChildren(h("span", null, text), button ?? "");
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(hideToast, action ? 8000 : 4000);
}

const hideToast = () => ($("toast").hidden = true);

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages over plain http have no clipboard API: execCommand still works there.
    const area = h("textarea", { class: "offscreen", value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce("Copied");
  if (!button) return;
  const old = [...button.childNodes];
  button.replaceChildren(icon("check"), ...old.filter((node) => node.nodeType === Node.TEXT_NODE));
  setTimeout(() => button.replaceChildren(...old), 1200);
}

function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

const number = new Intl.NumberFormat("en");

function megabytes(bytes) {
  return bytes < 1e5 ? `${Math.ceil(bytes / 1024)} KB` : `${(bytes / 1048576).toFixed(1)} MB`;
}

/** Seconds as 1:05 or 1:00:05. */
function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (value) => String(value).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
