// Ten minutes as plots, with what happened marked; beside each its numbers in words, and as a table for who sees none.
import { html, useEffect, useRef } from "../shared/view.js";
import { theme } from "../shared/theme.js";
import uPlot from "../vendor/uplot.js";
import { clock, duration, rate } from "./format.js";
import { HISTORY_S, columnsOf, latest } from "./state.js";
import { Section } from "./table.js";

/** @typedef {Record<string, Array<number | null>>} Columns */
/** @typedef {{time: number, colour: string}} Mark */
/** @typedef {{name: string, label: string, colour: string, fill?: boolean}} Line */
/** @typedef {{title: string, lines: Line[], say: (value: number | null) => string, spans?: boolean}} PlotKind */

const several = (/** @type {number | null} */ value) => (Number.isInteger(value) ? String(value) : rate(value));

/** @type {PlotKind[]} */
const PLOTS = [
  {
    title: "Tokens a second",
    say: rate,
    spans: true,
    lines: [
      { name: "written", label: "written", colour: "--series-1", fill: true },
      { name: "read", label: "read", colour: "--series-2" },
    ],
  },
  {
    title: "First token",
    say: duration,
    lines: [
      { name: "first_p50", label: "half within", colour: "--series-1" },
      { name: "first_p95", label: "95 % within", colour: "--series-2" },
    ],
  },
  {
    title: "Gap between tokens",
    say: duration,
    lines: [
      { name: "gap_p50", label: "half within", colour: "--series-1" },
      { name: "gap_p95", label: "95 % within", colour: "--series-2" },
    ],
  },
  {
    title: "Requests and batch",
    say: several,
    lines: [
      { name: "waiting", label: "waiting", colour: "--series-2", fill: true },
      { name: "running", label: "running", colour: "--series-1" },
      { name: "batch", label: "tokens a step", colour: "--series-3" },
    ],
  },
];

const BAD = new Set(["restarting", "failed"]);

/** @param {{state: import("./state.js").LiveState}} props */
export function Plots({ state }) {
  const columns = columnsOf(state);
  return html`<${Section} title="The last ten minutes" kind="whole" note="of all requests">
    <div class="plots">
      ${PLOTS.map((plot) => html`<${Figure} key=${plot.title} plot=${plot} columns=${columns} state=${state} />`)}
    </div>
    <${Events} events=${state.events} />
  <//>`;
}

/** @param {{plot: PlotKind, columns: Columns, state: import("./state.js").LiveState}} props */
function Figure({ plot, columns, state }) {
  return html`<figure class="plot">
    <figcaption><strong>${plot.title}</strong>
      <span class="legend">${plot.lines.map(
        ({ name, label, colour }) => html`<span><span class="swatch" style=${{ background: `var(${colour})` }}></span>
          ${label} <b>${plot.say(latest(state, name))}</b></span>`,
      )}</span></figcaption>
    <${Canvas} plot=${plot} columns=${columns} state=${state} />
    <details class="small"><summary>As a table<span class="unseen">: ${plot.title}</span></summary>
      <${Minutes} plot=${plot} columns=${columns} now=${state.time} /></details>
  </figure>`;
}

/** The plot itself, which says nothing to a screen reader: its caption and its table do. @param {any} props */
function Canvas({ plot, columns, state }) {
  const place = useRef(/** @type {HTMLDivElement | null} */ (null));
  const chart = useRef(/** @type {any} */ (null));
  const marks = useRef(/** @type {Mark[]} */ ([]));
  marks.current = marksOf(state);
  const colours = theme.value;
  useEffect(() => {
    const element = /** @type {HTMLDivElement} */ (place.current);
    chart.current = new uPlot(options(plot, element.clientWidth, marks), [[], ...plot.lines.map(() => [])], element);
    const observer = new ResizeObserver(() => chart.current.setSize({ width: element.clientWidth, height: HEIGHT }));
    observer.observe(element);
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const redraw = () => chart.current.redraw();
    dark.addEventListener("change", redraw);
    return () => {
      observer.disconnect();
      dark.removeEventListener("change", redraw);
      chart.current.destroy();
    };
  }, [colours]);
  useEffect(() => {
    chart.current.batch(() => {
      chart.current.setData([columns.time, ...plot.lines.map((/** @type {Line} */ line) => columns[line.name])], false);
      chart.current.setScale("x", { min: state.time - HISTORY_S, max: state.time });
      chart.current.setScale("y", { min: 0, max: top(plot.lines, columns) });
    });
  }, [state, colours]);
  return html`<div class="canvas" ref=${place} aria-hidden="true"></div>`;
}

