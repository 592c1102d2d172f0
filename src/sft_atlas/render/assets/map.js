// Draws the map of all models, and shows what the models that are chosen on it gained.
const modelMap = payload.model_map;
const MAP_METHODS = { tsne: "t-SNE", pca: "principal components", mds: "metric scaling (MDS)" };
const MAP_VARIANTS = { whole: "question and answer", prompt: "question", answer: "answer, given the question" };
const MAP_COLOURS = [["model", "base model"], ["family", "family"], ["data", "data"], ["method", "method"], ["samples", "samples"], ["epoch", "epoch"], ["gain", "mean gain"]];
const MAP_PATHS = [[0, "none"], [1, "through the epochs"], [2, "from the base model"]];
const RAMPS = { light: ["#b4d0ea", "#08335f"], dark: ["#2f4f6e", "#cfe6ff"] };
const MAX_LISTED = 200;

function modelMapSection() {
  if (!modelMap) return;
  const marks = mapMarks();
  const tuned = marks.filter((mark) => !mark.isBase);
  const variants = [...new Set(modelMap.maps.map((map) => map.variant))];
  const methods = [...new Set(modelMap.maps.map((map) => map.method))];
  const colours = MAP_COLOURS.map(([key, text], i) => [i, text, key]).filter(([, , key]) => new Set(tuned.map((mark) => mark[key])).size > 1);
  const hasRuns = new Set(tuned.map((mark) => mark.run)).size < tuned.length;
  let chosen = null;

  const firstDrawn = modelMap.maps.find((map) => map.x);
  const method = selector("map", "Layout", methods.map((key, i) => [i, MAP_METHODS[key]]), methods.indexOf(firstDrawn.method), redraw);
  const variant = selector("map", "Texts", variants.map((key, i) => [i, MAP_VARIANTS[key]]), variants.indexOf(firstDrawn.variant), redraw);
  const colour = selector("map", "Colour", colours, colours[0]?.[0], () => { group.fill(groups(), -1); redraw(); });
  const path = selector("map", "Paths", MAP_PATHS, hasRuns ? 1 : 0, redraw);
  const group = selector("map", "Choose", groups(), -1, redraw);
  document.getElementById("map-clear").addEventListener("click", () => { group.fill(groups(), -1); redraw(); });
  document.getElementById("map-rows").addEventListener("click", () => showCells(new Set(chosen.map((mark) => mark.cell)), "Rows of the models chosen on the map"));

  function find(i, key) { return modelMap.maps.find((map) => map.variant === variants[i] && map.method === key); }
  function colourKey() { return MAP_COLOURS[colour()]?.[0] ?? "model"; }

  function groups() {
    const key = MAP_COLOURS[Number.isInteger(colour()) ? colour() : 0]?.[0];
    if (key === "gain") return [[-1, "a box on the map"]];
    return [[-1, "a box on the map"], ...mapDomain(tuned, key).map((value, i) => [i, mapLabel(key, value)])];
  }

  function redraw() {
    const map = find(variant(), methods[method()]);
    choose(null);
    if (!map.x) {
      explain("map", `${map.reason}.`);
      return;
    }
    placeMarks(marks, map, modelMap.from_base[map.variant]);
    const key = colourKey();
    const domain = key === "gain" ? [] : mapDomain(tuned, key);
    const picked = group() >= 0 ? domain[group()] : null;
    draw("map", "model-map", [], (spec, theme) => fillMap(spec, theme, { marks, key, domain, picked, paths: path() }), (view) => {
      view.addSignalListener("brush", (_, box) => {
        clearTimeout(redraw.timer);
        redraw.timer = setTimeout(() => choose(box.x ? inside(marks, box) : picked === null ? null : tuned.filter((mark) => mark[key] === picked)), 120);
      });
    });
    caption("map", mapCaption(map));
    if (picked !== null) choose(tuned.filter((mark) => mark[key] === picked));
  }

  function choose(found) {
    chosen = found && found.length ? found : null;
    document.getElementById("map-chosen").hidden = !chosen;
    document.getElementById("map-hint").hidden = Boolean(chosen);
    if (chosen) showChosen(chosen);
  }
  redraw();
}

