// What happened along the depth: weight change and its correlation with gain, intrinsic dimension, directions.
const MEAN_OF_MODELS = "mean over models";
const valueAt = (curve, column, i) => (curve[column] ? curve[column][i] : null);
const intervalText = (low, high, show) => (isNumber(low) ? `[${show(low)}, ${show(high)}]` : "none");
const decimals = (value) => (isNumber(value) ? minus(Number(value.toPrecision(3)).toString()) : "\u2014");

// Models to choose from; where there is one alone, its own curve and the mean are the same.
function modelChoices(curves) {
  const choices = choicesOf(curves, "model", MEAN_OF_MODELS);
  return choices.length === 2 ? choices.filter(([key]) => key !== AVERAGE) : choices;
}

function layerSection() {
  if (!layerCurves.length) {
    explain("layer-twin", "There is no weight-change record of a scored final cell yet. `drift` under `measures` in the study file switches it on.");
    hideFigures("layer-change", "layer-agreement");
    return;
  }
  const setting = selector("layers", "Setting", choicesOf(layerCurves, "setting"), settingOf(layerCurves), refill);
  const method = selector("layers", "Method", choicesOf(layerCurves, "method"), distinct(layerCurves, "method")[0], refillModels);
  const model = selector("layers", "Model", [], AVERAGE, show);
  const norm = selector("layers", "Norm", [[0, "relative to the weights"], [1, "RMS per weight"]], 0, show);

  function refill() {
    const rows = layerCurves.filter((row) => row.setting === setting());
    method.fill(choicesOf(rows, "method"), rows[0].method);
    refillModels();
  }

  function refillModels() {
    const choices = modelChoices(layerCurves.filter((row) => row.setting === setting() && row.method === method()));
    model.fill(choices, choices[0][0]);
    show();
  }

  function show() {
    const isRelative = norm() === 0;
    const curves = layerCurves.filter((row) => row.setting === setting() && row.method === method() && row.norm === norm());
    const scale = isRelative ? 100 : 1;
    const changeText = (value) => (isNumber(value) ? (isRelative ? `${(100 * value).toPrecision(3)} %` : value.toPrecision(3)) : "\u2014");
    const title = isRelative ? "Relative weight change, %" : "RMS weight change";
    const one = curves.find((row) => row.model === model());
    showTwin(one, { scale, changeText, title });
    showModels(curves, { scale, changeText, title });
    showAgreement(curves.find((row) => row.model === AVERAGE));
  }

  function showTwin(curve, unit) {
    const isMean = curve.model === AVERAGE;
    const rows = curve.position.map((position, i) => ({
      position,
      correlation: valueAt(curve, "correlation", i), low: valueAt(curve, "low", i), high: valueAt(curve, "high", i),
      interval_text: intervalText(valueAt(curve, "low", i), valueAt(curve, "high", i), (value) => minus(value.toFixed(2))),
      change: unit.scale * valueAt(curve, "change", i),
      change_low: isNumber(valueAt(curve, "change_low", i)) ? unit.scale * valueAt(curve, "change_low", i) : null,
      change_high: isNumber(valueAt(curve, "change_high", i)) ? unit.scale * valueAt(curve, "change_high", i) : null,
      change_text: unit.changeText(valueAt(curve, "change", i)),
      change_interval_text: intervalText(valueAt(curve, "change_low", i), valueAt(curve, "change_high", i), unit.changeText),
      n_text: restsOn(curve),
    }));
    const hasCorrelation = Boolean(curve.correlation);
    draw("layer-twin", "layer-twin", rows, (spec, theme) => {
      const [left, right] = spec.layer;
      const [blue, orange] = [theme.category[0], theme.category[1]];
      left.layer.slice(1).forEach((layer) => { layer.mark.color = blue; });
      right.layer.forEach((layer) => { layer.mark.color = orange; });
      left.layer.slice(1).forEach((layer) => { layer.encoding.y.axis.titleColor = blue; });
      right.layer.forEach((layer) => { layer.encoding.y.axis.titleColor = orange; layer.encoding.y.title = unit.title; });
      left.layer[2].mark.point.color = blue;
      right.layer[1].mark.point.color = orange;
      if (!hasCorrelation) spec.layer.shift();
    });
    const [blue, orange] = ["Blue: correlation of the change with the mean gain", "orange: the change itself"];
    const unitText = isMean ? "models and datasets, the blue one for all positions at once" : `${nameOf("model", curve.model)}'s datasets alone`;
    const none = hasCorrelation ? (curve.low ? "" : ` No blue band: it takes ${isMean ? "three models and three datasets" : "five datasets"}.`) : " No correlation: it takes three datasets.";
    caption("layer-twin", `${hasCorrelation ? `${blue} (Pearson${isMean ? ", within models" : ""}); ${orange}` : "The change of the weights"}. ${restsOn(curve)}, final epoch. Bands: 95\u00a0%, resampling ${unitText}.${none}`);
  }

  function showModels(curves, unit) {
    const figure = document.querySelector('[data-chart="layer-change"]');
    const singles = curves.filter((row) => row.model !== AVERAGE);
    figure.hidden = singles.length < 2;
    if (singles.length < 2) return;
    const ordered = [curves.find((row) => row.model === AVERAGE), ...singles.sort((a, b) => a.model - b.model)];
    const rows = ordered.flatMap((curve) => curve.position.map((position, i) => ({
      series: curve.model === AVERAGE ? MEAN_OF_MODELS : nameOf("model", curve.model),
      is_average: curve.model === AVERAGE, position,
      change: unit.scale * valueAt(curve, "change", i), change_text: unit.changeText(valueAt(curve, "change", i)), n_text: restsOn(curve),
    })));
    draw("layer-change", "layer-change", rows, (spec, theme) => {
      inkFirst(spec, theme, rows);
      spec.layer[0].encoding.y.title = unit.title;
    });
    caption("layer-change", `The change of each model, mean over its final cells (${restsOn(ordered[0])} in all).`);
  }

  function showAgreement(curve) {
    const figure = document.querySelector('[data-chart="layer-agreement"]');
    figure.hidden = !curve.agreement;
    if (!curve.agreement) return;
    const rows = curve.position.map((position, i) => {
      const [low, high] = [valueAt(curve, "agreement_low", i), valueAt(curve, "agreement_high", i)];
      return { position, estimate: valueAt(curve, "agreement", i), low, high, interval_text: decimalInterval(low, high) };
    });
    draw("layer-agreement", "layer-agreement", rows);
    const band = curve.agreement_low ? "Band: 95\u00a0% per position, over models and datasets." : "No band: it takes three models and three datasets.";
    caption("layer-agreement", `Do models agree which data moves a layer most? Correlation of two models' changes over datasets, mean over all pairs (${plural(curve.num_models, "model")}). ${band}`);
  }
  refill();
}

