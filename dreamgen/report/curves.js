"use strict";
// Curves of the predicted actions, with a cursor that follows the clip.
const PLOT = { width: 360, left: 88, right: 268, strip: 19, margin: 3, axis: 16 };
const MAX_NAME = 14;
const MIN_SPREAD_SHARE = 0.05; // a strip that moves less than this share of the widest one is drawn flatter
const STEPS = 255;

/** Return rounded values as numbers: `steps` are differences of whole steps between low and high. */
function valuesOf(steps, low, high) {
  let sum = 0;
  return steps.map((step) => low + ((sum += step) / STEPS) * (high - low));
}

/** Return the value of a curve at a share of its length, 0 to 1. */
function valueAt(values, share) {
  const place = share * (values.length - 1);
  const before = Math.floor(place);
  const after = Math.min(before + 1, values.length - 1);
  return values[before] + (values[after] - values[before]) * (place - before);
}

/** Format numbers with enough decimals to tell `spread` apart with two digits. */
function fixed(value, spread) {
  const decimals = spread > 0 ? Math.min(Math.max(1 - Math.floor(Math.log10(spread)), 0), 6) : 3;
  return (Number(value.toFixed(decimals)) + 0).toFixed(decimals);
}

/**
 * Draw the curves of one clip.
 *
 * Returns the svg; `show(frame)`, which moves the cursor to a frame; and `frameAt(event)`, the frame under the pointer.
 */
function drawCurves(curves, numFrames, fps) {
  const strips = curves.dims.map((dim, row) => {
    const [low, high] = [curves.low[row], curves.high[row]];
    const values = valuesOf(curves.steps[row], low, high);
    const stds = curves.std_high ? curves.std_steps[row].map((step) => (step / STEPS) * curves.std_high[row]) : null;
    const band = stds && values.map((value, i) => [value, valueAt(stds, i / Math.max(values.length - 1, 1))]);
    const from = band ? Math.min(...band.map(([value, std]) => value - std)) : low;
    const to = band ? Math.max(...band.map(([value, std]) => value + std)) : high;
    return { name: listing.actions[dim] ?? `action ${dim}`, low, high, values, stds, band, from, to };
  });
  const widest = Math.max(...strips.map((strip) => strip.to - strip.from));
  const bottom = PLOT.strip * strips.length;
  const svg = make("svg", {
    class: "plot curves", viewBox: `0 0 ${PLOT.width} ${bottom + PLOT.axis}`, role: "img",
    "aria-label": `Predicted actions: ${strips.length} dimensions over time`,
  });
  const atX = (share) => PLOT.left + share * (PLOT.right - PLOT.left);
  strips.forEach((strip, row) => {
    const spread = Math.max(strip.to - strip.from, MIN_SPREAD_SHARE * widest) || 1;
    const [center, middle] = [(row + 0.5) * PLOT.strip, (strip.from + strip.to) / 2];
    const atY = (value) => center - ((value - middle) / spread) * (PLOT.strip - 2 * PLOT.margin);
    const path = (values) => values.map((value, i) =>
      `${atX(i / Math.max(values.length - 1, 1)).toFixed(1)} ${atY(value).toFixed(1)}`);
    const baseline = row * PLOT.strip + 13;
    const short = strip.name.length > MAX_NAME ? `${strip.name.slice(0, MAX_NAME - 1)}…` : strip.name;
    svg.append(make("text", { x: 0, y: baseline }, short, make("title", {}, strip.name)));
    const rule = (row + 1) * PLOT.strip - 0.5;
    svg.append(make("line", { class: "rule", x1: PLOT.left, x2: PLOT.right, y1: rule, y2: rule }));
    if (strip.band) {
      const above = path(strip.band.map(([value, std]) => value + std));
      const below = path(strip.band.map(([value, std]) => value - std)).reverse();
      svg.append(make("path", { class: `band c${row % 8}`, d: `M${[...above, ...below].join("L")}Z` }));
    }
    svg.append(make("path", { class: `line c${row % 8}`, d: `M${path(strip.values).join("L")}` }));
    strip.atY = atY;
    strip.dot = make("circle", { class: `dot c${row % 8}`, r: 2.2 });
    strip.rest = `${fixed(strip.low, strip.high - strip.low)} … ${fixed(strip.high, strip.high - strip.low)}`;
    strip.text = make("text", { class: "range", x: PLOT.width, y: baseline }, strip.rest);
    svg.append(strip.text);
  });
  const numRows = curves.rows;
  svg.append(make("text", { class: "axis", x: PLOT.left, y: bottom + 12 }, "0 s"));
  const seconds = `${((numRows - 1) / fps).toFixed(1)} s`;
  svg.append(make("text", { class: "axis end", x: PLOT.right, y: bottom + 12 }, seconds));
  const cursor = make("line", { class: "cursor", y1: 0, y2: bottom });
  const marks = make("g", { visibility: "hidden" }, cursor, ...strips.map((strip) => strip.dot));
  svg.append(marks);

  function show(frame) {
    const share = numRows > 1 ? Math.min(frame, numRows - 1) / (numRows - 1) : 0;
    svg.dataset.frame = frame;
    marks.setAttribute("visibility", frame > 0 ? "visible" : "hidden");
    cursor.setAttribute("x1", atX(share));
    cursor.setAttribute("x2", atX(share));
    for (const strip of strips) {
      const value = valueAt(strip.values, share);
      strip.dot.setAttribute("cx", atX(share));
      strip.dot.setAttribute("cy", strip.atY(value));
      const spread = (strip.high - strip.low) / 10; // one digit more than the range
      const std = strip.stds ? ` ± ${fixed(valueAt(strip.stds, share), spread)}` : "";
      strip.text.textContent = frame > 0 ? fixed(value, spread) + std : strip.rest;
    }
  }

  function frameAt(event) {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * PLOT.width;
    const share = Math.min(Math.max((x - PLOT.left) / (PLOT.right - PLOT.left), 0), 1);
    return Math.round(share * (Math.min(numFrames, numRows) - 1));
  }
  return { svg, show, frameAt };
}

const following = new Map(); // video that plays -> what shows its frame

/** Keep the cursor of curves at the frame that a video shows, and let a click on the curves seek. */
function follow(video, plot, fps) {
  const update = () => plot.show(Math.floor(video.currentTime * fps + 1e-3));
  video.addEventListener("play", () => {
    following.set(video, update);
    if (following.size === 1) requestAnimationFrame(showFrames);
  });
  for (const event of ["pause", "seeking", "seeked", "timeupdate"]) video.addEventListener(event, update);
  plot.svg.addEventListener("click", (event) => {
    video.preload = "auto";
    video.start();
    video.currentTime = (plot.frameAt(event) + 0.5) / fps;
  });
  if (!video.paused) following.set(video, update);
  update();
}

function showFrames() {
  for (const [video, update] of following) {
    update();
    if (video.paused || !video.isConnected) following.delete(video);
  }
  if (following.size) requestAnimationFrame(showFrames);
}
