// What the live stream tells, put together: snapshots, additions, seconds without rows.
import assert from "node:assert/strict";
import { test } from "node:test";
import { bytes, duration, percent, rate } from "../../server/ggufd/web/live/format.js";
import { columnsOf, latest, merge, others } from "../../server/ggufd/web/live/state.js";

const COLUMNS = ["time", "read", "written", "waiting", "first_p50"];

function message(time, { object = "live.update", rows = [], requests = [], events = [], ...rest } = {}) {
  return { object, time, history: { columns: COLUMNS, rows }, requests, events, slots: [], totals: {}, ...rest };
}

const row = (time, written = 5) => [time, 1, written, 2, 0.3];

test("a snapshot begins anew", () => {
  const old = message(10, { rows: [row(9)], requests: [{ number: 1 }] });
  const fresh = message(20, { object: "live.snapshot", rows: [row(19)] });
  assert.deepEqual(merge(old, fresh), fresh);
  assert.deepEqual(merge(null, fresh), fresh);
});

test("an update adds to the lists and replaces the rest", () => {
  const first = message(100, {
    object: "live.snapshot",
    rows: [row(99)],
    requests: [{ number: 1 }],
    events: [{ number: 1 }],
    slots: [1],
  });
  const next = merge(first, message(101, { rows: [row(101)], requests: [{ number: 2 }], slots: [2] }));
  assert.deepEqual(
    next.history.rows.map(([time]) => time),
    [99, 101],
  );
  assert.deepEqual(
    next.requests.map(({ number }) => number),
    [1, 2],
  );
  assert.deepEqual(
    next.events.map(({ number }) => number),
    [1],
  );
  assert.deepEqual(next.slots, [2]);
});

test("what is older than ten minutes goes, and lists stay bounded", () => {
  let state = message(0, { object: "live.snapshot" });
  for (let at = 1; at <= 700; at++)
    state = merge(state, message(at, { rows: [row(at)], requests: [{ number: at }], events: [{ number: at }] }));
  assert.equal(state.history.rows[0][0], 100);
  assert.deepEqual([state.requests.length, state.requests.at(-1).number], [50, 700]);
  assert.equal(state.events.length, 100);
});

test("a line goes down to nothing where nobody asked, and unknown is not nothing", () => {
  const state = message(1000, { rows: [row(500), row(501), row(900)] });
  const { time, written, first_p50: first } = columnsOf(state);
  assert.deepEqual(time, [401, 499, 500, 501, 502, 899, 900, 901, 1000]);
  assert.deepEqual(written, [0, 0, 5, 5, 0, 0, 5, 0, 0]);
  assert.deepEqual(first, [null, null, 0.3, 0.3, null, null, 0.3, null, null]);
});

test("the latest value is one that is known, of a row of now", () => {
  assert.equal(latest(message(11, { rows: [row(9, 7), row(10, null)] }), "written"), 7);
  assert.equal(latest(message(11, { rows: [row(2, 7), row(10, null)] }), "written"), null);
  assert.equal(latest(message(20, { rows: [row(10)] }), "written"), 0);
  assert.equal(latest(message(20, { rows: [row(10)] }), "first_p50"), null);
  assert.equal(latest(message(20), "waiting"), 0);
});

test("what others do is what is left of the totals", () => {
  const slots = [{ state: "writing", request: 1 }, { state: "idle" }];
  assert.deepEqual(others(message(1, { slots, totals: { reading: 1, writing: 2, keeping: 3 } })), {
    busy: 2,
    keeping: 2,
  });
});

test("numbers as people read them", () => {
  const seconds = [0.05, 0.234, 4.06, 59, 125, 3600, 90000, 200000];
  assert.deepEqual(seconds.map(duration), ["50 ms", "0.23 s", "4.1 s", "59 s", "2 min 5 s", "1 h", "25 h", "2 d 7 h"]);
  assert.equal(duration(null), "–");
  assert.deepEqual([0, 900, 1536, 5 * 2 ** 30, 12 * 2 ** 20].map(bytes), [
    "0 B",
    "900 B",
    "1.5 KiB",
    "5.0 GiB",
    "12 MiB",
  ]);
  assert.deepEqual([0, 0.5, 12.4, 1234, null].map(rate), ["0", "0.5", "12", "1,234", "–"]);
  assert.equal(percent(0.256), "26\u00a0%");
});
