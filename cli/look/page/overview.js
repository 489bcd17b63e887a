"use strict";
// The figures at the side. Each bar is a button that filters the images.

const total = (counts) => Object.values(counts ?? {}).reduce((sum, number) => sum + number, 0);

const reviewedImages = (review) => review.answered + review.excluded + review.disputed;

const MOST_CLASSES = 300; // as rows; the others are found by typing

const overview = {
  figures: null,

  show(figures) {
    this.figures = figures;
    this.facts();
    byId("overview").replaceChildren(
      ...[
        this.numbers(),
        this.queues(),
        charts.histogram(),
        this.classes(),
        this.reasons(),
        this.flow(),
        charts.calibration(),
      ].filter(Boolean),
    );
    for (const list of document.querySelectorAll("#overview [data-roving]")) roving(list);
    if (matchMedia("(max-width: 760px)").matches)
      for (const panel of document.querySelectorAll("#overview details:not(#queues, :has(#histogram))"))
        panel.open = false;
  },

  facts() {
    const { ref, ref2, teacher, rows, kept, dropped, sampled } = this.figures;
    byId("ref").textContent = ref2 ? `${ref} beside ${ref2}` : ref;
    const size = sampled
      ? `a sample of ${count(sampled.rows)} of ${images(sampled.of)}`
      : kept === null
        ? images(rows)
        : `${count(kept)} of ${images(kept + total(dropped))}`;
    byId("facts").textContent = teacher ? `${size}, labeled by ${teacher}` : size;
  },

  /** What people have answered, in the bar at the top. */
  reviewed(review) {
    this.figures.review = review;
    if (!review) return;
    document.querySelector("#overview .numbers").replaceWith(this.numbers());
    this.mark();
    const disputed = make(
      "button",
      { type: "button", class: "link warn", onclick: () => view.toggle({ reviewed: "disputed" }) },
      `${count(review.disputed)} disputed`,
    );
    const all = reviewedImages(review);
    const answers = all ? `${count(all)} answer${all === 1 ? "" : "s"}` : "";
    const ofDropped = review.of_dropped ? `${count(review.of_dropped)} about dropped images` : "";
    const own = all ? `${count(review.own)} of ${answers}` : "";
    const given = [own, ofDropped].filter(Boolean).join(", ") || "no answers yet";
    byId("seen").replaceChildren(
      this.figures.can.review ? `${review.reviewer}: ${given}` : answers,
      ...(review.disputed ? [", ", disputed] : []),
    );
  },

  /** Which buttons are pressed, after the view has changed. */
  mark() {
    for (const button of document.querySelectorAll("#overview [data-filters]")) {
      button.setAttribute("aria-pressed", String(view.has(JSON.parse(button.dataset.filters))));
    }
    const { min = 0, max = 1 } = view.state;
    const ranged = "min" in view.state || "max" in view.state;
    for (const column of document.querySelectorAll("#histogram button")) {
      const inside =
        Number(column.dataset.min) >= Number(min) - 1e-9 && Number(column.dataset.max) <= Number(max) + 1e-9;
      column.setAttribute("aria-pressed", String(ranged && inside));
      column.classList.toggle("outside", ranged && !inside);
    }
    for (const name of ["min", "max"]) if (byId(name)) byId(name).value = view.state[name] ?? "";
  },

  filterButton(filters, label, ...children) {
    const attributes = {
      type: "button",
      "data-stop": true,
      tabindex: "-1",
      "data-filters": JSON.stringify(filters),
      "aria-label": label,
    };
    return make("button", { ...attributes, class: "row", onclick: () => view.toggle(filters) }, ...children);
  },

  panel(title, ...children) {
    return make("details", { open: true }, make("summary", {}, make("h2", {}, title)), ...children);
  },

  numbers() {
    const { rows, kept, dropped, errors, review } = this.figures;
    const tile = (value, name, filters) => {
      const text = [make("b", {}, count(value)), ` ${name}`];
      return make(
        "li",
        {},
        filters && value
          ? this.filterButton(filters, `${count(value)} ${name}: show them`, ...text)
          : make("span", { class: "row" }, ...text),
      );
    };
    const left = total(dropped);
    const tiles = [tile(kept === null ? rows : kept + left, "images")];
    if (kept !== null) tiles.push(tile(kept, "kept", { reason: "kept" }), tile(left, "dropped"));
    if (errors) tiles.push(tile(errors, errors === 1 ? "error" : "errors", { errors: "1" }));
    if (review) tiles.push(tile(reviewedImages(review), "reviewed", { reviewed: "yes" }));
    for (const button of tiles.flatMap((entry) => [...entry.querySelectorAll("button")])) button.tabIndex = 0;
    return make("ul", { class: "numbers", "aria-label": "Counts" }, tiles);
  },

  /** What `nst pick` has put up for review. */
  queues() {
    const { queues } = this.figures;
    if (!queues.length) return null;
    const entries = queues.map((queue) => {
      const label = `queue ${queue.name}: ${count(queue.images)} of ${images(queue.of)} left`;
      return make(
        "li",
        {},
        this.filterButton(
          { queue: queue.name },
          label,
          make("span", { class: "name" }, queue.name),
          make("span", { class: "track" }, bar(1 - queue.images / queue.of, "good")),
          make("span", { class: "number" }, `${count(queue.images)} of ${count(queue.of)} left`),
        ),
      );
    });
    const list = make("ul", { class: "rows", "data-roving": true, "aria-label": "Queues" }, entries);
    const panel = this.panel("Queues to review", list);
    panel.id = "queues";
    return panel;
  },

  /** Ask again for what answers change. */
  async refresh() {
    const figures = await data.overview().catch(() => null);
    if (!figures) return;
    this.figures.queues = figures.queues;
    const panel = this.queues();
    if (panel) byId("queues")?.replaceWith(panel);
    if (panel) roving(panel.querySelector("[data-roving]"));
    this.reviewed(figures.review);
  },

  classes() {
    const entries = this.figures.per_class;
    if (!entries.length) return null;
    const highest = Math.max(1, ...entries.map((entry) => Math.max(entry.before, entry.after ?? 0)));
    const after = entries.some((entry) => entry.after !== null);
    const row = (entry) => {
      const numbers = entry.after === null ? count(entry.before) : `${count(entry.before)} → ${count(entry.after)}`;
      const label =
        entry.after === null
          ? `${entry.name}: ${images(entry.before)}`
          : `${entry.name}: ${count(entry.before)} before selection, ${count(entry.after)} after`;
      const bars = make(
        "span",
        { class: "track" },
        bar(entry.before / highest, after ? "before" : ""),
        after && bar((entry.after ?? 0) / highest, "after"),
      );
      return make(
        "li",
        {},
        this.filterButton(
          { class: entry.name },
          label,
          make("span", { class: "name" }, entry.name),
          bars,
          make("span", { class: "number" }, numbers),
        ),
      );
    };
    const list = make("ul", { class: "rows tall", "data-roving": true, "aria-label": "Classes" });
    const ordered = entries.length > MOST_CLASSES ? [...entries].sort((a, b) => b.before - a.before) : entries;
    const draw = (part) => {
      const matching = ordered.filter((entry) => entry.name.toLowerCase().includes(part));
      list.replaceChildren(...matching.slice(0, MOST_CLASSES).map(row));
      list.rest?.();
    };
    draw("");
    const find = (event) => {
      draw(event.target.value.toLowerCase());
      this.mark();
    };
    const hint =
      ordered === entries
        ? "Find a class"
        : `Find a class: the largest ${MOST_CLASSES} of ${count(entries.length)} are listed`;
    const box =
      entries.length > 20 &&
      make("input", { type: "search", class: "search", placeholder: hint, "aria-label": hint, oninput: find });
    return this.panel(after ? "Classes, before → after selection" : "Classes", box, list);
  },

  reasons() {
    const { dropped, kept } = this.figures;
    if (!dropped || !Object.keys(dropped).length) return null;
    const all = (kept ?? 0) + total(dropped);
    const reasons = Object.entries(dropped).sort((a, b) => b[1] - a[1]);
    const entries = reasons.map(([reason, number]) =>
      make(
        "li",
        {},
        this.filterButton(
          { reason },
          `dropped, ${words(reason)}: ${images(number)}`,
          make("span", { class: "name" }, words(reason)),
          make("span", { class: "track" }, bar(number / all, "dropped")),
          make("span", { class: "number" }, count(number)),
        ),
      ),
    );
    return this.panel(
      "Dropped, by reason",
      make("ul", { class: "rows", "data-roving": true, "aria-label": "Reasons" }, entries),
    );
  },

  flow() {
    const { flow } = this.figures;
    if (!flow) return null;
    const highest = Math.max(1, ...flow.moves.map((move) => move.images));
    const entries = flow.moves.map((move) => {
      const name = make("span", { class: "name" }, move.from, make("span", { class: "quiet" }, " → "), move.to);
      const label = `from ${move.from} to ${move.to}: ${images(move.images)}`;
      return make(
        "li",
        {},
        this.filterButton(
          { from: move.from, to: move.to },
          label,
          name,
          make("span", { class: "track" }, bar(move.images / highest, "moved")),
          make("span", { class: "number" }, count(move.images)),
        ),
      );
    });
    return this.panel(
      `Differs from ${flow.from}`,
      make("p", { class: "quiet" }, `${images(flow.changed)} have another label than in ${flow.from}.`),
      make("ul", { class: "rows tall", "data-roving": true, "aria-label": "Changes of label" }, entries),
    );
  },
};
