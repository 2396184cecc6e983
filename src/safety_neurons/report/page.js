"use strict";

// Draws a figure from the JSON that stands beside it. Text and grid colors are the page's CSS.
function draw(figure) {
  if (figure.dataset.drawn) return;
  figure.dataset.drawn = "true";
  const data = document.getElementById(figure.dataset.figure);
  const { data: traces, layout } = JSON.parse(data.textContent);
  Plotly.newPlot(figure, traces, layout, { displayModeBar: false, responsive: true });
}

// A figure is drawn shortly before it comes into sight, so that a long page opens at once.
const figures = document.querySelectorAll("[data-figure]");
const sight = new IntersectionObserver(
  (seen) => {
    for (const { isIntersecting, target } of seen) {
      if (!isIntersecting) continue;
      sight.unobserve(target);
      draw(target);
    }
  },
  { rootMargin: "800px" },
);
for (const figure of figures) sight.observe(figure);

// Paper cannot unfold or scroll to anything: unfold and draw all before printing, and fold it again.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const details of opened) details.open = true;
  for (const figure of figures) draw(figure);
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