// One entry per model on the map, with its labels and its mean gain over the common benchmarks in points.
function mapMarks() {
  const common = new Set(payload.common_benchmarks);
  const gains = new Map();
  table.rows.forEach((row) => {
    if (!isNumber(row.gain)) return;
    if (!gains.has(row.index)) gains.set(row.index, []);
    gains.get(row.index).push(row);
  });
  return modelMap.cell.map((index, i) => {
    const cell = cellRows[index];
    const rows = (gains.get(index) ?? []).map((row) => ({ ...row, points: 100 * row.gain / (isRating(row) ? modelMap.rating_range : 1) }));
    const shared = rows.filter((row) => common.has(row.benchmark));
    const isBase = nameOf("method", cell.method) === "base";
    return {
      cell: index, isBase, rows, run: isBase ? `base ${i}` : modelMap.run[i], model: nameOf("model", cell.model), family: modelMap.families[modelMap.family[i]],
      data: nameOf("data", cell.data), method: nameOf("method", cell.method), samples: cell.samples, epoch: cell.epoch,
      gain: shared.length && shared.length === common.size ? shared.reduce((sum, row) => sum + row.points, 0) / shared.length : null,
    };
  });
}

function placeMarks(marks, map, fromBase) {
  const added = new Set(map.added);
  marks.forEach((mark, i) => Object.assign(mark, { x: map.x[i], y: map.y[i], isAdded: added.has(i), fromBase: fromBase[i] }));
}

const mapDomain = (marks, key) => [...new Set(marks.map((mark) => mark[key]))].filter((value) => isNumber(value) && value !== "")
  .sort((a, b) => (typeof a === "number" ? a - b : key === "data" || key === "model" ? 0 : String(a).localeCompare(String(b), "en")));
const mapLabel = (key, value) => (key === "samples" ? `${count(value)} samples` : key === "epoch" ? `epoch ${value}` : String(value));
const inside = (marks, box) => marks.filter((mark) => mark.x >= Math.min(...box.x) && mark.x <= Math.max(...box.x) && mark.y >= Math.min(...box.y) && mark.y <= Math.max(...box.y));

function mapRange(key, size, theme) {
  if (key !== "samples" && key !== "epoch") return Array.from({ length: size }, (_, i) => theme.category[i % theme.category.length]);
  const [from, to] = RAMPS[themeName()].map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  return Array.from({ length: size }, (_, i) => `rgb(${from.map((value, k) => Math.round(value + (to[k] - value) * (size > 1 ? i / (size - 1) : 1))).join(",")})`);
}

// Puts marks, paths and colours into the specification, and makes one unit as wide as it is high.
function fillMap(spec, theme, { marks, key, domain, picked, paths }) {
  const range = mapRange(key, domain.length, theme);
  const inkOf = (mark) => range[domain.indexOf(mark[key])] ?? theme.soft;
  const shown = (mark) => ({
    x: mark.x, y: mark.y, group: key === "gain" ? mark.gain : mapLabel(key, mark[key]), fill: mark.isAdded ? 0.05 : 1,
    model: mark.model, data: mark.data, method: mark.method, samples: isNumber(mark.samples) ? count(mark.samples) : "\u2014", epoch: mark.epoch,
    away: isNumber(mark.fromBase) ? `${mark.fromBase} bits per byte` : "not known", gain_text: isNumber(mark.gain) ? `${minus(mark.gain.toFixed(1))} points` : "not known",
    placed: mark.isAdded ? "added after the fit" : "of the fit", is_picked: mark[key] === picked,
    ink: key === "model" || key === "family" ? inkOf(mark) : theme.ink,
  });
  const tuned = marks.filter((mark) => !mark.isBase);
  const bases = marks.filter((mark) => mark.isBase);
  spec.datasets.rows = tuned.map(shown);
  spec.datasets.bases = bases.map(shown);
  const baseOf = new Map(bases.map((mark) => [mark.model, mark]));
  const isFixed = key !== "epoch" && key !== "gain";
  const step = (mark, order, run, ink) => ({ x: mark.x, y: mark.y, path: run, order, ink });
  spec.datasets.paths = !paths ? [] : tuned.filter((mark) => picked === null || mark[key] === picked).flatMap((mark) => {
    const ink = isFixed ? inkOf(mark) : theme.soft;
    const base = paths === 2 ? baseOf.get(mark.model) : null;
    return [...(base ? [step(base, 0, mark.run, ink)] : []), step(mark, mark.epoch, mark.run, ink)];
  });
  const [lines, points, stars, halo, names] = spec.layer;
  const width = document.getElementById("chart-map").clientWidth - 14;
  const height = Math.max(320, Math.min(540, Math.round(0.6 * width)));
  Object.assign(spec, { width, height });
  const domains = mapWindow(marks, width, height);
  [lines, points, stars, halo, names].forEach((layer) => ["x", "y"].forEach((axis) => { layer.encoding[axis].scale = { nice: false, zero: false, domain: domains[axis] }; }));
  placeLabels(spec.datasets.bases, domains, width);
  const legend = { orient: "bottom", title: null, symbolOpacity: 1 };
  points.encoding.fill = key === "gain"
    ? { field: "group", type: "quantitative", legend: { ...legend, title: "Mean gain, points", gradientLength: 220, format: "+d" }, scale: { range: "diverging", domainMid: 0, clamp: true, interpolate: "rgb", domain: gainDomain(tuned) } }
    : { field: "group", type: "nominal", sort: null, legend, scale: { domain: domain.map((value) => mapLabel(key, value)), range } };
  points.encoding.stroke = points.encoding.fill;
  if (picked !== null) points.encoding.opacity = { condition: { test: "datum.is_picked", value: 0.9 }, value: 0.1 };
  if (width < 520) { points.mark.size = 30; stars.mark.size = 130; }
  if (tuned.length > 400) { points.mark.size = width < 520 ? 14 : 26; lines.mark.strokeWidth = 0.8; lines.mark.opacity = 0.3; }
  stars.mark.shape = SHAPES[8];
  stars.mark.stroke = theme.own;
  halo.mark.stroke = painting ? theme.page : getComputedStyle(document.documentElement).getPropertyValue("--page").trim();
  halo.mark.fill = halo.mark.stroke;
  names.mark.fill = theme.ink;
  spec.view = { stroke: theme.line, cornerRadius: 6, cursor: "crosshair" };
}

