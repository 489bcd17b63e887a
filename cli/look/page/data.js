"use strict";
// Where figures, images and answers come from: the server, or the data inside an exported page.

const data = (() => {
  const inline = document.getElementById("nst-data");
  return inline ? exported(JSON.parse(inline.textContent)) : served();

  function served() {
    const ask = async (path, options) => {
      let reply;
      try {
        reply = await fetch(path, options);
      } catch {
        throw new Error(
          "No answer from nst look. Start it again with the same command; every answer given so far is on disk.",
        );
      }
      if (reply.status === 401) throw new Error("The session has ended: open the address that nst look printed.");
      const body = await reply.json().catch(() => ({ error: `unexpected reply (${reply.status})` }));
      if (!reply.ok) throw new Error(body.error);
      return body;
    };
    return {
      overview: () => ask("api/overview"),
      grid: (query, signal) => ask(`api/grid?${new URLSearchParams(query)}`, { signal }),
      image: (id) => ask(`api/image/${id}`),
      answer: (body) =>
        ask("api/answers", {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify(body),
        }),
      thumb: (id) => `thumb/${id}`,
      picture: (id) => `image/${id}`,
      whyMissing: async (address) => {
        try {
          const reply = await fetch(address);
          return reply.ok ? "not an image" : (await reply.text()).trim().slice(0, 300);
        } catch {
          return "no answer from nst look";
        }
      },
    };
  }

  function exported(page) {
    const passes = {
      class: (item, name) => item.label === name,
      min: (item, edge) => item.confidence >= Number(edge),
      max: (item, edge) => Number(edge) >= 1 || item.confidence < Number(edge),
      reason: (item, name) => (name === "kept" ? !item.reason && !item.error : item.reason === name),
      copies: (item) => item.copies > 1,
      disagree: (item) => item.label2 !== null && item.label2 !== item.label,
      near: (item, id) => item.id === Number(id) || (page.images[id]?.near_duplicates ?? []).includes(item.id),
      errors: (item) => Boolean(item.error),
      reviewed: (item, state) => (state === "disputed" ? item.disputed : Boolean(item.answer) === (state === "yes")),
      from: (item, name) => item.from === name,
      to: (item, name) => item.label === name,
    };
    const order = (name) => {
      const [field, sign] = name.startsWith("-") ? [name.slice(1), -1] : [name, name === "entropy" ? -1 : 1];
      const value = (item) => item[field] ?? (field === "key" ? "" : sign * Infinity);
      return (a, b) => sign * (value(a) > value(b) ? 1 : value(a) < value(b) ? -1 : 0);
    };
    return {
      overview: async () => page.overview,
      grid: async ({ sort, offset = 0, limit = 60, ...filters }) => {
        const names = Object.keys(filters).filter((name) => passes[name]);
        const asked = filters.errors || filters.reason; // else neither what was left out nor what could not be read
        const items = page.items.filter(
          (item) => (asked || !(item.reason || item.error)) && names.every((name) => passes[name](item, filters[name])),
        );
        if (sort) items.sort(order(sort));
        return { total: items.length, items: items.slice(Number(offset), Number(offset) + Number(limit)) };
      },
      image: async (id) => {
        const item = page.items.find((known) => known.id === Number(id));
        if (!item && !page.images[id]) throw new Error("This image is not in the exported sample.");
        return { top: [], history: [], similar: [], near_duplicates: [], answers: [], ...item, ...page.images[id] };
      },
      answer: async () => {
        throw new Error("An exported page takes no answers.");
      },
      thumb: (id) => page.thumbs[id] ?? "",
      picture: (id) => page.thumbs[id] ?? "",
      whyMissing: async () => "not in this export",
    };
  }
})();
