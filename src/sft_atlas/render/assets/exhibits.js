// Draws the charts of the questions' sections: their rows, forms and choices come ready from the payload.

// Columns, of which names are places in a list of their own, become rows.
function decoded(table) {
  const keys = Object.keys(table);
  const count = keys.length ? (table[keys[0]].codes ?? table[keys[0]]).length : 0;
  const rows = Array.from({ length: count }, () => ({}));
  keys.forEach((key) => {
    const column = table[key];
    rows.forEach((row, i) => { row[key] = column.codes ? (column.codes[i] < 0 ? null : column.names[column.codes[i]]) : column[i]; });
  });
  return rows;
}

function exhibit(chart) {
  const rows = decoded(chart.rows);
  specs[chart.name] = chart.form;
  const values = chart.choices.map((choice) => [...new Set(rows.map((row) => row[choice.column]))]);
  const readers = [];
  const listed = (i, from) => values[i].map((value, k) => [k, String(value)]).filter(([k]) => from.some((row) => row[chart.choices[i].column] === values[i][k]));
  const chosen = (upTo) => rows.filter((row) => readers.slice(0, upTo).every((read, i) => row[chart.choices[i].column] === values[i][read()]));

  function refill(after) {
    for (let i = after; i < readers.length; i += 1) {
      const from = listed(i, chosen(i));
      readers[i].fill(from, from[0][0]);
    }
    show();
  }
  function show() {
    draw(chart.name, chart.name, chosen(readers.length));
    caption(chart.name, chart.caption);
  }
  chart.choices.forEach((choice, i) => {
    const from = listed(i, chosen(i));
    const wanted = values[i].indexOf(choice.first);
    const first = from.some(([k]) => k === wanted) ? wanted : from[0][0];
    readers.push(selector(chart.name, choice.label, from, first, () => refill(i + 1)));
  });
  show();
}

function exhibits() {
  payload.exhibits.forEach(exhibit);
}
