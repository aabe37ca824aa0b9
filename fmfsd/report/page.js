"use strict";
// Adds buttons to table headers that sort the rows: numerically where possible, missing values last.
const factors = { k: 1e3, M: 1e6, G: 1e9, T: 1e12 };
const spans = { h: 3600, min: 60, s: 1 };
function valueOf(text) {
  const durations = [...text.matchAll(/([\d.]+) (h|min|s)(?= |$)/g)];
  if (durations.length) return durations.reduce((sum, [, count, unit]) => sum + count * spans[unit], 0);
  const match = text.match(/^([-+]?[\d.]+(?:e[-+]?\d+)?)(?: ([kMGT])(?![a-z]))?/);
  return match ? Number(match[1]) * (factors[match[2]] ?? 1) : NaN;
}
function compare(one, other) {
  const [a, b] = [valueOf(one), valueOf(other)];
  if (isNaN(a) && isNaN(b)) return one.localeCompare(other);
  return a - b;
}
function isMissing(text) { return text === "" || text === "\u2013"; }
function sort(table, column, heading) {
  const down = heading.getAttribute("aria-sort") === "ascending";
  const body = table.tBodies[0], textOf = row => row.cells[column].textContent.trim();
  const rows = [...body.rows], known = rows.filter(row => !isMissing(textOf(row)));
  known.sort((a, b) => (down ? -1 : 1) * compare(textOf(a), textOf(b)));
  body.append(...known, ...rows.filter(row => isMissing(textOf(row))));
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