function gainDomain(tuned) {
  const sizes = tuned.filter((mark) => isNumber(mark.gain)).map((mark) => Math.abs(mark.gain)).sort((a, b) => a - b);
  const limit = Math.max(1, Math.ceil(sizes[Math.floor(0.98 * (sizes.length - 1))] ?? 1));
  return [-limit, limit];
}

function mapWindow(marks, width, height) {
  const ends = (axis) => [Math.min(...marks.map((mark) => mark[axis])), Math.max(...marks.map((mark) => mark[axis]))];
  const [x, y] = [ends("x"), ends("y")];
  const unit = Math.max((x[1] - x[0]) / (width - 60), (y[1] - y[0]) / (height - 50), 1e-9);
  const around = ([low, high], size) => [(low + high - unit * size) / 2, (low + high + unit * size) / 2];
  return { x: around(x, width), y: around(y, height) };
}

// Puts each base model's name above or below its star, where no other name is; a name without room is in the tooltip.
function placeLabels(bases, domains, width) {
  const unit = (domains.x[1] - domains.x[0]) / width;
  const taken = [];
  [...bases].sort((a, b) => b.y - a.y).forEach((base) => {
    const half = (3.6 * base.model.length + 3) * unit;
    const seats = [[0, 18], [0, -19], [0, 31], [0, -32], [14 + half / unit, 0], [-14 - half / unit, 0], [0, 44], [0, -45]];
    const free = seats.map(([dx, dy]) => ({ x: base.x + dx * unit, y: base.y + dy * unit }))
      .find((seat) => taken.every((other) => Math.abs(other.x - seat.x) > other.half + half || Math.abs(other.y - seat.y) > 13 * unit));
    Object.assign(base, { label: free ? base.model : "", label_x: (free ?? base).x, label_y: (free ?? base).y });
    if (free) taken.push({ ...free, half });
  });
}

// What was done and how far the picture can be trusted, in one line under it.
function mapCaption(map) {
  const two = (value) => (isNumber(value) ? value.toFixed(2) : "none");
  const reading = {
    tsne: "Only who is near whom can be read off a t-SNE map: distances between clusters, and their sizes, mean nothing.",
    pca: `This plane holds ${isNumber(map.explained) ? Math.round(100 * map.explained) : 0}\u00a0% of the squared distances${isNumber(map.dimensions_90) ? ` (90\u00a0% takes ${plural(map.dimensions_90, "dimension")})` : ""}; models that look close can be far apart in the others.`,
    mds: "All distances are fitted as well as a plane can; the stress says how well that is (0: exactly).",
  }[map.method];
  const clipped = isNumber(map.clip_value) ? `, log-likelihoods below ${minus(String(map.clip_value))} nats (the lowest ${100 * map.clip_quantile}\u00a0%) raised to it` : ", not clipped";
  const leftOut = map.num_left_out ? ` (${plural(map.num_left_out, "text")} left out: cut off for some model, or without this part)` : "";
  const later = map.num_added ? ` ${map.num_added} came after the map was fitted (hollow) and moved no other.` : "";
  const tuning = map.method === "tsne" ? `, perplexity ${map.perplexity}, seed ${map.seed}` : "";
  return `${plural(map.num_cells, "model")} on ${plural(map.num_texts, "text")}${leftOut}${clipped}${tuning}.${later} Trustworthiness ${two(map.trustworthiness)} (${plural(map.num_neighbours, "neighbour")}; 1: all are true), stress ${two(map.stress)}, rank correlation of distances ${minus(two(map.rank_correlation))}. ${reading}`;
}