const ESTIMATORS = { gride: "Gride", two_nn: "TwoNN" };
const POOLINGS = { sentence: "sentences", last: "last token", mean: "mean over tokens" };
const DIMENSION_FIGURES = ["dimension-difference", "dimension-likeness", "dimension-clusters", "dimension-within", "dimension-scan"];

function dimensionSection() {
  if (!dimensionCurves.length) {
    explain("dimension", "The hidden states of no final cell were measured. `representations: last` under `measures` in the study file switches it on.");
    hideFigures(...DIMENSION_FIGURES);
    return;
  }
  const quantityName = (row) => nameOf("quantity", row.quantity);
  const setting = selector("dimension", "Setting", choicesOf(dimensionCurves, "setting"), settingOf(dimensionCurves), refill);
  const method = selector("dimension", "Method", choicesOf(dimensionCurves, "method"), distinct(dimensionCurves, "method")[0], refillModels);
  const model = selector("dimension", "Model", [], AVERAGE, show);
  const known = Object.keys(POOLINGS).map((name) => names.poolings.indexOf(name));
  const poolings = known.filter((index) => dimensionCurves.some((row) => row.pooling === index)).map((index) => [index, POOLINGS[names.poolings[index]]]);
  const pooling = selector("dimension", "States of", poolings, poolings[0][0], show);
  const estimators = Object.keys(ESTIMATORS).filter((key) => dimensionCurves.some((row) => quantityName(row) === key));
  const estimator = selector("dimension", "Estimator", estimators.map((key, i) => [i, ESTIMATORS[key]]), 0, show);
  const places = distinct(scanCurves, "position");
  const place = selector("dimension", "Scan at position", places.map((value, i) => [i, String(value)]), Math.max(0, places.indexOf(0.75)), show);

  function refill() {
    const rows = dimensionCurves.filter((row) => row.setting === setting());
    method.fill(choicesOf(rows, "method"), rows[0].method);
    refillModels();
  }

  function refillModels() {
    const choices = modelChoices(dimensionCurves.filter((row) => row.setting === setting() && row.method === method()));
    model.fill(choices, choices[0][0]);
    show();
  }

  function show() {
    const here = (row) => row.setting === setting() && row.method === method() && row.model === model() && row.pooling === pooling();
    const curves = new Map(dimensionCurves.filter(here).map((row) => [quantityName(row), row]));
    const name = estimators[estimator()];
    const pooled = poolings.find(([key]) => key === pooling())[1];
    const what = `${ESTIMATORS[name]}, ${pooled}`;
    const unit = model() === AVERAGE ? "models and datasets" : `${nameOf("model", model())}'s datasets alone`;
    const chosen = curves.get(name);
    const rests = restsOn(chosen ?? [...curves.values()][0] ?? {});
    const band = `Band: 95\u00a0% per position, resampling ${unit}.`;
    const fewer = chosen && chosen.num_known && chosen.num_known.some((n) => n > 0 && n < chosen.num_trajectories) ? " Positions at which some cells could not be measured rest on fewer: see their tooltips." : "";
    const states = `States: ${pooled}; ${rests}, final epoch. ${band}`;
    if (!chosen) explain("dimension", `${ESTIMATORS[name]} gave no number here: the texts are too few, or their states too alike.`);
    pairChart("dimension", chosen, "Intrinsic dimension", `Intrinsic dimension by layer (${what}): base models and what became of them. ${rests}, final epoch. ${band}${fewer}`);
    differenceChart(chosen, `Tuned minus base (${what}), each cell with its own base model, on the same texts. ${rests}. ${band}`);
    likenessChart(curves, states);
    pairChart("dimension-clusters", curves.get("num_clusters"), "Number of clusters", `Groups among the states of the texts: fewer say that texts are told apart more coarsely. ${states}`);
    pairChart("dimension-within", curves.get("within_dimension"), "Dimension within clusters", `Mean intrinsic dimension inside the groups, weighted by their size. ${states}`);
    scanChart(scanCurves.filter((row) => here(row) && row.position === places[place()]), states);
  }

  function pairChart(id, curve, title, text) {
    if (id === "dimension" && !curve) return;
    const rows = curve ? [...seriesRows(curve, "base", "base", null), ...seriesRows(curve, "tuned", "tuned", "tuned")] : [];
    seriesChart(id, rows, title, text);
  }

  // The base of a single model is one curve, so that its difference is the tuned curve less the base's.
  function differenceChart(curve, text) {
    const rows = !curve ? [] : curve.difference || curve.model === AVERAGE
      ? seriesRows(curve, "tuned minus base", "difference", "difference")
      : seriesRows(curve, "tuned minus base", "tuned", "tuned").map((row, i) => {
        const base = valueAt(curve, "base", i);
        const less = (value) => (isNumber(value) && isNumber(base) ? value - base : null);
        const [low, high] = [less(row.low), less(row.high)];
        return { ...row, value: less(row.value), low, high, interval_text: intervalText(low, high, decimals) };
      }).filter((row) => isNumber(row.value));
    seriesChart("dimension-difference", rows, "Difference of the dimension", text, true);
  }

  // Both as distances: on one axis CKA near 1 and a distance near 0 are two flat lines.
  function likenessChart(curves, states) {
    const [cka, procrustes] = [curves.get("cka"), curves.get("procrustes")];
    const less = (value) => (isNumber(value) ? 1 - value : null);
    const away = (cka ? seriesRows(cka, "1 \u2212 linear CKA", "tuned", "tuned") : []).map((row) => {
      const [low, high] = [less(row.high), less(row.low)];
      return { ...row, value: less(row.value), low, high, interval_text: intervalText(low, high, decimals) };
    });
    const rows = [...away, ...(procrustes ? seriesRows(procrustes, "Procrustes distance", "tuned", "tuned") : [])];
    seriesChart("dimension-likeness", rows, "Distance to the base's states", `How far the states moved from the base model's on the same texts: 0 is the same up to a rotation and one scale, and it ends at 1. ${states}`, true);
  }

  function scanChart(curves, states) {
    const rows = [...curves].sort((a, b) => a.is_tuned - b.is_tuned).flatMap((curve) => curve.n1.map((n1, i) => ({
      series: curve.is_tuned ? "tuned" : "base", position: n1, position_text: `rank ${n1}`, value: valueAt(curve, "gride", i),
      low: valueAt(curve, "low", i), high: valueAt(curve, "high", i),
      interval_text: intervalText(valueAt(curve, "low", i), valueAt(curve, "high", i), decimals), n_text: restsOn(curve),
    })));
    seriesChart("dimension-scan", rows, "Gride", `Gride against the scale it looks at, in the layers nearest to the chosen position: a plateau is a dimension, a fall at small ranks is noise. ${states}`, false, "scale-series");
  }
  refill();
}

