// What did a fine-tune lose of what its base model said about neutral text?
function forgettingSection() {
  if (!forgettingRows.length) {
    explain("forgetting", "How far cells moved from their base model on neutral text was not measured. `forgetting` under `measures` in the study file switches it on.");
    hideFigures("kept-tokens");
    return;
  }
  const setting = selector("forgetting", "Setting", choicesOf(forgettingRows, "setting"), settingOf(forgettingRows), refill);
  const modelText = "all models";
  const model = selector("forgetting", "Model", [], AVERAGE, show);

  function refill() {
    const rows = forgettingRows.filter((row) => row.setting === setting());
    model.fill([[AVERAGE, modelText], ...choicesOf(rows, "model")], AVERAGE);
    show();
  }

  function show() {
    const rows = forgettingRows.filter((row) => row.setting === setting() && (model() === AVERAGE || row.model === model()));
    const gained = rows.filter((row) => isNumber(row.gain) && row.kl > 0);
    if (gained.length) showPoints(gained);
    else explain("forgetting", "No measured cell of this choice has a mean gain.");
    draw("kept-tokens", "kept-tokens", rows.map((row) => ({ epoch: row.epoch, method: nameOf("method", row.method), agreement: 100 * row.agreement })));
    caption("kept-tokens", `Share of tokens of neutral text whose most likely next token is still the base model's; box: middle half of ${plural(rows.length, "cell")}, whiskers: all of them.`);
  }

  function showPoints(rows) {
    draw("forgetting", "forgetting", rows.map((row) => ({
      kl: row.kl, gain: 100 * row.gain, method: nameOf("method", row.method), model: nameOf("model", row.model), data: nameOf("data", row.data),
      epoch: row.epoch, run: row.run, is_final: Boolean(row.is_final),
      kl_text: `${decimals(row.kl)} \u00b1 ${decimals(row.kl_se)}`, agreement_text: `${(100 * row.agreement).toFixed(1)} %`,
    })), (spec) => { if (rows.length > 500) spec.layer[1].mark.opacity = 0.15; });
    const related = forgettingAssociationRows.filter((row) => row.setting === setting() && nameOf("variant", row.variant) === "within_model" && nameOf("statistic", row.statistic) === "spearman" && isNumber(row.estimate));
    const words = related.map((row) => `${nameOf("method", row.method)} ${correlationText(row)}`);
    const correlation = model() === AVERAGE && words.length ? ` Spearman between datasets of a model, final epoch, resampling models and datasets: ${words.join("; ")}.` : "";
    const texts = new Set(rows.map((row) => row.num_texts));
    caption("forgetting", `Each mark is a cell (n = ${rows.length.toLocaleString("en")}), large at its final epoch; lines join the epochs of a training run. KL(base \u2016 cell) over ${[...texts].map((n) => n.toLocaleString("en")).join(" or ")} texts. Further right forgets more.${correlation}`);
  }
  refill();
}
