// What the project is doing now, asked for every five seconds as long as the page is looked at.
const main = document.getElementById("live");
const EVERY_MS = 5000;

async function look() {
  if (document.hidden) return;
  const within = main.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
  try {
    const answer = await fetch("/live/part");
    if (!answer.ok) return;
    main.innerHTML = await answer.text();
  } catch {
    main.querySelector(".says").textContent = "The server does not answer; this is what it said last.";
    return;
  }
  if (within) main.querySelector(`[aria-label="${within}"]`)?.focus();
}

setInterval(look, EVERY_MS);
document.addEventListener("visibilitychange", look);