const HEIGHT = 150;

/** @param {Line[]} lines @param {Columns} columns */
function top(lines, columns) {
  const most = Math.max(0, ...lines.flatMap(({ name }) => columns[name].map((value) => value ?? 0)));
  return most > 0 ? most * 1.1 : 1;
}

/** @param {PlotKind} plot @param {number} width @param {{current: Mark[]}} marks @returns {any} */
function options(plot, width, marks) {
  const axis = {
    stroke: () => colourOf("--text-2"),
    grid: { stroke: () => colourOf("--line"), width: 1 },
    ticks: { show: false },
    font: "12px system-ui, sans-serif",
  };
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    padding: [8, 8, 0, 0],
    scales: { x: { time: true, auto: false }, y: { auto: false } },
    axes: [
      {
        ...axis,
        size: 24,
        space: 70,
        values: (/** @type {any} */ _, /** @type {number[]} */ at) => at.map((time) => clock(time).slice(0, 5)),
      },
      {
        ...axis,
        size: 52,
        space: 30,
        values: (/** @type {any} */ _, /** @type {number[]} */ at) => at.map((value) => plot.say(value)),
      },
    ],
    series: [
      {},
      ...plot.lines.map(({ colour, fill }) => ({
        stroke: () => colourOf(colour),
        fill: fill ? () => `color-mix(in srgb, ${colourOf(colour)} 14%, transparent)` : undefined,
        width: 1.5,
        points: { show: false },
        spanGaps: plot.spans,
      })),
    ],
    hooks: { draw: [(/** @type {any} */ chart) => drawMarks(chart, marks.current)] },
  };
}

/** @param {string} name */
function colourOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Restarts, loads, sleep and drain, and seconds with refusals. @param {import("./state.js").LiveState} state */
function marksOf({ events, history }) {
  const refused = history.columns.indexOf("refused");
  return [
    ...events.map(({ time, kind }) => ({ time, colour: BAD.has(kind) ? "--bad" : "--accent" })),
    ...history.rows.filter((row) => row[refused]).map((row) => ({ time: Number(row[0]), colour: "--warn" })),
  ];
}

/** @param {any} chart @param {Mark[]} marks */
function drawMarks({ ctx, bbox, valToPos, scales }, marks) {
  ctx.save();
  ctx.setLineDash([4, 4]);
  for (const { time, colour } of marks) {
    if (time < scales.x.min || time > scales.x.max) continue;
    const x = Math.round(valToPos(time, "x", true)) + 0.5;
    ctx.strokeStyle = colourOf(colour);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

/** Means of each minute. @param {{plot: PlotKind, columns: Columns, now: number}} props */
function Minutes({ plot, columns, now }) {
  const minutes = Array.from({ length: HISTORY_S / 60 }, (_, at) => now - 60 * at);
  return html`<table class="minutes"><thead><tr><th scope="col">Minute to</th>
      ${plot.lines.map(({ label }) => html`<th scope="col">${label}</th>`)}</tr></thead>
    <tbody>${minutes.map(
      (end) => html`<tr><th scope="row">${clock(end)}</th>
      ${plot.lines.map(({ name }) => html`<td>${plot.say(mean(columns, name, end))}</td>`)}</tr>`,
    )}</tbody></table>`;
}

/** @param {Columns} columns @param {string} name @param {number} end */
function mean(columns, name, end) {
  const values = columns[name].filter(
    (value, at) => value !== null && Number(columns.time[at]) > end - 60 && Number(columns.time[at]) <= end,
  );
  return values.length
    ? values.reduce((/** @type {number} */ sum, value) => sum + Number(value), 0) / values.length
    : null;
}

/** What happened, newest first. @param {{events: import("./state.js").ServerEvent[]}} props */
function Events({ events }) {
  if (!events.length) return html`<p class="nothing">Nothing happened to the server in the last ten minutes.</p>`;
  return html`<ul class="events" aria-label="What happened">
    ${events
      .toReversed()
      .slice(0, 8)
      .map(
        ({ time, kind, text, number }) => html`<li key=${number} class=${BAD.has(kind) ? "bad" : ""}><time>${clock(time)}</time>
        ${text}</li>`,
      )}
  </ul>`;
}
