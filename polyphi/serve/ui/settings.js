// The panel beside the conversation: instructions, adapter and sampling. What isn't filled in is left to the server.

const SAMPLING = [
  // name, label, hint, least, most, step (of 1: a whole number, without a slider), the server's own default
  ["temperature", "Temperature", "0 always takes the likeliest token", 0, 2, 0.05, 0],
  ["top_p", "Top p", "share of likelihood that tokens are drawn from", 0.05, 1, 0.05, 1],
  ["top_k", "Top k", "that many likeliest tokens; 0 for all", 0, 1000, 1, 0],
  ["min_p", "Min p", "drops what is less likely than this share of the likeliest", 0, 1, 0.01, 0],
  ["repetition_penalty", "Repetition penalty", "1 for none", 0.5, 2, 0.05, 1],
  ["max_tokens", "Longest answer", "tokens", 1, 1_000_000, 1, null],
  ["seed", "Seed", "empty draws a new one each time", 0, 2 ** 31 - 1, 1, null],
].map(([name, label, hint, min, max, step, fallback]) => ({ name, label, hint, min, max, step, fallback }));
const SAMPLING_KEY = "polyphi.sampling";
let sampling = {};

function readSampling() {
  try {
    const found = JSON.parse(localStorage.getItem(SAMPLING_KEY)) ?? {};
    for (const { name, min, max } of SAMPLING)
      if (found[name] >= min && found[name] <= max) sampling[name] = Number(found[name]);
    if (found.adapter === null || typeof found.adapter === "string") sampling.adapter = found.adapter;
  } catch {
    // Something else was stored there: the defaults do.
  }
}

function keepSampling() {
  localStorage.setItem(SAMPLING_KEY, JSON.stringify(sampling));
  $("settings-changed").hidden = !Object.keys(sampling).length;
}

function renderSettings() {
  if (sampling.adapter && !props.adapters.includes(sampling.adapter)) delete sampling.adapter;
  const chosen =
    sampling.adapter === undefined ? "auto" : sampling.adapter === null ? "none" : `name:${sampling.adapter}`;
  const option = (value, label) => h("option", { value, selected: value === chosen }, label);
  $("adapter").replaceChildren(
    option("auto", "Automatic"),
    option("none", "None"),
    ...props.adapters.map((name) => option(`name:${name}`, name)),
  );
  $("sampling").replaceChildren(...SAMPLING.map(samplingRow));
  keepSampling();
}

function samplingRow({ name, label, hint, min, max, step, fallback }) {
  if (name === "max_tokens") max = Math.min(max, props.limits.max_tokens ?? max);
  const usual = props.sampling?.[name] ?? fallback;
  const range = { min, max, step };
  const placeholder = usual ?? (name === "seed" ? "random" : "server's");
  const texts = { placeholder, "aria-describedby": `hint-${name}`, inputmode: "decimal" };
  const field = h("input", { type: "number", id: `set-${name}`, ...range, ...texts, value: sampling[name] ?? "" });
  const value = sampling[name] ?? usual;
  const slider = step === 1 ? null : h("input", { type: "range", ...range, value, "aria-label": label });
  const set = (text, from) => {
    const value = Number(text);
    const good =
      text !== "" && Number.isFinite(value) && value >= min && value <= max && (step !== 1 || Number.isInteger(value));
    field.toggleAttribute("aria-invalid", text !== "" && !good);
    if (text === "") delete sampling[name];
    else if (good) sampling[name] = value;
    if (slider && from !== slider) slider.value = good ? value : usual;
    if (from !== field) field.value = text;
    keepSampling();
  };
  field.addEventListener("input", () => set(field.value, field));
  // A number that can't be is put right when the field is left.
  field.addEventListener("change", () => set(field.value === "" ? "" : String(sampling[name] ?? ""), null));
  slider?.addEventListener("input", () => set(slider.value, slider));
  return h(
    "div",
    { class: "setting" },
    h("label", { for: `set-${name}` }, label),
    field,
    slider,
    h("p", { id: `hint-${name}`, class: "hint" }, hint),
  );
}

function listenSettings() {
  $("adapter").addEventListener("change", ({ target }) => {
    if (target.value === "auto") delete sampling.adapter;
    else sampling.adapter = target.value === "none" ? null : target.value.slice(5);
    keepSampling();
  });
  $("settings-reset").addEventListener("click", () => {
    sampling = {};
    renderSettings();
    announce("Settings reset");
  });
}
