// Saves a chart as PNG, SVG, PDF, Vega-Lite or data, and a table as CSV, LaTeX or Markdown.
// Charts are saved in light colours on white, whatever the page shows, at the width that they have on it.
const CHART_FORMATS = [
  ["PNG", (place) => saveChart(place, "png")],
  ["SVG", (place) => saveChart(place, "svg")],
  ["PDF (print this figure)", (place) => printFigure(place)],
  ["Vega-Lite with its data", (place) => saveFile(`${place}.vl.json`, "application/json", JSON.stringify(portable(place), null, 1))],
  ["Data as CSV", (place) => saveFile(`${place}.csv`, "text/csv", rowsCsv(chartRows(place)))],
];
const TABLE_FORMATS = [
  ["CSV", (name, table) => saveFile(`${name}.csv`, "text/csv", tableCsv(name, table))],
  ["LaTeX (booktabs)", (name, table) => saveFile(`${name}.tex`, "text/x-tex", tableLatex(name, table))],
  ["Markdown", (name, table) => saveFile(`${name}.md`, "text/markdown", tableMarkdown(table))],
];

function saveFile(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type: `${type};charset=utf-8` }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// The specification that any Vega-Lite editor draws: data, size and colours inside.
function portable(place) {
  const width = document.getElementById(`chart-${place}`).clientWidth || 800;
  painting = "light";
  // Written and read again, because some rows have their colour from a function.
  const spec = JSON.parse(JSON.stringify(prepared(drawn.get(place), "light", width)));
  painting = null;
  if (spec.width === "container") Object.assign(spec, { width, autosize: { type: "fit-x", contains: "padding" } });
  delete spec.usermeta;
  return { ...spec, config: { ...chartConfig("light", width), background: THEMES.light.page } };
}

async function lightView(place) {
  const aside = document.createElement("div");
  const { view } = await vegaEmbed(aside, portable(place), { mode: "vega-lite", renderer: "svg", actions: false, ast: true });
  return view;
}

async function saveChart(place, format) {
  const view = await lightView(place);
  if (format === "svg") saveFile(`${place}.svg`, "image/svg+xml", await view.toSVG());
  else {
    const canvas = await view.toCanvas(2);
    saveFile(`${place}.png`, "image/png", await new Promise((done) => { canvas.toBlob(done, "image/png"); }));
  }
  view.finalize();
}

// Prints one figure on a page of its size: the printer "Save as PDF" then gives a vector file with its fonts inside.
async function printFigure(place) {
  const view = await lightView(place);
  const sheet = document.createElement("div");
  sheet.className = "print-sheet";
  sheet.innerHTML = await view.toSVG();
  view.finalize();
  const svg = sheet.querySelector("svg");
  const rule = document.createElement("style");
  rule.textContent = `@page { size: ${Math.ceil(svg.width.baseVal.value) + 2}px ${Math.ceil(svg.height.baseVal.value) + 2}px; margin: 0; }`;
  document.head.append(rule);
  document.body.append(sheet);
  document.documentElement.classList.add("one-figure");
  const title = document.title;
  document.title = place;
  const restore = () => {
    document.documentElement.classList.remove("one-figure");
    document.title = title;
    rule.remove();
    sheet.remove();
  };
  addEventListener("afterprint", restore, { once: true });
  print();
}

// Every data source of a chart, one below the other where it has several panels.
function chartRows(place) {
  const { datasets } = portable(place);
  return Object.entries(datasets).flatMap(([name, rows]) => (name === "rows" ? rows : rows.map((row) => ({ panel: name, ...row }))));
}

// Quotes a value for CSV; a leading sign or = is kept from being read as a formula by spreadsheets.
function csvValue(value) {
  if (!isNumber(value)) return "";
  if (typeof value === "number") return Number.isFinite(value) ? String(value) : "";
  if (typeof value === "boolean") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
}

const csvLines = (lines) => `${lines.map((line) => line.map(csvValue).join(",")).join("\r\n")}\r\n`;

function rowsCsv(rows) {
  const keys = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((key) => !["ink", "order", "x_order", "y_order", "strength", "is_faded"].includes(key));
  return csvLines([keys, ...rows.map((row) => keys.map((key) => row[key]))]);
}

// The words of a table's cells; headings that span several columns are repeated over each of them.
function tableTexts(table) {
  const words = (cell) => {
    const copy = cell.cloneNode(true);
    copy.querySelectorAll("small").forEach((part) => part.prepend(" "));
    return copy.textContent.replace(/\s+/g, " ").trim();
  };
  const line = (row) => [...row.cells].flatMap((cell) => Array.from({ length: cell.colSpan }, () => words(cell)));
  return { head: [...(table.tHead?.rows ?? [])].map(line), body: [...table.tBodies].flatMap((part) => [...part.rows].map(line)) };
}

