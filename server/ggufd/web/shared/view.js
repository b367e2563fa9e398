// What every component is made of: preact, its hooks, signals, and `html` for templates.
import { h, htm } from "../vendor/preact.js";

export * from "../vendor/preact.js";

export const html = htm.bind(h);
