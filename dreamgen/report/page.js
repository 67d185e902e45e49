"use strict";
// The list of clips: filters, order, pages, both verdicts side by side, review; and the worst clips of each score.
const CLIPS_A_PAGE = 24;
const $ = (selector) => document.querySelector(selector);
const $$ = (selector) => [...document.querySelectorAll(selector)];
const state = { verdict: "all", find: "", sort: null, ascending: true, page: 0, sides: false };

for (const score of listing.scores) {
  score.isMissed = new Uint8Array(numClips);
  for (const n of score.missed) score.isMissed[n] = 1;
}

/** Return the places of clips that pass the filters, in planned order. */
function filtered() {
  const words = state.find.trim().toLowerCase();
  const matches = listing.instructions.map((text) => text.toLowerCase().includes(words));
  const ranges = listing.scores
    .map((score, i) => ({ score, from: numberIn(`[data-from="${i}"]`), to: numberIn(`[data-to="${i}"]`),
      missed: $(`[data-missed="${i}"]`).checked }))
    .filter(({ from, to, missed }) => from !== null || to !== null || missed);
  const found = [];
  for (let n = 0; n < numClips; n++) {
    if (state.verdict !== "all" && listing.verdicts[n] !== state.verdict) continue;
    if (words && !matches[listing.instruction[n]] && !listing.ids[n].startsWith(words)) continue;
    if (ranges.every(({ score, from, to, missed }) => {
      const value = score.values[n];
      return value !== null && (from === null || value >= from) && (to === null || value <= to)
        && (!missed || score.isMissed[n]);
    })) found.push(n);
  }
  return found;
}

function numberIn(selector) {
  const { value } = $(selector);
  return value.trim() === "" || Number.isNaN(Number(value)) ? null : Number(value);
}

/** Sort places by the chosen score, in place; clips without a value come last. */
function sorted(places) {
  if (state.sort === null) return places;
  const { values } = listing.scores[state.sort];
  const sign = state.ascending ? 1 : -1;
  return places.sort((a, b) => {
    if (values[a] === null || values[b] === null) return (values[a] === null) - (values[b] === null) || a - b;
    return sign * (values[a] - values[b]) || a - b;
  });
}

/** Show the present page of the clips that pass the filters. */
function show() {
  const grid = $("#grid");
  grid.querySelectorAll(".card").forEach(release);
  const places = sorted(filtered());
  const columns = state.sides
    ? ["accepted", "rejected"].map((verdict) => places.filter((n) => listing.verdicts[n] === verdict))
    : [places];
  const clipsAColumn = CLIPS_A_PAGE / columns.length;
  const numPages = Math.max(1, Math.ceil(Math.max(...columns.map((column) => column.length)) / clipsAColumn));
  state.page = Math.min(Math.max(state.page, 0), numPages - 1);
  const cards = columns.map((column) =>
    column.slice(state.page * clipsAColumn, (state.page + 1) * clipsAColumn).map(makeCard));
  grid.className = state.sides ? "sides" : "grid";
  grid.replaceChildren(...(state.sides ? cards.map((own, i) =>
    make("div", { class: "side" }, make("h3", {}, `${i ? "Rejected" : "Accepted"} ${columns[i].length.toLocaleString("en")}`),
      make("div", { class: "grid" }, ...own))) : cards[0]));
  const num = columns.reduce((sum, column) => sum + column.length, 0);
  $("#found").textContent = num === numClips ? `${num.toLocaleString("en")} clips`
    : `${num.toLocaleString("en")} of ${numClips.toLocaleString("en")} clips`;
  $("#none").hidden = num > 0;
  $("#pager").hidden = numPages === 1;
  $("#page").value = state.page + 1;
  $("#page").max = numPages;
  $("#pages").textContent = numPages.toLocaleString("en");
  $("[data-step='-1']").disabled = state.page === 0;
  $("[data-step='1']").disabled = state.page === numPages - 1;
  const isEmpty = (input) => (input.type === "checkbox" ? !input.checked : input.value === "");
  $("#clear").hidden = !state.find && $$("#ranges input").every(isEmpty);
  setPlaying(false);
  const inWindow = cards.flat().filter((card) => {
    const { top, bottom } = card.getBoundingClientRect();
    return top < innerHeight && bottom > 0;
  });
  grid.ready = Promise.all(inWindow.map((card) => card.fill()));
}

