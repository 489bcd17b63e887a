"use strict";
// The images that the view's filters leave, a page at a time.

const grid = {
  items: [],
  total: 0,
  loaded: null, // the question that `items` answers
  lastId: null, // the image that the keyboard is at
  asking: null,
  failed: false, // whether the server refused the question, or gave no answer

  setUp() {
    const columns = () => Math.max(1, getComputedStyle(byId("grid")).gridTemplateColumns.split(" ").length);
    roving(byId("grid"), columns);
    byId("grid").addEventListener("focusin", (event) => {
      if (event.target.dataset.id) this.lastId = Number(event.target.dataset.id);
    });
    byId("filters").onsubmit = (event) => event.preventDefault();
  },

  /** The selects and boxes over the grid, of those that this version can answer. */
  showFilters() {
    const { can, review, kept, errors, histogram } = overview.figures;
    const select = (name, label, options) =>
      make(
        "label",
        {},
        `${label} `,
        make(
          "select",
          { id: `by-${name}`, onchange: (event) => view.change({ [name]: event.target.value }) },
          options.map(([value, text]) => make("option", { value }, text)),
        ),
      );
    const box = (name, label) =>
      make(
        "label",
        { class: "box" },
        make("input", {
          id: `by-${name}`,
          type: "checkbox",
          onchange: (event) => view.change({ [name]: event.target.checked ? "1" : null }),
        }),
        ` ${label}`,
      );
    const orders = [["", "as stored"]];
    if (histogram)
      orders.push(
        ["confidence", "least confident"],
        ["-confidence", "most confident"],
        ["margin", "smallest margin"],
        ["entropy", "highest entropy"],
      );
    if (can.suspicion) orders.push(["-suspicion", "most suspicious"]);
    orders.push(["key", "key"]);
    const parts = [select("sort", "Order", orders)];
    if (review)
      parts.push(
        select("reviewed", "Reviewed", [
          ["", "all"],
          ["no", "not yet"],
          ["yes", "answered"],
          ["disputed", "disputed"],
        ]),
      );
    if (can.compare) parts.push(box("disagree", `label differs from ${overview.figures.compared}`));
    if (kept !== null) parts.push(box("copies", "several copies"));
    if (errors) parts.push(box("errors", "errors"));
    byId("filters").replaceChildren(...parts);
  },

  markFilters() {
    for (const control of byId("filters").querySelectorAll("select, input")) {
      const value = view.state[control.id.slice(3)] ?? "";
      if (control.type === "checkbox") control.checked = value === "1";
      else control.value = value;
    }
    const state = view.state;
    const chip = (names, text) =>
      make(
        "li",
        {},
        make(
          "button",
          {
            type: "button",
            "aria-label": `Remove the filter: ${text}`,
            onclick: () => view.change(Object.fromEntries(names.map((name) => [name, null]))),
          },
          text,
          make("span", { "aria-hidden": "true" }, " ×"),
        ),
      );
    const chips = [];
    if (state.class) chips.push(chip(["class"], state.class));
    if (state.min || state.max)
      chips.push(chip(["min", "max"], `confidence ${state.min ?? "0"} to ${state.max ?? "1"}`));
    if (state.reason)
      chips.push(chip(["reason"], state.reason === "kept" ? "kept" : `dropped: ${words(state.reason)}`));
    if (state.from || state.to) chips.push(chip(["from", "to"], `${state.from ?? "any"} → ${state.to ?? "any"}`));
    if (state.near) chips.push(chip(["near"], `near-duplicates of image ${state.near}`));
    if (state.queue) chips.push(chip(["queue"], `queue: ${state.queue}`));
    if (state.copies) chips.push(chip(["copies"], "several copies"));
    if (state.disagree) chips.push(chip(["disagree"], "labels differ"));
    if (state.errors) chips.push(chip(["errors"], "errors"));
    if (state.reviewed)
      chips.push(chip(["reviewed"], { no: "not reviewed", yes: "reviewed" }[state.reviewed] ?? state.reviewed));
    const none = Object.fromEntries(FILTERS.map((name) => [name, null]));
    if (chips.length > 1)
      chips.push(
        make(
          "li",
          {},
          make("button", { type: "button", class: "link", onclick: () => view.change(none) }, "Clear all"),
        ),
      );
    byId("chips").replaceChildren(...chips);
  },

  /** Ask for the view's images, unless they are there. A later question overtakes an earlier one. */
  async load(again = false) {
    const question = JSON.stringify([view.query(), view.start()]);
    if (question === this.loaded && !again) return;
    this.asking?.abort();
    const asking = (this.asking = new AbortController());
    byId("grid").setAttribute("aria-busy", "true");
    try {
      const reply = await data.grid({ ...view.query(), offset: view.start(), limit: PAGE_SIZE }, asking.signal);
      if (asking !== this.asking) return;
      Object.assign(this, reply, { loaded: question, failed: false });
      this.problem(overview.figures.images); // why no image can be shown
    } catch (error) {
      if (asking !== this.asking || error.name === "AbortError") return;
      Object.assign(this, { items: [], total: 0, loaded: null, failed: true });
      this.problem(error.message);
    }
    byId("grid").removeAttribute("aria-busy");
    this.draw();
  },

  problem(text) {
    byId("problem").hidden = !text;
    byId("problem").textContent = text ?? "";
  },

  draw() {
    byId("grid").replaceChildren(...this.items.map((item) => this.cell(item)));
    byId("grid").rest();
    const start = view.start();
    const last = start + this.items.length;
    const many = this.total > this.items.length;
    byId("count").textContent =
      this.total === 0
        ? this.failed
          ? "" // the problem is told below
          : "No image passes these filters."
        : many
          ? `${count(start + 1)}–${count(last)} of ${images(this.total)}`
          : images(this.total);
    const page = (to, label, key, shown) =>
      make(
        "button",
        { type: "button", disabled: !shown, onclick: () => this.turn(to) },
        label,
        " ",
        make("kbd", {}, key),
      );
    const buttons = [page(-1, "Previous", "[", start > 0), page(1, "Next", "]", last < this.total)];
    byId("pages").replaceChildren(...(many || start ? buttons : []));
  },

  /** Where the next page starts: answered images leave a view of those not reviewed, and the rest moves up. */
  nextStart() {
    const gone =
      { no: (item) => item.answer, disputed: (item) => !item.disputed }[view.state.reviewed] ?? (() => false);
    return view.start() + this.items.filter((item) => !gone(item)).length;
  },

  /** Where the last page starts if the view starts past it: what stood there was answered, or the address is old; else null. */
  lastStart() {
    if (!this.total || this.items.length || !view.start()) return null;
    return PAGE_SIZE * Math.floor((this.total - 1) / PAGE_SIZE);
  },

  turn(step) {
    if (step > 0 && view.start() + this.items.length >= this.total) return;
    if (step < 0 && view.start() === 0) return;
    this.lastId = null;
    view.change({ start: (step > 0 ? this.nextStart() : Math.max(0, view.start() - PAGE_SIZE)) || null });
    scrollTo({ top: 0 });
  },

  cell(item) {
    const said = [
      item.error ??
        `${item.label ?? "no label"}${item.confidence === null ? "" : `, confidence ${percent(item.confidence)}`}`,
    ];
    if (item.label2) said.push(`${overview.figures.compared}: ${item.label2}`);
    if (item.reason) said.push(`dropped: ${words(item.reason)}`);
    if (item.answer) said.push(`answered: ${answerText(item.answer)}`);
    if (item.disputed) said.push("disputed");
    said.push(item.key);
    const badges = [];
    if (item.disputed) badges.push(make("span", { class: "badge warn" }, "disputed"));
    if (item.answer)
      badges.push(
        make(
          "span",
          { class: `badge ${item.answer.excluded ? "bad" : "good"}` },
          `${item.answer.excluded ? "✕" : "✓"} ${answerText(item.answer)}`,
        ),
      );
    if (item.copies > 1) badges.push(make("span", { class: "badge" }, `×${count(item.copies)}`));
    const caption = item.error
      ? [make("span", { class: "label bad" }, "error")]
      : [
          make("span", { class: "label" }, item.label ?? "no label"),
          item.confidence === null ? null : make("span", { class: "number" }, percent(item.confidence)),
        ];
    const differs = item.label2 && item.label2 !== item.label;
    const below = item.reason ? words(item.reason) : null;
    return make(
      "li",
      {},
      make(
        "button",
        {
          type: "button",
          "data-stop": true,
          "data-id": item.id,
          tabindex: item.id === this.lastId ? "0" : "-1",
          "aria-label": said.join(", "),
          title: said.join("\n"),
          class: item.reason ? "cell dropped" : "cell",
          onclick: () => view.change({ image: item.id }),
        },
        make(
          "span",
          { class: "frame" },
          item.error
            ? make("span", { class: "missing" }, item.error)
            : picture(data.thumb(item.id), "", "no thumbnail in this export"),
          make("span", { class: "badges" }, badges),
        ),
        make("span", { class: "caption" }, caption),
        item.confidence === null ? null : make("span", { class: "track thin" }, bar(item.confidence)),
        differs ? make("span", { class: "below warn" }, `${item.label2} ${percent(item.confidence2)}`) : null,
        below ? make("span", { class: "below" }, below) : null,
      ),
    );
  },

  /** Take a changed item in: its cell, in place. */
  update(id, changes) {
    const at = this.items.findIndex((item) => item.id === id);
    if (at < 0) return;
    Object.assign(this.items[at], changes);
    const cell = byId("grid").children[at];
    const focused = cell.contains(document.activeElement);
    const fresh = this.cell(this.items[at]);
    cell.replaceWith(fresh);
    if (focused) fresh.firstChild.focus();
  },

  focus(id = this.lastId) {
    const button = byId("grid").querySelector(`[data-id="${id}"]`) ?? byId("grid").querySelector("button[data-stop]");
    button?.focus();
  },
};