function seriesRows(curve, series, column, bounds) {
  return curve.position.map((position, i) => {
    const [low, high] = bounds ? [valueAt(curve, `${bounds}_low`, i), valueAt(curve, `${bounds}_high`, i)] : [null, null];
    return { series, position, position_text: position.toFixed(2), value: valueAt(curve, column, i), low, high, interval_text: intervalText(low, high, decimals), n_text: restsAt(curve, i) };
  }).filter((row) => isNumber(row.value));
}

// What a position rests on, where that is not the whole curve's.
function restsAt(curve, i) {
  const known = valueAt(curve, "num_known", i);
  return isNumber(known) && known < curve.num_trajectories ? `${plural(known, "training run")} of ${curve.num_trajectories}` : restsOn(curve);
}

function seriesChart(id, rows, title, text, hasZero = false, spec = "depth-series") {
  const figure = document.querySelector(`[data-chart="${id}"]`);
  figure.hidden = !rows.length;
  if (!rows.length) return;
  draw(id, spec, rows, (chart, theme) => {
    const domain = [...new Set(rows.map((row) => row.series))];
    const range = domain[0] === "base" ? [theme.soft, theme.category[1]] : theme.category;
    chart.layer.forEach((layer) => {
      layer.encoding.color.scale = { domain, range: range.slice(0, domain.length) };
      layer.encoding.y.title = title;
      layer.encoding.y.scale.zero = hasZero;
      if (domain.length === 1) layer.encoding.color.legend = null;
    });
    chart.layer[1].encoding.x.scale = { ...chart.layer[1].encoding.x.scale };
  });
  caption(id, text);
}

