// The table of all results: filters, sorting, pages and download. It holds every row in memory and shows 25.
const PAGE_SIZE = 25;

function resultRows() {
  const rows = [];
  const scores = payload.scores;
  for (let i = 0; i < scores.cell.length; i += 1) {
    const cell = cellRows[scores.cell[i]];
    const isBase = nameOf("method", cell.method) === "base";
    rows.push({
      index: scores.cell[i],
      cell: cell.cell,
      model: nameOf("model", cell.model),
      data: nameOf("data", cell.data),
      method: nameOf("method", cell.method),
      samples: cell.samples,
      schedule: nameOf("schedule", cell.schedule),
      epoch: cell.epoch,
      seed: cell.seed,
      benchmark: nameOf("benchmark", scores.benchmark[i]),
      score: scores.score[i],
      standard_error: scores.standard_error[i],
      score_low: scores.score_low[i],
      score_high: scores.score_high[i],
      base_score: scores.base_score[i],
      gain: isBase ? null : scores.gain[i],
      gain_se: isBase ? null : scores.gain_se[i],
      gain_low: isBase ? null : scores.gain_low[i],
      gain_high: isBase ? null : scores.gain_high[i],
      gain_reason: isBase ? "" : nameOf("gain_reason", scores.gain_reason[i]),
      flags: nameOf("flags", scores.flags[i]).replaceAll(";", "; "),
      num_items: scores.num_items[i],
      num_scored: scores.num_scored[i],
      num_truncated: scores.num_truncated[i],
      num_cut: scores.num_cut[i],
      num_unfollowed: scores.num_unfollowed[i],
      state: nameOf("state", cell.state),
      reason: nameOf("reason", scores.reason[i]),
    });
  }
  return [...rows.filter((row) => row.method !== "base"), ...rows.filter((row) => row.method === "base")];
}

// Ratings lie on a scale of their own; all other scores are fractions, shown in percent.
const isRating = (row) => names.ratings.includes(row.benchmark);
const percent = (value) => (isNumber(value) ? (100 * value).toFixed(1) : "");
const grade = (value) => (isNumber(value) ? value.toFixed(2) : "");
const signedGrade = (value) => (isNumber(value) ? (value > 0 ? "+" : "") + minus(value.toFixed(2)) : "");
const scoreText = (value, row) => (isRating(row) ? grade(value) : percent(value));
const gainText = (value, row) => (isRating(row) ? signedGrade(value) : isNumber(value) ? bound(value) : "");
const count = (value) => (isNumber(value) ? value.toLocaleString("en") : "");
const plain = (value) => (isNumber(value) ? String(value) : "");
// A number without an interval says so: it is no certainty.
const withInterval = (text, low, high, show) => (!text ? ["", ""] : isNumber(low) ? [text, `[${show(low)}, ${show(high)}]`] : [text, "no interval"]);
// A column without a title is only in the download.
const COLUMNS = [
  { key: "model", title: "Model" },
  { key: "data", title: "Data" },
  { key: "method", title: "Method" },
  { key: "samples", title: "Samples", show: count },
  { key: "schedule", title: "Schedule" },
  { key: "epoch", title: "Epoch", show: plain },
  { key: "seed", title: "Seed", show: plain },
  { key: "benchmark", title: "Benchmark" },
  { key: "score", title: "Score, %", show: (value, row) => withInterval(scoreText(value, row), row.score_low, row.score_high, (end) => scoreText(end, row)) },
  { key: "standard_error", title: null },
  { key: "score_low", title: null },
  { key: "score_high", title: null },
  { key: "base_score", title: "Base, %", show: scoreText },
  { key: "gain", title: "Gain, points", show: (value, row) => withInterval(gainText(value, row), row.gain_low, row.gain_high, (end) => gainText(end, row)) },
  { key: "gain_se", title: null },
  { key: "gain_low", title: null },
  { key: "gain_high", title: null },
  { key: "num_scored", title: "Items", show: count },
  { key: "state", title: "State" },
  { key: "flags", title: "Flags" },
  { key: "reason", title: null },
  { key: "gain_reason", title: null },
  { key: "num_items", title: null },
  { key: "num_truncated", title: null },
  { key: "num_cut", title: null },
  { key: "num_unfollowed", title: null },
];
// Where a score is missing, its reason stands across these columns.
const MEASURED = ["score", "base_score", "gain", "num_scored"];
const FILTERS = ["model", "data", "method", "benchmark", "epoch", "state", "flags"];

const table = { rows: resultRows(), shown: [], page: 0, sort: null, ascending: true, finding: null, chosen: null, filters: {}, text: "" };

function visibleColumns() {
  // Base models have no schedule; a flag that all rows have is still to be seen.
  const varies = (key) => new Set(table.rows.filter((row) => row.method !== "base").map((row) => row[key]).concat(key === "flags" ? [""] : [])).size > 1;
  return COLUMNS.filter((column) => column.title && (!["samples", "schedule", "seed", "state", "flags"].includes(column.key) || varies(column.key)));
}
const shownColumns = visibleColumns();

