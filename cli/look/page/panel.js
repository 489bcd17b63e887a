"use strict";
// What stands beside an opened image: answers to choose, what teachers and people said of it, images like it.

const panel = {
  show(detail) {
    const parts = [this.head, this.review, this.probabilities, this.facts, this.history, this.answers, this.similar];
    return make(
      "div",
      { class: "panel" },
      parts.map((part) => part.call(this, detail)),
    );
  },

  /** Keys to classes: the class's own digit, else its place where there are at most ten, else its place among the most probable. */
  classKeys(detail) {
    const names = overview.figures.class_names;
    const digit = (at) => String((at + 1) % 10);
    if (names.every((name) => /^[0-9]$/.test(name))) return new Map(names.map((name) => [name, name]));
    if (names.length <= 10) return new Map(names.map((name, at) => [digit(at), name]));
    return new Map((detail?.top ?? []).map((entry, at) => [digit(at), entry.class]));
  },

  head(detail) {
    const chips = [];
    if (detail.reason) chips.push(make("span", { class: "badge" }, `dropped: ${words(detail.reason)}`));
    else if (overview.figures.kept !== null && !detail.error) chips.push(make("span", { class: "badge good" }, "kept"));
    if (detail.copies > 1) chips.push(make("span", { class: "badge" }, `${count(detail.copies)} copies`));
    if (detail.disputed) chips.push(make("span", { class: "badge warn" }, "disputed"));
    if (detail.label2 && detail.label2 !== detail.label)
      chips.push(make("span", { class: "badge warn" }, `${overview.figures.compared}: ${detail.label2}`));
    const title = detail.error ? "Not readable" : (detail.label ?? "No label");
    return make(
      "div",
      { class: "head" },
      make(
        "h2",
        { id: "viewer-title", tabindex: "-1" },
        title,
        detail.confidence === null ? null : make("span", { class: "quiet" }, ` ${percent(detail.confidence)}`),
      ),
      make("p", { class: "badges" }, chips),
    );
  },

  /** The keys that answer; an image that cannot be shown takes none. */
  review(detail) {
    if (!viewer.canReview() || detail.error) return null;
    const button = (label, key, action, name = "") =>
      make("button", { type: "button", class: name, onclick: action }, label, " ", make("kbd", {}, key));
    const own = detail.answers.some((one) => one.reviewer === overview.figures.review.reviewer);
    const whose = own ? "Your answer: " : `Answer of ${detail.answers[0]?.reviewer}: `;
    const given = detail.answer && make("p", { class: "given" }, whose, make("b", {}, answerText(detail.answer)));
    return make(
      "div",
      { class: "review", role: "group", "aria-label": "Answer" },
      given,
      detail.label && button(`Confirm ${detail.label}`, "y", () => viewer.answer({ class: detail.label }), "primary"),
      button("None of these", "n", () => viewer.answer({ excluded: "none of these" })),
      button("Unusable", "u", () => viewer.answer({ excluded: "unusable" })),
      button("Skip", "s", () => viewer.move(1)),
      button("Undo", "z", () => viewer.undo()),
    );
  },

  probabilities(detail) {
    const { top, top2, error } = detail;
    if (error) return null;
    const keys = new Map([...this.classKeys(detail)].map(([key, name]) => [name, key]));
    const row = (entry, answers) => {
      const parts = [
        make("span", { class: "name" }, entry.class),
        make("span", { class: "track" }, bar(entry.probability)),
        make("span", { class: "number" }, percent(entry.probability)),
      ];
      if (!answers) return make("li", {}, make("span", { class: "row" }, parts));
      const key = keys.get(entry.class);
      const label = `${entry.class}, ${percent(entry.probability)}: choose this class`;
      return make(
        "li",
        {},
        make(
          "button",
          { type: "button", class: "row", "aria-label": label, onclick: () => viewer.answer({ class: entry.class }) },
          key ? make("kbd", {}, key) : make("kbd", { class: "none" }),
          parts,
        ),
      );
    };
    const list = (entries, name, answers) =>
      make(
        "div",
        {},
        make("h3", {}, name),
        make(
          "ul",
          { class: answers ? "rows answering" : "rows" },
          entries.map((entry) => row(entry, answers)),
        ),
      );
    const { ref, compared } = overview.figures;
    return make(
      "div",
      { class: "tops" },
      top.length ? list(top, top2 ? ref : "Most probable classes", viewer.canReview()) : null,
      this.others(detail),
      top2?.length ? list(top2, compared, false) : null,
    );
  },

  /** Classes that are not among the five: as buttons where there are few; any class by typing. */
  others(detail) {
    if (!viewer.canReview()) return null;
    const { class_names: names } = overview.figures;
    const shown = new Set(detail.top.map((entry) => entry.class));
    const keys = this.classKeys(detail);
    const button = (label, key, action) =>
      make("button", { type: "button", onclick: action }, make("kbd", {}, key), ` ${label}`);
    const few = names.length <= 10 ? [...keys].filter(([, name]) => !shown.has(name)) : [];
    return make(
      "div",
      { class: "others", role: "group", "aria-label": "Other classes" },
      few.map(([key, name]) => button(name, key, () => viewer.answer({ class: name }))),
      button("Type a class", "c", () => typing.open()),
    );
  },

  facts(detail) {
    const { key, hash, error, teacher, pick, suspicion } = detail;
    const entries = [
      ["Key", make("span", { class: "code" }, key)],
    ];
    if (hash || error) entries.push(["Hash", make("span", { class: "code" }, hash ?? "none: the image could not be read")]);
    if (teacher) entries.push(["Teacher", teacher]);
    if (pick) entries.push(["Picked by", typeof pick.score === "number" ? `${pick.by}, ${pick.score.toFixed(3)}` : pick.by]);
    if (typeof suspicion === "number") entries.push(["Suspicion", percent(suspicion)]);
    return make(
      "dl",
      {},
      entries.map(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]),
    );
  },

  history(detail) {
    const { history } = detail;
    if (history.length < 1) return null;
    const entries = history.map((entry) =>
      make(
        "li",
        {},
        make("span", { class: "quiet" }, entry.version),
        " ",
        make("b", {}, entry.label),
        " ",
        make("span", { class: "number" }, percent(entry.confidence)),
      ),
    );
    return make("div", {}, make("h3", {}, "Generations"), make("ul", { class: "plain" }, entries));
  },

  answers(detail) {
    const { answers } = detail;
    if (!answers?.length) return null;
    const entries = answers.map((answer) =>
      make(
        "li",
        {},
        make("b", {}, answerText(answer)),
        ` by ${answer.reviewer}, `,
        make("span", { class: "quiet" }, answer.time.slice(0, 16).replace("T", " ")),
      ),
    );
    return make("div", {}, make("h3", {}, "Answers"), make("ul", { class: "plain" }, entries));
  },

  similar(detail) {
    const { similar, near_duplicates: near, id } = detail;
    const parts = [];
    if (near.length)
      parts.push(
        make(
          "button",
          { type: "button", onclick: () => view.change({ image: null, near: id }) },
          `Show ${count(near.length)} near-duplicate${near.length === 1 ? "" : "s"}`,
        ),
      );
    const shown = similar.filter((other) => data.thumb(other.id)); // an export has some
    if (shown.length) {
      const entries = shown.map((other) =>
        make(
          "li",
          {},
          make(
            "button",
            {
              type: "button",
              "aria-label": `Similar image, similarity ${other.similarity.toFixed(2)}`,
              title: `similarity ${other.similarity.toFixed(2)}`,
              onclick: () => view.change({ image: other.id }),
            },
            picture(data.thumb(other.id), "", "not in this export"),
          ),
        ),
      );
      parts.push(make("h3", {}, "Similar images"), make("ul", { class: "similar" }, entries));
    } else if (!overview.figures.can.similar && viewer.canReview() && !detail.error)
      parts.push(make("p", { class: "quiet" }, "Similar images appear after nst embed and a restart of nst look."));
    return parts.length ? make("div", {}, parts) : null;
  },
};
