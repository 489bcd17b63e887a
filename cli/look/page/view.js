"use strict";
// What is shown, as the fragment of the address: it can be reloaded, passed on, and gone back from.

const FILTERS = [
  "class",
  "min",
  "max",
  "reason",
  "copies",
  "disagree",
  "near",
  "errors",
  "reviewed",
  "queue",
  "from",
  "to",
];
const PAGE_SIZE = 60;

const view = {
  state: {},
  onChange: () => {},

  read() {
    this.state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  },

  /** Change parts of the view (null takes one out); a step of the browser's history unless `replace`. */
  change(changes, replace = false) {
    const next = { ...this.state, ...changes };
    if (!("start" in changes) && [...FILTERS, "sort"].some((name) => name in changes)) delete next.start;
    for (const name of Object.keys(next))
      if (next[name] === null || next[name] === "" || next[name] === undefined) delete next[name];
    const address = `#${new URLSearchParams(next)}`;
    if (address !== location.hash) history[replace ? "replaceState" : "pushState"](null, "", address);
    this.state = Object.fromEntries(new URLSearchParams(address.slice(1)));
    this.onChange();
  },

  /** Set the filters where they are not set so, else take them out: what a second click does. */
  toggle(filters) {
    const set = Object.entries(filters).every(([name, value]) => this.state[name] === String(value));
    this.change(set ? Object.fromEntries(Object.keys(filters).map((name) => [name, null])) : filters);
  },

  has(filters) {
    return Object.entries(filters).every(([name, value]) => this.state[name] === String(value));
  },

  /** The question to the server that this view is. */
  query() {
    return Object.fromEntries(
      [...FILTERS, "sort"].filter((name) => name in this.state).map((name) => [name, this.state[name]]),
    );
  },

  start() {
    return Math.min(1e12, Math.max(0, Math.floor(Number(this.state.start)) || 0));
  },
};

window.addEventListener("popstate", () => {
  view.read();
  view.onChange();
});
