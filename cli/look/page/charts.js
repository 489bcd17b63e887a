"use strict";
// The two drawings among the figures: how confident labels are, and how far that is to be believed.

const charts = {
  histogram() {
    const { histogram } = overview.figures;
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
    return overview.panel(
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

  calibration() {
    const { calibration } = overview.figures;
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
    return overview.panel(
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
