"use strict";
// A field over the page in which a class is typed: while it is open, no key answers anything else.

const typing = {
  id: null, // the image of the grid that is answered; null for the opened one

  setUp() {
    byId("typing").querySelector("form").onsubmit = (event) => this.choose(event);
    byId("typing").querySelector("button[type=button]").onclick = () => byId("typing").close();
  },

  open(id = null) {
    this.id = id;
    if (!byId("class-names").children.length)
      byId("class-names").append(...overview.figures.class_names.map((name) => make("option", { value: name })));
    byId("other").value = "";
    byId("typing").showModal();
  },

  choose(event) {
    event.preventDefault();
    const typed = byId("other").value.trim();
    const { name, problem } = this.classOf(typed);
    if (name === undefined) return note(problem, true);
    const ready = this.id === null ? viewer.takesAnswers() : !viewer.busy;
    if (!ready) return note("No image is shown that can be answered.", true);
    byId("typing").close();
    viewer.answer({ class: name }, this.id ?? viewer.detail.id);
  },

  /** The class that is called so, or the only one whose name holds what was typed; else why there is none. */
  classOf(typed) {
    const names = overview.figures.class_names;
    const alike = names.filter((name) => name.toLowerCase().includes(typed.toLowerCase()));
    if (names.includes(typed)) return { name: typed };
    if (alike.length === 1 && typed) return { name: alike[0] };
    if (!typed) return { problem: "Type the name of a class." };
    return {
      problem: alike.length
        ? `${count(alike.length)} classes match ${typed}: choose one of the list.`
        : `No class is called ${typed}.`,
    };
  },
};
