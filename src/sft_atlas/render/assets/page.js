// Connects selectors, charts and tables.
const mainSetting = Math.max(0, names.settings.indexOf(payload.main_setting));

// A labelled <select>; a choice of one is not shown. Returns a function that reads the chosen value.
function selector(place, label, choices, chosen, onChange) {
  const select = document.createElement("select");
  const fill = (list, value) => {
    select.replaceChildren(...list.map(([key, text]) => new Option(text, String(key), false, key === value)));
    wrapper.hidden = list.length < 2;
    wrapper.style.display = list.length < 2 ? "none" : "";
  };
  const wrapper = document.createElement("label");
  wrapper.append(label, select);
  fill(choices, chosen);
  select.addEventListener("change", onChange);
  document.getElementById(`controls-${place}`).append(wrapper);
  const read = () => Number(select.value);
  read.fill = (list, preferred) => {
    const kept = list.some(([key]) => String(key) === select.value) ? Number(select.value) : preferred;
    fill(list, kept);
  };
  return read;
}

// Takes away figures that have nothing to show.
function hideFigures(...places) {
  places.forEach((place) => { document.querySelector(`[data-chart="${place}"]`).hidden = true; });
}

const choicesOf = (rows, column, averageText) =>
  distinct(rows, column).map((index) => [index, index === AVERAGE ? averageText : index === POOLED ? "all benchmarks, pooled" : nameOf(column, index)]);
const first = (choices, preferred) => (choices.some(([key]) => key === preferred) ? preferred : choices[0]?.[0]);
const settingOf = (rows) => first(choicesOf(rows, "setting"), mainSetting);
const lastEpoch = (rows) => Math.max(...rows.map((row) => row.epoch));

// Draws the average in the colour of text, so that it stands apart from every single series.
function inkFirst(spec, theme, rows) {
  const domain = [...new Set(rows.map((row) => row.series))];
  const scale = { domain, range: [theme.ink, ...domain.slice(1).map((_, i) => theme.category[i % theme.category.length])] };
  spec.layer.forEach((layer) => { if (layer.encoding.color?.field === "series") layer.encoding.color.scale = scale; });
}

function gainMapSection() {
  if (!mapRows.length) {
    explain("gain-map", "There is no gain yet: a gain needs a trained cell and its base model, both scored on the same benchmark.");
    document.getElementById("gain-table-details").hidden = true;
    return;
  }
  const largest = mapRows.map((row) => Math.abs(row.gain)).sort((a, b) => a - b);
  const limit = Math.max(1, Math.ceil(100 * largest[Math.ceil(0.98 * (largest.length - 1))]));
  const modelText = "average over models";
  const setting = selector("gains", "Setting", choicesOf(mapRows, "setting"), settingOf(mapRows), () => refill(true));
  const method = selector("gains", "Method", choicesOf(mapRows, "method"), distinct(mapRows, "method")[0], () => refill(false));
  const model = selector("gains", "Model", choicesOf(mapRows, "model", modelText), distinct(mapRows, "model")[0], show);
  const epoch = selector("gains", "Epoch", [], 0, show);

  function refill(isNewSetting) {
    const inSetting = mapRows.filter((row) => row.setting === setting());
    method.fill(choicesOf(inSetting, "method"), inSetting[0].method);
    const rows = inSetting.filter((row) => row.method === method());
    model.fill(choicesOf(rows, "model", modelText), distinct(rows, "model")[0]);
    const epochs = distinct(rows, "epoch").map((value) => [value, String(value)]);
    if (isNewSetting) epoch.fill([], 0);
    epoch.fill(epochs, lastEpoch(rows));
    show();
  }

  function show() {
    const rows = mapRows.filter((row) => row.setting === setting() && row.method === method() && row.model === model() && row.epoch === epoch());
    if (!rows.length) {
      explain("gain-map", "No cell of this choice is trained and scored.");
      return;
    }
    const shown = filledMap(rows, limit);
    const numBenchmarks = distinct(rows, "benchmark").length;
    draw("gain-map", "gain-map", shown, (spec, theme) => {
      const box = document.getElementById("chart-gain-map").clientWidth - 190;
      spec.width = { step: Math.max(46, Math.min(84, Math.floor(box / numBenchmarks))) };
      spec.layer[0].encoding.color.scale.domain = [-limit, limit];
      spec.layer[1].mark.stroke = theme.own;
    });
    const sizes = distinct(rows, "num_models");
    const span = sizes.length > 1 ? `${sizes[0]} to ${sizes.at(-1)} models` : plural(sizes[0], "model");
    const unit = { items: "items of one training run; another seed is not covered", trajectories: "training runs (seeds)", models: "models" };
    const units = distinct(rows, "unit").map((index) => unit[names.units[index]]).join(", or ");
    const partial = rows.some((row) => row.is_partial) ? " * rests on fewer models or runs than the others." : "";
    const own = rows.some((row) => row.is_own) ? " Outlined: data and benchmark of the same skill." : "";
    caption("gain-map", `${model() === AVERAGE ? "Mean over" : `${nameOf("model", model())},`} ${span}, epoch ${epoch()}, ${names.settings[setting()]}. Faded: the 95\u00a0% interval covers 0; it resamples ${units}. Bold: it does not.${own}${partial} Colours saturate at \u00b1${limit} points.`);
    gainTable(shown);
  }
  refill(true);
}

