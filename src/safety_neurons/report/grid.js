// Shows what is behind a cell of the grid: verdict by verdict, never an answer. All text is set as text, never as HTML.
const kept = document.getElementById("data-cells");
const behind = kept && JSON.parse(kept.textContent);

function line(name, content, parent) {
  const element = document.createElement(name);
  element.textContent = content;
  parent.append(element);
  return element;
}

function show(button, panel) {
  const { title, lines, ids, verdicts } = behind.cells[button.dataset.cell];
  panel.replaceChildren();
  line("h4", title, panel);
  for (const said of lines) line("p", said, panel);
  if (verdicts) {
    const list = line("ul", "", panel);
    verdicts.forEach((verdict, number) => {
      const item = line("li", "", list);
      line("bdi", behind.ids[ids][number], item);
      line("span", behind.words[verdict], item).dataset.verdict = behind.words[verdict];
    });
  } else {
    line("p", "This page would be too large with all verdicts: those of this cell are in evaluation.json.", panel);
  }
  panel.hidden = false;
}

function choose(button) {
  const panel = document.getElementById(button.getAttribute("aria-controls"));
  const open = button.getAttribute("aria-expanded") === "true";
  const same = document.querySelectorAll(`[aria-controls="${panel.id}"][aria-expanded="true"]`);
  for (const other of same) other.setAttribute("aria-expanded", "false");
  panel.hidden = true;
  if (open) return;
  button.setAttribute("aria-expanded", "true");
  show(button, panel);
}

// Arrow keys go from cell to cell, as in a spreadsheet.
function neighbor(button, key) {
  const cell = button.closest("td");
  const row = cell.parentElement;
  const sideways = { ArrowLeft: "previousElementSibling", ArrowRight: "nextElementSibling" }[key];
  const upright = { ArrowUp: "previousElementSibling", ArrowDown: "nextElementSibling" }[key];
  for (let next = sideways ? cell[sideways] : row[upright]; next; next = next[sideways ?? upright]) {
    const found = (sideways ? next : next.cells[cell.cellIndex])?.querySelector("button");
    if (found) return found;
  }
  return null;
}

addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-cell]");
  if (button) choose(button);
});
addEventListener("keydown", (event) => {
  const button = event.target.closest?.("[data-cell]");
  if (!button) return;
  if (event.key === "Escape" && button.getAttribute("aria-expanded") === "true") choose(button);
  if (!event.key.startsWith("Arrow")) return;
  const next = neighbor(button, event.key);
  if (next) {
    next.focus();
    event.preventDefault();
  }
});
