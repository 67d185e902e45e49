"use strict";
// Cards of single clips. What is costly, video and curves, is made when a card comes near the window and freed with it.
const chosen = new Set(); // clips that a person rejects in review mode
const near = new IntersectionObserver(
  (entries) => entries.forEach((entry) => entry.isIntersecting && entry.target.fill()),
  { rootMargin: "300px" },
);

/** Remove an element, then stop its videos and free their decoders: browsers allow a few dozen. */
function release(element) {
  near.unobserve(element);
  element.remove(); // which pauses its videos
  setTimeout(() => {
    for (const video of element.querySelectorAll("video")) {
      video.removeAttribute("src");
      video.load();
    }
  });
}

function makeVideo(n) {
  const { width, height } = shapeOf(n);
  const own = media && media[n];
  if (own && own.source === null) return unreadable();
  const video = make("video", {
    loop: "", playsinline: "", width, height, "aria-label": instructionOf(n),
    preload: own ? "none" : "metadata", poster: own && own.poster,
  });
  video.muted = true;
  video.addEventListener("error", () => video.getAttribute("src") && video.replaceWith(unreadable(pathOf(n))));
  video.start = () => {
    if (video.hasAttribute("src")) return;
    video.controls = true;
    video.src = own ? own.source : pathOf(n);
  };
  return video;
}

function unreadable(path) {
  const why = path && !media ? `${path} is not beside this page, or cannot be read.` : "The video cannot be read.";
  return make("p", { class: "empty" }, why);
}

function badge(n) {
  const verdict = listing.verdicts[n];
  return make("span", { class: `badge ${verdict.replace(" ", "-")}` }, verdict);
}

/**
 * Return the card of clip n, which observes whether it is near the window.
 *
 * `card.fill()` adds the video, and reasons and curves as soon as their pack is open, which its promise waits for.
 */
function makeCard(n) {
  const id = listing.ids[n];
  const box = make("input", { type: "checkbox", "data-clip": id });
  box.checked = chosen.has(id);
  box.addEventListener("change", () => {
    box.checked ? chosen.add(id) : chosen.delete(id);
    showChosen();
  });
  const open = make("button", { type: "button", class: "open", title: "Show this clip alone" }, "Open");
  open.addEventListener("click", () => openClip(n));
  const frame = make("div", { class: "frame" });
  frame.style.aspectRatio = `${shapeOf(n).width} / ${shapeOf(n).height}`;
  const more = make("div", { class: "more" });
  const card = make("article", { class: "card", "data-verdict": listing.verdicts[n], "data-id": id }, frame,
    make("div", { class: "under" },
      make("p", { class: "instruction", title: instructionOf(n) }, instructionOf(n)),
      make("p", { class: "line" }, make("label", { class: "review" }, box, " reject"), badge(n),
        make("span", { class: "id" }, `seed ${listing.seeds[n]} · `, make("span", { title: id }, id.slice(0, 8))), open),
      more));
  let filled = null;
  card.fill = () => {
    if (filled === null) {
      near.unobserve(card);
      const video = makeVideo(n);
      frame.replaceWith(video);
      filled = detailsOf(n).then(
        (details) => fillDetails(more, n, details, video),
        () => more.append(make("p", { class: "muted small" }, "This browser is too old to show reasons and actions.")),
      );
      filled.then(() => setTimeout(() => card.isConnected && video.start?.())); // the curves come first
    }
    return filled;
  };
  near.observe(card);
  return card;
}

function fillDetails(more, n, details, video) {
  for (const reason of details.reasons) more.append(make("p", { class: "reason" }, reason));
  const { numFrames, fps } = shapeOf(n);
  if (details.curves === null || !details.curves.dims.length) {
    const why = details.curves ? "No dimension of the predicted action moves." : "No actions recovered for this clip.";
    more.append(make("p", { class: "muted small" }, why));
  } else {
    const plot = drawCurves(details.curves, numFrames, fps);
    more.append(plot.svg);
    if (video.tagName === "VIDEO") follow(video, plot, fps);
  }
  const measures = make("dl", { class: "measures" });
  listing.scores.forEach((score) => {
    if (score.values[n] === null) return;
    const note = details.notes[score.name];
    const limit = limitOf(score, n);
    measures.append(make("div", { title: [score.about, note].filter(Boolean).join(": ") || null },
      make("dt", {}, score.label),
      make("dd", { class: score.isMissed[n] ? "missed" : null }, withUnit(score, score.values[n]),
        limit ? make("span", { class: "muted" }, ` (${limit})`) : null)));
  });
  if (measures.children.length) more.append(measures);
}

/** Show one clip in a dialog of its own. */
function openClip(n) {
  const dialog = document.getElementById("alone");
  const close = make("button", { type: "button" }, "Close");
  const card = makeCard(n);
  close.addEventListener("click", () => dialog.close());
  dialog.replaceChildren(make("p", { class: "line" }, make("span", { class: "muted small" }, listing.ids[n]), close), card);
  dialog.addEventListener("close", () => release(card), { once: true });
  dialog.showModal();
  card.fill();
}

/** Return a small picture of clip n that opens it. */
function makeThumbnail(n, score) {
  const own = media && media[n];
  const picture = own ? make("img", { src: own.poster, alt: "" }) : makeVideo(n);
  if (!own) {
    picture.start?.();
    picture.removeAttribute("controls");
  }
  const value = make("span", { class: score.isMissed[n] ? "missed" : null }, withUnit(score, score.values[n]));
  const thumbnail = make("button", { type: "button", class: `thumbnail ${listing.verdicts[n].replace(" ", "-")}`,
    "data-id": listing.ids[n], title: `${listing.verdicts[n]}: ${instructionOf(n)}` }, picture, value);
  thumbnail.addEventListener("click", () => openClip(n));
  return thumbnail;
}