// Adds an entry for every pair without a gain, so that a gap is seen as one.
function filledMap(rows, limit) {
  const theme = () => THEMES[themeName()];
  const found = new Map(rows.map((row) => [`${row.data} ${row.benchmark}`, row]));
  const result = [];
  for (const data of distinct(rows, "data")) {
    for (const benchmark of distinct(mapRows, "benchmark")) {
      const row = found.get(`${data} ${benchmark}`);
      const place = { data: nameOf("data", data), benchmark: nameOf("benchmark", benchmark), data_order: data, order: benchmark };
      if (!row) {
        result.push({ ...place, gain: null, label: "\u2014", is_own: false, is_clear: false, gain_text: "no score", interval_text: "\u2014", n_text: "nothing: see Coverage", get ink() { return theme().soft; } });
        continue;
      }
      const strength = Math.abs(100 * row.gain) / limit;
      const isClear = isNumber(row.low) && (row.low > 0 || row.high < 0);
      result.push({
        ...place,
        gain: 100 * row.gain,
        label: signed(row.gain, Math.abs(row.gain) < 0.0995 ? 1 : 0) + (row.is_partial ? "*" : ""),
        is_own: Boolean(row.is_own),
        is_clear: isClear,
        gain_text: `${signed(row.gain)} points`,
        interval_text: pointsInterval(row.low, row.high),
        n_text: restsOn(row),
        get ink() {
          const strong = isClear && strength > (themeName() === "dark" ? 0.5 : 0.78);
          if (themeName() === "dark") return strong ? theme().darkText : theme().lightText;
          return strong ? theme().lightText : theme().darkText;
        },
      });
    }
  }
  return result;
}

function gainTable(rows) {
  const benchmarks = [...new Set(rows.map((row) => row.benchmark))];
  const data = [...new Set(rows.map((row) => row.data))];
  const cell = (tag, text, className = "") => Object.assign(document.createElement(tag), { textContent: text, className });
  const head = document.createElement("tr");
  head.append(cell("th", "Data"), ...benchmarks.map((name) => cell("th", name, "num")));
  const body = data.map((name) => {
    const line = document.createElement("tr");
    line.append(cell("th", name));
    rows.filter((row) => row.data === name).forEach((row) => line.append(cell("td", row.gain === null ? "\u2014" : `${row.gain_text.replace(" points", "")} ${row.interval_text}`, "num")));
    return line;
  });
  const table = document.getElementById("table-gains");
  const thead = document.createElement("thead");
  const tbody = document.createElement("tbody");
  thead.append(head);
  tbody.append(...body);
  table.replaceChildren(thead, tbody);
}

