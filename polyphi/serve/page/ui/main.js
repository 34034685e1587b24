// The page as a whole: themes, tabs, the drawer, shortcuts, dropped files, and the start.

const THEMES = ["auto", "light", "dark"];
const THEME_KEY = "polyphi.theme";

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  localStorage.setItem(THEME_KEY, theme);
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  const label = `Colours: ${theme}. Change to ${next}`;
  $("theme").replaceChildren(icon(`theme-${theme}`));
  $("theme").setAttribute("aria-label", label);
  $("theme").title = label;
  $("theme").onclick = () => setTheme(next);
}

const TABS = ["chat", "speech", "live"];
let tab = "chat";

function showTab(name) {
  tab = name;
  for (const other of TABS) {
    const selected = other === name;
    $(`tab-${other}`).setAttribute("aria-selected", String(selected));
    $(`tab-${other}`).tabIndex = selected ? 0 : -1;
    $(`panel-${other}`).hidden = !selected;
  }
  for (const id of ["settings-open", "model"]) $(id).hidden = name !== "chat";
  renderTitle();
  if (name !== "chat") setSettings(false);
}

// ---------------------------------------------------------------- drawer and panel

const narrow = matchMedia("(max-width: 760px)");

function setDrawer(open) {
  document.body.classList.toggle("drawer", open);
  // A hidden drawer can't be reached with the Tab key.
  $("sidebar").inert = narrow.matches && !open;
  $("veil").hidden = !(open && narrow.matches);
  $("menu").setAttribute("aria-expanded", String(open));
}

const closeDrawer = () => setDrawer(!narrow.matches);

function setSettings(open) {
  $("settings").hidden = !open;
  $("settings-open").setAttribute("aria-expanded", String(open));
  // On a phone, focus on the text field would open the keyboard.
  if (open) (narrow.matches ? $("settings-close") : $("system")).focus();
}

// ---------------------------------------------------------------- keys and drops

function onKey(event) {
  const command = event.ctrlKey || event.metaKey;
  const key = event.key.toLowerCase();
  if (document.querySelector("dialog[open], :popover-open")) return;
  if (command && event.shiftKey && (key === "n" || key === "o")) {
    event.preventDefault();
    startConversation();
  } else if (command && !event.shiftKey && key === "k") {
    event.preventDefault();
    if (narrow.matches) setDrawer(true);
    $("search").focus();
    $("search").select();
  } else if (command && key === "/") {
    event.preventDefault();
    $("help-dialog").showModal();
  } else if (event.key === "Escape") onEscape();
}

function onEscape() {
  if (!$("chat-recording").hidden) $("chat-record-cancel").click();
  else if (!$("speech-recording").hidden) $("speech-record-cancel").click();
  else if (narrow.matches && document.body.classList.contains("drawer")) closeDrawer();
  else if (tab === "speech" && transcribing) transcribing.abort();
  else if (tab === "live" && live) live.finish();
  else if (tab === "chat" && running.has(current.id)) stopAnswer();
  else if (editing) cancelEditing();
  else if (!$("settings").hidden) {
    setSettings(false);
    $("settings-open").focus();
  } else if (document.activeElement === $("search")) {
    $("search").value = "";
    renderHistory();
    $("draft").focus();
  }
}

/** Accepts files dropped anywhere on the page, for the active tab. */
function listenDrops() {
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0;
  addEventListener("dragenter", (event) => {
    if (!hasFiles(event)) return;
    depth++;
    $("drop").hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (hasFiles(event) && --depth <= 0) $("drop").hidden = true;
  });
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("drop", async (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    $("drop").hidden = true;
    const files = [...event.dataTransfer.files];
    if (!props || !files.length) return;
    if (files.length === 1 && (await isExport(files[0]))) importFile(files[0]);
    else if (tab === "chat") attach(files);
    else {
      showTab("speech");
      chooseRecording(files[0]);
    }
  });
}

// ---------------------------------------------------------------- the start