function showFrom(change) {
  Object.assign(state, { page: 0 }, change);
  show();
}

function setPlaying(isPlaying) {
  const toggle = $("button[data-play]");
  toggle.dataset.play = isPlaying ? "yes" : "no";
  toggle.textContent = isPlaying ? "Pause all" : "Play all";
}

function showDirection() {
  const button = $("#direction");
  button.hidden = state.sort === null;
  if (state.sort === null) return;
  const { direction } = listing.scores[state.sort];
  const isWorst = direction !== null && state.ascending === (direction === "min");
  button.textContent = (state.ascending ? "Lowest first" : "Highest first") + (isWorst ? " (worst)" : "");
}

function sortBy(sort, ascending) {
  $("#sort").value = sort ?? "";
  Object.assign(state, { sort, ascending: ascending ?? (sort === null || listing.scores[sort].direction !== "max") });
  showDirection();
  showFrom({});
}

function showChosen() {
  $("button[data-save]").textContent = chosen.size ? `Save rejected.txt (${chosen.size})` : "Save rejected.txt";
  for (const box of $$("input[data-clip]")) box.checked = chosen.has(box.dataset.clip);
}

function connect() {
  for (const button of $$("button[data-show]")) {
    button.addEventListener("click", () => {
      for (const other of $$("button[data-show]")) other.setAttribute("aria-pressed", String(other === button));
      $("button[data-sides]")?.setAttribute("aria-pressed", "false");
      showFrom({ verdict: button.dataset.show, sides: false });
    });
  }
  $("button[data-sides]")?.addEventListener("click", (event) => {
    const sides = !state.sides;
    event.currentTarget.setAttribute("aria-pressed", String(sides));
    for (const other of $$("button[data-show]")) other.setAttribute("aria-pressed", String(other.dataset.show === "all" && !sides));
    showFrom({ sides, verdict: "all" });
  });
  $("button[data-play]").addEventListener("click", () => {
    const play = $("button[data-play]").dataset.play === "no";
    if (play) $$("#grid .card").forEach((card) => card.fill());
    for (const video of $$("#grid video")) {
      video.start?.();
      play ? video.play().catch(() => {}) : video.pause();
    }
    setPlaying(play);
  });
  $("button[data-review]").addEventListener("click", (event) => {
    const shown = document.body.classList.toggle("reviewing");
    event.currentTarget.setAttribute("aria-pressed", String(shown));
  });
  $("button[data-save]").addEventListener("click", () => {
    const lines = listing.ids.filter((id) => chosen.has(id)).map((id) => `${id}\n`);
    const link = make("a", { download: "rejected.txt" });
    link.href = URL.createObjectURL(new Blob(lines, { type: "text/plain" }));
    link.click();
    URL.revokeObjectURL(link.href);
  });
  $("#find").addEventListener("input", (event) => showFrom({ find: event.target.value }));
  $("#sort").addEventListener("change", (event) => sortBy(event.target.value === "" ? null : Number(event.target.value)));
  $("#direction").addEventListener("click", () => sortBy(state.sort, !state.ascending));
  $("#ranges").addEventListener("input", () => showFrom({}));
  $("#clear").addEventListener("click", () => {
    $("#find").value = "";
    for (const input of $$("#ranges input")) input.type === "checkbox" ? (input.checked = false) : (input.value = "");
    showFrom({ find: "" });
  });
  for (const button of $$("[data-step]")) {
    button.addEventListener("click", () => {
      $("#clips").scrollIntoView();
      showFrom({ page: state.page + Number(button.dataset.step) });
    });
  }
  $("#page").addEventListener("change", (event) => showFrom({ page: Number(event.target.value) - 1 }));
  for (const button of $$("[data-sort]")) {
    button.addEventListener("click", () => {
      $("#clips").scrollIntoView();
      sortBy(Number(button.dataset.sort));
    });
  }
  // Thumbnails exist only while their score is in view.
  const inView = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
    const score = listing.scores[Number(target.dataset.worst)];
    if (isIntersecting && !target.children.length) target.append(...score.worst.map((n) => makeThumbnail(n, score)));
    else if (!isIntersecting) [...target.children].forEach(release);
  }), { rootMargin: "100px" });
  for (const strip of $$("[data-worst]")) inView.observe(strip);
  showChosen();
  show();
}

if (numClips) connect();
