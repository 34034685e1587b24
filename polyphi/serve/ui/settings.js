// The settings panel: instructions, adapter and sampling. The server's defaults apply to empty fields.

const SAMPLING = [
  // name, label, hint, min, max, step (1: an integer, without a slider), the server's default
  ["temperature", "Temperature", "0 always selects the most likely token", 0, 2, 0.05, 0],
  ["top_p", "Top p", "probability mass that tokens are sampled from", 0.05, 1, 0.05, 1],
  ["top_k", "Top k", "number of most likely tokens to sample from; 0 for all", 0, 1000, 1, 0],
  ["min_p", "Min p", "drops tokens below this fraction of the highest probability", 0, 1, 0.01, 0],
  ["repetition_penalty", "Repetition penalty", "1 for none", 0.5, 2, 0.05, 1],
  ["max_tokens", "Maximum length", "tokens of an answer", 1, 1_000_000, 1, null],
  ["seed", "Seed", "empty for a new random seed each time", 0, 2 ** 31 - 1, 1, null],
].map(([name, label, hint, min, max, step, fallback]) => ({ name, label, hint, min, max, step, fallback }));
const SAMPLING_KEY = "polyphi.sampling";
let sampling = {};

function loadSampling() {
  try {
    const stored = JSON.parse(localStorage.getItem(SAMPLING_KEY)) ?? {};
    for (const { name, min, max } of SAMPLING)
      if (stored[name] >= min && stored[name] <= max) sampling[name] = Number(stored[name]);
    if (stored.adapter === null || typeof stored.adapter === "string") sampling.adapter = stored.adapter;
  } catch {
    // The stored value is invalid: use the defaults.
  }
}

function saveSampling() {
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
  saveSampling();
}

function samplingRow({ name, label, hint, min, max, step, fallback }) {
  if (name === "max_tokens") max = Math.min(max, props.limits.max_tokens ?? max);
  const defaultValue = props.sampling?.[name] ?? fallback;
  const range = { min, max, step };
  const placeholder = defaultValue ?? (name === "seed" ? "random" : "server's");
  const texts = { placeholder, "aria-describedby": `hint-${name}`, inputmode: "decimal" };
  const field = h("input", { type: "number", id: `set-${name}`, ...range, ...texts, value: sampling[name] ?? "" });
  const value = sampling[name] ?? defaultValue;
  const slider = step === 1 ? null : h("input", { type: "range", ...range, value, "aria-label": label });
  const set = (text, from) => {
    const value = Number(text);
    const valid =
      text !== "" && Number.isFinite(value) && value >= min && value <= max && (step !== 1 || Number.isInteger(value));
    field.toggleAttribute("aria-invalid", text !== "" && !valid);
    if (text === "") delete sampling[name];
    else if (valid) sampling[name] = value;
    if (slider && from !== slider) slider.value = valid ? value : defaultValue;
    if (from !== field) field.value = text;
    saveSampling();
  };
  field.addEventListener("input", () => set(field.value, field));
  // An invalid number is replaced when the field loses focus.
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
    saveSampling();
  });
  $("settings-reset").addEventListener("click", () => {
    sampling = {};
    renderSettings();
    announce("Settings reset");
  });
}