// What looks like a number on the page is one in the file.
const plainNumber = (text) => {
  const plainText = text.replace(/\u2212/g, "-").replace(/(\d),(?=\d{3})/g, "$1");
  if (text === "\u2014") return null;
  return /^[+-]?\d+(\.\d+)?$/.test(plainText) ? Number(plainText) : text;
};

function tableCsv(name, table) {
  const full = payload.tables[name];
  if (full) {
    const rows = decoded(full);
    const keys = Object.keys(full);
    return csvLines([keys, ...rows.map((row) => keys.map((key) => row[key]))]);
  }
  const { head, body } = tableTexts(table);
  return csvLines([...head, ...body.map((row) => row.map(plainNumber))]);
}

const LATEX = {
  "\\": "\\textbackslash{}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{", "}": "\\}", "~": "\\textasciitilde{}",
  "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", "[": "{[}", "]": "{]}", "\u2212": "$-$", "\u2014": "---",
};
const latex = (text) => text.replace(/[\\&%$#_{}~^<>|[\]\u2212\u2014]/g, (sign) => LATEX[sign]);
const titleOf = (table) => table.closest("[aria-label]").getAttribute("aria-label");

function tableLatex(name, table) {
  const { head, body } = tableTexts(table);
  const isNumeric = [...(table.tHead?.rows[table.tHead.rows.length - 1]?.cells ?? [])].map((cell) => cell.classList.contains("num"));
  const row = (cells) => `${cells.map(latex).join(" & ")} \\\\`;
  const columns = (body[0] ?? head[0]).map((_, i) => (isNumeric[i] ? "r" : "l")).join("");
  return [
    "% Needs \\usepackage{booktabs}.", "\\begin{table}", "\\centering", `\\caption{${latex(titleOf(table))}}`, `\\label{tab:${name}}`,
    `\\begin{tabular}{${columns}}`, "\\toprule", ...head.map(row), "\\midrule", ...body.map(row), "\\bottomrule", "\\end{tabular}", "\\end{table}", "",
  ].join("\n");
}

function tableMarkdown(table) {
  const { head, body } = tableTexts(table);
  const row = (cells) => `| ${cells.map((text) => text.replace(/[\\|`*_<>[\]#~]/g, "\\$&")).join(" | ")} |`;
  const last = head.at(-1) ?? body[0].map(() => "");
  const cells = [...(table.tHead?.rows[table.tHead.rows.length - 1]?.cells ?? [])];
  const marks = last.map((_, i) => (cells[i]?.classList.contains("num") ? "--:" : "---"));
  return [row(last), `| ${marks.join(" | ")} |`, ...body.map(row), ""].join("\n");
}

// A menu that opens below its button: Enter, Space or arrow down opens it, arrows move, Escape and Tab close it.
function menu(button, items) {
  const list = document.createElement("ul");
  list.setAttribute("role", "menu");
  list.setAttribute("aria-label", button.getAttribute("aria-label") ?? button.textContent);
  list.hidden = true;
  button.setAttribute("aria-haspopup", "menu");
  button.setAttribute("aria-expanded", "false");
  button.after(list);
  const entries = items.map(([text, run]) => {
    const entry = Object.assign(document.createElement("li"), { textContent: text, tabIndex: -1 });
    entry.setAttribute("role", "menuitem");
    entry.addEventListener("click", () => { close(true); run(); });
    list.append(entry);
    return entry;
  });

  function open() {
    list.hidden = false;
    button.setAttribute("aria-expanded", "true");
    entries[0].focus();
  }
  function close(isBack) {
    list.hidden = true;
    button.setAttribute("aria-expanded", "false");
    if (isBack) button.focus();
  }
  button.addEventListener("click", () => (list.hidden ? open() : close(true)));
  button.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" || !list.hidden) return;
    event.preventDefault();
    open();
  });
  list.addEventListener("keydown", (event) => {
    const place = entries.indexOf(document.activeElement);
    const to = { ArrowDown: place + 1, ArrowUp: place - 1, Home: 0, End: -1 }[event.key];
    if (to !== undefined) entries.at(to % entries.length).focus();
    else if (event.key === "Escape") close(true);
    else if (event.key === "Enter" || event.key === " ") entries[place].click();
    else {
      if (event.key === "Tab") close(true);
      return;
    }
    event.preventDefault();
  });
  list.addEventListener("focusout", (event) => { if (!list.contains(event.relatedTarget) && event.relatedTarget !== button) close(false); });
}

function saveMenus() {
  document.querySelectorAll("[data-save]").forEach((button) => {
    const place = button.dataset.save;
    menu(button, CHART_FORMATS.map(([text, save]) => [text, () => { if (drawn.has(place)) save(place); }]));
  });
  document.querySelectorAll("[data-save-table]").forEach((button) => {
    const name = button.dataset.saveTable;
    menu(button, TABLE_FORMATS.map(([text, save]) => [text, () => save(name, document.getElementById(`table-${name}`))]));
  });
}
