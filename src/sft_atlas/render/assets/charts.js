// Draws the charts from their specifications with the colours of the current theme.
const THEMES = JSON.parse(document.getElementById("themes").textContent);
const views = new Map();
const drawn = new Map();
const waiting = new Map();

// A chart that is saved is painted in light colours, whatever the page shows.
let painting = null;
const themeName = () => painting ?? document.documentElement.dataset.theme;
const FONT = THEMES.light.config.font;
const SHAPES = THEMES.light.config.range.symbol;

function chartConfig(name, width) {
  const { config } = THEMES[name];
  return { ...config, legend: { ...config.legend, columns: Math.max(1, Math.floor(width / 150)) } };
}

// Draws a specification with rows in place; `patch` may change it before. Charts are drawn one after another, each in
// a task of its own, those in view first, so that the page answers while it fills. `ready` gets the view each time.
let working = null;
function draw(place, name, rows, patch, ready) {
  const job = { place, name, rows, patch, ready };
  drawn.set(place, job);
  waiting.set(place, job);
  if (!working) working = work().finally(() => { working = null; });
}

function nextPlace() {
  const places = [...waiting.keys()];
  const isNear = (place) => {
    const box = document.getElementById(`chart-${place}`).getBoundingClientRect();
    return box.bottom > -200 && box.top < innerHeight + 400;
  };
  return places.find(isNear) ?? places[0];
}

async function work() {
  while (waiting.size) {
    await new Promise((next) => { setTimeout(next); });
    const place = nextPlace();
    const job = waiting.get(place);
    waiting.delete(place);
    await render(job);
  }
}

// A job's specification with its rows, size and colours; what vega-embed draws.
function prepared(job, theme, width) {
  const spec = JSON.parse(JSON.stringify(specs[job.name]));
  spec.datasets = { ...spec.datasets, rows: job.rows };
  if (job.patch) job.patch(spec, THEMES[theme]);
  fitted(spec, spec.datasets.rows, width);
  (spec.params ?? []).forEach((param) => { if (THEMES[theme][param.name]) param.value = THEMES[theme][param.name]; });
  return spec;
}

// Sizes a form by its rows: see `forms` in the code.
function fitted(spec, rows, width) {
  const size = spec.usermeta ?? {};
  const count = (field) => Math.max(1, new Set(rows.map((row) => row[field])).size);
  if (size.step) spec.height = size.step * count(size.step_field);
  if (size.column_field) {
    const names = Math.min(180, 24 + 7 * Math.max(...rows.map((row) => String(row.y).length)));
    const step = Math.floor((width - names - 40) / count(size.column_field));
    spec.width = count(size.column_field) * Math.max(size.min_column, Math.min(size.max_column, step));
  }
}

async function render(job) {
  const element = document.getElementById(`chart-${job.place}`);
  const width = element.clientWidth || 800;
  const spec = prepared(job, themeName(), width);
  element.classList.toggle("fluid", spec.width === "container");
  const result = await vegaEmbed(element, spec, {
    mode: "vega-lite", renderer: "svg", actions: false, ast: true, config: chartConfig(themeName(), width),
    tooltip: { theme: themeName() === "dark" ? "dark" : "light" },
  });
  views.get(job.place)?.finalize();
  views.set(job.place, result.view);
  if (job.ready) job.ready(result.view);
  const svg = element.querySelector("svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", element.closest("[aria-label]").getAttribute("aria-label"));
}

// Says why a chart is not there, in its place.
function explain(place, text) {
  drawn.delete(place);
  waiting.delete(place);
  const element = document.getElementById(`chart-${place}`);
  element.replaceChildren(Object.assign(document.createElement("p"), { className: "empty", textContent: text }));
  document.getElementById(`caption-${place}`).textContent = "";
  document.querySelector(`[data-save="${place}"]`).hidden = true;
}

function caption(place, text) {
  document.getElementById(`caption-${place}`).textContent = text;
  document.querySelector(`[data-save="${place}"]`).hidden = false;
}

const redrawAll = () => drawn.forEach((job) => draw(job.place, job.name, job.rows, job.patch, job.ready));

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
