"use strict";
// One image, large: what teachers and people said of it, and the keys to answer.

const viewer = {
  id: null,
  detail: null,
  left: null, // images of this view that nobody has answered, without those that nobody can
  before: null, // where in the grid's page the keyboard was
  answered: [], // ids, for undo
  coming: new Map(), // what is asked of images before they are opened: promises, by id
  pictures: [], // of these images, held so that the browser keeps them
  busy: false,
  hasty: false, // whether a key came while an answer was being kept
  counting: null,

  setUp() {
    const dialog = byId("viewer");
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      this.leave();
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) this.leave();
    });
  },

  leave() {
    view.change({ image: null });
  },

  /** Open, change or close, as the view says. */
  async show() {
    const id = "image" in view.state ? Number(view.state.image) : null;
    if (id === this.id) return;
    const opened = this.id === null;
    this.id = id;
    this.detail = null; // until it has come no key answers
    if (id === null) return this.close();
    if (opened) this.counting = this.countLeft();
    const at = this.position();
    if (at >= 0) this.before = at;
    const slow = setTimeout(() => this.wait(id), 150);
    try {
      const detail = await this.ask(id);
      clearTimeout(slow);
      if (this.id !== id) return;
      this.detail = detail;
      this.draw();
    } catch (error) {
      clearTimeout(slow);
      if (this.id !== id) return;
      const title = make("h2", { id: "viewer-title", tabindex: "-1" }, "Not shown");
      byId("opened").replaceChildren(
        this.bar(),
        make("div", { class: "finished" }, title, make("p", { role: "alert" }, error.message)),
      );
    }
    if (!byId("viewer").open) byId("viewer").showModal();
    byId("viewer-title").focus();
    this.preload();
  },

  /** What is known of an image, asked once: when it is opened again, it may have an answer. */
  async ask(id) {
    const asked = this.coming.get(id) ?? data.image(id);
    this.coming.delete(id);
    return asked;
  },

  /** The image alone, until all that is known of it has come. */
  wait(id) {
    if (this.id !== id) return;
    const title = make("h2", { id: "viewer-title", tabindex: "-1", class: "quiet" }, "Loading…");
    byId("opened").replaceChildren(
      this.bar(),
      make(
        "div",
        { class: "sides" },
        make("div", { class: "stage" }, picture(data.picture(id), "", "")),
        make("div", { class: "panel" }, title),
      ),
    );
    if (!byId("viewer").open) byId("viewer").showModal();
  },

  close() {
    this.coming.clear();
    if (byId("viewer").open) byId("viewer").close();
    if (this.canReview()) overview.refresh();
    grid.focus(grid.items[this.before]?.id);
  },

  canReview() {
    return overview.figures.can.review;
  },

  /** Whether the image that is opened has come, and can be answered now. */
  takesAnswers() {
    return !this.busy && this.detail !== null && this.detail.id === this.id && !this.detail.error;
  },

  position() {
    return grid.items.findIndex((item) => item.id === this.id);
  },

  async countLeft() {
    this.left = null;
    if (!this.canReview() || view.state.errors || ["yes", "disputed"].includes(view.state.reviewed)) return;
    const reply = await data.grid({ ...view.query(), reviewed: "no", limit: 0 }).catch(() => null);
    if (reply) this.left = reply.total;
    if (this.detail) this.drawLeft();
  },

  /** Ask for the next two images, so that they are there when a person who is quick comes to them. */
  preload() {
    const at = this.position();
    if (at < 0) return;
    const next = grid.items.slice(at + 1, at + 3);
    for (const { id } of next.filter((item) => !this.coming.has(item.id))) {
      const asked = data.image(id);
      this.coming.set(id, asked);
      asked.catch(() => this.coming.get(id) === asked && this.coming.delete(id)); // it is asked again when it is opened
    }
    this.pictures = next
      .filter((item) => !item.error)
      .map(({ id }) => Object.assign(new Image(), { src: data.picture(id) }));
  },

  /** The next or former image of the view, over the edge of a page too. */
  async move(step) {
    const here =
      this.position() >= 0
        ? this.position()
        : this.before === null
          ? -1
          : this.before - (step > 0 && this.id !== null ? 1 : 0);
    const item = grid.items[here + step];
    if (item) return view.change({ image: item.id }, true);
    const from = step > 0 ? grid.nextStart() : view.start() - PAGE_SIZE;
    const more = step > 0 ? view.start() + grid.items.length < grid.total : view.start() > 0;
    if (!more) return step > 0 ? this.finish() : undefined;
    view.state.start = String(Math.max(0, from));
    await grid.load(true);
    const next = grid.items.at(step > 0 ? 0 : -1);
    if (next) view.change({ start: view.start() || null, image: next.id }, true);
    else this.finish();
  },

  finish() {
    const close = make(
      "button",
      { type: "button", class: "primary", onclick: () => this.leave() },
      "Back to the images",
    );
    const text = this.left === 0 ? "Every image of this view is reviewed." : "That was the last image of this view.";
    const again = make("button", { type: "button", onclick: () => this.again() }, "Go through those left");
    const still = this.left ? make("p", {}, `${images(this.left)} left without an answer.`) : null;
    byId("opened").replaceChildren(
      make(
        "div",
        { class: "finished" },
        make("h2", { id: "viewer-title", tabindex: "-1" }, text),
        still,
        make("p", { class: "actions" }, close, this.left ? again : null),
      ),
    );
    this.detail = null;
    byId("viewer-title").focus();
  },

  /** Start over with the images that have no answer yet. */
  async again() {
    view.state = { ...view.state, reviewed: "no" };
    delete view.state.start;
    await grid.load(true);
    const first = grid.items.find((item) => !item.error);
    this.id = null;
    if (first) view.change({ reviewed: "no", image: first.id });
    else note("Nothing is left to review in this view.");
  },

  async send(id, body) {
    if (this.busy) {
      this.hasty = true;
      return false;
    }
    this.busy = true;
    this.hasty = false;
    try {
      await this.counting; // else it may count this answer, or not
      const item = grid.items.find((known) => known.id === id) ?? this.detail;
      const reply = await data.answer({ id, ...body });
      this.coming.delete(id);
      if (this.left !== null) this.left += Number(Boolean(item?.answer)) - Number(Boolean(reply.answer));
      grid.update(id, { answer: reply.answer, disputed: reply.disputed ?? false });
      if (this.detail?.id === id)
        Object.assign(this.detail, { answer: reply.answer, disputed: reply.disputed ?? false });
      overview.reviewed(reply.review);
      return true;
    } catch (error) {
      note(`Not saved: ${error.message}`, true);
      return false;
    } finally {
      this.busy = false;
    }
  },

  /** Keep an answer, then show the next image: it is on disk before. A key that comes meanwhile is of neither, which is said. */
  async answer(choice, id = this.detail?.id) {
    if (this.id !== null && this.detail?.id !== this.id) return; // the next image is on its way
    if (!this.canBeSeen(id))
      return note("Not saved: this image cannot be shown, so it cannot be answered. Press s to skip it.", true);
    if (!(await this.send(id, { class: null, excluded: null, ...choice }))) return;
    this.answered.push(id);
    const missed = this.hasty ? " The key after it came too soon: press it again." : "";
    note(`${choice.class ?? choice.excluded}. Press z to take it back.${missed}`);
    if (this.id === id) this.move(1);
    else if (this.id === null) grid.focus(grid.items[grid.items.findIndex((item) => item.id === id) + 1]?.id ?? id);
  },

  /** Whether the picture of an image has come, or may still come: nobody can judge one that is missing. */
  canBeSeen(id) {
    const image = document.querySelector(this.id === null ? `#grid [data-id="${id}"] .frame img` : "#opened .stage img");
    return image !== null && !(image.complete && image.naturalWidth === 0);
  },

  async undo() {
    const id = this.answered.at(-1) ?? (this.detail?.answer ? this.detail.id : undefined);
    if (id === undefined) return note("Nothing to take back here.");
    if (!(await this.send(id, { undo: true }))) return;
    this.answered.pop();
    note("Taken back.");
    if (this.id === null) return grid.focus(id);
    this.id = -1; // what is shown of it has changed
    view.change({ image: id }, true);
  },

  draw() {
    const detail = this.detail;
    const shown = detail.error
      ? make("span", { class: "missing" }, detail.error)
      : picture(data.picture(detail.id), `Image ${detail.key}`, "no picture in this export");
    byId("opened").replaceChildren(
      this.bar(),
      make("div", { class: "sides" }, make("div", { class: "stage" }, shown), panel.show(detail)),
    );
    this.drawLeft();
  },

  bar() {
    const at = this.position();
    const place = at < 0 ? "" : `${count(view.start() + at + 1)} of ${count(grid.total)}`;
    const button = (label, key, action) =>
      make("button", { type: "button", onclick: action }, label, " ", make("kbd", {}, key));
    return make(
      "div",
      { class: "viewer-bar" },
      make("span", { class: "place" }, place),
      make("span", { id: "left", class: "left" }),
      make(
        "span",
        { class: "actions" },
        button("Previous", "←", () => this.move(-1)),
        button("Next", "→", () => this.move(1)),
        button("Close", "Esc", () => this.leave()),
      ),
    );
  },

  drawLeft() {
    if (!byId("left") || this.left === null || this.detail?.error) return;
    const done = grid.total ? Math.max(0, Math.min(1, 1 - this.left / grid.total)) : 1;
    const track = view.state.reviewed === "no" ? null : make("span", { class: "track thin" }, bar(done, "good"));
    byId("left").replaceChildren(`${count(this.left)} left to review`, ...[track].filter(Boolean));
  },
};