const SPECTRAL = [["effective_rank", "effective rank"], ["stable_rank", "stable rank"], ["intruder_fraction", "share of intruders"], ["top_share", "share of the first direction"]];

function directionSection() {
  const hasSpectra = spectrumCurves.length > 0;
  if (hasSpectra) spectrumChart();
  else explain("spectrum", "No spectrum of a weight change was measured. `spectrum: last` under `measures` in the study file switches it on.");
  if (updateRows.length) updateChart();
  else explain("updates", "The weight changes of cells were not compared. `updates: true` under `measures` in the study file switches it on.");
}

function spectrumChart() {
  const setting = selector("directions", "Setting", choicesOf(spectrumCurves, "setting"), settingOf(spectrumCurves), show);
  const known = SPECTRAL.map(([key, text]) => [names.quantities.indexOf(key), text]).filter(([index]) => spectrumCurves.some((row) => row.quantity === index));
  const quantity = selector("directions", "Measure", known, known[0][0], show);
  const kind = selector("directions", "Matrices", choicesOf(spectrumCurves, "kind", "all kinds"), AVERAGE, show);

  function show() {
    const curves = spectrumCurves.filter((row) => row.setting === setting() && row.quantity === quantity() && row.kind === kind());
    const rows = curves.flatMap((curve) => curve.position.map((position, i) => {
      const [low, high] = [valueAt(curve, "low", i), valueAt(curve, "high", i)];
      return { series: nameOf("method", curve.method), position, position_text: position.toFixed(2), value: valueAt(curve, "value", i), low, high, interval_text: intervalText(low, high, decimals), n_text: restsOn(curve) };
    }));
    if (!rows.length) {
      explain("spectrum", "Nothing was measured of this choice.");
      return;
    }
    const text = known.find(([index]) => index === quantity())[1];
    seriesChart("spectrum", rows, text[0].toUpperCase() + text.slice(1), `${kind() === AVERAGE ? "Mean over all matrices" : nameOf("kind", kind())} of a depth band, final cells; ${curves.map((curve) => `${nameOf("method", curve.method)}: ${restsOn(curve)}`).join("; ")}. Bands: 95\u00a0%, resampling models and datasets. Intruders: leading directions of the tuned matrix with cosine below 0.5 to all of the base's.`, true);
  }
  show();
}

