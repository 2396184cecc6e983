// Moves the two clouds from layer to layer, and to and fro between the uncalibrated and the calibrated prompts.
const slider = document.getElementById("clouds-layer");
const push = document.getElementById("clouds-push");
const plot = document.querySelector('[data-figure="data-clouds"]');
const beside = document.querySelector('[data-figure="data-clouds-auroc"]');
const { planes } = JSON.parse(document.getElementById("data-clouds").textContent);
const still = matchMedia("(prefers-reduced-motion: reduce)");

function move() {
  const { said, layer, places } = planes[slider.value];
  slider.setAttribute("aria-valuetext", said);
  document.getElementById("clouds-said").textContent = said;
  draw(plot);
  draw(beside);
  // Without calibration, the calibrated prompts lie where they came from, and their paths have no length.
  const [ways, , , ...base] = places;
  const home = (ends) => ends.map((end, number) => (number % 3 === 1 ? ends[number - 1] : end));
  const data = push.checked
    ? places
    : [{ x: home(ways.x), y: home(ways.y) }, ...base, ...base];
  const duration = still.matches ? 0 : 350;
  Plotly.animate(
    plot,
    { data, traces: [0, 1, 2, 3, 4] },
    { mode: "immediate", transition: { duration, easing: "cubic-in-out" }, frame: { duration, redraw: false } },
  );
  Plotly.relayout(beside, {
    "shapes[0].visible": layer !== null,
    "shapes[0].x0": layer ?? 0,
    "shapes[0].x1": layer ?? 0,
  });
}

slider.addEventListener("input", move);
push.addEventListener("change", move);
slider.setAttribute("aria-valuetext", planes[slider.value].said);
document.getElementById("clouds-controls").hidden = false;
