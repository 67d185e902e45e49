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