function listenPage() {
  for (const [number, name] of TABS.entries()) {
    $(`tab-${name}`).addEventListener("click", () => showTab(name));
    $(`tab-${name}`).addEventListener("keydown", ({ key }) => {
      if (key !== "ArrowLeft" && key !== "ArrowRight") return;
      const next = TABS.length + number + (key === "ArrowRight" ? 1 : -1);
      showTab(TABS[next % TABS.length]);
      $(`tab-${tab}`).focus();
    });
  }
  $("menu").addEventListener("click", () => {
    const open = !document.body.classList.contains("drawer");
    setDrawer(open);
    if (open) $("new").focus();
  });
  $("veil").addEventListener("click", closeDrawer);
  narrow.addEventListener("change", closeDrawer);
  $("settings-open").addEventListener("click", () => setSettings($("settings").hidden));
  $("settings-close").addEventListener("click", () => {
    setSettings(false);
    $("settings-open").focus();
  });
  $("help").addEventListener("click", () => $("help-dialog").showModal());
  $("key-forget").addEventListener("click", () => {
    forgetKey();
    $("help-dialog").close();
    toast("The API key was deleted from this browser.");
  });
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
    dialog.querySelector(".dialog-close")?.addEventListener("click", () => dialog.close());
  }
  addEventListener("keydown", onKey);
  addEventListener("visibilitychange", refresh);
  // Unfinished answers are saved as they are.
  addEventListener("pagehide", () => running.forEach(({ conversation }) => put("conversations", conversation)));
}

/** Renders the start screen according to the model's modalities. */
function renderEmpty() {
  const { image, audio } = props.modalities;
  const inputs = ["text", image && "pictures", audio && "speech"].filter(Boolean);
  const list = new Intl.ListFormat("en-GB").format(inputs); // British: no comma before "and"
  $("empty-can").textContent = `This model accepts ${list}.`;
  const idea = (name, label, act) => h("button", { class: "idea", onclick: act }, icon(name), label);
  const ideas = [
    image && idea("image", "Ask about a picture", () => $("files").click()),
    audio && canRecord() && idea("mic", "Record a message", () => $("mic").click()),
    audio && idea("wave", "Transcribe a recording", () => (showTab("speech"), $("speech-pick").focus())),
  ];
  $("ideas").replaceChildren(...ideas.filter(Boolean));
}

/** Loads changes that another tab has made. */
async function refresh() {
  if (document.hidden || running.size || !booted || !database) return;
  const stored = await loadConversations();
  const index = stored.findIndex(({ id }) => id === current.id);
  if (index >= 0 && stored[index].updated > current.updated) {
    current = stored[index];
    renderConversation();
  } else if (index >= 0) stored[index] = current;
  conversations = stored;
  renderHistory();
}

async function loadProps() {
  $("offline").hidden = true;
  try {
    props = await (await request("/props")).json();
  } catch (error) {
    $("offline-lines").replaceChildren(...ServerError.lines(error).map((line) => h("p", null, line)));
    $("offline").hidden = false;
    return false;
  }
  return true;
}

async function start() {
  setTheme(THEMES.includes(localStorage.getItem(THEME_KEY)) ? localStorage.getItem(THEME_KEY) : "auto");
  closeDrawer();
  listenPage();
  $("offline-again").addEventListener("click", boot);
  await openStore().catch(() =>
    toast("This browser stores no data for this page: conversations are lost when the page is closed."),
  );
  await boot();
}

let booted = false;

async function boot() {
  if (booted || !(await loadProps())) return;
  booted = true;
  $("tab-speech").hidden = $("tab-live").hidden = !props.modalities.audio;
  if (!canRecord()) {
    $("mic").disabled = true;
    $("mic").title = "Recording needs https, or the server on this machine";
  }
  loadSettings();
  renderSettings();
  renderModel();
  renderEmpty();
  listenSettings();
  listenScrolling();
  listenDraft();
  listenHistory();
  listenTranscribe();
  listenLive();
  listenDrops();
  conversations = await loadConversations().catch(() => []);
  const last = conversations.find(({ id }) => id === localStorage.getItem(CURRENT_KEY));
  document.body.classList.add("ready");
  openConversation(last ?? current);
  renderTranscribe();
  if (!narrow.matches) $("draft").focus();
}

start();
