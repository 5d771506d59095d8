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

// --- numbers for people ---------------------------------------------------------------------------

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const number = (value) => (value >= 100 ? whole : short).format(value);
const percent = (share) => (share === null ? "–" : `${Math.round(100 * share)} %`);

function duration(seconds) {
  if (seconds === 0) return "0";
  if (seconds < 1) return `${short.format(1000 * seconds)} ms`;
  if (seconds < 60) return `${short.format(seconds)} s`;
  const rounded = Math.round(seconds);
  const [days, hours] = [Math.floor(rounded / 86400), Math.floor((rounded % 86400) / 3600)];
  const [minutes, rest] = [Math.floor((rounded % 3600) / 60), rounded % 60];
  const parts = [[days, "d"], [hours, "h"], [minutes, "min"], [rest, "s"]];
  const first = parts.findIndex(([count]) => count > 0);
  return parts.slice(first, first + 2).filter(([count]) => count > 0)
    .map(([count, unit]) => `${count} ${unit}`).join(" ");
}

/** A round number that is not much larger. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10].map((factor) => factor * power).find((each) => each >= value * 0.999999);
}

// --- charts ---------------------------------------------------------------------------------------

/** Labels of an axis of `seconds`, as [share of the axis, text]. */
function timeTicks(seconds) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200];
  const step = steps.find((each) => seconds / each <= 7) ?? 86400 * Math.ceil(seconds / 86400 / 7);
  const ticks = [];
  for (let at = 0; at <= seconds * 1.0001; at += step) ticks.push([at / seconds, duration(at)]);
  return ticks;
}

function placeTicks(parent, ticks, className) {
  for (const [share, text] of ticks) {
    const tick = html("span", { class: className + (share > 0.94 ? " last" : "") }, text);
    tick.style.left = `${100 * share}%`;
    parent.append(tick);
  }
}

/**
 * A figure: a title, what is under the pointer, a drawing with its axes, and a caption.
 * `shapes` lie in a box of `width` x 1, y upwards from 0 to 1 being 0 to `most`.
 */
function figure({ title, caption, most, width, shapes, ticks, says, label }) {
  const output = html("output", { "aria-live": "off" });
  const drawing = svg("svg", {
    viewBox: `0 0 ${width} 1`, preserveAspectRatio: "none", role: "img", "aria-label": label,
  });
  for (const y of [0, 0.5, 1]) drawing.append(svg("line", { x1: 0, x2: width, y1: y, y2: y, class: "grid" }));
  drawing.append(...shapes);
  const chart = html("div", { class: "chart" }, drawing);
  for (const share of [0, 0.5, 1]) {
    const tick = html("span", { class: "y" }, compact.format(share * most));
    tick.style.bottom = `${100 * share}%`;
    chart.append(tick);
  }
  placeTicks(chart, ticks, "x");
  const cursor = html("div", { class: "cursor", hidden: "" });
  chart.append(cursor);
  chart.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 0.999999);
    cursor.style.left = `${100 * share}%`;
    cursor.hidden = false;
    output.textContent = says(share);
  });
  chart.addEventListener("pointerleave", () => {
    cursor.hidden = true;
    output.textContent = "";
  });
  return html("figure", {}, html("div", { class: "head" }, html("h3", {}, title), output), chart,
    html("figcaption", {}, caption));
}

/** The outline of bars of equal width, as the path of an area, and of its upper edge. */
function outline(heights, base = heights.map(() => 0)) {
  const up = heights.map((height, i) => `L${i} ${1 - base[i] - height}H${i + 1}`).join("");
  const down = base.map((height, i) => [i, height]).reverse()
    .map(([i, height]) => `L${i + 1} ${1 - height}H${i}`).join("");
  return { area: `M0 1${up}L${heights.length} 1${down}Z`, edge: `M${up.slice(1)}` };
}

function curves() {
  const { seconds, pauses, curves: all } = data.time;
  const box = $("curves");
  if (!box) return;
  const charts = [
    ["Samples a second", "inferred", all.failed, "samples a second"],
    ["Tokens a second, prompts and answers", "tokens", null, "tokens a second"],
    ["Jobs at work", "jobs", null, "jobs"],
  ];
  const count = all.inferred.length;
  for (const [title, name, failed, unit] of charts) {
    const values = all[name];
    const tops = failed ? values.map((value, i) => value + failed[i]) : values;
    const peak = Math.max(...tops);
    const most = nice(peak);
    const { area, edge } = outline(values.map((value) => value / most));
    const shapes = [svg("path", { d: area, class: "area" }), svg("path", { d: edge, class: "stroke" })];
    if (failed && failed.some((value) => value > 0)) {
      const base = values.map((value) => value / most);
      shapes.push(svg("path", { d: outline(failed.map((f) => f / most), base).area, class: "failed area" }));
    }
    for (const pause of pauses) {
      const x = (pause.at / seconds) * count;
      shapes.push(svg("line", { x1: x, x2: x, y1: 0, y2: 1, class: "pause" }));
    }
    const caption = `At most ${number(peak)} ${unit} in a step of ${duration(all.width)}; ` +
      `over all ${duration(seconds)}, starts of the models included, ${number(all.means[name])}` +
      (failed && failed.some((value) => value > 0) ? "; failed ones in red" : "");
    box.append(figure({
      title, caption, most, width: count, shapes, label: `${title}. ${caption}`,
      ticks: timeTicks(seconds),
      says: (share) => {
        const at = Math.floor(share * count);
        const also = failed && failed[at] ? `, ${number(failed[at])} failed` : "";
        return `${duration(at * all.width) || "0"}: ${number(values[at])} ${unit}${also}`;
      },
    }));
  }
}

