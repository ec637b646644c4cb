// Sorting by a column's heading, and open details in print. Without it the page is complete, unsorted.
"use strict";

const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

// What is missing comes last in either direction, and numbers before text.
function compare(a, b, sign) {
  const [missingA, missingB] = [a, b].map((cell) => "missing" in cell.dataset);
  if (missingA || missingB) return missingA - missingB;
  const [numberA, numberB] = [a, b].map((cell) => "number" in cell.dataset);
  if (numberA && numberB) return sign * (a.dataset.number - b.dataset.number);
  if (numberA !== numberB) return numberB - numberA;
  return sign * a.textContent.trim().localeCompare(b.textContent.trim(), "en", { numeric: true });
}

// A row without a name belongs to the row above it and moves with it.
function groupsOf(body) {
  const groups = [];
  for (const row of body.rows) {
    if (groups.length && "continues" in row.dataset) groups.at(-1).push(row);
    else groups.push([row]);
  }
  return groups;
}

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const groups = groupsOf(body);
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const direction = NEXT[heading.getAttribute("aria-sort")];
      for (const each of headings) each.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", direction);
      const sign = direction === "descending" ? -1 : 1;
      const ordered = [...groups];
      if (direction !== "none") {
        ordered.sort((a, b) => compare(a[0].cells[column], b[0].cells[column], sign));
      }
      body.append(...ordered.flat());
    });
  });
}

const closed = new Set();
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    closed.add(details);
    details.open = true;
  }
});
addEventListener("afterprint", () => {
  for (const details of closed) details.open = false;
  closed.clear();
});
