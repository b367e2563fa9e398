// Numbers as people read them. Knows nothing of where they come from.

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** @param {number} value */
export function count(value) {
  return NUMBER.format(value);
}

/** A number of things, with their name. @param {number} value @param {string} one @param {string} [many] */
export function counted(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

/** A rate of tokens: one digit while it is small. @param {number | null | undefined} value */
export function rate(value) {
  if (value === null || value === undefined) return "–";
  return value > 0 && value < 10 ? value.toFixed(1) : count(value);
}

/** @param {number} share 0 to 1 */
export function percent(share) {
  return `${Math.round(share * 100)}\u00a0%`;
}

/** A duration in at most two units: "0.23 s", "4.1 s", "2 min 5 s", "3 h 10 min". @param {number | null} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 1) return `${seconds.toFixed(2)} s`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return both(seconds, 60, "min", 1, "s");
  if (seconds < 172800) return both(seconds, 3600, "h", 60, "min");
  return both(seconds, 86400, "d", 3600, "h");
}

/** @param {number} seconds @param {number} large @param {string} name @param {number} small @param {string} rest */
function both(seconds, large, name, small, rest) {
  const whole = Math.floor(seconds / large);
  const left = Math.floor((seconds - whole * large) / small);
  return left ? `${whole} ${name} ${left} ${rest}` : `${whole} ${name}`;
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

/** @param {number} value */
export function bytes(value) {
  const unit = Math.min(UNITS.length - 1, value < 1 ? 0 : Math.floor(Math.log2(value) / 10));
  const shown = value / 1024 ** unit;
  return `${unit && shown < 10 ? shown.toFixed(1) : Math.round(shown)} ${UNITS[unit]}`;
}

/** The time of day. @param {number} unix seconds */
export function clock(unix) {
  return new Date(unix * 1000).toLocaleTimeString("en-GB");
}
