// Which property of the data goes with gain? Panels of points, and one chart that compares all properties.
const VARIANTS = [["raw", "all points"], ["within_model", "between datasets"], ["within_data", "between models"]];
const MEAN_OF_BENCHMARKS = "mean over benchmarks";
// Long names of properties are broken at the last space before the middle of a narrow page's margin.
const IN_TWO_LINES = "length(datum.label) > 21 ? split(replace(datum.label, regexp('^(.{8,20}) '), '$1|'), '|') : datum.label";

// Subtracts from x and y the mean of the rows that agree in model (or data) and benchmark, as `associations` does.
function demeaned(rows, variant) {
  if (variant === "raw") return rows;
  const key = (row) => `${variant === "within_model" ? row.model : row.data} ${row.benchmark}`;
  const sums = new Map();
  rows.forEach((row) => {
    const sum = sums.get(key(row)) ?? { x: 0, y: 0, n: 0 };
    sums.set(key(row), { x: sum.x + row.x, y: sum.y + row.y, n: sum.n + 1 });
  });
  return rows.map((row) => {
    const sum = sums.get(key(row));
    return { ...row, x: row.x - sum.x / sum.n, y: row.y - sum.y / sum.n };
  });
}

const correlationText = (row) => `${minus(row.estimate.toFixed(2))} ${decimalInterval(row.low, row.high)}`;

function propertySection() {
  if (!pointRows.length) {
    explain("properties", "No property of a dataset was measured, or no single-dataset cell has a gain yet. Under `measures` in the study file, `dataset`, `description` and `similarity` switch them on.");
    hideFigures("predictors");
    return;
  }
  const setting = selector("properties", "Setting", choicesOf(pointRows, "setting"), settingOf(pointRows), refill);
  const method = selector("properties", "Method", choicesOf(pointRows, "method"), distinct(pointRows, "method")[0], show);
  const benchmarks = choicesOf(associationRows, "benchmark", MEAN_OF_BENCHMARKS);
  const benchmark = selector("properties", "Benchmark", benchmarks, first(benchmarks, AVERAGE), show);
  const variant = selector("properties", "Compared", VARIANTS.map(([, text], i) => [i, text]), 0, show);

  function refill() {
    const rows = pointRows.filter((row) => row.setting === setting());
    method.fill(choicesOf(rows, "method"), rows[0].method);
    show();
  }

  function show() {
    const here = (row) => row.setting === setting() && row.method === method();
    const chosen = pointRows.filter((row) => here(row) && (benchmark() === POOLED ? row.benchmark !== AVERAGE : row.benchmark === benchmark()));
    const related = associationRows.filter((row) => here(row) && row.benchmark === benchmark() && nameOf("statistic", row.statistic) === "spearman");
    showPanels(chosen, related);
    showPredictors(related);
  }

  function showPanels(chosen, related) {
    const key = VARIANTS[variant()][0];
    const panels = payload.predictors.filter((item) => item.is_main).map((item) => {
      const rows = chosen.filter((row) => isNumber(row[item.key])).map((row) => ({ ...row, x: row[item.key], y: 100 * row.gain }));
      const row = related.find((entry) => nameOf("predictor", entry.predictor) === item.key && nameOf("variant", entry.variant) === key);
      return { item, rows: demeaned(rows, key), row };
    }).filter((panel) => panel.rows.length);
    if (!panels.length) {
      explain("properties", "No cell of this choice has a gain.");
      return;
    }
    draw("properties", "properties", [], (spec, theme) => fillPanels(spec, theme, panels, key));
    const size = panels[0].row;
    const minusMean = key === "raw" ? "" : ` Both axes: difference from the mean of ${key === "within_model" ? "the model" : "the dataset"}${benchmark() === POOLED ? " on the benchmark" : ""}.`;
    const rests = size ? `, ${plural(size.num_models, "model")}, ${plural(size.num_datasets, "dataset")}` : "";
    const sizes = new Set(panels.map((panel) => panel.rows.length));
    const numbers = sizes.size === 1 ? plural(panels[0].rows.length, "point") : panels.map((panel) => `${panel.rows.length.toLocaleString("en")} (${panel.item.label})`).join(", ");
    caption("properties", `One mark per model and dataset${benchmark() === POOLED ? " and benchmark" : ""}: n = ${numbers}${rests}, final epoch, ${names.settings[setting()]}. Under each title Spearman's correlation and its 95\u00a0% interval.${minusMean}`);
  }

  function showPredictors(related) {
    const known = related.filter((row) => isNumber(row.estimate));
    if (!known.length) {
      explain("predictors", "A correlation needs at least five points that differ.");
      return;
    }
    const labels = new Map(payload.predictors.map((item, i) => [item.key, { text: item.label, order: i }]));
    const rows = known.map((row) => ({
      predictor: labels.get(nameOf("predictor", row.predictor)).text,
      order: labels.get(nameOf("predictor", row.predictor)).order,
      variant: VARIANTS.find(([key]) => key === nameOf("variant", row.variant))[1],
      place: row.variant,
      estimate: row.estimate, low: row.low ?? row.estimate, high: row.high ?? row.estimate,
      interval_text: decimalInterval(row.low, row.high),
      p_text: isNumber(row.p_value) ? `${row.p_value.toFixed(3)} (${row.p_adjusted.toFixed(3)} adjusted)` : "none",
      n_text: `${plural(row.num_rows, "point")}, ${plural(row.num_models, "model")}, ${plural(row.num_datasets, "dataset")}`,
    })).sort((a, b) => a.order - b.order || a.place - b.place);
    const num = new Set(rows.map((row) => row.predictor)).size;
    draw("predictors", "predictors", rows, (spec) => {
      spec.height = 46 * num;
      if (document.getElementById("chart-predictors").clientWidth < 560) spec.layer.slice(1).forEach((layer) => {
        Object.assign(layer.encoding.y.axis, { labelLimit: 140, labelExpr: IN_TWO_LINES, labelLineHeight: 13 });
        layer.encoding.color.legend.columns = 1;
      });
    });
    const open = known.some((row) => !isNumber(row.low)) ? " Without a line: fewer than 3 models or datasets, so no interval." : "";
    const absent = [...new Set(related.filter((row) => !isNumber(row.estimate) && row.null_reason >= 0).map((row) => names.null_reasons[row.null_reason]))];
    const reasons = absent.length ? ` Where a mark is missing: ${absent.join("; ")}.` : "";
    caption("predictors", `Spearman's correlation with gain, 95\u00a0% intervals that resample models and datasets; further from 0 goes more closely with gain. p adjusted for ${plural(num, "property").replace("propertys", "properties")} (Benjamini and Hochberg).${open}${reasons}`);
  }
  refill();
}

