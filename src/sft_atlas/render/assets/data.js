// Decodes the embedded payload: columns of numbers and of indices into `names` become rows of named values.
async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text());
}
if (typeof DecompressionStream === "undefined") {
  document.getElementById("old-browser").hidden = false;
  return;
}
const payload = await inflated(document.getElementById("payload").textContent);
const specs = JSON.parse(document.getElementById("specs").textContent);
const names = payload.names;
const NAMED = {
  setting: "settings", method: "methods", model: "models", data: "data", benchmark: "benchmarks", unit: "units",
  variant: "variants", statistic: "statistics", state: "states", schedule: "schedules", block: "blocks", reason: "reasons",
  gain_reason: "reasons", flags: "flags", predictor: "predictors", first: "predictors", second: "predictors", norm: "norms",
  pooling: "poolings", quantity: "quantities", kind: "kinds", relation: "relations",
};
const AVERAGE = -1;
const POOLED = -2;

function tableRows(table) {
  const columns = Object.keys(table);
  const rows = Array.from({ length: columns.length ? table[columns[0]].length : 0 }, () => ({}));
  columns.forEach((name) => table[name].forEach((value, i) => { rows[i][name] = value; }));
  return rows;
}

// Curves: what they run over stands once in `grids`, and each curve has its place there.
function curvesOf(table, over) {
  return tableRows(table.curves).map((row) => ({ ...row, [over]: table.grids[row[over]] }));
}

const nameOf = (column, index) => (index >= 0 ? names[NAMED[column]][index] : "");
const mapRows = tableRows(payload.map);
const pairRows = tableRows(payload.pairs);
const pointRows = tableRows(payload.points).map((row) => ({ ...pairRows[row.pair], ...row }));
const associationRows = tableRows(payload.associations);
const layerCurves = curvesOf(payload.layers, "position");
const dimensionCurves = curvesOf(payload.dimensions, "position");
const scanCurves = curvesOf(payload.scans, "n1");
const spectrumCurves = curvesOf(payload.spectra, "position");
const curveRows = tableRows(payload.curves);
const cellRows = tableRows(payload.cells);
const forgettingRows = tableRows(payload.forgetting).map((row) => ({ ...cellRows[row.cell], ...row }));
const forgettingAssociationRows = tableRows(payload.forgetting_associations);
const updateRows = tableRows(payload.updates).map((row) => ({ ...row, setting: cellRows[row.a].setting, model: cellRows[row.a].model }));
const updateGroupRows = tableRows(payload.update_groups);

const distinct = (rows, column) => [...new Set(rows.map((row) => row[column]))].sort((a, b) => a - b);
const isNumber = (value) => value !== null && value !== undefined;
const minus = (text) => text.replace(/-/g, "\u2212");

function signed(fraction, digits = 1) {
  if (!isNumber(fraction)) return "\u2014";
  const text = (100 * fraction).toFixed(digits);
  if (Number(text) === 0) return (0).toFixed(digits);
  return (fraction > 0 ? "+" : "") + minus(text);
}

// A bound that is not 0 is not shown as 0.
const bound = (value) => signed(value, value !== 0 && Math.abs(value) < 0.0005 ? 2 : 1);
const pointsInterval = (low, high) => (isNumber(low) ? `[${bound(low)}, ${bound(high)}]` : "none: too few to resample");
const decimalInterval = (low, high) =>
  isNumber(low) ? minus(`[${low.toFixed(2)}, ${high.toFixed(2)}]`) : "none: fewer than 3 models or datasets";
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

function restsOn(row) {
  const parts = [];
  if (isNumber(row.num_models)) parts.push(plural(row.num_models, "model"));
  if (isNumber(row.num_datasets)) parts.push(plural(row.num_datasets, "dataset"));
  if (isNumber(row.num_trajectories)) parts.push(plural(row.num_trajectories, "training run"));
  return parts.join(", ");
}