function compare(a, b) {
  if (!isNumber(a) || a === "") return !isNumber(b) || b === "" ? 0 : 1;
  if (!isNumber(b) || b === "") return -1;
  const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return table.ascending ? order : -order;
}

function applyTable() {
  const words = table.text.toLowerCase().split(/\s+/).filter(Boolean);
  const cells = table.finding === null ? table.chosen : new Set(payload.findings[table.finding]);
  const benchmarks = table.finding === null ? [] : payload.finding_benchmarks[table.finding];
  table.shown = table.rows.filter((row) => {
    if (cells && (!cells.has(row.index) || (benchmarks.length && !benchmarks.includes(row.benchmark)))) return false;
    if (FILTERS.some((key) => table.filters[key] && String(row[key]) !== table.filters[key])) return false;
    if (!words.length) return true;
    const text = `${row.model} ${row.data} ${row.method} ${row.benchmark} ${row.flags} ${row.reason} ${row.cell}`.toLowerCase();
    return words.every((word) => text.includes(word));
  });
  if (table.sort) table.shown.sort((a, b) => compare(a[table.sort], b[table.sort]));
  table.page = 0;
  showTable();
}

function showTable() {
  const pages = Math.max(1, Math.ceil(table.shown.length / PAGE_SIZE));
  table.page = Math.min(Math.max(table.page, 0), pages - 1);
  const body = document.createDocumentFragment();
  table.shown.slice(table.page * PAGE_SIZE, (table.page + 1) * PAGE_SIZE).forEach((row) => {
    const line = document.createElement("tr");
    const isAbsent = !isNumber(row.score);
    shownColumns.forEach((column) => {
      if (isAbsent && MEASURED.includes(column.key) && column.key !== "score") return;
      const cell = document.createElement(column.key === "model" ? "th" : "td");
      if (column.key === "model") Object.assign(cell, { scope: "row", title: `cell ${row.cell}` });
      if (column.show) cell.className = "num";
      const [text, interval] = [column.show ? column.show(row[column.key], row) : row[column.key]].flat();
      cell.textContent = text || (column.key === "flags" ? "" : "\u2014");
      if (interval) cell.append(" ", Object.assign(document.createElement("small"), { textContent: interval }));
      if (column.key === "flags") cell.className = "notes";
      if (column.key === "gain" && row.gain_reason) cell.title = row.gain_reason;
      if (isAbsent && column.key === "score") {
        Object.assign(cell, { className: "reason", colSpan: MEASURED.length });
        cell.textContent = `\u2014 ${row.reason}`;
      }
      line.append(cell);
    });
    body.append(line);
  });
  document.querySelector("#result-table tbody").replaceChildren(body);
  document.getElementById("result-count").textContent = `${plural(table.shown.length, "row")} of ${table.rows.length.toLocaleString("en")}`;
  document.getElementById("page-place").textContent = `Page ${table.page + 1} of ${pages}`;
  ["page-first", "page-back"].forEach((id) => { document.getElementById(id).disabled = table.page === 0; });
  ["page-next", "page-last"].forEach((id) => { document.getElementById(id).disabled = table.page === pages - 1; });
}

function showHead() {
  const line = document.createElement("tr");
  shownColumns.forEach((column) => {
    const head = document.createElement("th");
    head.scope = "col";
    if (column.show) head.className = "num";
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: column.title });
    button.addEventListener("click", () => {
      table.ascending = table.sort === column.key ? !table.ascending : !column.show;
      table.sort = column.key;
      document.querySelectorAll("#result-table thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", table.ascending ? "ascending" : "descending");
      applyTable();
    });
    head.append(button);
    line.append(head);
  });
  document.querySelector("#result-table thead").replaceChildren(line);
}

function downloadTable() {
  const keys = ["cell", ...COLUMNS.map((column) => column.key)];
  saveFile("results.csv", "text/csv", csvLines([keys, ...table.shown.map((row) => keys.map((key) => row[key]))]));
}

// Shows the rows of some cells alone; null: of all.
function showCells(cells, text) {
  showFinding(null);
  table.chosen = cells;
  const chip = document.getElementById("finding-chip");
  chip.hidden = cells === null;
  chip.textContent = `${text} \u00d7`;
  applyTable();
}

function showFinding(index) {
  table.finding = index;
  table.chosen = null;
  const chip = document.getElementById("finding-chip");
  chip.hidden = index === null;
  chip.textContent = index === null ? "" : "Rows of one answer only \u00d7";
  chip.setAttribute("aria-label", "Show all rows again");
  applyTable();
}

document.getElementById("finding-chip").addEventListener("click", () => showFinding(null));
document.getElementById("download").addEventListener("click", downloadTable);
document.getElementById("page-first").addEventListener("click", () => { table.page = 0; showTable(); });
document.getElementById("page-back").addEventListener("click", () => { table.page -= 1; showTable(); });
document.getElementById("page-next").addEventListener("click", () => { table.page += 1; showTable(); });
document.getElementById("page-last").addEventListener("click", () => { table.page = Infinity; showTable(); });
document.querySelectorAll("[data-finding]").forEach((link) => {
  link.addEventListener("click", () => showFinding(Number(link.dataset.finding)));
});