// Copies the one panel of the specification for each property and lays the panels out to the width of the page.
function fillPanels(spec, theme, panels, variant) {
  const box = document.getElementById("chart-properties").clientWidth;
  const columns = Math.min(panels.length, box >= 780 ? 3 : box >= 520 ? 2 : 1);
  const width = Math.max(190, Math.floor((box - 30) / columns) - 66);
  const [pattern] = spec.concat;
  spec.columns = columns;
  spec.concat = panels.map(({ item, rows, row }, i) => {
    const panel = JSON.parse(JSON.stringify(pattern));
    const isLog = item.is_log && variant === "raw";
    spec.datasets[`rows${i}`] = rows.map((entry) => ({
      x0: isLog ? Math.exp(entry.x) : entry.x, y: entry.y,
      model: nameOf("model", entry.model), data: nameOf("data", entry.data),
      benchmark: entry.benchmark === AVERAGE ? MEAN_OF_BENCHMARKS : nameOf("benchmark", entry.benchmark),
    }));
    panel.data = { name: `rows${i}` };
    panel.width = width;
    const title = item.label[0].toUpperCase() + item.label.slice(1);
    panel.title = { text: title, subtitle: row && isNumber(row.estimate) ? correlationText(row) : "no correlation", anchor: "start", color: theme.ink, subtitleColor: theme.soft, font: FONT, subtitleFont: FONT, fontSize: 13, fontWeight: 600, subtitleFontSize: 12, offset: 8 };
    const points = panel.layer[1];
    points.encoding.x.title = variant === "raw" ? `${item.axis}${isLog ? " (log scale)" : ""}` : `${item.is_log ? "ln " : ""}${item.axis.replace(/^([A-Z])(?=[a-z])/, (letter) => (item.is_log ? letter.toLowerCase() : letter))}, from the mean`;
    points.encoding.x.scale = { ...points.encoding.x.scale, ...(isLog ? { type: "log" } : { type: "linear", zero: false }) };
    points.encoding.x.axis = { format: "~g", tickCount: 5, labelOverlap: "greedy", labelSeparation: 6 };
    if (i % columns) points.encoding.y.title = null;
    else points.encoding.y.title = variant === "raw" ? "Gain, points" : "Gain, points, from the mean";
    if (rows.length > 400) { points.mark.size = 22; points.mark.opacity = 0.55; }
    return panel;
  });
}
