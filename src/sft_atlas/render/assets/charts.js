// Draws the charts from their specifications with the colours of the current theme.
const views = new Map();
const drawn = new Map();
const turns = new Map();

const THEMES = {
  light: {
    ink: "#1b1f24", soft: "#59616b", line: "#dfe1de", mark: "#1f5f9e", own: "#1b1f24", darkText: "#14181c", lightText: "#ffffff",
    diverging: ["#0a4a8a", "#2f7fc0", "#8dbce0", "#f4f4f0", "#f3b878", "#dd7f1f", "#9c4a00"],
    category: ["#0072b2", "#d55e00", "#009e73", "#b5508f", "#6a51a3", "#8c6d1f", "#3fa7d6", "#e69f00", "#5b6770", "#a63d40", "#2b8c8c", "#7a9a01"],
  },
  dark: {
    ink: "#e8eaec", soft: "#a3abb3", line: "#333a40", mark: "#7ab4ea", own: "#f2f4f5", darkText: "#0e1113", lightText: "#f2f4f5",
    diverging: ["#8cc4f5", "#3f8fd4", "#1f5688", "#23282d", "#8a5014", "#d8802a", "#ffc078"],
    category: ["#56b4e9", "#f08a45", "#3ac79b", "#e08fc4", "#b3a2e8", "#d2b44c", "#9ad0f5", "#ffc14d", "#aab4bc", "#ef8a8c", "#6fd0d0", "#bfd94a"],
  },
};
const SHAPES = [
  "circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left",
  "M0,-1L0.23,-0.32L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12L-0.95,-0.31L-0.23,-0.32Z", // star
  "M0,-0.9L0.78,-0.45L0.78,0.45L0,0.9L-0.78,0.45L-0.78,-0.45Z", // hexagon
  "M-0.8,-0.45L-0.45,-0.8L0,-0.35L0.45,-0.8L0.8,-0.45L0.35,0L0.8,0.45L0.45,0.8L0,0.35L-0.45,0.8L-0.8,0.45L-0.35,0Z", // x
  "M-0.35,-0.95L0.35,-0.95L0.35,0.95L-0.35,0.95Z", // bar
];
const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif';

const themeName = () => document.documentElement.dataset.theme;

function chartConfig(theme, width) {
  const text = { labelFont: FONT, titleFont: FONT, labelColor: theme.ink, titleColor: theme.soft, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 400 };
  return {
    background: "transparent",
    font: FONT,
    view: { stroke: null },
    axis: { ...text, gridColor: theme.line, domainColor: theme.line, tickColor: theme.line, labelPadding: 6, titlePadding: 10, gridOpacity: 0.7, labelFlush: false },
    axisBand: { grid: false },
    legend: { ...text, columns: Math.max(1, Math.floor(width / 150)), labelLimit: 170, symbolSize: 70, rowPadding: 4, columnPadding: 14, symbolStrokeWidth: 2 },
    text: { font: FONT },
    rule: { color: theme.soft },
    line: { color: theme.mark },
    point: { color: theme.mark },
    area: { color: theme.mark },
    range: { diverging: theme.diverging, category: theme.category, symbol: SHAPES },
  };
}

// Draws a specification with rows in place; `patch` may change it before. Charts are drawn one after another, each in
// a task of its own, so that the page answers while it fills. `ready` gets the view each time it was drawn.
let queue = Promise.resolve();
function draw(place, name, rows, patch, ready) {
  drawn.set(place, () => draw(place, name, rows, patch, ready));
  const turn = {};
  turns.set(place, turn);
  queue = queue
    .then(() => new Promise((next) => { setTimeout(next); }))
    .then(() => (turns.get(place) === turn ? render(place, name, rows, patch, ready) : null));
}

async function render(place, name, rows, patch, ready) {
  const element = document.getElementById(`chart-${place}`);
  const spec = JSON.parse(JSON.stringify(specs[name]));
  const theme = THEMES[themeName()];
  spec.datasets = { ...spec.datasets, rows };
  element.classList.toggle("fluid", spec.width === "container");
  const config = chartConfig(theme, element.clientWidth || 800);
  if (patch) patch(spec, theme);
  const result = await vegaEmbed(element, spec, {
    mode: "vega-lite", renderer: "svg", actions: false, ast: true, config,
    tooltip: { theme: themeName() === "dark" ? "dark" : "light" },
  });
  views.get(place)?.finalize();
  views.set(place, result.view);
  if (ready) ready(result.view);
  const svg = element.querySelector("svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", element.closest("[aria-label]").getAttribute("aria-label"));
}

// Says why a chart is not there, in its place.
function explain(place, text) {
  drawn.delete(place);
  turns.delete(place);
  const element = document.getElementById(`chart-${place}`);
  element.replaceChildren(Object.assign(document.createElement("p"), { className: "empty", textContent: text }));
  document.getElementById(`caption-${place}`).textContent = "";
  document.querySelector(`[data-save="${place}"]`).hidden = true;
}

function caption(place, text) {
  document.getElementById(`caption-${place}`).textContent = text;
  document.querySelector(`[data-save="${place}"]`).hidden = false;
}

const redrawAll = () => drawn.forEach((again) => again());

function saveFile(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

document.querySelectorAll("[data-save]").forEach((button) => {
  button.addEventListener("click", async () => {
    const view = views.get(button.dataset.save);
    if (view) saveFile(`${button.dataset.save}.svg`, "image/svg+xml", await view.toSVG());
  });
});

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  const button = document.getElementById("theme");
  button.textContent = name === "dark" ? "Light" : "Dark";
  button.setAttribute("aria-label", `Use ${name === "dark" ? "light" : "dark"} colours`);
  button.setAttribute("aria-pressed", String(name === "dark"));
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
setTheme(prefersDark.matches ? "dark" : "light");
prefersDark.addEventListener("change", () => { setTheme(prefersDark.matches ? "dark" : "light"); redrawAll(); });
document.getElementById("theme").addEventListener("click", () => {
  setTheme(themeName() === "dark" ? "light" : "dark");
  redrawAll();
});
