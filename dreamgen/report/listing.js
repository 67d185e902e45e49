"use strict";
// Data of the page. Texts in it come from users' files: they become text nodes and attribute values, never HTML.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const listing = read("listing");
const media = read("media"); // poster and mp4 of each clip as data: URLs; null if the page links its clips
const numClips = listing.ids.length;
const MAX_OPEN_PACKS = 256;
const openPacks = new Map();

/** Return the details of clip n (reasons, notes, curves), from its pack. */
function detailsOf(n) {
  const number = Math.floor(n / listing.clipsAPack);
  if (!openPacks.has(number)) {
    if (openPacks.size >= MAX_OPEN_PACKS) openPacks.delete(openPacks.keys().next().value);
    openPacks.set(number, openPack(number));
  }
  return openPacks.get(number).then((clips) => clips[n % listing.clipsAPack]);
}

async function openPack(number) {
  const text = atob(document.getElementsByClassName("pack")[number].textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  const inflated = new DecompressionStream("deflate");
  const writer = inflated.writable.getWriter();
  const written = writer.write(bytes).then(() => writer.close());
  const [clips] = await Promise.all([new Response(inflated.readable).json(), written]);
  return clips;
}

/** Create an element; attributes that are null are left out, `children` are elements and plain text. */
function make(tag, attributes = {}, ...children) {
  const isSvg = ["svg", "g", "path", "line", "circle", "text", "title", "rect"].includes(tag);
  const element = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

const instructionOf = (n) => listing.instructions[listing.instruction[n]];
const shapeOf = (n) => {
  const [width, height, numFrames, fps] = listing.shapes[listing.shape[n]];
  return { width, height, numFrames, fps };
};
const pathOf = (n) => ["clips", listing.ids[n].slice(0, 2), `${listing.ids[n]}.mp4`].map(encodeURIComponent).join("/");
const shortNumber = (value) => String(Number(value.toPrecision(3)));
const withUnit = (score, value) => `${shortNumber(value)} ${score.unit}`.trim();

/** Return the threshold that clip n was compared with, in words; empty without one. */
function limitOf(score, n) {
  return (score.limit === null ? score.limits[0] : score.limits[score.limit[n]]) ?? "";
}
