"use strict";
// Elements and words that every part of the page is made of. Names from data become text, never markup.

const byId = (id) => document.getElementById(id);

/** An element: attributes, properties that start with "on", and children (text or elements; null is left out). */
function make(tag, attributes = {}, ...children) {
  const element = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element[name] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const count = (number) => number.toLocaleString("en-US");
const percent = (share) => (share === null || share === undefined ? "–" : `${(100 * share).toFixed(1)}%`);
const images = (number) => `${count(number)} image${number === 1 ? "" : "s"}`;
const IN_WORDS = { held_out: "excluded", near_held_out: "near-duplicate of excluded" };
const words = (reason) => IN_WORDS[reason] ?? reason.replaceAll("_", " ");
const answerText = (answer) => answer.class ?? answer.excluded;

/** A horizontal bar of a share of its place; `name` is its class. */
function bar(share, name = "") {
  const fill = make("span", { class: `fill ${name}` });
  fill.style.inlineSize = `${100 * Math.min(1, Math.max(0, share))}%`;
  return fill;
}

/** One stop of the Tab key for many buttons; arrow keys, Home and End move among them. `columns()` is how many stand in a row. */
function roving(list, columns = () => 1) {
  const buttons = () => [...list.querySelectorAll("button[data-stop]")];
  const rest = () => {
    const all = buttons();
    if (all.length && !all.some((button) => button.tabIndex === 0)) all[0].tabIndex = 0;
  };
  list.addEventListener("keydown", (event) => {
    const steps = {
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: columns(),
      ArrowUp: -columns(),
      Home: -Infinity,
      End: Infinity,
    };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    const all = buttons();
    const here = all.indexOf(document.activeElement);
    if (here < 0) return;
    event.preventDefault();
    const step = steps[event.key];
    const there = Number.isFinite(step) ? here + step : step < 0 ? 0 : all.length - 1;
    if (there >= 0 && there < all.length) all[there].focus();
  });
  list.addEventListener("focusin", (event) => {
    if (!event.target.matches("button[data-stop]")) return;
    for (const button of buttons()) button.tabIndex = button === event.target ? 0 : -1;
  });
  rest();
  list.rest = rest; // after other buttons have come
}

/** An image as `<img>`; where it cannot be shown, a box that says why. */
function picture(address, description, missing) {
  if (!address) return make("span", { class: "missing" }, missing);
  const image = make("img", { src: address, alt: description, decoding: "async", draggable: "false" });
  image.onload = () => image.classList.toggle("small", image.naturalWidth < 96);
  image.onerror = async () => image.replaceWith(make("span", { class: "missing" }, await data.whyMissing(address)));
  return image;
}

let noteEnds;
/** Say something for a few seconds, aloud to a screen reader too. */
function note(text, failed = false) {
  clearTimeout(noteEnds);
  const place = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body; // it hides what is outside it
  if (byId("note").parentElement !== place) place.append(byId("note"));
  byId("note").textContent = text;
  byId("note").className = failed ? "shown failed" : "shown";
  noteEnds = setTimeout(() => byId("note").classList.remove("shown"), failed ? 12000 : 4000);
}
