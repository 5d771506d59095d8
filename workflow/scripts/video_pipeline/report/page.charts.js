"use strict";

// Charts over time and histograms; page.js follows in the same script.

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

/** The next round number, not much larger. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value || 1));
  return [1, 1.2, 1.6, 2, 3, 4, 5, 6, 8, 10].map((factor) => factor * power).find((round) => round >= value * 0.999999);
}

// --- charts ---------------------------------------------------------------------------------------

/** Labels of an axis of `seconds`, as [share of the axis, text]. */
function timeTicks(seconds) {
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200];
  const step = steps.find((candidate) => seconds / candidate <= 6) ?? 86400 * Math.ceil(seconds / 86400 / 6);
  const ticks = [];
  for (let time = 0; time <= seconds * 1.0001; time += step) ticks.push([time / seconds, duration(time)]);
  return ticks;
}

/** Labels below an axis; the style sheet hides every second one where there is little room. */
function placeTicks(parent, ticks) {
  for (const [share, text] of ticks) {
    const tick = html("span", { class: "x" }, text);
    tick.style.left = `${100 * share}%`;
    parent.append(tick);
  }
}

/** Named lines across a chart: each label stands above its line, in the first row with room. */
function placeMarks(chart, marks) {
  const ends = [];
  for (const [share, text] of marks) {
    let row = ends.findIndex((end) => share - end > 0.14);
    if (row < 0) row = ends.length;
    ends[row] = share;
    const mark = html("span", { class: "mark" }, text);
    mark.style.left = `${100 * share}%`;
    mark.style.bottom = `calc(100% + ${1.15 * row}em)`;
    chart.append(mark);
  }
  if (ends.length) chart.style.marginTop = `${0.4 + 0.8 * ends.length}rem`;
}

/**
 * A figure: a title, what is under the pointer, a drawing with its axes and marks, and a caption.
 * `shapes` lie in a box of `width` x 1, y upwards from 0 to 1 being 0 to `most`.
 */
function figure({ title, caption, most, width, shapes, ticks, describe, label, marks = [] }) {
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
  const axis = html("div", { class: "axis" });
  placeTicks(axis, ticks);
  chart.append(axis);
  placeMarks(chart, marks);
  const cursor = html("div", { class: "cursor", hidden: "" });
  chart.append(cursor);
  chart.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 0.999999);
    cursor.style.left = `${100 * share}%`;
    cursor.hidden = false;
    output.textContent = describe(share);
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
    const anyFailed = failed?.some((value) => value > 0);
    const peak = Math.max(...values.map((value, i) => value + (failed?.[i] ?? 0)));
    const most = nice(peak);
    const heights = values.map((value) => value / most);
    const { area, edge } = outline(heights);
    const shapes = [svg("path", { d: area, class: "area" }), svg("path", { d: edge, class: "stroke" })];
    if (anyFailed) {
      shapes.push(svg("path", { d: outline(failed.map((f) => f / most), heights).area, class: "failed area" }));
    }
    for (const pause of pauses) {
      const x = (pause.at / seconds) * count;
      shapes.push(svg("line", { x1: x, x2: x, y1: 0, y2: 1, class: "pause" }));
    }
    const caption = `At most ${number(peak)} ${unit} in a step of ${duration(all.width)}; ` +
      `over all ${duration(seconds)}, starts of the models included, ${number(all.means[name])}` +
      (anyFailed ? "; failed ones in red" : "");
    box.append(figure({
      title, caption, most, width: count, shapes, label: `${title}. ${caption}`,
      ticks: timeTicks(seconds),
      describe: (share) => {
        const bin = Math.floor(share * count);
        const also = failed?.[bin] ? `, ${number(failed[bin])} failed` : "";
        return `${duration(bin * all.width)}: ${number(values[bin])} ${unit}${also}`;
      },
    }));
  }
}

/** Labels below the bars between `edges`: at whole powers of two of a second, or at every so many. */
function barTicks(edges, text) {
  const places = edges.slice(0, -1).map((edge, i) => [i / (edges.length - 1), text(edge), edge]);
  const octaves = places.filter(([, , edge]) => Math.abs(Math.log2(edge) - Math.round(Math.log2(edge))) < 1e-3);
  const chosen = text === duration && octaves.length > 1 ? octaves : places;
  return chosen.filter((_, i) => i % Math.ceil(chosen.length / 6) === 0);
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
    const range = (bin) => {
      const last = isTime ? edges[bin + 1] : edges[bin + 1] - 1;
      return last === edges[bin] ? text(last) : `${text(edges[bin])} – ${text(last)}`;
    };
    if (counts.length === 1) {
      $("histograms").append(html("figure", {}, html("h3", {}, title),
        html("p", { class: "only" }, `${range(0)}${isTime ? "" : " tokens"}, for all ${whole.format(total)} ${of}.`)));
      continue;
    }
    const most = nice(Math.max(...counts));
    const shapes = counts.map((count, i) =>
      svg("rect", { x: i + 0.06, width: 0.88, y: 1 - count / most, height: count / most, class: "block" }));
    const marks = Object.entries(quantiles).map(([name, value]) => {
      const bar = edges.findLastIndex((edge, i) => edge <= value && i < counts.length);
      const x = bar + (value - edges[bar]) / (edges[bar + 1] - edges[bar]);
      shapes.push(svg("line", { x1: x, x2: x, y1: 0, y2: 1, class: "quantile" }));
      return [x / counts.length, name];
    });
    const values = Object.entries(quantiles).map(([name, value]) => `${name} ${text(value)}`).join(" · ");
    const caption = `${whole.format(total)} ${of} · ${values}${isTime ? "" : " tokens"}`;
    $("histograms").append(figure({
      title, caption, most, width: counts.length, shapes, label: `Histogram: ${title}. ${caption}`,
      ticks: barTicks(edges, text), marks,
      describe: (share) => {
        const bin = Math.floor(share * counts.length);
        return `${range(bin)}: ${whole.format(counts[bin])} ${of}`;
      },
    }));
  }
}