function updateChart() {
  const settings = choicesOf(updateRows, "setting");
  const setting = selector("updates", "Setting", settings, settingOf(updateRows), refill);
  const model = selector("updates", "Model", choicesOf(updateRows, "model"), distinct(updateRows, "model")[0], show);

  function refill() {
    const choices = choicesOf(updateRows.filter((row) => row.setting === setting()), "model");
    model.fill(choices, choices[0][0]);
    show();
  }

  function show() {
    const rows = updateRows.filter((row) => row.setting === setting() && row.model === model());
    const cells = [...new Set(rows.flatMap((row) => [row.a, row.b]))].sort((a, b) => cellRows[a].method - cellRows[b].method || cellRows[a].data - cellRows[b].data || a - b);
    const seeds = new Set(cells.map((cell) => cellRows[cell].seed)).size > 1;
    const label = (cell) => `${nameOf("data", cellRows[cell].data)} \u00b7 ${nameOf("method", cellRows[cell].method)}${seeds ? ` \u00b7 ${cellRows[cell].seed}` : ""}`;
    const order = new Map(cells.map((cell, i) => [cell, i]));
    const tile = (a, b, cosine) => ({ a: label(a), b: label(b), order: order.get(a), other_order: order.get(b), cosine });
    const shown = [...rows.flatMap((row) => [tile(row.a, row.b, row.cosine), tile(row.b, row.a, row.cosine)]), ...cells.map((cell) => tile(cell, cell, 1))];
    draw("updates", "updates", shown);
    const groups = updateGroupRows.filter((row) => row.setting === setting()).map((row) => `${names.relations[row.relation]} ${minus(row.cosine.toFixed(2))}${isNumber(row.low) ? ` ${decimalInterval(row.low, row.high)}` : ""}`);
    caption("updates", `Cosine between the whole weight changes of two final cells: 1 is the same direction, 0 unrelated ones. ${plural(rows.length, "pair")} of ${nameOf("model", model())}. Means over all models, resampled: ${groups.join("; ")}.`);
  }
  refill();
}
