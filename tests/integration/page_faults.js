// What is wrong with the looks of a page: a function that returns each fault as a line.
() => {
  const faults = [];
  const name = (element) => {
    const kind = [element.localName, ...element.classList].join(".");
    return `${kind} "${element.textContent.trim().slice(0, 40)}"`;
  };
  const visible = (element) => element.checkVisibility({ contentVisibilityAuto: false })
    && !element.closest(".skip, .unseen, dialog:not([open]), noscript, script, style");
  const elements = [...document.body.querySelectorAll("*")].filter(visible);

  for (const element of elements) {
    const box = element.getBoundingClientRect();
    if (box.right > innerWidth + 1 || box.left < -1) faults.push(`beyond the page: ${name(element)}`);
    if (getComputedStyle(element).overflowX !== "visible" && !element.matches("svg")
        && element.scrollWidth > element.clientWidth + 1) faults.push(`cut: ${name(element)}`);
  }

  const overlap = (a, b) =>
    a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  for (const parent of document.querySelectorAll(".axis, .chart")) {
    const labels = [...parent.querySelectorAll(".x, .y, .mark")].filter(visible);
    const boxes = labels.map((label) => label.getBoundingClientRect());
    boxes.forEach((box, i) => {
      const others = boxes.slice(0, i);
      if (others.some((other) => overlap(box, other))) faults.push(`overlaps: ${name(labels[i])}`);
    });
  }

  const channels = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = ([red, green, blue]) => {
    const linear = [red, green, blue].map((value) => value / 255)
      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ground = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = channels(getComputedStyle(each).backgroundColor);
      if (color[3] !== 0) return color;
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  for (let text; (text = texts.nextNode());) {
    const element = text.parentElement;
    if (!text.data.trim() || !visible(element)) continue;
    const style = getComputedStyle(element);
    const [a, b] = [luminance(channels(style.color)), luminance(ground(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const isLarge = parseFloat(style.fontSize) >= (style.fontWeight >= 700 ? 18.66 : 24);
    const least = isLarge ? 3 : 4.5; // WCAG 2.2, level AA
    if (contrast < least) faults.push(`contrast ${contrast.toFixed(2)}: ${name(element)}`);
    for (const word of text.data.matchAll(/(?<!\S)\p{L}{2,20}(?!\S)/gu)) {
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
      if (lines.size > 1) faults.push(`broken: ${word[0]} in ${name(element)}`);
    }
  }
  return faults;
}