/** Labels below the bars between `edges`: at whole powers of two of a second, or at every so many. */
function barTicks(edges, text) {
  const places = edges.slice(0, -1).map((edge, i) => [i / (edges.length - 1), text(edge), edge]);
  const octaves = places.filter(([, , edge]) => Math.abs(Math.log2(edge) - Math.round(Math.log2(edge))) < 1e-3);
  const chosen = text === duration && octaves.length > 1 ? octaves : places;
  return chosen.filter((_, i) => i % Math.ceil(chosen.length / 7) === 0);
}

function histograms() {
  for (const { title, of, unit, edges, counts, total, quantiles } of data.histograms) {
    if (!total) {
      $("histograms").append(html("figure", {}, html("h3", {}, title),
        html("p", { class: "hint" }, "Not known.")));
      continue;
    }
    const isTime = unit === "seconds";
    const text = isTime ? duration : (value) => whole.format(value);
    const most = nice(Math.max(...counts));
    const shapes = counts.map((count, i) =>
      svg("rect", { x: i + 0.06, width: 0.88, y: 1 - count / most, height: count / most, class: "block" }));
    for (const value of Object.values(quantiles)) {
      const bar = edges.findLastIndex((edge, i) => edge <= value && i < counts.length);
      const x = bar + (value - edges[bar]) / (edges[bar + 1] - edges[bar]);
      shapes.push(svg("line", { x1: x, x2: x, y1: 0, y2: 1, class: "quantile" }));
    }
    const marks = Object.entries(quantiles).map(([name, value]) => `${name} ${text(value)}`).join(" · ");
    const caption = `${whole.format(total)} ${of} · ${marks}${isTime ? "" : " tokens"}`;
    $("histograms").append(figure({
      title, caption, most, width: counts.length, shapes, label: `Histogram: ${title}. ${caption}`,
      ticks: barTicks(edges, text),
      says: (share) => {
        const at = Math.floor(share * counts.length);
        const last = isTime ? edges[at + 1] : edges[at + 1] - 1;
        const range = last === edges[at] ? text(last) : `${text(edges[at])} – ${text(last)}`;
        return `${range}: ${whole.format(counts[at])} ${of}`;
      },
    }));
  }
}

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
  for (const { at } of data.time.pauses) {
    drawing.append(svg("line", { x1: at, x2: at, y1: -0.15, y2: 1.15, class: "pause" }));
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
      html("th", { scope: "row", class: "n" }, String(row.rank)),
      html("td", { class: "host" }, row.host || "–"),
      html("td", { class: "line" }, ...(row.attempts.length ? [rankBars(row)] : []), ...rankNotes(row)),
      html("td", { class: "n" }, whole.format(row.inferred)),
      html("td", { class: "n" }, whole.format(row.failed)),
      html("td", { class: "n" }, `${duration(row.waited)} (${percent(row.waiting_share)})`),
      html("td", { class: "n" }, percent(row.busy_share)),
      html("td", { class: "n" }, row.ended === null ? "–" : duration(row.ended)))));
  });
  const order = () => {
    ordered = [...data.time.ranks].sort(orders[$("rank-order").value]);
    pager.begin(ordered.length);
  };
  $("rank-order").addEventListener("change", order);
  if (data.time.seconds) placeTicks($("rank-axis"), timeTicks(data.time.seconds), "");
  order();
  return pager;
}

// --- gallery --------------------------------------------------------------------------------------

/** `text` as nodes, with what `terms` (a global RegExp or null) finds marked. */
function marked(text, terms) {
  if (!terms) return [text];
  const nodes = [];
  let from = 0;
  for (const found of text.matchAll(terms)) {
    nodes.push(text.slice(from, found.index), html("mark", {}, found[0]));
    from = found.index + found[0].length;
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

/** Whether an answer of the sample was cut off at its last token; `usage` ends with the reason. */
const isCutOff = (card) => card.usage?.[2] === "length";

function article(card, terms) {
  const [stage, type, message] = card.error ?? [];
  const [prompt, completion, reason] = card.usage ?? [];
  const span = card.span ? ` ${card.span.map((at) => (at === null ? "" : `${number(at)} s`)).join(" – ")}` : "";
  const usage = card.usage && `${whole.format(prompt)} + ${whole.format(completion)} tokens` +
    (reason === "stop" ? "" : reason === "length" ? ", cut off" : `, ended by ${reason}`);
  const [tag, kind] = card.error ? [stage, "bad"] : isCutOff(card) ? ["cut off", "warn"] : ["ok", "good"];
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
  let found = cards;
  let terms = null;
  const pager = new Pager([$("gallery-pager"), $("gallery-pager-below")], 12, (first, last) => {
    $("cards").replaceChildren(...found.slice(first, last).map(({ card }) => article(card, terms)));
    $("found").textContent = found.length
      ? `${whole.format(first + 1)} – ${whole.format(last)} of ${whole.format(found.length)} samples`
      : cards.length ? "Nothing is like this." : "There is nothing to show.";
  });
  const filter = () => {
    const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [kind, at] = $("show").value.split(" ");
    const wanted = data.classes[at];
    const shown = {
      all: () => true,
      answered: (card) => !card.error,
      failed: (card) => card.error,
      cut: isCutOff,
      class: (card) => card.error && card.error[0] === wanted.stage && card.error[1] === wanted.type,
    }[kind];
    found = cards.filter(({ card, text }) => shown(card) && words.every((word) => text.includes(word)));
    terms = words.length
      ? new RegExp(words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|"), "gi") : null;
    pager.begin(found.length);
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

theme();
unpacked().then((found) => {
  data = found;
  curves();
  histograms();
  keys(ranks(), gallery());
});
