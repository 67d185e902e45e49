"use strict";
const grid = document.querySelector("#clips .grid");
const videos = () => [...document.querySelectorAll("#clips .card:not([hidden]) video")];
for (const button of document.querySelectorAll("button[data-show]")) {
  button.addEventListener("click", () => {
    for (const other of document.querySelectorAll("button[data-show]")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    for (const card of grid.children) {
      card.hidden = button.dataset.show !== "all" && card.dataset.verdict !== button.dataset.show;
      if (card.hidden) card.querySelector("video")?.pause();
    }
  });
}
const toggle = document.querySelector("button[data-play]");
toggle?.addEventListener("click", () => {
  const play = toggle.dataset.play === "no";
  for (const video of videos()) play ? video.play().catch(() => {}) : video.pause();
  toggle.dataset.play = play ? "yes" : "no";
  toggle.textContent = play ? "Pause all" : "Play all";
});
const review = document.querySelector("button[data-review]");
const chosen = () => [...document.querySelectorAll("#clips input[data-clip]:checked")].map((box) => box.dataset.clip);
review?.addEventListener("click", () => {
  const shown = document.body.classList.toggle("reviewing");
  review.setAttribute("aria-pressed", String(shown));
});
document.querySelector("button[data-save]")?.addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([chosen().map((clip) => clip + "\n").join("")], { type: "text/plain" }));
  link.download = "rejected.txt";
  link.click();
  URL.revokeObjectURL(link.href);
});
