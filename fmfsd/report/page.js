"use strict";
// Tables are sorted by the buttons that this puts into their headers: numbers as numbers, what is missing last.
const factors = { k: 1e3, M: 1e6, G: 1e9, T: 1e12 };
const spans = { h: 3600, min: 60, s: 1 };
function valueOf(text) {
  const spanned = [...text.matchAll(/([\d.]+) (h|min|s)(?= |$)/g)];
  if (spanned.length) return spanned.reduce((sum, [, count, unit]) => sum + count * spans[unit], 0);
  const found = text.match(/^([-+]?[\d.]+(?:e[-+]?\d+)?)(?: ([kMGT])(?![a-z]))?/);
  return found ? Number(found[1]) * (factors[found[2]] ?? 1) : NaN;
}
function compared(one, other) {
  const [a, b] = [valueOf(one), valueOf(other)];
  if (isNaN(a) && isNaN(b)) return one.localeCompare(other);
  return a - b;
}
function isMissing(text) { return text === "" || text === "\u2013"; }
function sort(table, column, heading) {
  const down = heading.getAttribute("aria-sort") === "ascending";
  const body = table.tBodies[0], shown = row => row.cells[column].textContent.trim();
  const rows = [...body.rows], known = rows.filter(row => !isMissing(shown(row)));
  known.sort((a, b) => (down ? -1 : 1) * compared(shown(a), shown(b)));
  body.append(...known, ...rows.filter(row => isMissing(shown(row))));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
}
for (const table of document.querySelectorAll("table")) {
  if (!table.tHead || table.tBodies[0].rows.length < 2) continue;
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    if (!heading.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sort(table, column, heading));
    heading.append(button);
  });
}
