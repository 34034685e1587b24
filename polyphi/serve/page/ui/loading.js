// The page while the model loads: shows the progress until the server answers, then the chat page takes its place.

const parts = ["title", "bar", "stage", "time"].map((name) => document.getElementById(`loading-${name}`));
const [title, bar, stage, time] = parts;

/** The text of an element. Only a change of the stage is read out. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

async function follow() {
  try {
    const response = await fetch("/ready", { cache: "no-store" });
    const progress = await response.json();
    if (progress.status !== "loading") return location.reload();
    setText(title, "The model is loading");
    setText(stage, progress.stage[0].toUpperCase() + progress.stage.slice(1));
    const share = progress.share === null ? "" : `${Math.round(100 * progress.share)} % · `;
    setText(time, `${share}${Math.round(progress.seconds)} s`);
    if (progress.share === null) bar.removeAttribute("value");
    else bar.value = progress.share;
  } catch {
    setText(title, "The server doesn't answer");
    setText(stage, "Its terminal or log says why.");
    setText(time, "");
    bar.removeAttribute("value");
  }
  setTimeout(follow, 1000);
}

follow();
document.documentElement.dataset.theme = localStorage.getItem("polyphi.theme") ?? "auto";
