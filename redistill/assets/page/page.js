"use strict";
// The page's own script: data, colours (light, dark, as the system), charts by plotly.js, arrow keys that read a chart's points.
const DATA = JSON.parse(document.getElementById("data").textContent);
const PALETTE = 8;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const shade = (hex, alpha) => {
  const at = (i) => parseInt(hex.slice(i, i + 2), 16);
  return `rgba(${at(1)},${at(3)},${at(5)},${alpha})`;
};
const say = (value) => (value === null || value === undefined ? "–" : typeof value === "number" ? String(+value.toPrecision(4)) : value);
// plotly.js reads some HTML in names; what comes from a run stays text.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function lineTraces(series, tint) {
  const base = { x: series.x, type: "scatter", legendgroup: series.name, connectgaps: false };
  const made = [];
  if (series.low && series.high) {
    const edge = { ...base, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
    made.push({ ...edge, y: series.low }, { ...edge, y: series.high, fill: "tonexty", fillcolor: shade(tint, 0.18) });
  }
  const few = series.x.length < 2;
  made.push({
    ...base, y: series.y, name: plain(series.name), mode: series.markers || few ? "lines+markers" : "lines", showlegend: !series.faint,
    line: { color: series.faint ? shade(tint, 0.42) : tint, width: series.faint ? 1.2 : 2.2, dash: series.dash ? "dash" : "solid" },
    marker: { size: 7 }, customdata: between(series), hovertemplate: template(series), hoverinfo: series.faint ? "skip" : undefined,
  });
  if (series.faint) delete made[made.length - 1].hovertemplate;
  return made;
}

function between(series) {
  return series.y.map((_, i) => {
    const band = series.low && series.high ? ` [${say(series.low[i])}, ${say(series.high[i])}]` : "";
    return band + (series.text ? " " + plain(series.text[i]) : "");
  });
}

const template = () => "%{y:.4g}%{customdata}";

function barTrace(series, tint) {
  const trace = {
    type: "bar", x: series.x, y: series.y, name: plain(series.name), marker: { color: tint },
    customdata: between(series), hovertemplate: template(series),
  };
  if (series.low && series.high) {
    trace.error_y = {
      type: "data", symmetric: false, array: series.y.map((y, i) => series.high[i] - y),
      arrayminus: series.y.map((y, i) => y - series.low[i]), color: colour("soft"), thickness: 1.5,
    };
  }
  return trace;
}

function layout(chart) {
  const axis = { gridcolor: colour("grid"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true, tickfont: { size: 11 } };
  const levels = chart.levels.map((level) => ({
    type: "line", line: { color: colour("soft"), width: 1.3, dash: "dot" },
    ...(level.x ? { x0: level.at, x1: level.at, yref: "paper", y0: 0, y1: 1 } : { y0: level.at, y1: level.at, xref: "paper", x0: 0, x1: 1 }),
    label: { text: plain(level.name), font: { size: 11, color: colour("soft") }, textposition: "end", xanchor: "right", yanchor: level.x ? "top" : "bottom", textangle: 0 },
  }));
  const shown = chart.series.filter((series) => !series.faint).length;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: "system-ui, sans-serif", color: colour("ink"), size: 12 },
    margin: { l: 48, r: 12, t: 10, b: 40 }, hovermode: chart.equal ? "closest" : "x unified", hoverdistance: -1, showlegend: shown > 1, shapes: levels, dragmode: false,
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 } },
    barmode: chart.stacked ? "stack" : "group", bargap: 0.25,
    xaxis: { ...axis, title: { text: plain(chart.x), standoff: 8, font: { size: 12, color: colour("soft") } }, hoverformat: "~r" },
    yaxis: {
      ...axis, title: { text: plain(chart.y), standoff: 8, font: { size: 12, color: colour("soft") } }, type: chart.log_y ? "log" : undefined,
      range: chart.y_range || undefined, ...(chart.equal ? { scaleanchor: "x", scaleratio: 1 } : {}),
    },
  };
}

function traces(chart) {
  return chart.series.flatMap((series, i) => {
    const tint = colour("c" + ((series.colour === null ? i : series.colour) % PALETTE));
    return series.kind === "bars" ? [barTrace(series, tint)] : lineTraces(series, tint);
  });
}

function drawChart(place, chart) {
  Plotly.react(place, traces(chart), layout(chart), { displayModeBar: false, responsive: true });
}

// Arrow keys move over the points of a chart; they are said below it, and shown as the mouse would show them.
function readable(place, chart) {
  let at = -1;
  const said = place.parentElement.querySelector(".said");
  const points = [...new Set(chart.series.flatMap((series) => series.x))];
  if (points.every((x) => typeof x === "number")) points.sort((a, b) => a - b);
  place.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (step === undefined || !points.length) return;
    event.preventDefault();
    at = Math.min(points.length - 1, Math.max(0, at + step));
    const x = points[at];
    const words = chart.series.filter((series) => !series.faint).map((series) => {
      const i = series.x.indexOf(x);
      return i < 0 ? null : `${series.name} ${say(series.y[i])}` + (series.low && series.high ? ` [${say(series.low[i])}, ${say(series.high[i])}]` : "");
    });
    said.textContent = `${chart.x} ${say(x)}: ${words.filter(Boolean).join("; ")}`;
    const curves = place.data.flatMap((trace, curveNumber) => {
      const pointNumber = trace.hoverinfo === "skip" ? -1 : trace.x.indexOf(x);
      return pointNumber < 0 ? [] : [{ curveNumber, pointNumber }];
    });
    if (curves.length) Plotly.Fx.hover(place, curves);
  });
  place.addEventListener("blur", () => { Plotly.Fx.unhover(place); said.textContent = ""; });
}

function drawCharts() {
  for (const [name, chart] of Object.entries(DATA.charts)) drawChart(document.getElementById(name), chart);
  document.dispatchEvent(new Event("recoloured"));
}

// Colours: as the system until the button is pressed; kept where the browser lets a file keep something.
const root = document.documentElement, switchButton = document.getElementById("theme");
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
function label() {
  switchButton.textContent = isDark() ? "☀" : "☾";
  switchButton.title = isDark() ? "Light colours" : "Dark colours";
  switchButton.setAttribute("aria-label", switchButton.title);
}
try {
  const kept = localStorage.getItem("redistill-theme");
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
} catch { /* a page without storage starts as the system */ }
switchButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("redistill-theme", root.dataset.theme); } catch { /* for this visit only */ }
  label();
  drawCharts();
});
systemDark.addEventListener("change", () => { label(); drawCharts(); });
label();
drawCharts();
for (const [name, chart] of Object.entries(DATA.charts)) readable(document.getElementById(name), chart);
