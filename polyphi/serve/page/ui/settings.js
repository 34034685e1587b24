// The menu of models and adapters, and the settings panel: presets, instructions and sampling. Empty fields have the
// server's defaults.

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
const PRESETS_KEY = "polyphi.presets";
const PRESETS = [
  // [ours]; the first is the server's defaults
  { name: "Exact", sampling: {} },
  { name: "Balanced", sampling: { temperature: 0.7, top_p: 0.95 } },
  { name: "Creative", sampling: { temperature: 1, min_p: 0.05 } },
];
let sampling = {};
let adapter; // an adapter's name, null for none, undefined to let the server choose by the content
let model = null; // the name chosen in the menu; null: the server's first
let presets = PRESETS; // with the user's own: {name, system, sampling}

/** The valid values of stored sampling, in the order of `SAMPLING`. */
function validSampling(stored) {
  const valid = SAMPLING.filter(({ name, min, max }) => stored?.[name] >= min && stored[name] <= max);
  return Object.fromEntries(valid.map(({ name }) => [name, Number(stored[name])]));
}

function loadSettings() {
  const stored = storedValue(SAMPLING_KEY);
  sampling = validSampling(stored);
  if (stored?.adapter === null || props.adapters.includes(stored?.adapter)) adapter = stored.adapter;
  const own = [storedValue(PRESETS_KEY)].flat().filter((one) => typeof one?.name === "string");
  const copy = ({ name, system, sampling }) => ({ name, system: String(system ?? ""), sampling: validSampling(sampling) });
  presets = [...PRESETS, ...own.map(copy)];
}

function saveSampling() {
  storeValue(SAMPLING_KEY, { ...sampling, adapter });
  $("settings-changed").hidden = !Object.keys(sampling).length;
  renderPresets();
}

function renderSettings() {
  $("sampling").replaceChildren(...SAMPLING.map(samplingRow));
  saveSampling();
}

// ---------------------------------------------------------------- presets

function renderPresets() {
  const same = (one) => JSON.stringify(one) === JSON.stringify(validSampling(sampling));
  const index = presets.findLastIndex((one) => same(one.sampling) && [undefined, current.system].includes(one.system));
  $("preset").replaceChildren(
    h("option", { value: -1, hidden: true }, "None of these"),
    ...presets.map(({ name }, i) => h("option", { value: i }, name)),
  );
  $("preset").value = index;
  $("preset-delete").disabled = index < PRESETS.length;
}

function choosePreset({ system, sampling: values }) {
  sampling = { ...values };
  if (system !== undefined) setInstructions(system);
  renderSettings();
}

function savePresets(own) {
  presets = [...PRESETS, ...own];
  storeValue(PRESETS_KEY, own);
  renderPresets();
}

function addPreset(name) {
  if (PRESETS.some((preset) => preset.name === name)) return toast(`${name} is built in: choose another name.`);
  const others = presets.slice(PRESETS.length).filter((preset) => preset.name !== name);
  savePresets([...others, { name, system: current.system, sampling: validSampling(sampling) }]);
  $("preset-name").value = "";
  announce(`${name} saved`);
}

// ---------------------------------------------------------------- the menu of models and adapters

function renderModel() {
  const name = adapter === null ? "no adapter" : adapter;
  $("model-name").textContent = [model ?? props.model, name].filter(Boolean).join(" · ");
  $("model").title =
    `${number.format(props.context)} tokens of context${props.version ? ` · polyphi ${props.version}` : ""}`;
}

function renderModelMenu(models) {
  const choices = (label, options, chosen, choose) => {
    const radios = options.map(([value, text]) => {
      const onchange = () => (choose(value), saveSampling(), renderModel());
      const radio = h("input", { type: "radio", name: label, checked: value === chosen, onchange });
      return h("label", { class: "choice" }, radio, h("span", { class: "name", title: text }, text));
    });
    return h("fieldset", null, h("legend", null, label), radios);
  };
  const adapters = [[undefined, "Chosen by content"], [null, "None"], ...props.adapters.map((name) => [name, name])];
  $("model-menu").replaceChildren(
    choices("Model", models.map((name) => [name, name]), model ?? props.model, (value) => (model = value)),
    choices("Adapter", adapters, adapter, (value) => (adapter = value)),
    h("p", { class: "hint" }, "By content: vision for pictures and PDF, speech for audio, none for text."),
  );
  $("model-menu").querySelector(":checked")?.focus();
}

/** Shows what is known, then what the server has now: adapters come and go while it runs. */
async function openModelMenu() {
  renderModelMenu([props.model]);
  try {
    const answers = ["/props", "/v1/models"].map(async (path) => (await request(path)).json());
    const [fresh, { data }] = await Promise.all(answers);
    props = fresh;
    renderModelMenu(data.map(({ id }) => id).filter((id) => !props.adapters.includes(id)));
  } catch (error) {
    toast(ServerError.lines(error)[0]);
  }
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
  $("model-menu").addEventListener("toggle", ({ newState }) => newState === "open" && openModelMenu());
  $("preset").addEventListener("change", ({ target }) => choosePreset(presets[target.value]));
  $("preset-form").addEventListener("submit", (event) => {
    event.preventDefault();
    addPreset($("preset-name").value.trim());
  });
  $("preset-delete").addEventListener("click", () => {
    savePresets(presets.slice(PRESETS.length).filter((preset) => preset !== presets[$("preset").value]));
    $("preset").focus();
  });
}
