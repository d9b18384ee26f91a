// Draws every [data-chart] figure: token names become theme colours, the house layout goes underneath, zoom survives updates.
(() => {
  const TOKENS = {
    accent: "--accent", text: "--text", muted: "--muted", faint: "--faint", line: "--line", surface: "--surface", sunken: "--sunken",
    ok: "--ok", warn: "--warn", bad: "--bad", info: "--info",
    "soft-ok": "--ok-soft", "soft-warn": "--warn-soft", "soft-bad": "--bad-soft", "soft-info": "--info-soft", "soft-accent": "--accent-soft",
    c1: "--c1", c2: "--c2", c3: "--c3", c4: "--c4", c5: "--c5", c6: "--c6",
  };
  const COLOUR_KEY = /color$|^colors$|^colorway$|colorscale$/;
  const CONFIG = { displayModeBar: false, responsive: true, doubleClick: "reset", showTips: false };
  const drawn = new Map(); // plot element -> the spec it shows
  const openTables = new Set();
  let colours = {};

  function readColours() {
    // light-dark() is resolved only in a real property, so each token passes through a probe element.
    const probe = document.createElement("span");
    document.body.append(probe);
    for (const [name, property] of Object.entries(TOKENS)) {
      probe.style.color = `var(${property})`;
      colours[name] = getComputedStyle(probe).color;
    }
    probe.remove();
  }

  function resolve(value, isColour) {
    if (typeof value === "string") return isColour && value in colours ? colours[value] : value;
    if (Array.isArray(value)) return value.map((item) => resolve(item, isColour));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolve(item, COLOUR_KEY.test(key))]));
    }
    return value;
  }

  function merge(base, over) {
    const result = { ...base };
    for (const [key, value] of Object.entries(over || {})) {
      const both = [value, result[key]].every((part) => part && typeof part === "object" && !Array.isArray(part));
      result[key] = both ? merge(result[key], value) : value;
    }
    return result;
  }

  function houseLayout(layout, id, named) {
    const font = { family: getComputedStyle(document.body).fontFamily, size: 11, color: colours.muted };
    const axis = { automargin: true, zeroline: false, linecolor: colours.line, tickcolor: colours.line, tickfont: font, title: { font, standoff: 8 } };
    const house = {
      margin: { l: 36, r: 8, t: 22, b: 36 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font,
      colorway: ["c1", "c2", "c3", "c4", "c5", "c6"].map((name) => colours[name]),
      hovermode: "x unified", dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", // a finger must still scroll the page
      uirevision: id, showlegend: named > 1,
      hoverlabel: { bgcolor: colours.surface, bordercolor: colours.line, font: { ...font, color: colours.text } },
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", xanchor: "left", font, bgcolor: "rgba(0,0,0,0)" },
      xaxis: {}, yaxis: {},
    };
    const result = merge(house, layout);
    for (const key of Object.keys(result)) {
      if (/^xaxis\d*$/.test(key)) result[key] = merge({ ...axis, showgrid: false, showline: true, ticks: "outside", ticklen: 4 }, result[key]);
      if (/^yaxis\d*$/.test(key)) result[key] = merge({ ...axis, showgrid: true, gridcolor: colours.line }, result[key]);
    }
    result.shapes = (result.shapes || []).map((shape) => ({ layer: "below", ...shape, line: { width: 0, ...shape.line } }));
    result.annotations = (result.annotations || []).map((note) => ({ showarrow: false, ...note, font: merge({ size: 10 }, note.font) }));
    return result;
  }

  function houseTrace(trace) {
    // Gaps between the tiles also keep Plotly from setting a style attribute, which the content security policy forbids.
    if (trace.type === "heatmap") return { xgap: 2, ygap: 2, ...trace };
    const isLine = (trace.type || "scatter").startsWith("scatter") && (trace.mode || "lines").includes("lines");
    return isLine ? { ...trace, mode: trace.mode || "lines", line: { width: 2, ...trace.line } } : trace;
  }

  function draw(figure) {
    const plot = figure.querySelector(".plot");
    if (drawn.get(plot) === figure.dataset.chart) return;
    const spec = JSON.parse(figure.dataset.chart);
    if (spec.layout.height) plot.style.blockSize = `${spec.layout.height}px`;
    const named = spec.data.filter((trace) => trace.name && trace.showlegend !== false).length;
    const layout = houseLayout(resolve(spec.layout, false), figure.id, named);
    window.Plotly.react(plot, resolve(spec.data, false).map(houseTrace), layout, CONFIG);
    drawn.set(plot, figure.dataset.chart);
  }

  function tidyTable(figure) {
    const table = figure.querySelector("details");
    if (!table || table.dataset.ready !== undefined) return;
    table.open = openTables.has(figure.id);
    table.dataset.ready = "";
    table.addEventListener("toggle", () => openTables[table.open ? "add" : "delete"](figure.id));
  }

  function drawAll() {
    for (const plot of drawn.keys()) {
      if (plot.isConnected) continue;
      window.Plotly.purge(plot);
      drawn.delete(plot);
    }
    for (const figure of document.querySelectorAll("[data-chart]")) {
      tidyTable(figure);
      draw(figure);
    }
  }

  function recolour() {
    readColours();
    for (const plot of drawn.keys()) drawn.set(plot, "");
    drawAll();
  }

  readColours();
  drawAll();
  document.addEventListener("htmx:afterSettle", drawAll);
  document.addEventListener("themechange", recolour);
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", recolour);
})();