function lossSection() {
  if (!curveRows.length) {
    explain("losses", "No training run has published its loss yet.");
    return;
  }
  const setting = selector("losses", "Setting", choicesOf(curveRows, "setting"), settingOf(curveRows), () => refill());
  const method = selector("losses", "Method", choicesOf(curveRows, "method"), distinct(curveRows, "method")[0], () => refill());
  const model = selector("losses", "Model", choicesOf(curveRows, "model"), curveRows[0].model, show);

  function refill() {
    const inSetting = curveRows.filter((row) => row.setting === setting());
    method.fill(choicesOf(inSetting, "method"), inSetting[0].method);
    const rows = inSetting.filter((row) => row.method === method());
    model.fill(choicesOf(rows, "model"), rows[0].model);
    show();
  }

  function show() {
    const chosen = curveRows.filter((row) => row.setting === setting() && row.method === method() && row.model === model());
    chosen.sort((a, b) => a.data - b.data);
    const rows = chosen.flatMap((curve, i) => curve.step.map((step, k) => ({ series: nameOf("data", curve.data), trajectory: i, step, loss: curve.loss[k] })));
    draw("losses", "losses", rows);
    caption("losses", `${plural(chosen.length, "training run")} of ${nameOf("model", model())}, ${nameOf("method", method())}, ${names.settings[setting()]}. Averaged in runs of steps to at most 60 points each.`);
  }
  refill();
}

function resultSection() {
  const place = document.getElementById("controls-results");
  const search = document.createElement("input");
  search.type = "search";
  search.addEventListener("input", () => { table.text = search.value; applyTable(); });
  const label = document.createElement("label");
  label.append("Search", search);
  place.append(label);
  FILTERS.forEach((key) => {
    const all = [...new Set(table.rows.map((row) => row[key]))].sort((a, b) => (typeof a === "number" ? a - b : 0));
    if (all.length < 2) return;
    const values = all.filter((value) => value !== "");
    const select = document.createElement("select");
    select.append(new Option("all", ""), ...values.map((value) => new Option(String(value), String(value))));
    select.addEventListener("change", () => { table.filters[key] = select.value; applyTable(); });
    const wrapper = document.createElement("label");
    wrapper.append(COLUMNS.find((column) => column.key === key).title, select);
    place.append(wrapper);
  });
  showHead();
  applyTable();
}

// Marks the section in view in the list of sections.
function followScroll() {
  const links = new Map([...document.querySelectorAll(".toc a")].map((link) => [link.hash.slice(1), link]));
  const watcher = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    });
  }, { rootMargin: "-10% 0px -80% 0px" });
  document.querySelectorAll("main > section").forEach((section) => watcher.observe(section));
}

// A printed page is light.
let themeBeforePrint = null;
addEventListener("beforeprint", () => {
  themeBeforePrint = themeName();
  if (themeBeforePrint === "dark" && !document.documentElement.classList.contains("one-figure")) { setTheme("light"); redrawAll(); }
});
addEventListener("afterprint", () => { if (themeBeforePrint === "dark" && themeName() === "light") { setTheme("dark"); redrawAll(); } });
let lastWidth = innerWidth;
addEventListener("resize", () => { if (innerWidth !== lastWidth) { lastWidth = innerWidth; clearTimeout(followScroll.timer); followScroll.timer = setTimeout(redrawAll, 150); } });

// Imported results have no sections for what only a study's own runs can have.
const SECTIONS = {
  results: resultSection, gains: gainMapSection, short: exhibits, map: modelMapSection, properties: propertySection, layers: layerSection,
  dimension: dimensionSection, forgetting: forgettingSection, directions: directionSection, losses: lossSection,
};
Object.entries(SECTIONS).forEach(([name, fill]) => { if (document.getElementById(name)) fill(); });
saveMenus();
followScroll();
performance.mark("usable");
Promise.resolve(working).then(() => { document.documentElement.dataset.drawn = String(views.size); });