// Names the chosen models, and draws the gain map of them alone.
function showChosen(chosen) {
  const tuned = chosen.filter((mark) => !mark.isBase);
  const most = (key) => {
    const counts = new Map();
    tuned.forEach((mark) => counts.set(mark[key], (counts.get(mark[key]) ?? 0) + 1));
    const ordered = [...counts].sort((a, b) => b[1] - a[1]);
    const shown = ordered.slice(0, 4).map(([value, times]) => `${value} (${times})`).join(", ");
    return ordered.length > 4 ? `${shown} and ${ordered.length - 4} more` : shown;
  };
  const numBases = chosen.length - tuned.length;
  const parts = [plural(tuned.length, "fine-tuned model") + (numBases ? ` and ${plural(numBases, "base model")}` : "")];
  if (tuned.length) parts.push(`Base models: ${most("model")}. Data: ${most("data")}. Methods: ${most("method")}. Epochs: ${most("epoch")}.`);
  document.getElementById("map-summary").textContent = `Chosen: ${parts.join(". ")}`;
  listChosen(chosen);
  const rows = chosenGains(tuned);
  if (!rows.length) {
    explain("map-gains", "None of the chosen models has a gain.");
    return;
  }
  const limit = Math.max(1, ...rows.filter((row) => isNumber(row.gain)).map((row) => Math.abs(row.gain)));
  draw("map-gains", "gain-map", rows, (spec, theme) => {
    const box = document.getElementById("chart-map-gains").clientWidth - 190;
    spec.width = { step: Math.max(46, Math.min(84, Math.floor(box / new Set(rows.map((row) => row.benchmark)).size))) };
    spec.layer[0].encoding.color.scale.domain = [-Math.ceil(limit), Math.ceil(limit)];
    spec.layer[1].mark.stroke = theme.own;
  });
  caption("map-gains", "Mean gain in points of the chosen models alone, over whichever methods, sizes and epochs they have: a picture of the choice, without intervals. The gain map above compares like with like.");
}

function chosenGains(tuned) {
  const sums = new Map();
  tuned.forEach((mark) => mark.rows.forEach((row) => {
    const key = `${mark.data}\n${row.benchmark}`;
    const sum = sums.get(key) ?? { data: mark.data, benchmark: row.benchmark, total: 0, times: 0 };
    sum.total += row.points;
    sum.times += 1;
    sums.set(key, sum);
  }));
  const orderOf = (list) => new Map(list.map((name, i) => [name, i]));
  const [dataOrder, benchmarkOrder] = [orderOf(names.data), orderOf(names.benchmarks)];
  const limit = Math.max(1, ...[...sums.values()].map((sum) => Math.abs(sum.total / sum.times)));
  return [...sums.values()].map(({ data, benchmark, total, times }) => {
    const gain = total / times;
    return {
      data, benchmark, data_order: dataOrder.get(data), order: benchmarkOrder.get(benchmark), gain, is_own: false, is_clear: true,
      label: signed(gain / 100, Math.abs(gain) < 9.95 ? 1 : 0), gain_text: `${signed(gain / 100)} points`, interval_text: "none: a choice is no sample", n_text: plural(times, "model"),
      get ink() {
        const theme = THEMES[themeName()];
        const isStrong = Math.abs(gain) / limit > (themeName() === "dark" ? 0.5 : 0.78);
        return isStrong === (themeName() === "dark") ? theme.darkText : theme.lightText;
      },
    };
  });
}

function listChosen(chosen) {
  const cell = (tag, text, className = "") => Object.assign(document.createElement(tag), { textContent: text, className });
  const head = document.createElement("tr");
  head.append(...["Model", "Data", "Method", "Samples", "Epoch"].map((text) => cell("th", text)), cell("th", "From the base, bits per byte", "num"), cell("th", "Mean gain, points", "num"));
  const lines = chosen.slice(0, MAX_LISTED).map((mark) => {
    const line = document.createElement("tr");
    line.append(cell("th", mark.model), ...[mark.data, mark.method, isNumber(mark.samples) ? count(mark.samples) : "\u2014", mark.epoch].map((text) => cell("td", text)),
      cell("td", isNumber(mark.fromBase) ? String(mark.fromBase) : "\u2014", "num"), cell("td", isNumber(mark.gain) ? signed(mark.gain / 100) : "\u2014", "num"));
    return line;
  });
  const [thead, tbody] = [document.createElement("thead"), document.createElement("tbody")];
  thead.append(head);
  tbody.append(...lines);
  document.getElementById("map-list").replaceChildren(thead, tbody);
  document.getElementById("map-list-title").textContent = chosen.length > MAX_LISTED ? `The first ${MAX_LISTED} of them` : "The chosen models";
}
