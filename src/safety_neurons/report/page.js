"use strict";

// Draws every figure from the JSON that stands beside it. Text and grid colours are the page's CSS.
for (const figure of document.querySelectorAll("[data-figure]")) {
  const data = document.getElementById(figure.dataset.figure);
  const { data: traces, layout } = JSON.parse(data.textContent);
  Plotly.newPlot(figure, traces, layout, { displayModeBar: false, responsive: true });
}

// Paper cannot unfold anything: open what is folded before printing, and fold it again.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
