"use strict";
// Start, theme, and the keys.

const KEYS = [
  ["← → ↑ ↓", "move among images, bars and rows"],
  ["Enter", "open the image; use the bar or row"],
  ["[  ]", "page before, page after"],
  ["r", "review what this view has left"],
  ["← →", "image before, image after (opened)"],
  [
    "1 … 0",
    "choose a class: its own digit, its place in the list, or with more than ten its place among the most probable",
  ],
  ["c", "type another class"],
  ["y", "confirm the label"],
  ["n", "exclude: none of these classes"],
  ["u", "exclude: unusable"],
  ["s", "skip"],
  ["z", "undo the last answer"],
  ["g", "go to the images"],
  ["o", "go to the overview"],
  ["x", "clear all filters"],
  ["Esc", "close"],
];

/** What the browser remembers of this page's settings: nothing where storage is forbidden, as in some frames. */
const remembered = {
  get(name) {
    try {
      return localStorage.getItem(`nst-${name}`);
    } catch {
      return null;
    }
  },
  set(name, value) {
    try {
      localStorage.setItem(`nst-${name}`, value);
    } catch {
      // for this visit alone, then
    }
  },
};

let keysOff = remembered.get("keys") === "off";

function showHelp() {
  const toggle = make("input", {
    type: "checkbox",
    onchange: (event) => {
      keysOff = !event.target.checked;
      remembered.set("keys", keysOff ? "off" : "on");
    },
  });
  toggle.checked = !keysOff;
  byId("keys").replaceChildren(
    make("h2", { id: "keys-title", tabindex: "-1" }, "Keys"),
    make(
      "dl",
      { class: "keys" },
      KEYS.map(([key, does]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, does)]),
    ),
    make("p", {}, make("label", { class: "box" }, toggle, " single-letter keys are on")),
    make("button", { type: "button", class: "primary", onclick: () => byId("keys").close() }, "Close"),
  );
  byId("keys").showModal();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  remembered.set("theme", theme);
}

/** Review what the view has left: those not answered, the first one opened. */
async function startReview() {
  view.change({ reviewed: "no", start: null });
  await grid.load();
  const first = grid.items.find((item) => !item.error && !item.answer);
  if (first) view.change({ image: first.id });
  else note("Nothing is left to review in this view.");
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !overview.figures) return;
  if (byId("keys").open || byId("typing").open) return;
  if (event.target.matches("select, textarea, input:not([type=checkbox])")) return;
  if (event.repeat && !event.key.startsWith("Arrow")) return; // a key held down would answer images that nobody saw
  const open = viewer.id !== null;
  const focused = document.activeElement?.closest?.("#grid [data-id]");
  const item = open
    ? viewer.detail
    : focused
      ? grid.items.find((known) => known.id === Number(focused.dataset.id))
      : null;
  const act = action(event.key, open, item);
  if (!act) return;
  event.preventDefault();
  act();
}

/** What a key does now: with an image opened, with the keyboard on one in the grid, or anywhere. */
function action(key, open, item) {
  if (open && key === "ArrowRight") return () => viewer.move(1);
  if (open && key === "ArrowLeft") return () => viewer.move(-1);
  if (key === "?") return showHelp;
  if (keysOff) return null;
  if (overview.figures.can.review) {
    if (key === "z") return () => viewer.undo();
    if (open && key === "s") return () => viewer.move(1);
    if (key === "c" && open && !item?.error) return () => typing.open();
    if (item && !item.error) {
      const name =
        open || overview.figures.class_names.length <= 10 ? panel.classKeys(viewer.detail).get(key) : undefined;
      if (name !== undefined) return () => viewer.answer({ class: name }, item.id);
      if (key === "c") return () => typing.open(item.id);
      if (key === "y" && item.label !== null) return () => viewer.answer({ class: item.label }, item.id);
      if (key === "n") return () => viewer.answer({ excluded: "none of these" }, item.id);
      if (key === "u") return () => viewer.answer({ excluded: "unusable" }, item.id);
    }
  }
  if (open) return null;
  const none = Object.fromEntries(FILTERS.map((name) => [name, null]));
  const everywhere = {
    "[": () => grid.turn(-1),
    "]": () => grid.turn(1),
    g: () => grid.focus(),
    o: () => byId("overview").querySelector("button, summary")?.focus(),
    x: () => view.change(none),
    r: overview.figures.can.review ? startReview : undefined,
  };
  return everywhere[key];
}

/** Ask for the figures until those are there that take the server a while. */
async function awaitFigures() {
  while (overview.figures.pending) {
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const figures = await data.overview().catch(() => null);
    if (!figures) return;
    if (figures.pending) continue;
    overview.show(figures);
    overview.reviewed(figures.review);
    overview.mark();
    await grid.load(true);
  }
}

async function begin() {
  setTheme(remembered.get("theme") ?? "auto");
  byId("theme").onclick = () =>
    setTheme({ auto: "light", light: "dark", dark: "auto" }[document.documentElement.dataset.theme]);
  byId("help").onclick = showHelp;
  byId("review").onclick = startReview;
  byId("skip").onclick = () => grid.focus();
  grid.setUp();
  viewer.setUp();
  typing.setUp();
  view.read();
  try {
    overview.show(await data.overview());
  } catch (error) {
    byId("count").textContent = "";
    grid.problem(error.message);
    return;
  }
  overview.reviewed(overview.figures.review);
  byId("review").hidden = !overview.figures.can.review;
  grid.showFilters();
  document.addEventListener("keydown", pressed);
  view.onChange = async () => {
    overview.mark();
    grid.markFilters();
    await grid.load();
    const last = grid.lastStart();
    if (last !== null) return view.change({ start: last || null }, true);
    const dropped = "reason" in view.state && view.state.reason !== "kept";
    if (dropped && overview.figures.can.review) overview.refresh(); // only now it is known which answers are about them
    await viewer.show();
  };
  view.onChange();
  awaitFigures();
}

begin();
