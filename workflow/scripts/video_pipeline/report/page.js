"use strict";

// Everything that is data goes into the page as text: by textContent or as an attribute, never as
// markup.
let data;
const $ = (id) => document.getElementById(id);

/** The data, which lies in the page as base64 of compressed JSON. */
async function unpacked() {
  const packed = Uint8Array.from(atob($("data").textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}
const html = (name, attributes = {}, ...children) =>
  build(document.createElement(name), attributes, children);
const svg = (name, attributes = {}, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

// --- pages ----------------------------------------------------------------------------------------

/** Pages of `size` things, shown by `show(first, last)`, with buttons in each of `navs`. */
class Pager {
  constructor(navs, size, show) {
    Object.assign(this, { size, show, page: 0, count: 0 });
    this.parts = navs.map((nav) => {
      const [back, on] = [html("button", { type: "button" }, "Previous"), html("button", { type: "button" }, "Next")];
      const place = html("span", {});
      back.addEventListener("click", () => this.turn(-1));
      on.addEventListener("click", () => this.turn(1));
      nav.append(back, place, on);
      return { nav, back, on, place };
    });
  }
  begin(count) {
    Object.assign(this, { count, page: 0 });
    this.update();
  }
  turn(step) {
    const page = this.page + step;
    if (page < 0 || page * this.size >= this.count) return;
    this.page = page;
    this.update();
  }
  update() {
    const pages = Math.max(1, Math.ceil(this.count / this.size));
    for (const { nav, back, on, place } of this.parts) {
      nav.hidden = pages === 1;
      place.textContent = `${whole.format(this.page + 1)} of ${whole.format(pages)}`;
      back.disabled = this.page === 0;
      on.disabled = this.page === pages - 1;
    }
    const first = this.page * this.size;
    this.show(first, Math.min(first + this.size, this.count));
  }
}

// --- ranks ----------------------------------------------------------------------------------------

function rankBars(row) {
  const seconds = data.time.seconds || 1;
  const drawing = svg("svg", { viewBox: `0 0 ${seconds} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
  drawing.append(svg("rect", { x: 0, y: 0, width: seconds, height: 1, class: "idle" }));
  for (const { start, ready, end, state, engine, decode } of row.attempts) {
    const length = Math.max(end - start, seconds / 500);
    const [up, waits] = [engine, decode].map((digits) => [...digits].map((digit) => digit / 9));
    // both together fill the bar at most
    const rest = waits.map((value, i) => Math.min(value, 1 - up[i]));
    const scale = `translate(${start} 0) scale(${length / up.length} 1)`;
    drawing.append(
      svg("rect", { x: start, y: 0, width: Math.max(ready - start, 0), height: 1, class: "start" }),
      svg("path", { d: outline(up).area, transform: scale, class: "engine" }),
      svg("path", { d: outline(rest, up).area, transform: scale, class: "decode" }));
    if (state !== "done") {
      drawing.append(svg("rect", { x: start + length, y: -0.15, width: seconds / 200, height: 1.3, class: "killed" }));
    }
  }
  for (const pause of data.time.pauses) {
    drawing.append(svg("line", { x1: pause.at, x2: pause.at, y1: -0.15, y2: 1.15, class: "pause" }));
  }
  return drawing;
}

function rankNotes(row) {
  return row.attempts.filter(({ state }) => state !== "done").map(({ state, start, end }) => {
    const what = state === "failed" ? "failed" : `was killed while ${state}`;
    return html("p", { class: "note" }, `An attempt ${what}, after ${duration(end - start)}`);
  });
}

function ranks() {
  const rows = $("rank-rows");
  if (!rows) return;
  const orders = {
    ended: (a, b) => (b.ended ?? -1) - (a.ended ?? -1),
    waited: (a, b) => b.waited - a.waited,
    rank: (a, b) => a.rank - b.rank,
  };
  let ordered = [];
  const pager = new Pager([$("rank-pager")], 20, (first, last) => {
    rows.replaceChildren(...ordered.slice(first, last).map((row) => html("tr", {},
      html("th", { scope: "row", class: "n", "data-name": "Rank" }, String(row.rank)),
      html("td", { class: "host", "data-name": "Host" }, row.host || "–"),
      html("td", { class: "line" }, ...(row.attempts.length ? [rankBars(row)] : []), ...rankNotes(row)),
      ...[["Answered", whole.format(row.inferred)], ["Failed", whole.format(row.failed)],
        ["Waited for videos", `${duration(row.waited)} (${percent(row.waiting_share)})`],
        ["Engine busy", percent(row.busy_share)],
        ["Ended", row.ended === null ? "–" : duration(row.ended)],
      ].map(([name, text]) => html("td", { class: "n", "data-name": name }, text)))));
  });
  const order = () => {
    ordered = [...data.time.ranks].sort(orders[$("rank-order").value]);
    pager.begin(ordered.length);
  };
  $("rank-order").addEventListener("change", order);
  if (data.time.seconds) placeTicks($("rank-axis"), timeTicks(data.time.seconds));
  order();
  return pager;
}

// --- gallery --------------------------------------------------------------------------------------

/** `text` as nodes, with what `terms` (a global RegExp or null) finds marked. */
function marked(text, terms) {
  if (!terms) return [text];
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(terms)) {
    nodes.push(text.slice(from, match.index), html("mark", {}, match[0]));
    from = match.index + match[0].length;
  }
  return [...nodes, text.slice(from)];
}

function fields(pairs, terms, className = null) {
  return html("dl", {}, ...pairs.flatMap(([name, text]) => [
    html("dt", {}, html("bdi", {}, ...marked(name, terms))),
    html("dd", { class: className ?? (/^[[{]/.test(text) ? "json" : null), dir: "auto" }, ...marked(text, terms)),
  ]));
}

function folded(title, pairs, terms, className) {
  return pairs && pairs.length
    ? html("details", {}, html("summary", {}, title), fields(pairs, terms, className)) : null;
}

function picture(card) {
  if (!card.image) return null;
  const description = `${card.count} pictures that the model saw of ${card.path ?? card.key}`;
  const button = html("button", { class: "sheet", type: "button", "aria-label": `Enlarge: ${description}` },
    html("img", { src: card.image, alt: description }));
  button.addEventListener("click", () => {
    const image = $("large").querySelector("img");
    image.src = card.image;
    image.alt = description;
    $("large").showModal();
  });
  return button;
}

/** Whether an answer of the sample was cut off at its last token; the third of `usage` is the reason. */
const isCutOff = (card) => card.usage?.[2] === "length";

/** Whether a part of the video could not be read. If no sample is damaged, the field is the task's own. */
const isDamaged = (card) => data.samples.damaged > 0 && !card.error &&
  card.fields?.some(([name, text]) => name === "damaged" && text === "true");

function article(card, terms) {
  const [stage, type, message] = card.error ?? [];
  const [prompt, completion, reason] = card.usage ?? [];
  const span = card.span ? ` ${card.span.map((time) => (time === null ? "" : `${number(time)} s`)).join(" – ")}` : "";
  const usage = card.usage && `${whole.format(prompt)} tokens in, ${whole.format(completion)} out` +
    (reason === "stop" ? "" : reason === "length" ? ", cut off" : `, ended by ${reason}`);
  const [tag, kind] = card.error ? [stage, "bad"] : isCutOff(card) ? ["cut off", "warn"]
    : isDamaged(card) ? ["damaged", "warn"] : ["ok", "good"];
  const prompts = Object.entries(card.prompts ?? {}).map(([name, text]) => [name || "prompt", text]);
  const body = html("div", {},
    html("div", { class: "top" },
      html("span", { class: `tag ${kind}` }, tag),
      html("bdi", { class: "path" }, ...marked(card.path ?? card.key, terms), span),
      card.path ? html("bdi", { class: "key" }, ...marked(card.key, terms)) : null,
      usage ? html("span", { class: "usage" }, usage) : null),
    card.error ? html("dl", {}, html("dt", {}, html("bdi", {}, ...marked(type, terms))),
      html("dd", { class: "wrong", dir: "auto" }, ...marked(message, terms))) : null,
    card.fields ? fields(card.fields, terms) : null,
    card.problem && !card.error
      ? html("p", { class: "hint" }, "No pictures: ", html("bdi", {}, card.problem)) : null,
    folded("What the model said", card.said, terms, card.fields ? "json" : null),
    folded("Reasoning", card.reasoning, terms),
    folded("Prompt", prompts, null, "json"),
    folded("Input", [["input", card.input]], terms, "json"));
  const image = picture(card);
  return html("article", { class: image ? "pictured" : null, "data-key": card.key }, image, body);
}

function gallery() {
  const cards = data.cards.map((card) => ({
    card,
    text: [card.key, card.path, card.input, ...(card.error ?? []), ...(card.fields ?? []).flat(),
      ...(card.said ?? []).flat(), ...(card.reasoning ?? []).flat()].join("\n").toLowerCase(),
  }));
  let matching = cards;
  let terms = null;
  const pager = new Pager([$("gallery-pager"), $("gallery-pager-below")], 12, (first, last) => {
    $("cards").replaceChildren(...matching.slice(first, last).map(({ card }) => article(card, terms)));
    $("found").textContent = matching.length
      ? `${whole.format(first + 1)} – ${whole.format(last)} of ${whole.format(matching.length)} samples`
      : cards.length ? "Nothing is like this." : "There is nothing to show.";
  });
  const filter = () => {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [kind, group] = $("show").value.split(" ");
    const shown = {
      all: () => true,
      answered: (card) => !card.error,
      failed: (card) => card.error,
      cut: isCutOff,
      damaged: isDamaged,
      group: (card) => card.group === Number(group),
    }[kind];
    matching = cards.filter(({ card, text }) => shown(card) && words.every((word) => text.includes(word)));
    terms = words.length
      ? new RegExp(words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|"), "gi") : null;
    pager.begin(matching.length);
  };
  $("search").addEventListener("input", filter);
  $("show").addEventListener("change", filter);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  for (const button of document.querySelectorAll("button.show")) {
    button.addEventListener("click", () => {
      $("search").value = "";
      $("show").value = button.dataset.show;
      filter();
      $("gallery").scrollIntoView();
      $("show").focus({ preventScroll: true });
    });
  }
  filter();
  return { pager, filter };
}

// --- keys and colours -----------------------------------------------------------------------------

function keys(rankPager, { pager, filter }) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("large").open) return;
    const typing = event.target.matches("input, select, textarea");
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "/" && !typing) {
      event.preventDefault();
      $("search").focus();
    } else if (event.key === "Escape" && event.target === $("search")) {
      $("search").value = "";
      filter();
    } else if (step && !typing && !event.target.matches(".scroll")) {
      (rankPager && $("ranks").contains(event.target) ? rankPager : pager).turn(step);
    }
  });
}

function theme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const update = () => { $("theme").textContent = isDark() ? "Light" : "Dark"; };
  $("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    update();
  });
  system.addEventListener("change", update);
  update();
}

// Within Snakemake's report the page has no folder, so that the pages of other stages are not beside it.
if (location.protocol === "data:") $("stages")?.remove();
theme();
unpacked().then(async (unpackedData) => {
  data = unpackedData;
  curves();
  histograms();
  keys(ranks(), gallery());
  await Promise.allSettled([...document.images].map((image) => image.decode()));
  if (location.hash) $(location.hash.slice(1))?.scrollIntoView(); // The cards have moved it.
});
