// What the live stream has told: whole states replaced, growing lists put together. Nothing here touches the page.

/**
 * @typedef {object} Slot
 * @property {number} id
 * @property {string | null} owner
 * @property {"reading" | "writing" | "idle" | "empty"} state
 * @property {number} seconds
 * @property {number} tokens
 * @property {number | string} [request]
 * @property {string} [replica] where it is, in a cluster
 * @property {number} [prompt_tokens]
 * @property {number} [cached_tokens]
 * @property {number} [computed_tokens]
 * @property {number} [completion_tokens]
 * @property {number | null} [tokens_per_s]
 */

/**
 * @typedef {object} Waiting
 * @property {number | string} request
 * @property {string} [replica]
 * @property {"waiting" | "running"} state
 * @property {number | null} position
 * @property {number | null} eta_s
 * @property {string | null} owner
 * @property {number} age_s
 * @property {number} prompt_tokens
 * @property {number} priority
 * @property {string} [model] another model that it waits for
 */

/**
 * @typedef {object} Account
 * @property {string | null} name
 * @property {number} weight
 * @property {number | null} max_running
 * @property {number | null} max_waiting
 * @property {number | null} tokens_per_minute
 * @property {number} running
 * @property {number} waiting
 * @property {number} served
 * @property {number} share
 * @property {number | null} fair_share
 * @property {number} refusals
 */

/**
 * @typedef {object} Ended
 * @property {number} number
 * @property {string} [replica]
 * @property {number} time
 * @property {string | null} owner
 * @property {string} path
 * @property {number} status
 * @property {string} reason
 * @property {number} prompt_tokens
 * @property {number} cached_tokens
 * @property {number} completion_tokens
 * @property {"continued" | "parted" | "new" | null} cache
 * @property {number | null} queue_s
 * @property {number | null} first_s
 * @property {number | null} took_s
 * @property {number | null} tokens_per_s
 */

/** @typedef {{number: number, time: number, kind: string, text: string}} ServerEvent */
/** @typedef {{id: number, name: string, scale: number}} Adapter */

/** @typedef {{model: string, state: string, running: number, waiting: number}} Beside */

/**
 * @typedef {object} Server
 * @property {string} state
 * @property {string} trouble
 * @property {string} model
 * @property {string} version
 * @property {number | null} n_ctx
 * @property {number | null} slots
 * @property {Adapter[]} adapters
 * @property {"all" | "own"} sees
 * @property {string | null} you
 * @property {boolean} has_keys
 * @property {boolean} is_admin
 * @property {boolean} can_load
 * @property {boolean} can_save
 * @property {Beside[]} [beside] - models that stay loaded beside it
 * @property {Replica[]} [replicas] of a cluster
 */

/** @typedef {{running: number, waiting: number, slots: number, reading: number, writing: number, keeping: number}}
  Totals */
/** @typedef {{id: string, state: string, model: string} & Totals} Replica */

/**
 * @typedef {object} Cache
 * @property {number} cached_tokens
 * @property {number} computed_tokens
 * @property {{tokens: number, limit_tokens: number, bytes: number, limit_bytes: number, evictions: number}} slots
 * @property {{bytes: number, limit_bytes: number, hits: number, evictions: number}} ram
 * @property {{bytes: number, limit_bytes: number, hits: number}} disk
 */

/** @typedef {Array<number | null>} Row */

/**
 * A batch that has not ended; times are Unix seconds.
 * @typedef {object} Batch
 * @property {string} id
 * @property {string} [replica]
 * @property {string | null} owner
 * @property {string} state
 * @property {string} endpoint
 * @property {number} lines
 * @property {number} lines_left
 * @property {number} lines_failed
 * @property {number} expires_at
 */

/**
 * @typedef {object} LiveState
 * @property {string} object
 * @property {number} time
 * @property {number | null} age_s
 * @property {Server} server
 * @property {Totals} totals
 * @property {Slot[]} slots
 * @property {Waiting[]} queue
 * @property {Batch[]} batches
 * @property {Account[]} keys
 * @property {Cache | null} cache
 * @property {{columns: string[], rows: Row[]}} history
 * @property {Ended[]} requests
 * @property {ServerEvent[]} events
 */

export const HISTORY_S = 600;
const MAX_REQUESTS = 50;
const MAX_EVENTS = 100;

/**
 * The state after a message. A snapshot begins anew; of an update the lists that grow are added to what there was.
 * @param {LiveState | null} before
 * @param {LiveState} message
 * @returns {LiveState}
 */
export function merge(before, message) {
  if (before === null || message.object === "live.snapshot") return message;
  const rows = [...before.history.rows, ...message.history.rows];
  return {
    ...message,
    history: { ...message.history, rows: rows.filter((row) => message.time - Number(row[0]) <= HISTORY_S) },
    requests: [...before.requests, ...message.requests].slice(-MAX_REQUESTS),
    events: [...before.events, ...message.events].slice(-MAX_EVENTS),
  };
}

/** Columns that stand at nothing while nobody asks; of the others nothing is known then. */
const AT_REST = new Set(["read", "written", "waiting", "running", "refused"]);
const GAP_S = 2.5;
const RECENT_S = 6;

/**
 * Columns of the history by name, for a plot. Where there were no rows nothing ran: the line goes down to 0 between.
 * @param {LiveState} state
 * @returns {Record<string, Array<number | null>>}
 */
export function columnsOf(state) {
  const { columns, rows } = state.history;
  /** @type {Row[]} */
  const filled = [];
  let last = state.time - HISTORY_S;
  for (const row of rows) {
    const time = Number(row[0]);
    if (time - last > GAP_S) filled.push(rest(columns, last + 1), rest(columns, time - 1));
    filled.push(row);
    last = time;
  }
  if (state.time - last > GAP_S) filled.push(rest(columns, last + 1), rest(columns, state.time));
  return Object.fromEntries(columns.map((name, at) => [name, filled.map((row) => row[at])]));
}

/** @param {string[]} columns @param {number} time @returns {Row} */
function rest(columns, time) {
  return columns.map((name) => (name === "time" ? time : AT_REST.has(name) ? 0 : null));
}

/**
 * The latest value of a column that is known, as long as it is of now. A busy engine may take seconds to tell.
 * @param {LiveState} state @param {string} name
 * @returns {number | null}
 */
export function latest(state, name) {
  const at = state.history.columns.indexOf(name);
  const recent = state.history.rows.filter((row) => state.time - Number(row[0]) <= RECENT_S);
  if (!recent.length || state.time - Number(recent.at(-1)?.[0]) > GAP_S) return AT_REST.has(name) ? 0 : null;
  return recent.findLast((row) => row[at] !== null)?.[at] ?? null;
}

/**
 * Slots that others hold or keep, where only one's own are shown.
 * @param {LiveState} state
 * @returns {{busy: number, keeping: number}}
 */
export function others(state) {
  const busy = state.slots.filter((slot) => slot.request !== undefined).length;
  const keeping = state.slots.filter((slot) => slot.state === "idle").length;
  const { reading, writing } = state.totals;
  return { busy: Math.max(0, reading + writing - busy), keeping: Math.max(0, state.totals.keeping - keeping) };
}
