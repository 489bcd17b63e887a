"use strict";
// The figures at the side. Each bar is a button that filters the images.

const total = (counts) => Object.values(counts ?? {}).reduce((sum, number) => sum + number, 0);

const overview = {
  figures: null,

  show(figures) {
    this.figures = figures;
    this.facts();
    byId("overview").replaceChildren(
      ...[this.numbers(), this.histogram(), this.classes(), this.reasons(), this.flow(), this.calibration()].filter(
        Boolean,
      ),
    );
    for (const list of document.querySelectorAll("#overview [data-roving]")) roving(list);
    if (matchMedia("(max-width: 760px)").matches)
      for (const panel of [...document.querySelectorAll("#overview details")].slice(1)) panel.open = false;
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
    byId("seen").replaceChildren(
      `${review.reviewer}: ${count(review.answered)} answered, ${count(review.excluded)} excluded`,
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
    if (review) tiles.push(tile(review.answered + review.excluded, "reviewed", { reviewed: "yes" }));
    for (const button of tiles.flatMap((entry) => [...entry.querySelectorAll("button")])) button.tabIndex = 0;
    return make("ul", { class: "numbers", "aria-label": "Counts" }, tiles);
  },

  histogram() {
    const { histogram } = this.figures;
    if (!histogram) return null;
    const highest = Math.max(1, ...histogram.counts);
    const columns = histogram.counts.map((number, at) => {
      const [min, max] = [histogram.edges[at], histogram.edges[at + 1]].map((edge) => String(Number(edge.toFixed(3))));
      const label = `confidence ${min} to ${max}: ${images(number)}`;
      const fill = make("span", { class: number ? "column" : "column none" });
      fill.style.blockSize = `${100 * Math.sqrt(number / highest)}%`;
      const pick = (event) => {
        if (event.shiftKey && ("min" in view.state || "max" in view.state)) {
          const low = Math.min(Number(min), Number(view.state.min ?? 0));
          view.change({ min: low, max: Math.max(Number(max), Number(view.state.max ?? 1)) });
        } else view.toggle({ min, max });
      };
      return make(
        "button",
        {
          type: "button",
          "data-stop": true,
          tabindex: "-1",
          "data-min": min,
          "data-max": max,
          "aria-label": label,
          title: label,
          onclick: pick,
        },
        fill,
      );
    });
    const edge = (name, label) =>
      make(
        "label",
        {},
        `${label} `,
        make("input", {
          id: name,
          type: "number",
          min: "0",
          max: "1",
          step: "any",
          placeholder: name === "min" ? "0" : "1",
          onchange: (event) => view.change({ [name]: event.target.value }),
        }),
      );
    return this.panel(
      "Confidence",
      make(
        "div",
        {
          id: "histogram",
          role: "group",
          "aria-label": "Images by confidence; a bar filters, with Shift up to it",
          "data-roving": true,
        },
        columns,
      ),
      make("div", { class: "axis", "aria-hidden": "true" }, ...["0", "0.5", "1"].map((tick) => make("span", {}, tick))),
      make(
        "div",
        { class: "edges" },
        edge("min", "from"),
        edge("max", "to below"),
        make("span", { class: "quiet" }, "heights: square root"),
      ),
    );
  },

  classes() {
    const entries = this.figures.per_class;
    if (!entries.length) return null;
    const highest = Math.max(1, ...entries.map((entry) => Math.max(entry.before, entry.after ?? 0)));
    const after = entries.some((entry) => entry.after !== null);
    const rows = entries.map((entry) => {
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
        { "data-name": entry.name.toLowerCase() },
        this.filterButton(
          { class: entry.name },
          label,
          make("span", { class: "name" }, entry.name),
          bars,
          make("span", { class: "number" }, numbers),
        ),
      );
    });
    const list = make("ul", { class: "rows tall", "data-roving": true, "aria-label": "Classes" }, rows);
    const search = (event) => {
      const part = event.target.value.toLowerCase();
      for (const row of rows) row.hidden = !row.dataset.name.includes(part);
    };
    const box =
      entries.length > 20 &&
      make("input", {
        type: "search",
        class: "search",
        placeholder: "Find a class",
        "aria-label": "Find a class",
        oninput: search,
      });
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

  calibration() {
    const { calibration } = this.figures;
    if (!calibration) return null;
    const [side, gap] = [200, 24];
    const x = (share) => gap + share * side;
    const y = (share) => side + 10 - share * side;
    const most = Math.max(1, ...calibration.bins.map((bin) => bin.images));
    const line = (x1, y1, x2, y2, name) =>
      make("svg:line", { x1: x(x1), y1: y(y1), x2: x(x2), y2: y(y2), class: name });
    const dots = calibration.bins.map((bin) => {
      const title = `confidence ${percent(bin.confidence)}, accuracy ${percent(bin.accuracy)}, ${images(bin.images)}`;
      return make(
        "svg:circle",
        { cx: x(bin.confidence), cy: y(bin.accuracy), r: 2.5 + 4.5 * Math.sqrt(bin.images / most) },
        make("svg:title", {}, title),
      );
    });
    const labels = [
      make("svg:text", { x: x(0.5), y: side + 28, "text-anchor": "middle" }, "confidence"),
      make(
        "svg:text",
        { x: 0, y: 0, transform: `translate(12 ${y(0.5)}) rotate(-90)`, "text-anchor": "middle" },
        "accuracy",
      ),
    ];
    const summary = `accuracy ${percent(calibration.accuracy)}, calibration error ${percent(calibration.ece)}`;
    const drawing = {
      viewBox: `0 0 ${side + gap + 8} ${side + 34}`,
      role: "img",
      "aria-label": `Calibration: ${summary}`,
      class: "calibration",
    };
    return this.panel(
      "Calibration",
      make(
        "svg:svg",
        drawing,
        line(0, 0, 1, 0, "axis"),
        line(0, 0, 0, 1, "axis"),
        line(0, 0, 1, 1, "even"),
        ...dots,
        ...labels,
      ),
      make("p", { class: "quiet" }, `Where the truth is known: ${summary}.`),
    );
  },
};
